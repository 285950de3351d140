"""Pictures of several panels: aggregates with intervals, performance profiles, learning curves of many tasks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeprl.envs.bounds import UNBOUNDED, Bounds
from deeprl.reporting.curves import Curve, as_png, draw_curves, new_page, plain, short, style_axes, style_of
from deeprl.reporting.overall import Estimate
from deeprl.reporting.stats import Array, efficiency_curve, profile_band

_COLUMNS = 3
_LEVELS = 101  # thresholds of a profile


def interval_panels(panels: Mapping[str, Mapping[str, Estimate]], order: Sequence[str]) -> bytes:
    """PNG of a panel for each title: of each algorithm a bar from low to high, and its value as a line across it.

    order: of names, top to bottom; a name has its colour by its place there. What is NaN is left out.
    """
    shown = [name for name in order if any(name in own for own in panels.values())]
    columns = min(_COLUMNS if len(panels) != 4 else 4, len(panels))
    lines = math.ceil(len(panels) / columns)
    page = new_page(lines * (0.6 + 0.24 * len(shown)), 1, width=max(7.0, 2.4 * columns))
    grid = page.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, estimates) in zip(grid.flat, panels.items(), strict=False):
        for k, name in enumerate(shown):
            if name in estimates and math.isfinite(estimates[name].value):
                _draw_interval(axes, k, estimates[name], style_of(order.index(name))[0])
        axes.set_title(plain(textwrap.fill(title, 34)), fontsize="medium")
        axes.set_yticks(range(len(shown)), [plain(textwrap.fill(name, 32)) for name in shown])
        axes.use_sticky_edges = False
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(short)
        axes.tick_params(labelsize="small")
        axes.locator_params(axis="x", nbins=4)
        axes.grid(True, axis="x", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return as_png(page, 0)


def _draw_interval(axes: Any, place: int, found: Estimate, colour: str) -> None:
    low, high = (x if math.isfinite(x) else found.value for x in (found.low, found.high))
    axes.barh(place, high - low, left=low, height=0.6, color=colour, alpha=0.6)
    axes.plot([found.value] * 2, [place - 0.3, place + 0.3], color="black", linewidth=1.5)


def profile_picture(scores: Mapping[str, Array], order: Sequence[str]) -> bytes:
    """PNG of the performance profiles of normalised scores [runs, tasks] with their 95 % bands."""
    levels = np.linspace(*_span(scores), _LEVELS)
    page = new_page(3.6, math.ceil(len(scores) / 2))
    axes = page.subplots()
    for name in (name for name in order if name in scores):
        colour, line = style_of(order.index(name))
        share, least, most = profile_band(scores[name], levels)
        label = plain(f"{name} ({scores[name].size} runs)")
        axes.plot(levels, share, color=colour, linestyle=line, linewidth=2.0, label=label)
        axes.fill_between(levels, least, most, color=colour, alpha=0.18, linewidth=0)
    style_axes(axes, "Share of runs above it")
    axes.set_xlabel("Normalised score")
    return as_png(page)


def efficiency_picture(steps: Sequence[int], tables: Mapping[str, Array], order: Sequence[str], unit: str) -> bytes:
    """PNG of the IQM of normalised scores [runs, tasks, steps] by step, with its 95 % bands."""
    page = new_page(3.6, math.ceil(len(tables) / 2))
    axes = page.subplots()
    for name in (name for name in order if name in tables):
        colour, line = style_of(order.index(name))
        value, low, high = efficiency_curve(tables[name])
        axes.plot(steps, value, color=colour, linestyle=line, linewidth=2.0, label=plain(name))
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    style_axes(axes, "IQM of normalised scores")
    axes.set_xlabel(f"{unit.capitalize()} of one agent")
    return as_png(page)


def _span(scores: Mapping[str, Array]) -> tuple[float, float]:
    """From the least score, or 0 if that is below, to the greatest."""
    least, most = (float(f([f(table) for table in scores.values()])) for f in (np.min, np.max))
    return min(0.0, least), max(most, least + 1e-9)


def curves_picture(
    tasks: Mapping[str, Mapping[str, Sequence[Curve]]],
    order: Sequence[str],
    units: Mapping[str, str],
    bounds: Mapping[str, Bounds],
) -> bytes:
    """PNG of the learning curves of many tasks, a panel each: the mean over seeds and its 95 % band.

    tasks: the curve of every seed by title and name. A name has its style by its place in `order`.
    """
    columns = min(_COLUMNS, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    names = [name for name in order if any(name in own for own in tasks.values())]
    page = new_page(2.1 * lines, math.ceil(len(names) / 2), width=3.0 * columns)
    grid = page.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    told: set[str] = set()
    for axes, (title, curves) in zip(grid.flat, tasks.items(), strict=False):
        for name in (name for name in names if name in curves):
            label, style = ("" if name in told else name), style_of(order.index(name))
            if draw_curves(axes, label, "", curves[name], *style, bounds=bounds.get(title, UNBOUNDED)):
                told.add(name)
        axes.set_title(plain(textwrap.fill(title, 34)), fontsize="medium")
        style_axes(axes, "")
        axes.tick_params(labelsize="small")
        axes.locator_params(nbins=4)
        axes.set_xlabel(units[title], fontsize="small")
    return as_png(page)
