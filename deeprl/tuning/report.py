"""What a study says: on a screen, and as a page."""

from __future__ import annotations

import numpy as np

from deeprl.reporting.stats import mean_interval
from deeprl.tuning.trials import Score
from deeprl.tuning.tune import Tuned


def told(found: Tuned) -> str:
    """What was found, in a few lines."""
    lines = [f"winner: trial {found.winner.number}, {found.winner.value:,.1f} on the tuning seeds"]
    lines += [f"  {name} = {value}" for name, value in found.settings.items()]
    lines += [f"test: winner {_shown(found.test)}, default {_shown(found.default)}", f"recipe: {found.recipe}"]
    return "\n".join(lines)


def _shown(score: Score) -> str:
    values = [value for value in score.seeds if value is not None]
    diverged = f", {len(score.seeds) - len(values)} diverged" if len(values) < len(score.seeds) else ""
    if not values:
        return "nothing: all diverged"
    low, high = mean_interval(values)
    return f"{np.mean(values):,.1f} ({low:,.1f} to {high:,.1f}, {len(values)} seeds{diverged})"
