"""Learning curves as pictures: the means and intervals of our cells, and published curves beside them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprl.envs.bounds import UNBOUNDED, Bounds, return_bounds
from deeprl.errors import DeeprlError
from deeprl.reporting.cells import Cell
from deeprl.reporting.read import Pairs, Pretraining
from deeprl.reporting.stats import mean_band

Curve = dict[int, float]  # return by step
Published = dict[str, list[Curve]]  # the curve of every seed, by algorithm

# Okabe & Ito's palette without its yellow, which is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v")
PUBLISHED_COLUMNS = ("algorithm", "env", "seed", "step", "return")


def read_published(path: str | Path) -> dict[str, Published]:
    """Curves that others have published, by environment: a CSV file with at least the columns `PUBLISHED_COLUMNS`.

    `step` counts what our figure of that environment counts: simulator steps of one agent, mostly. Raises DeeprlError
    for a file that cannot be read, named with its row.
    """
    found: dict[str, dict[str, dict[str, Curve]]] = {}
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [c for c in PUBLISHED_COLUMNS if c not in (reader.fieldnames or ())]:
                raise DeeprlError(f"{path} lacks the column {', '.join(missing)}")
            for row in reader:
                seeds = found.setdefault(row["env"], {}).setdefault(row["algorithm"], {})
                try:
                    seeds.setdefault(row["seed"], {})[int(row["step"])] = float(row["return"])
                except (TypeError, ValueError) as error:
                    raise DeeprlError(f"{path} row {reader.line_num} is broken: {error}") from error
    except OSError as error:
        raise DeeprlError(f"{path}: {error.strerror}") from error
    return {env: {name: list(seeds.values()) for name, seeds in names.items()} for env, names in found.items()}


def known_bounds(cells: Mapping[Cell, Pairs]) -> Bounds:
    """What returns of all these cells can be, infinite where that is not known."""
    found = []
    for pairs in cells.values():
        for run, _ in pairs:
            place = run.info.get("evaluated_in") or run.info["config"]
            given = place.get("env_kwargs"), place.get("wrappers") or ()
            found.append(return_bounds(str(place.get("env", "")), *given))
    return min(low for low, _ in found), max(high for _, high in found)


def plain(text: str) -> str:
    """A name as it is drawn: without a formula between its dollar signs, which matplotlib would look for."""
    return text.replace("$", r"\$")


def short(value: float | int, _position: float | int | None = None) -> str:
    """The label of a tick: 2,500 as 2.5k."""
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{suffix}".replace("-", "\N{MINUS SIGN}")
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def figure(env: str, cells: Mapping[Cell, Pairs], order: list[str], published: Published) -> tuple[bytes, list[str]]:
    """PNG of the learning curves of cells of one environment and unit, and lines about what is not drawn.

    A cell's name has its style by its place in `order` everywhere. Where agents began from others, what these had
    recorded is drawn left of zero, and below the returns there are the Q-values.
    """
    curves = {
        cell.name: [{at.step: at.mean for at in agent.evaluations} for _, agent in pairs]
        for cell, pairs in cells.items()
    }
    unit, bounds = next(iter(cells.values()))[0][0].unit.name, known_bounds(cells)
    if not any(agent.pretraining for pairs in cells.values() for _, agent in pairs):
        return picture(env, curves, order, published, unit, bounds=bounds)
    far = -max(max(curve) for online in curves.values() for curve in online)  # as far left as right
    recorded = {run.name: run.q() for pairs in cells.values() for run, _ in pairs}
    q: Published = {}
    cut = []
    for cell, pairs in cells.items():
        before = [agent.pretraining or Pretraining({}, {}) for _, agent in pairs]
        values = [recorded[run.name].get(agent.member, {}) for run, agent in pairs]
        curves[cell.name] = [_from(far, b.returns) | c for b, c in zip(before, curves[cell.name], strict=True)]
        q[cell.name] = [_from(far, b.q) | v for b, v in zip(before, values, strict=True)]
        if (first := min(step for b in before for step in (0, *b.returns, *b.q))) < far:
            cut.append(
                f"{env}, {cell.name}: offline steps {first:,} to {far:,} are not drawn: there are {-far:,} online."
            )
    drawn, left_out = picture(env, curves, order, published, unit, q, bounds=bounds)
    return drawn, cut + left_out


def _from(first: int, curve: Mapping[int, float]) -> Curve:
    return {step: value for step, value in curve.items() if step >= first}


def picture(
    env: str,
    ours: Published,
    order: list[str],
    published: Published,
    unit: str,
    q: Published | None = None,
    values: str = "Q-value in training",
    bounds: Bounds = UNBOUNDED,
) -> tuple[bytes, list[str]]:
    """PNG of our curves, and in grey those of others up to the last step of ours; lines about what is not drawn.

    q: curves of Q-values by name, for a second panel, where some of ours begin with offline steps, which are negative;
    values: what they are. published: as `labelled` names them. bounds: of all returns, which no band leaves.
    """
    below = {name: curves for name, curves in (q or {}).items() if any(curves)}
    columns = 1 if max(map(len, ours)) > 30 else 2  # of the legend
    page = new_page(6.8 if below else 4.2, math.ceil((len(ours) + len(published)) / columns))
    panels = page.subplots(2 if below else 1, sharex=True, squeeze=False)[:, 0]
    drawn = {name for name, curves in ours.items() if _draw_ours(panels[0], name, curves, order, bounds)}
    left_out = [f"{env}, {name}: no finite return, so no curve." for name in ours if name not in drawn]
    reached = max(max(curve) for curves in ours.values() for curve in curves)
    left_out += _draw_published(panels[0], env, published, reached, bounds)
    for name, curves in below.items():
        _draw_ours(panels[1], name, curves, order, UNBOUNDED, named=name not in drawn)
    panels[0].set_title(plain(env), fontweight="bold")
    for axes, what in zip(panels, ("Evaluation return", values), strict=False):
        style_axes(axes, what)
        if q is not None:
            _mark_switch(axes)
    right = f"{unit.capitalize()} of one agent"
    panels[-1].set_xlabel(right if q is None else f"Left of 0: offline gradient steps; right: {unit} of one agent")
    return as_png(page, columns), left_out


def new_page(height: float, rows: int, width: float = 7.0) -> Any:
    """An empty figure, of a width and a height in inches beside the rows of its legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page = Figure(figsize=(width, height + 0.22 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(page)  # attaches itself
    return page


def as_png(page: Any, columns: int = 2) -> bytes:
    """A figure with its legend below, of so many columns; 0: none."""
    if columns:
        page.legend(loc="outside lower center", ncols=columns, frameon=False)
    buffer = io.BytesIO()
    page.savefig(buffer, format="png")
    return buffer.getvalue()


def style_axes(axes: Any, what: str) -> None:
    axes.set_ylabel(what)
    axes.xaxis.set_major_formatter(short)
    axes.yaxis.set_major_formatter(short)
    axes.grid(True, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)


def _mark_switch(axes: Any) -> None:
    """A line where offline steps end and online steps begin."""
    axes.axvline(0, color="#444444", linewidth=0.8)
    for text, side in (("offline ", "right"), (" online", "left")):
        place = {"transform": axes.get_xaxis_transform(), "ha": side, "va": "top"}
        axes.text(0, 0.99, text, color="#444444", fontsize="small", **place)


def _draw_ours(axes: Any, name: str, curves: list[Curve], order: list[str], bounds: Bounds, named: bool = True) -> bool:
    how = style_of(order.index(name))
    return draw_curves(axes, name if named else "", f"n = {len(curves)}", curves, *how, bounds=bounds)


def style_of(number: int) -> tuple[str, str]:
    """Colour and line of a curve of ours."""
    return COLOURS[number % 7], LINES[number // 7 % 4]


def labelled(published: Published, kind: str) -> Published:
    """Curves of others by the names that pictures and tables give them: `name, published`."""
    return {f"{name}, {kind}": seeds for name, seeds in published.items()}


def _draw_published(axes: Any, env: str, published: Published, reached: int, bounds: Bounds) -> list[str]:
    """Curves of others up to a step. Returns lines about those of which there is nothing to draw."""
    left_out = []
    for k, (name, seeds) in enumerate(sorted(published.items())):
        upto = [{step: value for step, value in curve.items() if step <= reached} for curve in seeds]
        how = "#777777", LINES[k % 4], MARKERS[k % 5]
        if not draw_curves(axes, name, f"n = {len(seeds)}", upto, *how, bounds=bounds):
            begins = min(step for curve in seeds for step in curve)
            left_out.append(f"{env}: {name}, is not drawn: it begins at {begins:,}, ours ends at {reached:,}.")
    return left_out


def draw_curves(
    axes: Any,
    name: str,
    count: str,
    curves: Sequence[Mapping[int, float]],
    colour: str,
    line: str,
    marker: str = "",
    bounds: Bounds = UNBOUNDED,
) -> bool:
    """Seeds, their mean and its band where they have steps in common. Returns whether there was anything to draw.

    name: in the legend with a count, or empty for none. marker: of the curve of others, whose single seeds are only
    drawn where there is no mean. bounds: which the band does not leave; the mean is drawn as it is.
    """
    curves = [{step: value for step, value in curve.items() if math.isfinite(value)} for curve in curves]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    alone = [curve for curve in curves if curve] if not common or not marker else []
    style: dict[str, Any] = {"color": colour, "linestyle": line}
    for k, curve in enumerate(alone):
        label = plain(f"{name} ({count}, no step in common)") if name and k == 0 and not common else None
        dots = marker if marker else "." if len(curve) == 1 else ""
        axes.plot(list(curve), list(curve.values()), linewidth=0.7, alpha=0.35, label=label, marker=dots, **style)
    if not common:
        return bool(alone)
    mean, low, high = mean_band(np.array([[curve[s] for s in common] for curve in curves]))
    low, high = np.minimum(np.maximum(low, bounds[0]), mean), np.maximum(np.minimum(high, bounds[1]), mean)
    # A cell of one evaluation is a point, which no line shows.
    marker = marker or ("o" if len(common) == 1 else "")
    label = plain(f"{name} ({count})" if count else name) if name else None
    axes.plot(common, mean, linewidth=2.0, marker=marker, label=label, **style)
    if len(common) == 1:
        axes.errorbar(common, mean, [[mean[0] - low[0]], [high[0] - mean[0]]], color=colour, capsize=3)
    axes.fill_between(common, low, high, color=colour, alpha=0.18, linewidth=0)
    return True
