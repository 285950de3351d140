"""Functions as compiled graphs: when they are made, what they share, what they are told about at each call."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sympy
import torch
from helpers import compiling_nothing
from torch import Tensor
from torch._inductor import codecache, cpp_builder, sizevars
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

import deeprl
from deeprl.core import compiled, inductor, rng
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


# --- in the background, and kept ---


def test_prepared_function_is_not_compiled_again() -> None:
    triple = compile_(lambda state: (state["x"] * 3.0).cumsum(0))
    triple.prepare({"x": torch.zeros(7)})
    with compiling_nothing():
        assert triple({"x": torch.ones(7)}).tolist() == [3.0 * i for i in range(1, 8)]


def test_error_in_the_background_comes_with_the_call_and_the_next_one_tries_again(monkeypatch: Any) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("no space left on device")

    double = compile_(lambda x: (x * 2.0).flip(0) - 11.0)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "compile_graph", fail)
        double.prepare(torch.ones(2))
        with pytest.raises(DeeprlError, match="no space left on device"):
            double(torch.ones(2))
    assert compile_(lambda x: (x * 2.0).flip(0) - 11.0)(torch.ones(2)).tolist() == [-9.0, -9.0]


@pytest.mark.inductor
def test_two_threads_compile_at_the_same_time() -> None:
    functions = [compile_(lambda x, i=i: (x + 1.5).cumprod(0) * (i + 1) - 0.25) for i in range(2)]
    for function in functions:
        function.prepare(torch.ones(3))
    found = [function(torch.ones(3)).tolist() for function in functions]
    assert found == [[2.5 * i - 0.25, 6.25 * i - 0.25, 15.625 * i - 0.25] for i in (1, 2)]


@pytest.fixture
def library(monkeypatch: Any, tmp_path: Path) -> Path:
    """Where the one graph is kept that `halve` is compiled to."""
    monkeypatch.setattr(inductor, "cache_directory", lambda: tmp_path)
    forget(monkeypatch)
    assert halve()(torch.tensor([2.0, 5.0, 8.0])).tolist() == [1.0, 2.5, 4.0]
    (kept,) = (tmp_path / "graphs").iterdir()
    return kept


def halve() -> Compiled:
    return compile_(lambda x: x / 2.0)


def forget(monkeypatch: Any) -> None:
    """What this process has compiled."""
    monkeypatch.setattr(compiled, "_built", {})
    codecache.CppWrapperCodeCache.cache_clear()


def refuse(*_: Any) -> Any:
    raise AssertionError("compiled again")


@pytest.mark.inductor
def test_kept_library_is_used_instead_of_the_compiler(library: Path, monkeypatch: Any) -> None:
    forget(monkeypatch)
    monkeypatch.setattr(inductor, "_quickly", refuse)
    assert halve()(torch.tensor([4.0, 6.0, 7.0])).tolist() == [2.0, 3.0, 3.5]
    forget(monkeypatch)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", not torch.backends.mkldnn.enabled)  # other code: not that one
    with pytest.raises(DeeprlError, match="compiled again"):
        halve()(torch.ones(3))


@pytest.mark.inductor
@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_damaged_library_is_made_anew(library: Path, damage: bytes | None, monkeypatch: Any) -> None:
    whole = library.read_bytes()
    library.unlink()  # it is in use
    library.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    forget(monkeypatch)
    assert halve()(torch.tensor([4.0, 6.0, 7.0])).tolist() == [2.0, 3.0, 3.5]
    assert library.read_bytes() == whole


@pytest.mark.inductor
def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(inductor, "cache_directory", lambda: tmp_path / "file")
    forget(monkeypatch)
    assert halve()(torch.tensor([2.0, 5.0, 8.0])).tolist() == [1.0, 2.5, 4.0]


@pytest.mark.inductor
def test_kept_library_that_cannot_be_loaded_is_left_alone(library: Path, monkeypatch: Any) -> None:
    def fail(*_: Any) -> Any:
        raise ImportError("failed to map segment from shared object: Operation not permitted")  # noexec

    monkeypatch.setattr(inductor, "_loaded", fail)
    for _ in range(2):
        forget(monkeypatch)
        assert halve()(torch.tensor([4.0, 6.0, 7.0])).tolist() == [2.0, 3.0, 3.5]


@pytest.mark.inductor
def test_older_torch_compiles_without_shortcuts(monkeypatch: Any) -> None:
    monkeypatch.setattr(inductor, "_KNOWN", False)
    monkeypatch.setattr(inductor, "_quickly", refuse)
    forget(monkeypatch)
    x = torch.tensor([2.0, 5.0, 8.0])
    assert compile_(lambda x: x.mul_(2.0) + 1.0)(x).tolist() == [5.0, 11.0, 17.0]
    assert x.tolist() == [4.0, 10.0, 16.0]


@pytest.mark.inductor
def test_headers_are_read_as_the_code_needs_them(monkeypatch: Any) -> None:
    asked = []
    precompile = codecache._precompile_header

    def ask(*args: Any, **named: Any) -> str:
        asked.append((args, {k: str(v) for k, v in named.items()}))
        return precompile(*args, **named)

    monkeypatch.setattr(codecache, "_precompile_header", ask)
    monkeypatch.setattr(inductor, "in_background", lambda work: work())
    with monkeypatch.context() as patch:
        patch.setattr(inductor, "_own", threading.local())
        inductor.begin_headers.__wrapped__()  # type: ignore[attr-defined]
    monkeypatch.setattr(inductor, "_is_whole", lambda kept: False)
    forget(monkeypatch)
    halve()(torch.ones(5))
    ahead, needed = asked
    assert ahead == needed


def test_what_is_done_once_is_done_once_by_many_threads() -> None:
    done = []

    @inductor.once
    def slowly() -> None:
        time.sleep(0.02)
        done.append(threading.get_ident())

    seen: list[int] = []
    threads = [threading.Thread(target=lambda: (slowly(), seen.append(len(done)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8


def test_shortcuts_are_for_our_own_graphs_alone() -> None:
    inductor._shortcuts()
    assert sizevars.sympy.simplify is sympy.simplify
    assert "O3" in cpp_builder._get_optimization_cflags("g++")[0]


def test_indices_grow_by_the_same_steps_as_with_simplify() -> None:
    x, y = sympy.symbols("x y", integer=True, nonnegative=True)
    indices = [x, 3 * x + 7, y * 16 + x, 17 * (x + 4 * y) + 2 * x, FloorDiv(x, 16) + y, ModularIndexing(x, 1, 16)]
    indices += [ModularIndexing(x, 4, 8) + FloorDiv(x, 4), 4 * FloorDiv(x + y, 4) + x, sympy.Integer(5)]
    found = []
    for inside in (False, True):
        sizevars.stride_at.cache_clear()
        sizevars.simplify_index_in_vec_range.cache_clear()
        inductor._shortcuts()
        inductor._own.ours = inside
        steps = [sizevars.stride_at_vec_range.__wrapped__(index, var, 16) for index in indices for var in (x, y)]
        inductor._own.ours = False
        found.append([sympy.simplify(step) for step in steps])
    assert found[0] == found[1]
    assert found[0][:4] == [1, 0, 3, 0]


@pytest.mark.parametrize("algorithm", ["sac", "td3", "dqn"])
def test_what_a_run_prepares_is_what_it_calls(algorithm: str, tmp_path: Path, monkeypatch: Any) -> None:
    built, build = [], Compiled._build
    monkeypatch.setattr(Compiled, "_build", lambda self, args, *more: built.append(self) or build(self, args, *more))
    env = "CartPole-v1" if algorithm == "dqn" else "Pendulum-v1"
    tiny = {"hidden": (8, 8), "batch_size": 4, "learning_starts": 8, "steps": 24, "tensorboard": False, "threads": 1}
    deeprl.train(algorithm, env=env, out=tmp_path / "run", compile="on", eval_episodes=1, **tiny)
    assert len(built) == len(set(built)) == {"sac": 2, "td3": 3, "dqn": 2}[algorithm]
