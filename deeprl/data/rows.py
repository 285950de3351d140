"""From a recording to transitions: where episodes end, which rows have a successor, and which one it is.

Everything is read in pieces straight into its place among the final arrays, so that a dataset is never there twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deeprl.core.spec import EnvSpec
from deeprl.data import checks
from deeprl.data.files import Column, Recording
from deeprl.errors import DeeprlError
from deeprl.replay import Stored

_BLOCK = 2**16  # rows moved together

# --- episodes ---


class Episodes(NamedTuple):
    """Those of a recording: which rows terminate, and which are the last of theirs, [raw rows] bool; which episodes are
    complete, [raw episodes] bool."""

    terminal: np.ndarray
    last: np.ndarray
    complete: np.ndarray


def episode_ends(recording: Recording, limit: int | None, notes: list[str]) -> Episodes:
    """Where the episodes of a recording end.

    limit: steps of the environment's time limit, if it is known. notes: what is odd is appended. Raises DeeprlError.
    """
    file, columns = recording.file, recording.columns
    terminal = checks.flags(file, columns["terminals"])
    if "timeouts" in columns:
        timeout = checks.flags(file, columns["timeouts"])
        if both := int((terminal & timeout).sum()):
            notes.append(f"rows that are both terminations and truncations, taken as terminations: {both:,}")
    elif "next_observations" in columns:
        timeout = _breaks(recording) & ~terminal
        notes.append(_told_of_breaks(recording, terminal, timeout, limit))
    else:
        timeout = _timeouts(recording, terminal, limit)
        notes.append(f"timeouts: absent; episodes end at the limit of {limit} steps of {recording.env}")
    checks.check_ends(recording, terminal, timeout)
    last = terminal | timeout
    if recording.lengths is not None:
        last[np.cumsum(recording.lengths)[recording.lengths > 0] - 1] = True
    last[-1] = True
    stops = last & ~terminal & ~timeout
    if open_ends := int(stops.sum()):
        notes.append(f"recordings that stop without an end of their episode: {open_ends:,}")
    complete = _complete(recording, np.flatnonzero(last) + 1, terminal, stops, limit)
    if not complete.any():
        notes.append("no episode is complete: all count as if they were")
    return Episodes(terminal, last, complete)


def _complete(
    recording: Recording, ends: np.ndarray, terminal: np.ndarray, stops: np.ndarray, limit: int | None
) -> np.ndarray:
    """Which episodes ended by themselves or at their time limit, [raw episodes] bool.

    Files of our own tell. Those of earlier versions do not; there an episode was cut if it ends where the share of one
    policy does, before the time limit. In files of others flags are believed (an environment of today may have another
    limit than theirs had), and a last row without any has not ended an episode, unless the limit says so.
    """
    lengths = np.diff(ends, prepend=0)
    if recording.complete is not None:
        return checks.given_complete(recording.file, recording.complete, len(ends))
    complete = ~stops[ends - 1]
    if "timeouts" not in recording.columns:
        complete[-1] &= bool(terminal[-1]) or int(lengths[-1]) == limit
    if recording.own and limit is not None and recording.about.get("env") == recording.env:
        complete &= terminal[ends - 1] | (lengths >= limit) | ~np.isin(ends, _shares(recording.about))
    return complete


def _shares(about: dict[str, Any]) -> np.ndarray:
    """Where the shares of the policies end, in rows, that `dataset create` made a dataset of; of no other dataset."""
    steps, policies = about.get("steps"), about.get("policies")
    if not (isinstance(steps, int) and isinstance(policies, list) and policies):
        return np.empty(0)
    return np.floor(steps * np.arange(1, len(policies) + 1) / len(policies) + 0.5)


def _timeouts(recording: Recording, terminal: np.ndarray, limit: int | None) -> np.ndarray:
    """Ends by the time limit, counted from the end before."""
    if limit is None:
        hint = (
            f"; {recording.env} has none, or cannot be made here" if recording.env else "; name the environment (--env)"
        )
        raise DeeprlError(
            f"{recording.file}: timeouts: missing, from row 0 on, and the episodes' time limit is not known{hint}"
        )
    timeout = np.zeros_like(terminal)
    starts = [0, *(np.flatnonzero(terminal) + 1).tolist()]
    for start, end in zip(starts, [*starts[1:], len(terminal)], strict=True):
        timeout[start + limit - 1 : end : limit] = True
    return timeout & ~terminal


def _breaks(recording: Recording) -> np.ndarray:
    """Rows whose next observation is not the observation of the following row, and the last row: [raw rows] bool.

    Numbers of two types are compared as those of the shorter one.
    """
    obs, after = (recording.columns[key] for key in ("observations", "next_observations"))
    short = min((c.dtype if c.dtype.kind == "f" else np.dtype("f4") for c in (obs, after)), key=lambda d: d.itemsize)
    short = min(short, np.dtype("f4"), key=lambda d: d.itemsize)  # what is kept of both
    found, row = np.ones(obs.shape[0], bool), 0
    for following, reached in _side_by_side(_without_first_row(obs.pieces()), after.pieces()):
        here = slice(row, row + len(reached))
        found[here] = (following.astype(short, copy=False) != reached.astype(short, copy=False)).any(1)
        row += len(reached)
    return found


def _told_of_breaks(recording: Recording, terminal: np.ndarray, timeout: np.ndarray, limit: int | None) -> str:
    told = f"timeouts: absent; episodes end where next_observations do not go on in the next row: {timeout.sum():,}"
    ends = np.flatnonzero(terminal | timeout)
    longer = 0 if limit is None else int((np.diff(ends, prepend=-1) > limit).sum())
    return f"{told}; longer than the limit of {limit} steps of {recording.env}: {longer:,}" if longer else told


def _without_first_row(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    first = 1
    for piece in pieces:
        yield piece[first:]
        first = 0


def _side_by_side(first: Iterator[np.ndarray], second: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of two arrays, cut so that both have as many rows, as long as there are rows of both."""
    ours, theirs = next(first, None), next(second, None)
    while ours is not None and theirs is not None:
        count = min(len(ours), len(theirs))
        if count:
            yield ours[:count], theirs[:count]
        ours, theirs = ours[count:], theirs[count:]
        ours = ours if len(ours) else next(first, None)
        theirs = theirs if len(theirs) else next(second, None)


# --- transitions ---


def no_rows(spec: EnvSpec) -> tuple[Stored, Tensor, Tensor, Tensor]:
    """Empty arrays in place of those of `read_rows`."""
    obs, none = torch.empty(0, *spec.obs_shape), torch.empty(0, dtype=torch.bool)
    data = Stored(obs, torch.empty(0, spec.action_dim), torch.empty(0), none, none, obs)
    return data, torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64), none


def read_rows(
    recording: Recording,
    spec: EnvSpec,
    episodes: Episodes,
    clip: bool,
    notes: list[str],
    assumed: str = "",
) -> tuple[Stored, Tensor, Tensor, Tensor]:
    """All transitions, the ends [E] int64 and the returns [E] float64 of the episodes, and which of these are complete
    [E] bool, as in `datasets.Dataset`.

    episodes: what `episode_ends` gave. notes: what is odd is appended. assumed: why the bounds of the actions are not
    known, if they are not. Raises DeeprlError.
    """
    terminal, last, complete = episodes
    file, columns = recording.file, recording.columns
    known = "next_observations" in columns
    keep = np.ones_like(last) if known else ~last | terminal
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    counts = np.add.reduceat(keep, starts, dtype=np.int64)
    if dropped := len(keep) - int(counts.sum()):
        notes.append(f"rows left out, whose successor is not known: {dropped:,}")
    rows = int(_ends(file, counts)[-1])
    reward, returns = _rewards(file, columns["rewards"], keep, last, len(starts))
    terminated = torch.from_numpy(terminal[keep])
    obs, next_obs = (torch.empty((rows, *spec.obs_shape)) for _ in range(2))
    action = torch.empty((rows, spec.action_dim))
    if known:
        _fill(obs, checks.finite(file, columns["observations"]), keep)
        _fill(next_obs, checks.finite(file, columns["next_observations"]), keep)
    else:
        _fill_pairs(obs.numpy(), next_obs.numpy(), checks.finite(file, columns["observations"]), keep, terminal)
    clipped: list[int] = []
    exempt = "corruption" in recording.about and not clip  # corrupted on purpose
    bounds = spec.action_low, spec.action_high
    _fill(action, checks.scaled(file, columns["actions"], *bounds, clip, clipped, exempt, assumed), keep)
    if clipped[0]:
        then = "left there, as this dataset is corrupted" if exempt else "clipped"
        notes.append(f"numbers of actions beyond the bounds, {then}: {clipped[0]:,}")
    if recording.returns is not None:
        returns = checks.given_returns(file, recording.returns, len(starts))
    stored = Stored(obs, action, reward, terminated, torch.zeros_like(terminated), next_obs)
    if known and not recording.own:
        stored = _without_repeats(stored, counts, notes)
    ends = _ends(file, counts)
    stored.truncated[ends - 1] = ~stored.terminated[ends - 1]
    if empty := int((counts == 0).sum()):
        notes.append(f"episodes left out, of one row whose successor is not known: {empty:,}")
    return stored, torch.from_numpy(ends), torch.from_numpy(returns[counts > 0]), torch.from_numpy(complete[counts > 0])


def _ends(file: str, counts: np.ndarray) -> np.ndarray:
    """Ends of the episodes that have rows, from the numbers of rows of all. Raises DeeprlError if there is none."""
    if not counts.any():
        raise DeeprlError(f"{file}: observations: no row has a successor in its episode, from row 0 on")
    return np.cumsum(counts[counts > 0])


def _without_repeats(stored: Stored, counts: np.ndarray, notes: list[str]) -> Stored:
    """Leave out the last row of each cut episode whose next_obs is its obs, also from `counts`, the rows of episodes.

    The rows behind it move up where they lie.
    """
    last = torch.from_numpy(counts).cumsum(0) - 1
    cut = last[~stored.terminated[last]]
    repeats = [rows[(stored.obs[rows] == stored.next_obs[rows]).all(1)] for rows in cut.split(_BLOCK)]
    left_out = torch.cat(repeats)
    if not len(left_out):
        return stored
    counts[torch.searchsorted(last, left_out).numpy()] -= 1
    notes.append(
        f"rows left out, whose next observation is the observation itself where an episode was cut: {len(left_out):,}"
    )
    return Stored(*(_moved_up(array, left_out) for array in stored))


def _moved_up(array: Tensor, left_out: Tensor) -> Tensor:
    keep = torch.ones(len(array), dtype=torch.bool)
    keep[left_out] = False
    at = start = int(left_out[0])
    for kept, rows in zip(keep[start:].split(_BLOCK), array[start:].split(_BLOCK), strict=True):
        count = int(kept.sum())
        array[at : at + count] = rows[kept]  # a copy of this block
        at += count
    return array[:at]


def _rewards(file: str, column: Column, keep: np.ndarray, last: np.ndarray, episodes: int) -> tuple[Tensor, np.ndarray]:
    """The rewards of the kept rows, and the sum over all rows of each episode in float64."""
    reward, returns = torch.empty(int(keep.sum())), np.zeros(episodes)
    at = row = episode = 0
    for piece in checks.finite(file, column):
        values = piece.reshape(-1)
        here = slice(row, row + len(values))
        kept = values[keep[here]]
        reward.numpy()[at : at + len(kept)] = kept
        number = np.concatenate([[0], np.cumsum(last[here])])
        sums = np.bincount(number[:-1], weights=values.astype(np.float64, copy=False))
        returns[episode : episode + len(sums)] += sums
        at, row, episode = at + len(kept), row + len(values), episode + int(number[-1])
    return reward, returns


def _fill(out: Tensor, pieces: Iterator[np.ndarray], keep: np.ndarray) -> None:
    """Write the kept rows of all pieces one after the other."""
    at = row = 0
    for piece in pieces:
        kept = keep[row : row + len(piece)]
        count = int(kept.sum())
        out.numpy()[at : at + count] = piece if count == len(piece) else piece[kept]
        at, row = at + count, row + len(piece)


def _fill_pairs(
    obs: np.ndarray, next_obs: np.ndarray, pieces: Iterator[np.ndarray], keep: np.ndarray, terminal: np.ndarray
) -> None:
    """Write the kept rows, and as their successors the rows that follow; terminal rows are their own successors."""
    at = fed = row = 0  # kept rows that were written, and those whose successors were
    for piece in pieces:
        kept = keep[row : row + len(piece)]
        count = int(kept.sum())
        obs[at : at + count] = piece[kept]
        before = slice(max(row - 1, 0), row + len(piece) - 1)
        rows = piece if row else piece[1:]  # the successors of those
        takers = keep[before]
        over = terminal[before][takers]
        count_fed = int(takers.sum())
        block = next_obs[fed : fed + count_fed]
        block[:] = rows[takers]
        block[over] = obs[fed : fed + count_fed][over]
        at, fed, row = at + count, fed + count_fed, row + len(piece)
    next_obs[fed:] = obs[fed:]  # the last row, if it is terminal
