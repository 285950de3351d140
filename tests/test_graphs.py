"""Recorded functions: where arguments are read, when they are recorded anew. Without a GPU, by a stand-in recorder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor

from deeprl.core.cuda_graphs import Recorded
from deeprl.core.tree import tree_map, write_into


class Recorder:
    """As a CUDA graph does it: fixed places for arguments and results, nothing is computed while recording."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recordings += 1
        held = [{k: v.clone() for k, v in state.items()} for state in STATES]
        results = function()  # tells the shapes; what it did to the states is undone
        for state, before in zip(STATES, held, strict=True):
            write_into(state, before)
        return lambda: write_into(results, function()), results


STATES: list[dict[str, Tensor]] = []


def fresh_state() -> dict[str, Tensor]:
    STATES.append({"weight": torch.zeros(2, 3), "step": torch.zeros(2, dtype=torch.int64)})
    return STATES[-1]


def update(state: dict[str, Tensor], data: Tensor, key: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Writes the state in place, as a donating function of a population does."""
    state["weight"].add_(data.mean() * key[:, None])
    state["step"].add_(1)
    return {"loss": state["weight"].sum(1)}, key * 2


def run(function: Callable, calls: int) -> tuple[Any, list[Any]]:
    state, data, results = fresh_state(), torch.arange(6.0), []
    for i in range(calls):
        data[0] = i  # data that change where they lie
        metrics, aux = function(state, data, torch.tensor([i + 1.0, -i]))
        results.append(tree_map(torch.clone, (metrics, aux)))
    return tree_map(torch.clone, state), results


def test_replayed_calls_give_what_plain_calls_give() -> None:
    expected = run(update, 7)
    recorder = Recorder()
    assert_equal(run(Recorded(update, keep=False, record=recorder), 7), expected)
    assert recorder.recordings == 1


def test_the_first_two_calls_are_plain() -> None:
    recorder = Recorder()
    run(Recorded(update, keep=False, record=recorder), 2)
    assert recorder.recordings == 0


@pytest.mark.parametrize("keep", [True, False])
def test_results_are_overwritten_by_the_next_call_unless_kept(keep: bool) -> None:
    recorded = Recorded(lambda state, x: x + 1, keep, Recorder())
    state = fresh_state()
    results = [recorded(state, torch.tensor([float(i)])) for i in range(6)]
    assert [float(r) for r in results] == ([1, 2, 3, 4, 5, 6] if keep else [1, 2, 6, 6, 6, 6])


def test_another_state_is_recorded_anew_and_the_old_one_stays_as_it_is() -> None:
    recorder = Recorder()
    recorded = Recorded(update, keep=False, record=recorder)
    data = torch.ones(3)
    first = fresh_state()
    for _ in range(4):
        recorded(first, data, torch.ones(2))
    assert first["step"].tolist() == [4, 4]
    second = fresh_state()
    for _ in range(4):
        recorded(second, data, torch.ones(2))
    assert (first["step"].tolist(), second["step"].tolist()) == ([4, 4], [4, 4])
    assert recorder.recordings == 2


def test_a_state_that_is_made_anew_for_every_call_is_never_recorded() -> None:
    recorder = Recorder()
    recorded = Recorded(update, keep=False, record=recorder)
    state = fresh_state()
    for _ in range(5):  # other containers of the same tensors: a recording would write into a copy
        recorded(dict(state), torch.ones(3), torch.ones(2))
    assert (recorder.recordings, state["step"].tolist()) == (0, [5, 5])


def test_other_shapes_are_recorded_anew() -> None:
    recorder = Recorder()
    recorded = Recorded(lambda x: x + 1, True, recorder)
    fresh_state()
    for size in (1, 1, 1, 1, 2, 2, 2, 2, 1):  # one row must not be spread over two
        assert recorded(torch.arange(float(size))).tolist() == [1.0 + i for i in range(size)]
    assert recorder.recordings == 2


def test_a_function_that_cannot_be_recorded_is_called_as_it_is() -> None:
    def refuse(function: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    recorded = Recorded(update, keep=False, record=refuse)
    expected = run(update, 6)
    with pytest.warns(UserWarning, match="no CUDA graph, which is slower: operation not permitted") as warned:
        assert_equal(run(recorded, 6), expected)
    assert len(warned) == 1
