"""Functions as compiled graphs: when they are made, what they share, what they are told about at each call."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from helpers import compiling_nothing
from torch import Tensor

from deeprl.core import compiled, rng
from deeprl.core.compiled import Compiled, trace
from deeprl.core.population import Execution, over_agents
from deeprl.errors import DeeprlError

pytestmark = pytest.mark.compiled


class Pair(NamedTuple):
    a: Tensor
    b: dict[str, Tensor]


def compile_(function: Any) -> Compiled:
    return Compiled(function, {"cpp_wrapper": True})


@pytest.mark.inductor
def test_trees_go_in_and_come_out_and_are_changed_in_place() -> None:
    def step(state: Pair, factor: float, nothing: tuple[()]) -> tuple[Pair, dict[str, Any]]:
        state.a.copy_(state.a * factor)
        return state._replace(b={"y": state.b["x"] + state.a}), {"sum": state.a.sum(), "kept": nothing}

    state = Pair(torch.tensor([1.0, 2.0]), {"x": torch.tensor([10.0, 20.0])})
    new, more = compile_(step)(state, 3.0, ())
    assert state.a.tolist() == [3.0, 6.0]
    assert new.b["y"].tolist() == [13.0, 26.0]
    assert more["sum"].item() == 9.0
    assert more["kept"] == ()


def test_tracing_changes_nothing() -> None:
    x = torch.ones(3)
    trace(lambda x: x.add_(1.0), (x,))
    assert x.tolist() == [1.0] * 3


def test_other_layouts_and_other_constants_get_graphs_of_their_own_and_equal_ones_share_theirs() -> None:
    times = compile_(lambda x, n: x * n)
    assert times(torch.ones(2), 3.0).tolist() == [3.0, 3.0]
    assert times(torch.ones(2), 4.0).tolist() == [4.0, 4.0]
    assert times(torch.ones(3), 3.0).tolist() == [3.0] * 3
    before = len(compiled._built)
    again = compile_(lambda x, n: n * x * 1.0 if n < 0 else x * n)  # another function, the same graph
    assert again(torch.full((2,), 2.0), 3.0).tolist() == [6.0, 6.0]
    assert len(compiled._built) == before
    with compiling_nothing():
        assert again(torch.full((2,), 5.0), 3.0).tolist() == [15.0, 15.0]


def test_tensors_of_the_surroundings_are_read_where_they_lie() -> None:
    held = torch.tensor([1.0, 2.0])
    add = compile_(lambda x: x + held)
    assert add(torch.zeros(2)).tolist() == [1.0, 2.0]
    held.fill_(7.0)
    assert add(torch.zeros(2)).tolist() == [7.0, 7.0]
    other = torch.tensor([3.0, 3.0])
    assert compile_(lambda x: x + other)(torch.zeros(2)).tolist() == [3.0, 3.0]  # the same graph, another tensor


def branching(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def scaled_by_a_number(x: Tensor) -> Tensor:
    return x * x.sum().item()


def those_above_zero(x: Tensor) -> Tensor:
    return x[x > 0]


@pytest.mark.parametrize("function", [branching, scaled_by_a_number, those_above_zero])
def test_function_that_depends_on_numbers_is_refused_in_one_line(function: Any) -> None:
    named = rf"{function.__name__} cannot be compiled .*--compile off runs it as it is"
    with pytest.raises(DeeprlError, match=named) as caught:
        compile_(function)(torch.ones(2))
    assert "\n" not in str(caught.value)
    with pytest.raises(Exception, match=r"data-dependent|dynamic shape|aten"):  # a trial of networks does no more
        trace(function, (torch.ones(2),))
    assert type(torch.ones(1) + 1) is Tensor


def test_equal_numbers_of_other_types_are_other_arguments() -> None:
    # 1 == 1.0 == True, but an integer times 1.0 is a float.
    times = compile_(lambda x, n: x * n)
    x = torch.tensor([2, 3])
    for n, kind in ((1, torch.int64), (1.0, torch.float32), (True, torch.int64)):
        assert times(x, n).dtype == kind
        assert times(x, n).tolist() == [2, 3]


@pytest.mark.inductor
@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("precision", ["strict", "bf16"])
def test_lifted_function_equals_the_eager_one(backend: Any, precision: Any) -> None:
    def update(state: dict[str, Tensor], data: Tensor, key: rng.Key) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        noise = rng.normal(key, (4, 3))
        hidden = noise @ state["w"] + data
        return {"w": state["w"] + 0.5}, hidden.to(torch.float32), rng.randint(key, (5,), 100)

    results = []
    for compile_it in (False, True):
        execution = Execution(backend=backend, compile=compile_it, precision=precision)
        state = {"w": torch.arange(18.0).reshape(2, 3, 3) / 10}
        lifted = over_agents(update, execution, shared=(1,), donate=True)
        hidden, drawn = lifted(state, torch.ones(3), rng.Streams((0, 1))("update", 2))
        results.append((state["w"], hidden, drawn))
    eager, graph = results
    assert torch.equal(eager[0], graph[0])
    torch.testing.assert_close(eager[1], graph[1], rtol=1e-2 if precision == "bf16" else 1e-5, atol=1e-2)
    assert torch.equal(eager[2], graph[2])
