"""A population of S agents equals S agents alone: vmapped, looped, compiled; and a diverged agent harms nobody.

The update is SAC's, on tiny networks and a fixed replay buffer: three layers of randomness (sampling, two policies),
three optimizers, a target network.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from helpers import SPEC, assert_equal, cast, compiling_nothing
from torch import Tensor

from deeprl.config import RunConfig
from deeprl.core import rng
from deeprl.core.population import (
    Agents,
    Execution,
    freezing,
    member,
    new_agents,
    over_agents,
    resolve_compile,
    resolve_device,
    resolve_execution,
    stack,
)
from deeprl.core.process import keep_freed_memory
from deeprl.core.tree import tree_leaves
from deeprl.errors import DeeprlError
from deeprl.online import sac
from deeprl.replay import Stored
from deeprl.run.learning import sampled

ROWS = 50
# Every member has its own rates, so that a mixed-up axis shows.
CONFIG = sac.Config(
    seeds=(0, 1, 2, 3),
    hidden=(16, 16),
    batch_size=16,
    actor_lr=(1e-3, 3e-4, 1e-3, 2e-3),
    critic_lr=(1e-3, 1e-3, 3e-4, 2e-3),
    discount=(0.9, 0.95, 0.99, 0.9),
    tau=(0.005, 0.05, 0.01, 0.1),
)
NET = sac.build_net(SPEC, CONFIG)
LEARN = sampled(sac.update, NET, CONFIG)
SIZE = torch.tensor(ROWS)


def replay(dtype: torch.dtype = torch.float32) -> Stored:
    """The same numbers for every agent: members differ by their own keys alone."""
    generator = torch.Generator().manual_seed(0)
    obs, next_obs = torch.randn(2, ROWS, 3, generator=generator)
    action = torch.rand(ROWS, 2, generator=generator) * 2 - 1
    terminated = torch.arange(ROWS) % 7 == 0
    return cast(Stored(obs, action, obs.sum(-1), terminated, torch.zeros_like(terminated), next_obs), dtype)


def data_of(agents: int, dtype: torch.dtype = torch.float32) -> Stored:
    return stack([replay(dtype)] * agents)


def states(dtype: torch.dtype = torch.float32) -> list[sac.State]:
    return [cast(sac.init(NET, CONFIG.member(i), rng.key(s, "init")), dtype) for i, s in enumerate(CONFIG.seeds)]


def keys(stream: str, number: int) -> Tensor:
    return rng.Streams(CONFIG.seeds)(stream, number)


def train(
    learn: Callable, agents: Agents, data: Stored, updates: range, members: slice = slice(None)
) -> dict[str, Tensor]:
    """Run a donating, freezing update in place; the metrics of the last."""
    metrics: dict[str, Tensor] = {}
    for i in updates:
        metrics, _ = learn(agents, data, SIZE, keys("sample", i)[members], keys("update", i)[members])
    return metrics


def lifted(execution: Execution) -> Callable:
    return over_agents(freezing(LEARN), execution, shared=(2,), donate=True)


def alone(state: sac.State, data: Stored, index: int, updates: range) -> sac.State:
    """The same updates without anything of core/population.py."""
    for i in updates:
        state, _, _ = LEARN(state, data, SIZE, keys("sample", i)[index], keys("update", i)[index])
    return state


def largest_difference(a: Any, b: Any) -> float:
    """Largest norm of a difference relative to the norm, over the leaves."""
    worst = 0.0
    for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True):
        x, y = x.double(), y.double()  # noqa: PLW2901
        worst = max(worst, float((x - y).norm() / (y.norm() + 1e-12)))
    return worst


# --- stacking ---


def test_member_of_a_stack_is_a_copy_of_the_state() -> None:
    population = stack(states())
    assert population.step.shape == (4,)
    assert population.critic["layers.0.weight"].shape == (4, 2, 5, 16)
    for i, state in enumerate(states()):
        one = member(population, i)
        assert type(one) is sac.State
        assert_equal(one, state)
    member(population, 0).actor["trunk.0.weight"].zero_()
    assert_equal(member(population, 0), states()[0])


def test_new_agents_are_healthy_and_own_their_memory() -> None:
    first = states()
    agents = new_agents(first)
    assert agents.frozen_at.tolist() == [-1] * 4
    before = cast(first[0], torch.float32)
    train(lifted(Execution()), agents, data_of(4), range(1))
    assert_equal(first[0], before)


# --- together = alone ---


def test_members_of_float64_population_equal_each_agent_alone_after_100_updates() -> None:
    # Sums run in another order under vmap (a batched product): a few last digits, which 100 updates may amplify.
    agents = new_agents(states(torch.float64))
    train(lifted(Execution()), agents, data_of(4, torch.float64), range(100))
    for i, state in enumerate(states(torch.float64)):
        single = alone(state, replay(torch.float64), i, range(100))
        assert {x.dtype for x in tree_leaves(single) if x.is_floating_point()} == {torch.float64}
        assert largest_difference(member(agents.state, i), single) < 1e-9
        assert int(single.step) == 100


def test_members_of_float32_population_equal_each_agent_alone_loosely() -> None:
    # Rounding of 6e-8 per update, amplified by Adam where a gradient is near zero.
    agents = new_agents(states())
    train(lifted(Execution()), agents, data_of(4), range(30))
    for i, state in enumerate(states()):
        single = alone(state, replay(), i, range(30))
        assert {x.dtype for x in tree_leaves(single) if x.is_floating_point()} == {torch.float32}
        for name in ("actor", "critic", "target_critic", "log_alpha"):
            assert largest_difference(getattr(member(agents.state, i), name), getattr(single, name)) < 1e-3, name


def test_members_of_a_looped_population_are_bit_equal_to_each_agent_alone() -> None:
    agents = new_agents(states())
    train(lifted(Execution(backend="loop")), agents, data_of(4), range(20))
    for i, state in enumerate(states()):
        assert_equal(member(agents.state, i), alone(state, replay(), i, range(20)))


def test_members_do_not_depend_on_who_else_is_in_the_population() -> None:
    # Members 2 and 1, in this order and alone, against their places in the population of four.
    order = [2, 1]
    four, two = new_agents(states()), new_agents([states()[i] for i in order])
    train(lifted(Execution()), four, data_of(4), range(10))
    learn = lifted(Execution())
    for i in range(10):
        learn(two, data_of(2), SIZE, keys("sample", i)[order], keys("update", i)[order])
    for place, i in enumerate(order):
        assert largest_difference(member(two.state, place), member(four.state, i)) < 1e-5


def test_loop_and_vmap_return_the_same_metrics() -> None:
    results = []
    for backend in ("vmap", "loop"):
        agents = new_agents(states())
        results.append(train(lifted(Execution(backend=backend)), agents, data_of(4), range(3)))  # type: ignore[arg-type]
    for name in results[0]:
        assert results[0][name].shape == (4,)
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.inductor
@pytest.mark.compiled
def test_compiled_population_equals_eager_population() -> None:
    # One update differs by 2.5e-7 (other libraries, other orders of sums). Adam divides by |gradient|: where that is
    # near zero a last digit becomes a step of up to the learning rate, so ten updates get 1e-4, relative to the norm.
    eager, compiled = new_agents(states()), new_agents(states())
    data = data_of(4)
    places = [x.data_ptr() for x in tree_leaves(compiled)]
    fast, slow = lifted(Execution(compile=True)), lifted(Execution())
    train(fast, compiled, data, range(1))
    train(slow, eager, data, range(1))
    for name in ("actor", "critic", "target_critic", "log_alpha"):
        assert largest_difference(getattr(compiled.state, name), getattr(eager.state, name)) < 1e-5, name
    with compiling_nothing():
        train(fast, compiled, data, range(1, 10))
    train(slow, eager, data, range(1, 10))
    for name in ("actor", "critic", "target_critic", "log_alpha"):
        assert largest_difference(getattr(compiled.state, name), getattr(eager.state, name)) < 1e-4, name
    assert compiled.state.step.tolist() == [10] * 4
    assert [x.data_ptr() for x in tree_leaves(compiled)] == places

    # The same graph with one poisoned buffer: only that member freezes, the others are bit-equal to the healthy run.
    poisoned, healthy = new_agents(states()), new_agents(states())
    bad = data_of(4)
    bad.reward[1] = torch.nan
    train(fast, poisoned, bad, range(3))
    train(fast, healthy, data, range(3))
    assert poisoned.frozen_at.tolist() == [-1, 0, -1, -1]
    assert_equal(member(poisoned.state, 1), states()[1])
    for i in (0, 2, 3):
        assert_equal(member(poisoned.state, i), member(healthy.state, i))


@pytest.mark.compiled
def test_members_of_a_compiled_loop_are_bit_equal_to_each_agent_alone() -> None:
    # One graph serves any number of agents: nothing may be compiled again after the first update.
    data, together = data_of(4), new_agents(states())
    learn = lifted(Execution(backend="loop", compile=True))
    train(learn, together, data, range(1))
    with compiling_nothing():
        train(learn, together, data, range(1, 10))
        for i, state in enumerate(states()):
            single = new_agents([state])
            train(learn, single, data_of(1), range(10), slice(i, i + 1))
            assert_equal(member(single.state, 0), member(together.state, i))


# --- in place ---


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_donated_state_is_overwritten_in_place(backend: Any) -> None:
    agents = new_agents(states())
    places = [x.data_ptr() for x in tree_leaves(agents)]
    before = cast(agents, torch.float32)
    result = lifted(Execution(backend=backend))(agents, data_of(4), SIZE, keys("sample", 0), keys("update", 0))
    assert len(result) == 2  # metrics and aux: the state is not returned
    assert [x.data_ptr() for x in tree_leaves(agents)] == places
    assert agents.state.step.tolist() == [1] * 4
    for name in ("actor", "critic", "target_critic"):
        for old, new in zip(getattr(before.state, name).values(), getattr(agents.state, name).values(), strict=True):
            assert not torch.equal(old, new), name


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_state_that_is_not_donated_stays_as_it_was(backend: Any) -> None:
    agents = new_agents(states())
    before = cast(agents, torch.float32)
    learn = over_agents(freezing(LEARN), Execution(backend=backend), shared=(2,))
    new, metrics, aux = learn(agents, data_of(4), SIZE, keys("sample", 0), keys("update", 0))
    assert_equal(agents, before)
    assert new.state.step.tolist() == [1] * 4
    assert aux == ()
    assert metrics["q"].shape == (4,)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_shared_arguments_reach_every_agent_whole(backend: Any) -> None:
    # Agent m adds its number to the sum of the shared vector: 1 + 2 + 3 = 6.
    add = over_agents(lambda own, shared: own + shared.sum(), Execution(backend=backend), shared=(1,))
    assert add(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0])).tolist() == [6.0, 7.0]


def test_lifted_functions_build_no_autograd_graph() -> None:
    double = over_agents(lambda x: 2 * x, Execution())
    assert not double(torch.ones(2, requires_grad=True)).requires_grad


# --- freezing ---


class Counter(NamedTuple):
    value: Tensor
    step: Tensor


def count(state: Counter, loss: Tensor) -> tuple[Counter, dict[str, Tensor], tuple[()]]:
    """Adds the loss to the value: a non-finite loss would spoil the state."""
    return Counter(state.value + loss, state.step + 1), {"loss": loss, "other": torch.zeros(())}, ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_agent_freezes_at_its_first_loss_that_is_not_finite_and_stays_frozen(bad: float, backend: Any) -> None:
    # Losses by update (rows) and agent: agent 1 fails at update 2 after 1 + 2, agent 2 at update 0.
    losses = torch.tensor([[1.0, 1.0, bad], [1.0, 2.0, 1.0], [1.0, bad, 1.0], [1.0, 4.0, bad], [1.0, bad, 1.0]])
    agents = new_agents([Counter(torch.tensor(0.0), torch.tensor(0)) for _ in range(3)])
    step = over_agents(freezing(count), Execution(backend=backend), donate=True)
    for row in losses:
        metrics, _ = step(agents, row)
    assert agents.frozen_at.tolist() == [-1, 2, 0]
    assert agents.state.value.tolist() == [5.0, 3.0, 0.0]
    assert agents.state.step.tolist() == [5, 2, 0]
    assert torch.equal(metrics["loss"].isfinite(), torch.tensor([True, False, True]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_poisoned_agent_freezes_at_the_update_that_draws_the_row_and_harms_nobody(bad: float) -> None:
    row, victim = 17, 1
    drawn = (int(i) for i in range(1000) if _draws(row, victim, i))
    first = next(drawn)
    assert first > 0  # there is something to keep
    clean, poisoned = new_agents(states()), new_agents(states())
    data = data_of(4)
    data.reward[victim, row] = bad
    learn = lifted(Execution())
    train(learn, clean, data_of(4), range(first))
    kept = member(clean.state, victim)
    train(learn, clean, data_of(4), range(first, first + 5))
    train(learn, poisoned, data, range(first + 5))
    assert poisoned.frozen_at.tolist() == [-1, first, -1, -1]
    assert int(poisoned.state.step[victim]) == first
    assert_equal(member(poisoned.state, victim), kept)
    for i in (0, 2, 3):
        assert_equal(member(poisoned.state, i), member(clean.state, i))

    # With finite data again it stays frozen, and the others go on as before.
    train(learn, poisoned, data_of(4), range(first + 5, first + 8))
    train(learn, clean, data_of(4), range(first + 5, first + 8))
    assert poisoned.frozen_at.tolist() == [-1, first, -1, -1]
    assert_equal(member(poisoned.state, victim), kept)
    for i in (0, 2, 3):
        assert_equal(member(poisoned.state, i), member(clean.state, i))


def _draws(row: int, index: int, update: int) -> bool:
    """Whether agent `index` samples `row` in an update, worked out from its key."""
    return row in rng.randint(keys("sample", update)[index], (CONFIG.batch_size,), ROWS).tolist()


# --- choices ---


def test_compile_on_and_off_are_obeyed() -> None:
    assert resolve_compile("on", 1) is True
    assert resolve_compile("off", 10**9) is False


def test_compile_auto_runs_short_runs_eagerly_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_compile("auto", 100) is False


def test_compile_auto_compiles_long_runs_where_a_compiler_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/clang++" if name == "clang++" else None)
    assert resolve_compile("auto", 10**6) is True


def test_compile_auto_counts_calls_of_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++")
    assert [resolve_compile("auto", calls) for calls in (499, 500)] == [False, True]

    def compiles(updates: int, **settings: Any) -> bool:
        return resolve_execution(RunConfig(seeds=tuple(range(8)), **settings), updates).compile

    # one call updates all eight agents, with the backend `loop` one of them
    assert [compiles(updates) for updates in (8 * 500 - 1, 8 * 500)] == [False, True]
    assert [compiles(updates, backend="loop") for updates in (499, 500)] == [False, True]


def test_compile_auto_without_a_compiler_warns_and_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="no C.. compiler found"):
        assert resolve_compile("auto", 10**6) is False


def test_device_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (resolve_device("auto"), resolve_device("cuda:1"), resolve_device("cpu")) == ("cuda:0", "cuda:1", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert (resolve_device("auto"), resolve_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(DeeprlError, match=r"device cuda:0: this torch .* sees 0 CUDA GPUs"):
        resolve_device("cuda:0")


def test_applying_an_execution_sets_threads_and_precision() -> None:
    Execution(precision="strict", threads=2).apply()
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "highest")
    Execution(precision="fast", threads=1).apply()
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (1, "medium")


def test_bf16_execution_multiplies_in_bf16_and_keeps_float32_weights() -> None:
    product = over_agents(lambda a: a @ a, Execution(precision="bf16"))
    assert product(torch.ones(2, 3, 3)).dtype == torch.bfloat16
    agents = new_agents(states())
    metrics = train(lifted(Execution(precision="bf16")), agents, data_of(4), range(3))
    assert {x.dtype for x in tree_leaves(agents.state) if x.is_floating_point()} == {torch.float32}
    assert all(bool(m.isfinite().all()) for m in metrics.values())


def test_malloc_settings_can_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr("ctypes.CDLL", lambda *args: opened.append(args) or SimpleNamespace(mallopt=lambda *_: 1))
    for value, calls in (("0", 0), ("1", 1)):
        keep_freed_memory.cache_clear()
        monkeypatch.setitem(os.environ, "DEEPRL_MALLOC", value)
        monkeypatch.setattr("sys.platform", "linux")
        Execution(threads=1).apply()
        assert len(opened) == calls
    keep_freed_memory.cache_clear()


@pytest.mark.compiled
def test_compiled_functions_made_by_one_function_keep_their_own_graphs() -> None:
    """More than the eight that Dynamo keeps of one function, told apart by nothing but their closures."""
    execution = Execution(compile=True)
    execution.apply()

    def scaled(factor: int) -> Callable:
        return lambda state, x: state * factor + x

    lifted = [over_agents(scaled(i), execution) for i in range(10)]
    for agents in (2, 3, 2):  # another size is another graph of each
        state, x = torch.ones(agents, 3), torch.zeros(agents, 3)
        assert [float(f(state, x).mean()) for f in lifted] == list(range(10))


@pytest.mark.parametrize(
    ("precision", "backend", "agents", "rows", "expected"),
    [
        ("fast", "vmap", 4, 128, "medium"),  # 4 x 128 x 128 x 128 multiplications
        ("fast", "vmap", 4, 127, "highest"),
        ("fast", "vmap", 1, 512, "medium"),
        ("fast", "loop", 4, 128, "highest"),  # an agent at a time
        ("strict", "vmap", 4, 1000, "highest"),
        ("bf16", "vmap", 4, 1, "medium"),
    ],
)
def test_fast_products_go_to_onednn_where_they_are_large(
    precision: Any, backend: Any, agents: int, rows: int, expected: str
) -> None:
    before = torch.get_float32_matmul_precision()
    execution = Execution(precision=precision, backend=backend)
    try:
        execution.apply()
        execution.fit({"bias": torch.zeros(agents, 10_000), "weight": torch.zeros(agents, 2, 128, 128)}, rows)
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)
