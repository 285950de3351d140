"""Loaded agents in several threads: each call is what it is alone, and nothing is another afterwards."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from offline_helpers import write_made
from torch import Tensor, nn

import deeprl
from deeprl.core import rng
from deeprl.core.population import member
from deeprl.core.process import torch_defaults
from deeprl.nets import MLP, CriticEnsemble, bound, functional_call
from deeprl.nets.agent import Bound, _idle
from deeprl.run.evaluate import Evaluator, GreedyPolicy
from deeprl.run.trained import load_population

SIMBA = {"actor_width": 8, "critic_width": 8, "critic_blocks": 1}
OFFLINE = {"normalize_obs": "obs", "eval_episodes": 0}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "dqn": {"env": "CartPole-v1", "hidden": [8], "learning_starts": 20},
    "td3": {"env": "Pendulum-v1", "hidden": [8], "normalize_obs": True, "learning_starts": 20},
    "sac": {"env": "Pendulum-v1", "hidden": [8], "normalize_obs": True, "learning_starts": 20},
    "simba": {"env": "Pendulum-v1", **SIMBA, "learning_starts": 20},
    "simba_v2": {"env": "Pendulum-v1", "bins": 11, **SIMBA, "learning_starts": 20},
    "bc": {"hidden": [8], **OFFLINE},
    "td3_bc": {"hidden": [8], **OFFLINE},
    "rebrac": {"hidden": [8], **OFFLINE},
    "cql": {"actor_hidden": [8], "critic_hidden": [8], "bc_steps": 0, "sampled_actions": 2, **OFFLINE},
    "edac": {"hidden": [8], "critics": 3, **OFFLINE},
    "iql": {"hidden": [8], **OFFLINE},
    "riql": {"hidden": [8], **OFFLINE},
}
FEW: dict[str, Any] = {"steps": 30, "batch_size": 4, "eval_every": 0, "eval_episodes": 0}
FEW |= {"compile": "off", "threads": 1, "tensorboard": False}
THREADS, CALLS = 4, 60


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """The interpreter goes from thread to thread as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def together(*work: Callable[[], Any]) -> None:
    """Call functions in a thread each, all at the same time. Raises what the first of them raised."""
    barrier, errors = threading.Barrier(len(work)), list[BaseException]()

    def run(function: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def trained(algorithm: str, folder: Path, **settings: Any) -> Path:
    own = FEW | ALGORITHMS[algorithm] | {"out": str(folder / "run")} | settings
    if "env" not in own:
        own["dataset"] = write_made(folder / "made.npz")
    return deeprl.train(algorithm, **own).directory


def same_calls(policy: Callable[[Any], Any], obs: Any, expected: Any, calls: int = CALLS) -> Callable[[], None]:
    """What a thread does: ask for the action of one observation again and again."""

    def run() -> None:
        wrong = sum(not np.array_equal(policy(obs), expected) for _ in range(calls))
        assert not wrong, f"{wrong} of {calls} calls give another action"

    return run


class Actor(nn.Module):
    """A random projection, a frozen layer, a layer used twice, and children in a list beside the module's own."""

    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.register_buffer("projection", torch.randn(obs_dim, 4))
        self.encoder = nn.Linear(4, 4).requires_grad_(False)
        self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 2 * action_dim)
        self.again = self.hidden
        self.steps = [self.encoder, self.hidden, self.again]

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x = obs @ self.projection
        for layer in self.steps:
            x = torch.tanh(layer(x))
        mean, log_std = self.head(x).chunk(2, -1)
        return mean, log_std.clamp(-5.0, 2.0)


def own_networks(spec: Any, config: Any) -> tuple[nn.Module, nn.Module]:
    return Actor(spec.obs_dim, spec.action_dim), CriticEnsemble(spec.obs_dim, spec.action_dim, (8,))


# --- policies ---


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "sac with own networks"])
def test_a_policy_gives_the_same_actions_in_threads_as_alone(algorithm: str, tmp_path: Path) -> None:
    name, _, own = algorithm.partition(" ")
    net = own_networks if own else None
    run_dir = trained(name, tmp_path, net=net)
    policy = deeprl.load(run_dir, net=net)
    batch = np.random.default_rng(0).normal(size=(THREADS, *policy.spec.obs_shape)).astype(np.float32)
    expected = [policy(obs) for obs in batch]
    together(*(same_calls(policy, obs, action) for obs, action in zip(batch, expected, strict=True)))
    for obs, action in zip(batch, expected, strict=True):
        np.testing.assert_array_equal(policy(obs), action)


def test_the_members_of_a_population_act_at_the_same_time(tmp_path: Path) -> None:
    run_dir = trained("sac", tmp_path, seeds=[0, 1, 2], actor_lr=0.01)
    population = load_population(run_dir)
    policies = [deeprl.api.Policy(population, i) for i in range(3)]
    obs = np.ones(3, np.float32)
    expected = [policy(obs) for policy in policies]
    assert len({float(action[0]) for action in expected}) == 3
    act, first, key = population.act(), torch.zeros(1, dtype=torch.bool), rng.key(0, "eval")
    states = [member(population.state, i) for i in range(3)]

    def bare(state: Any) -> Callable[[Any], np.ndarray]:
        return lambda obs: act(state, (), torch.from_numpy(obs)[None], first, key)[0].numpy()

    actions = [bare(state)(obs) for state in states]
    work = [same_calls(policy, obs, action) for policy, action in zip(policies, expected, strict=True)]
    together(*work, *(same_calls(bare(s), obs, a) for s, a in zip(states, actions, strict=True)))


def test_modules_are_taken_beside_calls(tmp_path: Path) -> None:
    policy = deeprl.load(trained("sac", tmp_path, actor_lr=0.01))
    before, obs = policy.modules(), np.ones(3, np.float32)

    def take() -> None:
        for _ in range(CALLS):
            for name, module in policy.modules().items():
                for key, value in module.state_dict().items():
                    assert torch.equal(value, before[name].state_dict()[key]), (name, key)

    together(take, take, *(same_calls(policy, obs, policy(obs), 3 * CALLS) for _ in range(2)))


def test_no_two_calls_have_the_same_number(tmp_path: Path) -> None:
    """What a policy that keeps some randomness draws from: keys[:, 3] is the number of the call."""
    policy, seen = deeprl.load(trained("sac", tmp_path)), list[int]()
    act = policy._act

    def noting(state: Any, carry: Any, obs: Tensor, is_first: Tensor, key: Tensor) -> Any:
        seen.append(int(key[3]))
        return act(state, carry, obs, is_first, key)

    policy._act = noting
    obs = np.ones(3, np.float32)
    together(*(lambda: [policy(obs) for _ in range(CALLS)] for _ in range(THREADS)))
    assert sorted(seen) == [*range(1, THREADS * CALLS + 1)]


def test_the_programs_defaults_are_back_after_calls_in_threads(tmp_path: Path) -> None:
    policy, obs = deeprl.load(trained("sac", tmp_path)), np.ones(3, np.float32)
    expected = policy(obs)
    torch.set_default_dtype(torch.float64)
    try:
        together(*(same_calls(policy, obs, expected) for _ in range(THREADS)))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


# --- evaluations ---


def test_evaluations_in_threads_play_what_they_play_alone(tmp_path: Path) -> None:
    population = load_population(trained("td3", tmp_path, seeds=[3, 5], actor_lr=0.01))
    policy = GreedyPolicy(population.act(), population.state)

    def limited() -> gym.Env:
        return gym.make("Pendulum-v1", max_episode_steps=30)

    expected = Evaluator(limited, [3, 5], 2)(policy, 7)
    shared = Evaluator(limited, [3, 5], 2)
    found = dict[int, Any]()

    def play(number: int) -> None:
        evaluator = shared if number < 2 else Evaluator(limited, [3, 5], 2)
        with torch_defaults():
            found[number] = evaluator(policy, 7)

    together(*(lambda number=number: play(number) for number in range(4)))
    assert [found[number] for number in range(4)] == [expected] * 4


def test_each_thread_has_a_carry_of_its_own() -> None:
    def act(state: Any, carry: Any, obs: Tensor, is_first: Tensor, key: Tensor) -> tuple[Tensor, Any]:
        (steps,) = carry
        return steps[None] + 0.0 * obs, (steps + 1.0,)

    policy = GreedyPolicy(act, {"w": torch.zeros(1)}, begin=lambda n: (torch.zeros(()),))
    seen = dict[int, list[float]]()

    def play(number: int) -> None:
        obs, first, keys = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), bool), torch.zeros(1, 4).long()
        seen[number] = [float(policy(obs, first, keys).item()) for _ in range(20)]

    together(*(lambda number=number: play(number) for number in range(3)))
    assert [seen[number] for number in range(3)] == [[float(i) for i in range(20)]] * 3


# --- networks ---


def test_a_network_is_not_changed_while_it_is_called() -> None:
    """Whoever looks at it meanwhile, or afterwards, finds its own tensors, and so does the caller in `params`."""
    seen = []

    class Looked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((network.weight is own, self.weight is params["weight"]))
            return super().forward(x)

    network = Looked(1, 1)
    own, params = network.weight, {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])}
    given = dict(params)
    assert functional_call(network, params, (torch.tensor([[3.0]]),)).item() == 7.0  # 2 x 3 + 1
    assert seen == [(True, True)]
    assert network.weight is own
    assert all(params[key] is given[key] for key in given)


def test_calls_within_calls_do_not_meet() -> None:
    class Nested(nn.Linear):
        def forward(self, x: Tensor, depth: int = 0) -> Tensor:
            if depth == 0:
                return super().forward(x)
            inner = {"weight": self.weight + 1.0, "bias": self.bias}
            return functional_call(network, inner, (x, depth - 1)) + 100.0 * super().forward(x)

    network = Nested(1, 1)
    params = {"weight": torch.tensor([[1.0]]), "bias": torch.zeros(1)}
    assert functional_call(network, params, (torch.ones(1, 1), 2)).item() == 3.0 + 200.0 + 100.0  # weights 3, 2, 1


def test_an_error_within_a_call_leaves_the_network_as_it_was() -> None:
    network = nn.Linear(1, 1)
    params = {"weight": torch.tensor([[2.0]]), "bias": torch.zeros(1)}
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shapes"):
            functional_call(network, params, (torch.ones(1, 3),))
        assert functional_call(network, {"bias": torch.zeros(1)}, (torch.ones(1, 1),)) == network.weight


def test_a_call_equals_that_of_torch_for_tied_and_fixed_tensors_and_in_transforms() -> None:
    torch.manual_seed(0)
    network = Actor(3, 2)
    network.head.bias = nn.Parameter(torch.zeros(4))
    network.tied = nn.Linear(4, 4)
    network.tied.weight = network.head.weight
    x = torch.randn(5, 3)
    params = {key: torch.randn(2, *p.shape) for key, p in network.named_parameters() if p.requires_grad}
    fixed = {"projection": torch.randn(3, 4), "encoder.weight": torch.randn(4, 4)}

    def loss(call: Callable[..., Any], p: Any) -> Tensor:
        return sum(part.square().sum() for part in call(p))  # type: ignore[return-value]

    ours = torch.func.grad(lambda p: loss(lambda p: functional_call(Bound(network, fixed), p, (x,)), p))
    theirs = torch.func.grad(lambda p: loss(lambda p: torch.func.functional_call(network, {**fixed, **p}, (x,)), p))
    found, expected = torch.vmap(ours)(params), torch.vmap(theirs)(params)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_outlines_share_the_tensors_and_end_with_their_network() -> None:
    network = MLP(3, (8,), 2)
    params = {key: p.detach().clone() for key, p in network.named_parameters()}
    together(*(lambda: functional_call(network, params, (torch.ones(1, 3),)) for _ in range(3)))
    outlines = _idle[network]
    assert 1 <= len(outlines) <= 3
    for outline in outlines:
        assert all(p is q for p, q in zip(outline._module.parameters(), network.parameters(), strict=True))
    gone = weakref.ref(network)
    del network, outlines, outline
    gc.collect()
    assert gone() is None


@pytest.mark.compiled
def test_compiled_functions_have_the_graph_that_torch_would_give_them() -> None:
    network = MLP(3, (8,), 2)
    params = {key: torch.randn(2, *p.shape) for key, p in network.named_parameters()}
    graphs = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    for call in (functional_call, torch.func.functional_call):
        fold = torch.vmap(lambda p, x, call=call: call(network, p, (x,)), in_dims=(0, None))
        torch.compile(fold, backend=keep, fullgraph=True)(params, torch.ones(4, 3))
    assert graphs[0] == graphs[1]
    assert bound(network, {}) is network
