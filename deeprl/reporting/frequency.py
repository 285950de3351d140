"""The frequency-averaged score (FAS) of returns at several decision periods.

Patel & Siegelmann 2025, arXiv 2410.08979; constants and rule as in dee0512/Sequence-Reinforcement-Learning,
scripts/eval_sac.py and notebooks/table2.ipynb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deeprl.errors import DeeprlError
from deeprl.reporting.curves import as_png, draw_curves, new_page, plain, style_axes, style_of

PERIODS = (1, *range(2, 31, 2))  # at which returns are measured


class ReturnRange(NamedTuple):
    """What a return is measured by: `best` is the largest one after `offset` has been added."""

    best: float
    offset: float = 0.0


# The authors' constants, by the name of the environment without its version.
RANGES = {
    "Pendulum": ReturnRange(1350.0, 1550.0),
    "LunarLander": ReturnRange(300.0),
    "LunarLanderContinuous": ReturnRange(300.0),
    "Hopper": ReturnRange(3600.0),
    "Walker2d": ReturnRange(5000.0),
    "Ant": ReturnRange(6500.0),
    "HalfCheetah": ReturnRange(17000.0),
    "Humanoid": ReturnRange(10500.0),
    "InvertedPendulum": ReturnRange(1000.0),
    "InvertedDoublePendulum": ReturnRange(9400.0),
    "Reacher": ReturnRange(60.0, 65.0),
    "Swimmer": ReturnRange(350.0),
}


def return_range(env: str) -> ReturnRange:
    """The authors' constants of an environment. Raises DeeprlError where they have none."""
    found = RANGES.get(env.partition("-v")[0])
    if found is None:
        raise DeeprlError(f"{env} has no published range of returns for the FAS: give one, --return-range BEST OFFSET")
    return found


def fas(returns: Mapping[int, float], measure: ReturnRange) -> float:
    """The area under the returns at `PERIODS`, by trapezia from 1 to 30, of that of a return of `best` over 30.

    A return of `best` at each period thus scores 29 / 30. Raises DeeprlError where a period is missing.
    """
    if missing := [p for p in PERIODS if p not in returns]:
        raise DeeprlError(f"FAS: no return at decision period {', '.join(map(str, missing))}")
    heights = np.array([returns[p] + measure.offset for p in PERIODS], np.float64)
    widths = np.diff(np.array(PERIODS, np.float64))
    return float((widths * (heights[1:] + heights[:-1]) / 2.0).sum() / (measure.best * PERIODS[-1]))


def steady(returns: Mapping[str, float]) -> dict[int, float]:
    """Returns by period, of periods as text, without those that are drawn for each decision."""
    return {int(period): value for period, value in returns.items() if period.isdecimal()}


def score(returns: Mapping[str, float], env: str) -> float:
    """The FAS of returns by period as text, NaN where a period or the published range of returns is missing."""
    known = env.partition("-v")[0] in RANGES and {str(period) for period in PERIODS} <= set(returns)
    return fas(steady(returns), return_range(env)) if known else float("nan")


def drawn_by_period(env: str, returns: Mapping[str, Sequence[Mapping[int, float]]]) -> bytes:
    """PNG of returns by decision period: of each name the mean over agents and its 95 % band.

    returns: name -> the mean return of each agent by period.
    """
    page = new_page(4.2, -(-len(returns) // 2))
    axes = page.subplots()
    for k, (name, agents) in enumerate(returns.items()):
        draw_curves(axes, name, f"n = {len(agents)}", agents, *style_of(k), marker="o")
    axes.set_title(plain(env), fontweight="bold")
    style_axes(axes, "Evaluation return")
    axes.set_xlabel("Steps of the environment for each decision")
    return as_png(page)
