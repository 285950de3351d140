"""Others beside our cells: published curves and peers' files, at a step that both have recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprl.reporting.cells import Cell
from deeprl.reporting.curves import Published, labelled, read_published
from deeprl.reporting.pairwise import Difference, holm, verdict, welch
from deeprl.reporting.peers import Peer, read_peer
from deeprl.reporting.read import Pairs
from deeprl.reporting.stats import mean_interval
from deeprl.reporting.wording import interval_text, number_text, with_interval

OTHERS_HEADER = (
    *("Environment", "Cell", "Step", "Mean return", "Other", "Its step", "Its mean return"),
    *("Difference", "95 % interval", "Holm's p", "Ours is"),
)


def read_others(published: Sequence[str | Path], peers: Sequence[Peer]) -> dict[str, Published]:
    """Curves of others by environment and name. One name in two files is told apart by the file.

    Raises DeeprlError for a file that cannot be read.
    """
    found: dict[str, Published] = {}
    for path in published:
        for env, curves in read_published(path).items():
            own = found.setdefault(env, {})
            for name, seeds in labelled(curves, "published").items():
                own[f"{name} ({Path(path).stem})" if name in own else name] = seeds
    for peer in peers:
        for env, seeds in read_peer(peer).items():
            own = found.setdefault(env, {})
            (name,) = labelled({peer.name: seeds}, "peer")
            own[f"{name} ({peer.path})" if name in own else name] = seeds
    return found


def beside_others(
    figures: Mapping[tuple[str, str], Mapping[Cell, Pairs]], others: Mapping[str, Published]
) -> tuple[list[Sequence[Any]], list[str]]:
    """Rows with the columns `OTHERS_HEADER`, of every cell and other that have looked by the same time, and lines
    about the others."""
    met, tests, left_out = [], [], []
    for (env, _), cells in figures.items():
        for cell, pairs in cells.items():
            for name, curves in others.get(env, {}).items():
                last = min(agent.final.step for _, agent in pairs)
                common = [s for s in set.intersection(*map(set, curves)) if s <= last]
                if not common or not (ours := _values(pairs, max(common))):
                    left_out.append(
                        f"{env}: {name}, has no step up to the last of {cell.name} that both have recorded."
                    )
                    continue
                theirs = [curve[max(common)] for curve in curves]
                finite = np.isfinite([*ours[1], *theirs]).all()
                met.append((env, cell.name, ours, name, (max(common), theirs)))
                tests.append(welch(ours[1], theirs) if finite else Difference(*[math.nan] * 4))
    adjusted = holm(test.p for test in tests)
    rows: list[Sequence[Any]] = [
        (env, cell, f"{ours[0]:,}", _mean(ours[1]), name, f"{theirs[0]:,}", _mean(theirs[1]),
         number_text(test.value), interval_text(test.low, test.high), number_text(p), verdict(test, p))
        for (env, cell, ours, name, theirs), test, p in zip(met, tests, adjusted, strict=True)
    ]  # fmt: skip
    return rows, left_out


def _values(pairs: Pairs, step: int) -> tuple[int, list[float]] | None:
    """Returns of all seeds at their last common evaluation up to a step; None where there is none."""
    curves = [{at.step: at.mean for at in agent.evaluations} for _, agent in pairs]
    common = [s for s in set.intersection(*map(set, curves)) if s <= step]
    return (max(common), [curve[max(common)] for curve in curves]) if common else None


def _mean(values: Sequence[float]) -> str:
    if not np.isfinite(values).all():
        return number_text(math.nan)
    return f"{with_interval(float(np.mean(values)), *mean_interval(values))}, n = {len(values)}"
