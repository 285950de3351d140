"""Checkpoints that write only new rows: what they hold, what they cost, and what a crash at any moment leaves."""

from __future__ import annotations

import os
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deeprl.core.spec import EnvSpec, Transition
from deeprl.errors import DeeprlError
from deeprl.replay import FrameReplay, Replay, make_replay
from deeprl.replay import blocks as history
from deeprl.replay.blocks import History
from deeprl.run import checkpoint

VECTOR = EnvSpec((2,), 1, (-1.0,), (1.0,))
IMAGE = EnvSpec((2, 3, 3), 0, (), (), obs_dtype="uint8", actions=4, frame_stack=2)


class Counting(Replay):
    """Notes which rows are read to be stored."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.reads: list[tuple[int, int]] = []

    def _read(self, first: int, last: int) -> dict[str, Any]:
        self.reads.append((first, last))
        return super()._read(first, last)


def step_of(t: int, agents: int = 2, envs: int = 2, ends: str = "") -> Transition:
    """Every value tells its time, agent and environment. ends: "" or "terminated" or "truncated"."""
    value = t * 100 + np.arange(agents * envs, dtype=np.float32).reshape(agents, envs)
    pair = np.stack([value, value + 0.5], -1)
    flags = {kind: np.full((agents, envs), ends == kind) for kind in ("terminated", "truncated")}
    return Transition(pair, value[..., None], value, flags["terminated"], flags["truncated"], pair + 100)


def blocks(path: Path) -> list[str]:
    return sorted(p.name for p in path.glob("replay_*.pt"))


def assert_same(one: Replay, other: Replay) -> None:
    assert torch.equal(one.size, other.size)
    for name, ours in one.data._asdict().items():
        assert torch.equal(ours, getattr(other.data, name)), name


def reloaded(directory: Path, like: Replay) -> Replay:
    other = make_replay(like.agents, like.capacity, like.spec, like.envs)
    found = checkpoint.load_checkpoint(directory)
    assert found is not None
    other.load_state_dict(found[1]["replay"])
    return other


def test_each_row_is_written_once(tmp_path: Path) -> None:
    replay = Counting(2, 40, VECTOR, 2)  # 20 steps
    for t in range(1, 19):
        replay.add(step_of(t))
        if t % 6 == 0:
            path = checkpoint.save(tmp_path, t, {"replay": replay.state_dict()})
    assert blocks(path) == ["replay_rows_000000000.pt", "replay_rows_000000006.pt", "replay_rows_000000012.pt"]
    assert [r for r in replay.reads if r[1] - r[0] > 1] == [(0, 6), (6, 12), (12, 18)]
    assert_same(replay, reloaded(tmp_path, replay))


def test_rows_that_have_been_overwritten_leave_with_their_blocks(tmp_path: Path) -> None:
    replay = Replay(2, 20, VECTOR, 2)  # 10 steps
    for t in range(1, 31):
        replay.add(step_of(t))
        if t % 6 == 0:
            path = checkpoint.save(tmp_path, t, {"replay": replay.state_dict()})
    # The last ten steps are those numbered 20 .. 29: the blocks from 18 and from 24 on.
    assert blocks(path) == ["replay_rows_000000018.pt", "replay_rows_000000024.pt"]
    assert_same(replay, reloaded(tmp_path, replay))


def test_blocks_are_one_file_in_all_checkpoints_that_hold_them(tmp_path: Path) -> None:
    replay = Replay(1, 20, VECTOR, 2)
    paths = []
    for t in (1, 2):
        replay.add(step_of(t, agents=1))
        paths.append(checkpoint.save(tmp_path, t, {"replay": replay.state_dict()}))
    first = [(p / "replay_rows_000000000.pt").stat() for p in paths]
    assert first[0].st_ino == first[1].st_ino
    checkpoint.save(tmp_path, 3, {"replay": replay.state_dict()}, keep=1)
    assert_same(replay, reloaded(tmp_path, replay))  # the older directories, with their links, are gone


def test_file_system_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    replay = Replay(1, 20, VECTOR, 2)
    for t in (1, 2, 3):
        replay.add(step_of(t, agents=1))
        path = checkpoint.save(tmp_path, t, {"replay": replay.state_dict()}, keep=1)
    assert len(blocks(path)) == 3
    assert_same(replay, reloaded(tmp_path, replay))


def test_blocks_that_somebody_deleted_are_written_again(tmp_path: Path) -> None:
    replay = Replay(2, 40, VECTOR, 2)
    replay.add(step_of(1))
    shutil.rmtree(checkpoint.save(tmp_path, 1, {"replay": replay.state_dict()}))
    replay.add(step_of(2))
    path = checkpoint.save(tmp_path, 2, {"replay": replay.state_dict()})
    assert blocks(path) == ["replay_rows_000000000.pt"]
    assert_same(replay, reloaded(tmp_path, replay))


def test_large_histories_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_BLOCK_BYTES", 500)
    replay = Counting(2, 40, VECTOR, 2)
    for t in range(20):
        replay.add(step_of(t))
    # A step is 4 transitions of 2 + 1 + 1 + 2 floats and 2 flags: 104 bytes, so that 4 steps are a piece.
    path = checkpoint.save(tmp_path, 20, {"replay": replay.state_dict()})
    assert blocks(path) == [f"replay_rows_{b:09d}.pt" for b in (0, 4, 8, 12, 16)]
    assert_same(replay, reloaded(tmp_path, replay))


def test_many_blocks_become_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_MANY_BLOCKS", 4)
    replay = Replay(2, 40, VECTOR, 2)
    counts = []
    for t in range(1, 13):
        replay.add(step_of(t))
        counts.append(len(blocks(checkpoint.save(tmp_path, t, {"replay": replay.state_dict()}))))
        assert_same(replay, reloaded(tmp_path, replay))
    assert counts == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]


def test_changed_rows_are_stored_again(tmp_path: Path) -> None:
    replay = Replay(2, 40, VECTOR, 2)
    replay.add(step_of(1))
    checkpoint.save(tmp_path, 1, {"replay": replay.state_dict()})
    other = reloaded(tmp_path, replay)
    other.cut(np.array([[True, False], [False, True]]))  # these environments had to begin anew
    for t in (2, 3):
        other.add(step_of(t))
        checkpoint.save(tmp_path, t, {"replay": other.state_dict()})
    again = reloaded(tmp_path, other)
    assert again.data.truncated[:, :2].tolist() == [[True, False], [False, True]]
    assert_same(other, again)


def test_save_that_fails_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay(2, 40, VECTOR, 2)
    for t in (1, 2):
        replay.add(step_of(t))
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, {"replay": replay.state_dict()})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    checkpoint.save(tmp_path, 2, {"replay": replay.state_dict()})
    assert_same(replay, reloaded(tmp_path, replay))


def test_agents_of_a_checkpoint_can_be_read_without_its_rows(tmp_path: Path) -> None:
    replay = Replay(2, 40, VECTOR, 2)
    replay.add(step_of(1))
    path = checkpoint.save(tmp_path, 1, {"agents": {"w": torch.ones(2)}, "replay": replay.state_dict()})
    (path / "replay_rows_000000000.pt").write_bytes(b"damaged")
    found = checkpoint.load_checkpoint(tmp_path, histories=False)
    assert found is not None
    assert torch.equal(found[1]["agents"]["w"], torch.ones(2))
    with pytest.warns(UserWarning, match="replay_rows_000000000"), pytest.raises(DeeprlError, match="are broken"):
        checkpoint.load_checkpoint(tmp_path)


# --- any sequence of steps, checkpoints and resumes ---


def image_step(state: types.SimpleNamespace, ends: str) -> Transition:
    """Stacks of two frames; every frame is another number, the first of an episode is repeated."""

    def frame() -> np.ndarray:
        state.seen += 1
        return np.full((1, 2, 3, 3), state.seen % 251, np.uint8)

    if state.last is None:
        state.last = np.stack([f := frame(), f], 2)
    after = np.stack([state.last[:, :, -1], frame()], 2)
    flags = {kind: np.full((1, 2), ends == kind) for kind in ("terminated", "truncated")}
    step = Transition(state.last, np.full((1, 2), state.seen % 4), np.full((1, 2), float(state.seen), np.float32),
                      flags["terminated"], flags["truncated"], after)  # fmt: skip
    state.last = None if ends else after
    return step


ACTIONS = st.lists(st.sampled_from(["step", "step", "step", "terminated", "truncated", "save", "resume"]), max_size=60)


@given(actions=ACTIONS, image=st.booleans())
def test_any_life_of_a_buffer_comes_back(
    actions: list[str], image: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("life")
    spec, state = (IMAGE if image else VECTOR), types.SimpleNamespace(seen=0, last=None)
    agents = 1 if image else 2
    whole = make_replay(agents, 14, spec, 2)  # never stopped
    replay = make_replay(agents, 14, spec, 2)
    assert isinstance(replay, FrameReplay) == image
    saved = None
    for t, action in enumerate(actions):
        if action == "save":
            checkpoint.save(directory, t, {"replay": replay.state_dict()})
            saved = t
        elif action == "resume" and saved is not None and saved == t - 1:
            replay = reloaded(directory, replay)
        else:
            ends = action if action in ("terminated", "truncated") else ""
            step = image_step(state, ends) if image else step_of(t, ends=ends)
            assert whole.add(step) == replay.add(step)
    checkpoint.save(directory, len(actions), {"replay": replay.state_dict()})
    again = reloaded(directory, replay)
    if not image:
        assert_same(whole, again)
        return
    assert isinstance(whole, FrameReplay)
    assert isinstance(again, FrameReplay)
    for name in ("newest", "depth", "reward", "terminated", "truncated", "skip"):
        assert torch.equal(getattr(whole.data, name), getattr(again.data, name)), name
    assert np.array_equal(whole._needs, again._needs)
    # Every frame that a row may still show. A frame number lies at its place in the ring.
    skipped = int(whole.data.skip[0])
    rows = range(max(0, whole._inserted - whole.capacity) + skipped, whole._inserted)
    for row in (r % whole.capacity for r in rows):
        newest, env = int(whole.data.newest[0, row]), row % 2
        for number in range(newest - int(whole.data.depth[0, row]), min(newest + 2, whole._written[0, env])):
            place = number % whole.ring
            assert torch.equal(whole.data.frames[0, env, place], again.data.frames[0, env, place]), (row, number)


# --- a crash at any moment ---


class Crash(BaseException):
    """The process ends here."""


CALLS = [(os, "replace"), (os, "fsync"), (os, "link"), (torch, "save"), (shutil, "rmtree"), (Path, "mkdir")]


def crash_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> types.SimpleNamespace:
    """From the given number of file operations on, each one raises `Crash`, those that clean up too."""
    done = types.SimpleNamespace(calls=0)

    def counted(original: Any) -> Any:
        def call(*args: Any, **settings: Any) -> Any:
            done.calls += 1
            if done.calls > calls:
                raise Crash
            return original(*args, **settings)

        return call

    for module, name in CALLS:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return done


@pytest.mark.parametrize("same_step", [False, True])
def test_crash_at_every_file_operation_leaves_a_good_checkpoint(
    same_step: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def life(directory: Path) -> tuple[Replay, dict[str, Any]]:
        replay = Replay(2, 12, VECTOR, 2)
        for t in range(1, 5):
            replay.add(step_of(t))
            if t > 1:
                checkpoint.save(directory, t, {"replay": replay.state_dict(), "t": t})
        replay.add(step_of(5))
        return replay, {"replay": replay.state_dict(), "t": 5}

    crashes = 0
    while True:
        directory = tmp_path / str(crashes)
        directory.mkdir()
        replay, content = life(directory)
        with monkeypatch.context() as patch:
            done = crash_after(patch, crashes)
            try:
                checkpoint.save(directory, 4 if same_step else 5, content)
                finished = True
            except Crash:
                finished = False
        found = checkpoint.load_checkpoint(directory)  # warns of nothing: nothing half written looks like a checkpoint
        assert found is not None
        assert found[1]["t"] in ((5,) if finished else (4, 5))
        if found[1]["t"] == 5:
            assert_same(replay, reloaded(directory, replay))
        # And the next life goes on from there.
        other = Replay(2, 12, VECTOR, 2)
        other.load_state_dict(found[1]["replay"])
        other.add(step_of(6))
        checkpoint.save(directory, 6, {"replay": other.state_dict(), "t": 6})
        assert_same(other, reloaded(directory, other))
        assert [p.name for p in directory.glob(".*")] == []
        if finished:
            break
        crashes += 1
    assert done.calls == crashes
    assert crashes >= 10  # mkdir, two links, three files, two directories, a rename, and what is deleted


def test_parts_of_a_history_that_was_never_stored() -> None:
    rows = History(lambda a, b: {"x": torch.arange(a, b)})
    rows.first, rows.last = 3, 7
    ((first, part),) = rows.parts()
    assert (first, part["x"].tolist()) == (3, [3, 4, 5, 6])
    assert history.Block._fields == ("path", "first", "last", "bytes", "sha256")
