"""Whole passes on the device: what is done in one call is what is done step by step, and nobody looks in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from run_helpers import assert_same_run
from torch import Tensor

import deeprl
from deeprl.core import rng
from deeprl.core.population import Execution
from deeprl.core.spec import EnvSpec, Transition
from deeprl.envs.device import Outcome
from deeprl.envs.device.population import DeviceEnvs
from deeprl.envs.device.registry import device_env
from deeprl.envs.vector import PopulationEnvs
from deeprl.run import device_evaluate, evaluate, fused, loop
from deeprl.run.device_evaluate import DeviceEvaluator
from deeprl.run.evaluate import Evaluator, GreedyPolicy, StoppedError
from deeprl.run.loop import Run
from deeprl.run.trained import load_population

RUN: dict[str, Any] = {
    "env_backend": "device", "steps": 96, "learning_starts": 24, "batch_size": 8, "compile": "off", "threads": 1,
    "tensorboard": False, "eval_every": 48, "eval_episodes": 3, "log_every": 24, "buffer_size": 40,
    "envs_per_agent": 2, "seeds": (3, 4), "env_kwargs": {"max_episode_steps": 9},
}  # fmt: skip
AGENTS: dict[str, dict[str, Any]] = {
    # 20 steps of two environments are 10 passes, more than are done together where TOGETHER is smaller.
    "dqn": {"env": "CartPole-v1", "hidden": (8,), "train_every": 16, "target_every": 20, "utd": 0.25, "n_step": 2,
            "prioritized": True, "reward_clip": 0.5, "epsilon_steps": 50.0},
    "sac": {"env": "Pendulum-v1", "hidden": (8,), "normalize_obs": True, "utd": 0.25},
    "td3": {"env": "Pendulum-v1", "hidden": (8,)},
    "srl": {"env": "Pendulum-v1", "hidden": (8,), "units": 8, "critic_hidden": (8,), "model_hidden": (8,), "utd": 0.5},
}  # fmt: skip


def trained(algorithm: str, out: Path, **settings: Any) -> Path:
    return deeprl.train(algorithm, out=str(out), **(RUN | AGENTS[algorithm] | settings)).directory


class OnHost(PopulationEnvs):
    """Environments on the device with the face of those of Gymnasium, in arrays: acted in and stored step by step."""

    restorable = "captured"

    def __init__(self, envs: DeviceEnvs):
        self.envs, self.spec = envs, envs.spec

    obs: Any = property(lambda self: self.envs.obs.numpy().copy())
    is_first: Any = property(lambda self: self.envs.is_first.numpy().copy())

    def step(self, action: np.ndarray) -> Transition:
        return Transition(*(x.numpy() for x in self.envs.step(torch.from_numpy(action))))


for _name in ("pop_episodes", "pop_faults", "state_dict", "load_state_dict", "close"):
    setattr(OnHost, _name, lambda self, *args, name=_name, **more: getattr(self.envs, name)(*args, **more))


@pytest.mark.parametrize("algorithm", AGENTS)
def test_passes_are_what_is_done_step_by_step(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = trained(algorithm, tmp_path / "a")
    make = Run.make_envs
    monkeypatch.setattr(Run, "make_envs", lambda run: OnHost(make(run)))
    assert_same_run(together, trained(algorithm, tmp_path / "b"))


def test_how_many_steps_are_done_together_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained("dqn", tmp_path / "a")
    calls: list[int] = []
    done = fused.Fused.done
    monkeypatch.setattr(fused.Fused, "done", lambda self: calls.append(self.waiting) or done(self))
    for most in (3, 1):
        monkeypatch.setattr(fused, "TOGETHER", most)
        calls.clear()
        assert_same_run(whole, trained("dqn", tmp_path / str(most)))
        assert max(calls) == most


@pytest.mark.parametrize("algorithm", ["dqn", "sac"])
def test_a_run_stopped_while_steps_wait_goes_on_as_if_it_had_not(algorithm: str, tmp_path: Path) -> None:
    whole, seen = trained(algorithm, tmp_path / "a"), set[int]()
    for stop in (30, 57, 75):

        def look(run: Run, stop: int = stop) -> bool:
            seen.add(run.step)
            return run.step >= stop

        trained(algorithm, tmp_path / "b", callback=look)
    assert_same_run(whole, trained(algorithm, tmp_path / "b"))
    assert 34 not in seen  # as nothing is due there, and no update
    assert (36 in seen) == (algorithm == "sac")


@pytest.mark.parametrize("algorithm", AGENTS)
def test_nobody_looks_at_the_device_between_log_rows(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []
    looks: list[tuple[int, str]] = []
    begin = loop.Run.restore

    def restored(run: Run, *args: Any, **named: Any) -> None:
        begin(run, *args, **named)
        runs.append(run)

    monkeypatch.setattr(loop.Run, "restore", restored)
    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        usual = getattr(torch.Tensor, name)

        def counted(tensor: Any, *args: Any, name: str = name, usual: Any = usual, **named: Any) -> Any:
            looks.extend([(runs[0].step, name)] if runs else [])
            return usual(tensor, *args, **named)

        monkeypatch.setattr(torch.Tensor, name, counted)
    trained(algorithm, tmp_path / "a", eval_every=0, eval_episodes=0)
    assert {step for step, _ in looks} <= {0, 24, 48, 72, 96}
    assert {step for step, _ in looks} >= {48, 72, 96}  # they are seen where they are


@pytest.mark.parametrize("algorithm", ["dqn", "sac"])
def test_compiled_passes_are_eager_ones(algorithm: str, tmp_path: Path) -> None:
    settings = {"precision": "strict", "eval_every": 0, "env_kwargs": {}}
    settings |= {"train_every": 4} if algorithm == "dqn" else {"eval_episodes": 0}  # those of one are enough
    states = [load_population(trained(algorithm, tmp_path / c, compile=c, **settings)).state for c in ("off", "on")]
    found = [state.params if algorithm == "dqn" else state.actor for state in states]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5)


# --- evaluation ---


class Counting:
    """A state that begins anywhere in [0, 1) and grows by the action 1 a step, which it earns; ends at 3 or more."""

    spec = EnvSpec((1,), 1, (-1.0,), (1.0,))
    limit = 0

    def reset(self, key: Tensor) -> Tensor:
        return rng.uniform(key, (1,))

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, key: Tensor) -> Outcome:
        return Outcome(state + action, state[0], state[0] + action[0] >= 3.0)


def onwards(state: Any, carry: Any, obs: Tensor, is_first: Tensor, key: Tensor) -> tuple[Tensor, Any]:
    """By `speed` of the agent; remembers how many steps its episode has had, which begin anew with it."""
    return state["speed"].expand(len(obs), 1), torch.where(is_first, 1.0, carry + 1.0)


def policy_of(*speeds: float) -> GreedyPolicy:
    return GreedyPolicy(onwards, {"speed": torch.tensor(speeds)}, begin=torch.zeros)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_episodes_by_hand(backend: Any) -> None:
    evaluator = DeviceEvaluator(Counting(), 0, (3, 4), 4, Execution(backend))
    seen: list[tuple[int, int]] = []
    found = evaluator(policy_of(1.0, 0.5), 7, lambda n, t: seen.append((n, t)))
    assert [(e.member, e.env) for e in found] == [(a, e) for a in range(2) for e in range(4)]
    assert seen == [(8, 50)]
    # Earned from s on: s, s + 1, s + 2 by the fast one; s, s + 1/2, ... by the slow one, up to s + 5/2 if s < 1/2.
    starts = [(e.ret - 3.0) / 3.0 for e in found[:4]]
    assert {e.length for e in found[:4]} == {3}
    assert len(set(starts)) == 4
    assert all(0.0 <= s < 1.0 for s in starts)
    for e in found[4:]:
        assert e.length in (5, 6)
        start = (e.ret - 0.5 * sum(range(e.length))) / e.length
        assert (0.0 if e.length == 6 else 0.5) <= start + 1e-6 < (0.5 if e.length == 6 else 1.0) + 2e-6


def test_an_evaluation_depends_on_seed_episode_and_number_alone() -> None:
    both = DeviceEvaluator(Counting(), 0, (3, 4), 4, Execution())
    policy = policy_of(1.0, 1.0)
    found = both(policy, 7)
    other = both(policy, 8)
    assert all(a.ret != b.ret for a, b in zip(found, other, strict=True))
    assert both(policy, 7) == found
    alone = DeviceEvaluator(Counting(), 0, (4,), 4, Execution())(policy_of(1.0), 7)
    assert [(e.env, e.ret) for e in alone] == [(e.env, e.ret) for e in found if e.member == 1]
    assert {a.ret for a in found[:4]}.isdisjoint(b.ret for b in found[4:])


def test_episodes_that_never_end_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_evaluate, "LONGEST", 60)
    monkeypatch.setattr(evaluate, "LONGEST", 60)
    endless = DeviceEvaluator(Counting(), 0, (3, 4), 2, Execution())
    assert [e.length for e in endless(policy_of(0.0, 1.0))] == [60, 60, 3, 3]
    assert "cut after 60 steps" in endless.cut
    assert "2 of 4" in endless.cut
    limited = DeviceEvaluator(Counting(), 5, (3,), 2, Execution())
    assert [e.length for e in limited(policy_of(0.0))] == [5, 5]
    assert limited.cut == ""
    with pytest.raises(StoppedError):
        endless(policy_of(0.0, 1.0), stop=lambda: True)


def test_evaluations_on_the_device_are_those_of_gymnasium_in_kind() -> None:
    # A policy that balances CartPole for a while; from starts of the same distribution, over 200 episodes each.
    def lean(state: Any, carry: Any, obs: Tensor, is_first: Tensor, key: Tensor) -> tuple[Tensor, Any]:
        return (obs[:, 2] + state["w"] * obs[:, 3] > 0).to(torch.int64), carry

    policy, places = GreedyPolicy(lean, {"w": torch.zeros(1)}), (3,)
    env, limit = device_env("CartPole-v1", {})
    ours = [e.ret for e in DeviceEvaluator(env, limit, places, 200, Execution())(policy)]
    theirs = [e.ret for e in Evaluator(lambda: gym.make("CartPole-v1"), places, 200)(policy)]
    error = (np.var(ours) / 200 + np.var(theirs) / 200) ** 0.5
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error
    assert 20 < np.mean(ours) < 80
