"""Successive halving over populations: many settings for few steps, the better ones for more.

At each rung (a number of steps) `eta` populations of trials have been trained; the best of all their trials, as many as
one population holds, go on together as one, taken out of where they stand (`run.gather`), and the others are pruned. So
the place of a trial that is pruned goes to the next one, and every population is full (Jamieson & Talwalkar 2016,
arXiv 1502.07943; `eta` and rungs as in Hyperband, arXiv 1603.06560).

Trials are ranked once all of their rung are there, so that it makes no difference which was told first.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from deeprl.errors import DeeprlError


def rungs_of(steps: int, eval_every: int, eta: int, count: int) -> tuple[int, ...]:
    """The steps of each rung, the last of which is all: steps / eta^k, at an evaluation.

    Raises DeeprlError where two of them are the same.
    """
    if not eval_every:
        raise DeeprlError("eval_every: halving needs evaluations before the end")
    found = [max(eval_every, round(steps / eta**k / eval_every) * eval_every) for k in range(count - 1, 0, -1)] + [
        steps
    ]
    if any(b <= a for a, b in itertools.pairwise(found)):
        raise DeeprlError(
            f"rungs: {count} of them, by a factor of {eta}, have no evaluation each: {found}; see eval_every"
        )
    return tuple(found)


def promoted(values: Mapping[int, float | None], places: int) -> tuple[list[int], list[int]]:
    """Which trials of a rung go on, the best first, and which are pruned; those that failed (None) are neither."""
    whole = [number for number, value in values.items() if value is not None]
    order = sorted(whole, key=lambda number: (-(values[number] or 0.0), number))
    return order[:places], order[places:]


def cohort(waiting: Sequence[int], width: int, eta: int, more: bool) -> tuple[list[int], int]:
    """Trials to rank now, in the order in which they came to their rung, and how many of them go on.

    waiting: those that nothing has been decided of. more: whether others will come; without them the rest is ranked, of
    which one in `eta` goes on.
    """
    if len(waiting) >= eta * width:
        return list(waiting[: eta * width]), width
    if more or not waiting:
        return [], 0
    return list(waiting), max(1, len(waiting) // eta)
