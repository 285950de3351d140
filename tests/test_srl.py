"""SRL: its update against an independent implementation, plans, replay of sequences, and acting with a memory."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import SPEC, assert_equal, batch_of
from run_helpers import assert_same_run, train_with_stops
from torch import Tensor, nn

import deeprl
from deeprl import nets
from deeprl.config import build
from deeprl.core import carry as memory
from deeprl.core import rng
from deeprl.core.plans import Playing, held, no_plan, play
from deeprl.core.population import Execution, freezing, member, new_agents, over_agents
from deeprl.core.spec import EnvSpec, Transition
from deeprl.errors import DeeprlError
from deeprl.make_data.collect import Request, create
from deeprl.online import srl
from deeprl.replay import Replay
from deeprl.replay.samplers import Window, actions_before, actions_from, uniform_rows
from deeprl.run.evaluate import Evaluator, GreedyPolicy
from deeprl.run.trained import load_population

SMALL = {"hidden": (8,), "units": 8, "critic_hidden": (16, 16), "model_hidden": (16,), "sequence_length": 3}
RUN: dict[str, Any] = SMALL | {
    "env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 25}, "steps": 48, "learning_starts": 20, "batch_size": 8,
    "compile": "off", "tensorboard": False, "threads": 1, "eval_every": 24, "eval_episodes": 2, "log_every": 7,
    "buffer_size": 50, "envs_per_agent": 2,
}  # fmt: skip


def config_of(out: Any = "", **settings: Any) -> srl.Config:
    return build(srl.Config, RUN | {"out": str(out)} | settings)


# --- networks ---


def test_gru_cell_is_that_of_torch() -> None:
    ours, theirs = nets.GRUCell(3, 5), nn.GRUCell(3, 5)
    theirs.load_state_dict(ours.state_dict())
    x, h = torch.randn(4, 3), torch.randn(4, 5)
    torch.testing.assert_close(ours(x, h), theirs(x, h))
    assert all(p.abs().max() <= 5**-0.5 for p in ours.parameters())


def test_actions_of_a_plan_follow_from_those_before_and_one_observation() -> None:
    actor = nets.SequenceActor(3, 2, (8,), 6)
    cell = nn.GRUCell(2, 6)
    cell.load_state_dict(actor.cell.state_dict())
    obs, previous, noise = torch.randn(4, 3), torch.randn(4, 2).tanh(), torch.randn(4, 3, 2)
    means, log_stds = actor(obs, previous, noise)
    h, action = actor.encoder(obs), previous
    for k in range(3):
        h = cell(action, h)
        mean, log_std = actor.head(h).chunk(2, -1)
        torch.testing.assert_close(means[:, k], mean)
        torch.testing.assert_close(log_stds[:, k], log_std.clamp(-20, 2))
        action = torch.tanh(mean + log_std.exp() * noise[:, k])


# --- the update, written once more with modules, autograd and torch's optimizers ---


class Reference:
    """The update of the authors' classes, with the noise of ours."""

    def __init__(self, net: srl.Net, state: srl.State, length: int):
        self.length, names = length, ("actor", "critic", "model")
        self.nets = {n: _with(getattr(net, n), getattr(state, n)) for n in names}
        self.targets = {n: _with(getattr(net, n), getattr(state, n)) for n in ("critic", "model")}
        self.log_alpha = state.log_alpha.clone().requires_grad_()
        params = {n: list(module.parameters()) for n, module in self.nets.items()} | {"alpha": [self.log_alpha]}
        self.adam = {n: torch.optim.Adam(p, 3e-4) for n, p in params.items()}

    def plan(self, obs: Tensor, previous: Tensor, length: int, key: Tensor) -> tuple[Tensor, Tensor]:
        noise = rng.normal(key, (len(obs), length, 2))
        mean, log_std = self.nets["actor"](obs, previous, noise)
        action = torch.tanh(mean + log_std.exp() * noise)
        squash = torch.log1p(-action.square())
        density = torch.distributions.Normal(mean, log_std.exp()).log_prob(mean + log_std.exp() * noise)
        return action, (density - squash).sum(-1)

    def step(self, name: str, loss: Tensor) -> None:
        self.adam[name].zero_grad()
        loss.backward()
        self.adam[name].step()

    def update(self, first: srl.Recalled, second: srl.Recalled, key: Tensor, recall: bool, policy: bool) -> None:
        critic_key, actor_key = rng.split(key, 2)
        batch = first.batch
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            length = 1 if recall else self.length
            action, log_prob = self.plan(batch.next_obs, first.previous, length, critic_key)
            next_q = self.targets["critic"](batch.next_obs, action.flatten(1)).amin(0)
            td_target = batch.reward + batch.discount * (next_q - alpha * log_prob.sum(-1))
        q = self.nets["critic"](batch.obs, batch.action)
        self.step("critic", 0.5 * (q - td_target).square().mean(1).sum())
        if recall:
            found = self.nets["model"](second.batch.obs, second.batch.action)
            self.step("model", (found - second.batch.next_obs).square().mean())
        if policy:
            state, loss = second.batch.obs, torch.zeros(())
            action, log_prob = self.plan(state, second.previous, self.length, actor_key)
            for k in range(self.length if recall else 0):
                loss = loss + (alpha * log_prob[:, k] - self.nets["critic"](state, action[:, k]).amin(0)).mean()
                with torch.no_grad():
                    state = self.targets["model"](state, action[:, k])
            if not recall:
                loss = (alpha * log_prob.sum(1) - self.nets["critic"](state, action.flatten(1)).amin(0)).mean()
            self.step("actor", loss)
            self.step("alpha", -self.log_alpha.exp() * (log_prob.detach().mean() - 2.0))
        for name, target in self.targets.items():
            for mine, online in zip(target.parameters(), self.nets[name].parameters(), strict=True):
                mine.data.lerp_(online.data, 0.005)


def _with(module: nn.Module, params: dict[str, Tensor]) -> Any:
    import copy

    made = copy.deepcopy(module)
    made.load_state_dict({name: p.clone() for name, p in params.items()})
    return made


@pytest.mark.parametrize("recall", [True, False])
def test_updates_are_those_of_an_independent_implementation(recall: bool) -> None:
    config = config_of(recall=recall, **({} if recall else {"model_hidden": (400, 300)}))
    net = srl.build_net(SPEC, config)
    state = srl.init(net, config, rng.key(0, "init"))
    reference = Reference(net, state, 3)
    for i in range(4):
        batch, second = batch_of(16, i), srl.Recalled(batch_of(16, 10 + i), batch_of(16, 20 + i).action)
        if not recall:
            batch = batch._replace(action=torch.cat([batch_of(16, 30 + i + j).action for j in range(3)], 1))
        first = srl.Recalled(batch, batch_of(16, 40 + i).action)
        key, policy = rng.key(0, "update", i), i % 2 == 1
        state, metrics, _ = srl.update(net, config, state, first, second, key, policy=policy)
        reference.update(first, second, key, recall, policy)
        assert ("actor_loss" in metrics, "model_loss" in metrics) == (policy, recall)
    for name, module in reference.nets.items():
        for key_, value in module.state_dict().items():
            torch.testing.assert_close(getattr(state, name)[key_], value, rtol=1e-4, atol=2e-6)
    for name, module in reference.targets.items():
        for key_, value in module.state_dict().items():
            torch.testing.assert_close(getattr(state, f"target_{name}")[key_], value, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(state.log_alpha, reference.log_alpha.detach())


def test_loss_of_a_plan_is_a_sum_or_a_mean_over_its_steps() -> None:
    net = srl.build_net(SPEC, config_of())
    state = srl.init(net, config_of(), rng.key(0, "init"))
    second = srl.Recalled(batch_of(16), batch_of(16, 1).action)
    losses = [
        srl.actor_loss(state.actor, net, config_of(plan_loss=how), state, second, rng.key(0, "update"))[0]
        for how in ("sum", "mean")
    ]
    torch.testing.assert_close(losses[0], 3 * losses[1])


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_population_is_its_members_alone(backend: Any) -> None:
    config = config_of()
    net = srl.build_net(SPEC, config)
    states = [srl.init(net, config, rng.key(seed, "init")) for seed in (0, 1)]
    batches = [
        tuple(srl.Recalled(batch_of(16, n + s), batch_of(16, n + 20 + s).action) for n in (0, 10)) for s in (0, 1)
    ]
    keys = [rng.key(s, "update") for s in (0, 1)]

    def update(state: Any, first: Any, second: Any, key: Tensor) -> Any:
        return srl.update(net, config, state, first, second, key, policy=True)

    agents, together = new_agents(states), memory.tree_map(lambda *x: torch.stack(x), *batches)
    over_agents(freezing(update), Execution(backend), donate=True)(agents, *together, torch.stack(keys))
    for i in (0, 1):
        alone = update(states[i], *batches[i], keys[i])[0]
        if backend == "loop":
            assert_equal(member(agents.state, i), alone)
        else:
            for name, value in member(agents.state, i).actor.items():
                torch.testing.assert_close(value, alone.actor[name], rtol=1e-4, atol=1e-6)


# --- replay of sequences ---


@pytest.mark.parametrize("steps", [7, 12, 23])
def test_what_was_done_before_and_after_each_row(steps: int) -> None:
    """Two environments, room for 12 steps each, episodes of 5 and 4 steps; against what was played."""
    spec, draw = EnvSpec((1,), 1, (-1.0,), (1.0,)), np.random.default_rng(0)
    replay, played, one = Replay(1, 24, spec, 2), [], Window(envs=2, before=1)
    for t in range(steps):
        action = draw.uniform(-1, 1, (1, 2, 1)).astype(np.float32)
        ends = np.array([[t % 5 == 4, t % 4 == 3]])
        obs = np.full((1, 2, 1), t, np.float32)
        replay.add(Transition(obs, action, np.zeros((1, 2)), ends & [[True, False]], ends & [[False, True]], obs + 1))
        played.append((action[0, :, 0], ends[0]))
    data = memory.tree_map(lambda x: x[0], replay.data)
    row = uniform_rows(data, replay.extent, rng.key(0, "sample"), 300, one)
    before, (after, last) = actions_before(data, replay.extent, row, one), actions_from(data, row, Window(3, 2))
    first = max(0, steps - 12) + (steps >= 12)
    assert {int(t) for t in data.obs[row, 0]} == set(range(first, steps))  # of a full ring the oldest has no past
    for i, r in enumerate(row.tolist()):
        env, t = r % 2, int(data.obs[r, 0])
        begins = t == 0 or played[t - 1][1][env]
        assert before[i, 0] == (0.0 if begins else played[t - 1][0][env])
        if t + 2 < steps:
            over, newest = False, 0.0
            for k in range(3):
                assert after[i, k, 0] == (0.0 if over else played[t + k][0][env])
                newest = newest if over else played[t + k][0][env]
                over = over or played[t + k][1][env]
            assert last[i, 0] == newest


# --- plans, and memory in general ---


def test_plans_are_carried_out_and_begin_anew_with_the_episode() -> None:
    """Plans count from 10 times their number; two environments, of which the second begins an episode at step 2."""
    made: list[Tensor] = []

    def act(net: Any, config: Any, state: Any, carry: Any, obs: Tensor, is_first: Any, key: Any, *, explore: bool):
        def plan(previous: Tensor) -> Tensor:
            made.append(previous[:, 0])
            return 10.0 * len(made) + torch.arange(3.0).expand(2, 3).unsqueeze(-1)

        return play(carry, plan, 3)

    acting = memory.remembering(act, lambda net, config, n: no_plan(n, 3, 1))
    carry, found = memory.fresh(lambda n: no_plan(n, 3, 1), 2), []
    for t in range(5):
        first = torch.tensor([t == 0, t in (0, 2)])
        action, carry = acting(None, None, None, carry, torch.zeros(2, 1), first, None, explore=True)
        found.append(action[:, 0].tolist())
    assert found == [[10.0, 10.0], [11.0, 11.0], [12.0, 30.0], [40.0, 31.0], [41.0, 32.0]]
    assert [x.tolist() for x in made][2:4] == [[11.0, 0.0], [12.0, 30.0]]  # nothing was done before the new episode


def test_a_plan_of_the_same_action_and_plans_of_different_lengths() -> None:
    carry = no_plan(2, 4, 1)
    values = iter(range(1, 9))
    found = []
    for _ in range(4):
        value = float(next(values))
        action, carry = play(carry, lambda _, v=value: held(torch.full((2, 1), v), 4), torch.tensor([2, 3]))
        found.append(action[:, 0].tolist())
    assert found == [[1.0, 1.0], [1.0, 1.0], [3.0, 1.0], [3.0, 4.0]]


class Counting(gym.Env):
    """Ends after as many steps as its seed says, at most 7."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 8))
        return np.array([self.left], np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return np.array([self.left], np.float32), float(action[0]), self.left == 0, False, {}


def test_memories_begin_anew_with_each_round_of_an_evaluation_and_fit_its_width() -> None:
    def act(state: Any, carry: Any, obs: Tensor, is_first: Tensor, key: Tensor) -> Any:
        (done,) = carry
        return (done + 1.0).unsqueeze(-1) / 10.0 + 0.0 * obs, (done + 1.0,)

    policy = GreedyPolicy(act, {"w": torch.zeros(2)}, begin=lambda n: (torch.zeros(n),))
    evaluator = Evaluator(Counting, [3, 4], 13)
    episodes = [*evaluator(policy), *Evaluator(Counting, [5, 6], 4)(policy)]
    assert len({e.length for e in episodes}) > 3
    for e in episodes:  # 0.1 + 0.2 + ...
        assert e.ret == pytest.approx(e.length * (e.length + 1) / 20, rel=1e-5)


# --- whole runs ---


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("srl") / "run"
    return srl.train(config_of(out, seeds=(3, 4), snapshot_every=30)).directory


def test_interrupted_in_the_midst_of_a_plan_it_goes_on_exactly(run_dir: Path, tmp_path: Path) -> None:
    train_with_stops(config_of(tmp_path / "b", seeds=(3, 4), snapshot_every=30), [14, 26, 28, 44], srl)
    assert_same_run(run_dir, tmp_path / "b")
    population = load_population(run_dir)
    assert population.step == 48


def test_agents_of_a_population_are_those_alone(run_dir: Path, tmp_path: Path) -> None:
    alone = srl.train(config_of(tmp_path / "a", seeds=(4,))).directory
    ours, theirs = load_population(run_dir), load_population(alone)
    for name, value in member(theirs.state, 0).actor.items():
        torch.testing.assert_close(member(ours.state, 1).actor[name], value, rtol=2e-3, atol=2e-5)


def test_compiled_is_eager(tmp_path: Path) -> None:
    found = []
    for compile_ in ("off", "on"):
        settings = {"compile": compile_, "precision": "strict", "eval_episodes": 0, "steps": 30, "eval_every": 0}
        run = srl.train(config_of(tmp_path / compile_, **settings)).directory
        found.append(load_population(run).state)
    for name, value in found[0].actor.items():
        torch.testing.assert_close(found[1].actor[name], value, rtol=1e-3, atol=2e-5)


def test_a_policy_plays_its_plans_until_it_is_reset(run_dir: Path) -> None:
    policy = deeprl.load(run_dir, seed=3)
    assert policy.has_memory
    obs, other = np.array([0.3, 0.4, 0.5]), np.array([-0.9, 0.1, 2.0])
    plan, longer = policy.plan(obs), policy.plan(obs, 5)
    assert (plan.shape, longer.shape, plan.dtype) == ((3, 1), (5, 1), np.float32)
    np.testing.assert_allclose(longer[:3], plan, rtol=1e-6)
    assert len(np.unique(plan)) == 3
    played = [policy(obs), policy(other), policy(other)]
    np.testing.assert_allclose(played, plan, rtol=1e-5)
    fourth = policy(obs)
    assert not np.array_equal(fourth, plan[0])  # it knows what it did before
    policy.reset()
    np.testing.assert_allclose(policy(obs), plan[0], rtol=1e-5)
    with pytest.raises(ValueError, match=r"obs has 2 rows, and the call before had 1: reset\(\)"):
        policy(np.stack([obs, other]))
    policy.reset()
    np.testing.assert_allclose(policy(np.stack([obs, other])), policy.plan(np.stack([obs, other]))[:, 0], rtol=1e-5)
    again = pickle.loads(pickle.dumps(policy))
    np.testing.assert_allclose(again(obs), plan[0], rtol=1e-5)
    with pytest.raises(DeeprlError, match="length: must be positive, not 0"):
        policy.plan(obs, 0)


def test_each_thread_has_a_memory_of_its_own(run_dir: Path) -> None:
    policy, observations = deeprl.load(run_dir, seed=3), np.random.default_rng(0).normal(size=(2, 9, 3))
    found = dict[int, Any]()

    def play_one(number: int) -> None:
        policy.reset()
        found[number] = [policy(obs) for obs in observations[number]]

    for number in (0, 1):
        play_one(number)
    alone, found = dict(found), {}
    threads = [threading.Thread(target=play_one, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        np.testing.assert_array_equal(found[number], alone[number])


def test_recorded_episodes_are_those_of_a_policy_that_is_reset(run_dir: Path, tmp_path: Path) -> None:
    import h5py

    settings: dict[str, Any] = {"env_kwargs": {"max_episode_steps": 25}, "mean_action": True, "agent_seed": 3}
    settings |= {"runs": (str(run_dir),), "expert": "run:seed_3"}
    place = str(tmp_path / "d.hdf5")
    create(Request(place, "Pendulum-v1", kind="expert", steps=330, **settings))
    with h5py.File(tmp_path / "d.hdf5") as file:
        obs, actions, ends = (file[k][()] for k in ("observations", "actions", "timeouts"))
    policy = deeprl.load(run_dir, seed=3)
    policy.reset()
    for t, (seen, done) in enumerate(zip(obs, actions, strict=True)):
        np.testing.assert_allclose(policy(seen), done, atol=1e-5)
        if ends[t]:
            policy.reset()
    assert ends.sum() > 10  # environments are played in again


def test_a_memory_knows_of_random_actions(tmp_path: Path) -> None:
    seen: list[tuple[Playing, Tensor]] = []

    def look(run: Any) -> bool:
        carry, replay = (run._attached[name] for name in ("carry", "replay"))
        last = replay.data.action[:, replay.newest : replay.newest + 2]
        seen.append((carry.tree, last.clone()))
        return run.step == 24

    srl.train(config_of(tmp_path / "a"), callback=look)
    assert all(torch.equal(carry.action, done) for carry, done in seen)
    assert [int(carry.left[0, 0]) for carry, _ in seen] == [0] * 10 + [2, 1]


def test_replanning_looks_at_each_step_as_it_learns_but_not_as_it_is_evaluated() -> None:
    config = config_of(replan_every=1)
    net = srl.build_net(SPEC, config)
    state, key = srl.init(net, config, rng.key(0, "init")), rng.key(0, "explore")
    carry, first = srl.init_carry(net, config, 1), torch.zeros(1, dtype=torch.bool)
    left = [
        int(srl.act(net, config, state, carry, torch.zeros(1, 3), first, key, explore=explore)[1].left)
        for explore in (True, False)
    ]
    assert left == [0, 2]


def test_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(DeeprlError, match="srl needs continuous actions"):
        srl.train(config_of(tmp_path / "a", env="CartPole-v1"))
    with pytest.raises(DeeprlError, match="sequence_length: must be positive and finite, not 0"):
        config_of(sequence_length=0)
    with pytest.raises(DeeprlError, match="these plans need a buffer_size and steps of 64 and more"):
        config_of(sequence_length=16, recall=False, model_hidden=(400, 300))
    with pytest.raises(DeeprlError, match="replan_every: must be at least 0 and at most sequence_length, 3, not 4"):
        config_of(replan_every=4)

    def own(spec: Any, config: Any) -> Any:
        actor, critic, _ = srl.make_net(spec, config)
        return actor, critic, nets.Dynamics(spec.obs_dim, spec.action_dim + 1, (4,))

    with pytest.raises(DeeprlError, match=r"net: Dynamics cannot take \(3, 3\) and \(3, 1\)"):
        srl.train(config_of(tmp_path / "a"), net=own)
    assert not (tmp_path / "a").exists()
    short = {"env": "Pendulum-v1", "steps": 3, "learning_starts": 2, "eval_episodes": 0}
    policy = deeprl.load(deeprl.train("sac", out=str(tmp_path / "s"), **short).directory)
    assert not policy.has_memory
    with pytest.raises(DeeprlError, match="decide anew at each step"):
        policy.plan(np.zeros(3))
