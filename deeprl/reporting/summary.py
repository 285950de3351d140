"""`summary.csv` of a report: the final policies of each cell."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprl.reporting.cells import Cell
from deeprl.reporting.read import Pairs, unit_name
from deeprl.reporting.stats import bootstrap_interval, iqm, mean_interval

Rows = Sequence[dict[str, Any]]


def summarise(cell: Cell, pairs: Pairs) -> dict[str, Any]:
    """One row of `summary.csv`: the final policies of the agents of a cell. Statistics of non-finite values are NaN."""
    finals = [agent.final for _, agent in pairs]
    values = np.array([final.mean for final in finals])
    mean = std = middle = math.nan
    interval = boot = (math.nan, math.nan)
    if np.isfinite(values).all():
        mean, interval, middle = float(values.mean()), mean_interval(values), iqm(values)
        std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        boot = bootstrap_interval(values)
    runs = {run.name: run for run, _ in pairs}.values()
    episodes = sorted({len(final.returns) for final in finals})
    return {
        **{"algorithm": cell.algorithm, "env": cell.env, "label": cell.label, "settings": cell.settings},
        **{"cell": cell.key, "unit": unit_name(pairs)},
        "seeds": len(values),
        "step": max(final.step for final in finals),
        "step_min": min(final.step for final in finals),
        **{"mean": mean, "mean_lo": interval[0], "mean_hi": interval[1], "std": std},
        **{"iqm": middle, "iqm_lo": boot[0], "iqm_hi": boot[1]},
        **dict(zip(("score", "score_lo", "score_hi"), (score_of(pairs, x) for x in (mean, *interval)), strict=True)),
        "values": " ".join(f"{agent.seed}:{agent.final.mean!r}" for _, agent in pairs),
        "episodes": "/".join(map(str, episodes)),
        "wall_s": sum(run.number("wall_s") for run in runs),
        "updates_per_s": float(np.mean([run.number("updates_per_s") for run in runs])),
        "frozen_seeds": " ".join(str(agent.seed) for _, agent in pairs if agent.frozen is not None),
    }


def score_of(pairs: Pairs, ret: float) -> float:
    """The score of a return; NaN where there is none, or where the runs of a cell have others."""
    alike = len({run.references for run, _ in pairs}) == 1
    score = pairs[0][0].score(ret) if alike else None
    return math.nan if score is None else score


def write_summary(path: Path, summary: Rows) -> None:
    """A row for each cell; NaN becomes empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(summary[0] if summary else [])
        for row in summary:
            writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row.values()])
