"""The frequency-averaged score (FAS) of returns at several decision periods.

Patel & Siegelmann 2025, arXiv 2410.08979; constants and rule as in dee0512/Sequence-Reinforcement-Learning,
scripts/eval_sac.py and notebooks/table2.ipynb.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from deeprl.errors import DeeprlError
from deeprl.reporting.stats import mean_band

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


def score(returns: Mapping[str, float], env: str) -> float:
    """The FAS of returns by period as text, NaN where a period or the published range of returns is missing."""
    steady = {int(period): value for period, value in returns.items() if period.isdecimal()}
    known = env.partition("-v")[0] in RANGES and set(PERIODS) <= set(steady)
    return fas(steady, return_range(env)) if known else float("nan")


def drawn_by_period(env: str, returns: Mapping[str, Mapping[int, Sequence[float]]]) -> bytes:
    """PNG of returns by decision period: of each name the mean over agents and its 95 % band.

    returns: name -> period -> the mean return of each agent.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from deeprl.reporting.curves import COLOURS, LINES, plain, style_axes

    page = Figure(figsize=(7.0, 4.2 + 0.22 * ((len(returns) + 1) // 2)), dpi=150, layout="constrained")
    FigureCanvasAgg(page)
    axes = page.subplots()
    for k, (name, by_period) in enumerate(returns.items()):
        periods = sorted(by_period)
        values: Float[np.ndarray, "agents periods"] = np.array([by_period[p] for p in periods], np.float64).T
        mean, low, high = mean_band(values)
        how: dict[str, Any] = {"linewidth": 2.0, "marker": "o", "markersize": 3, "linestyle": LINES[k // 7 % 4]}
        axes.plot(periods, mean, color=COLOURS[k % 7], label=f"{plain(name)} (n = {len(values)})", **how)
        axes.fill_between(periods, low, high, color=COLOURS[k % 7], alpha=0.18, linewidth=0)
    axes.set_title(plain(env), fontweight="bold")
    style_axes(axes, "Evaluation return")
    axes.set_xlabel("Steps of the environment for each decision")
    page.legend(loc="outside lower center", ncols=2, frameon=False)
    buffer = io.BytesIO()
    page.savefig(buffer, format="png")
    return buffer.getvalue()
