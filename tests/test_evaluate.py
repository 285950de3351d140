import gymnasium as gym
import numpy as np
import pytest
import torch

from deeprl.core.population import Execution
from deeprl.envs.make import EnvFactory, make_env
from deeprl.envs.spaces import env_spec
from deeprl.envs.vector import Episode, env_seeds
from deeprl.online import sac
from deeprl.run import checkpoint
from deeprl.run.evaluate import Evaluator, GreedyPolicy


class Countdown(gym.Env):
    """Starts at 2, 3, 4 or 5 and counts down to 0; the reward is the place plus the action in [-3, 3]."""

    observation_space = gym.spaces.Box(0, 10, (1,), np.float32)
    action_space = gym.spaces.Box(-3, 3, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(2, 6))
        return np.array([self.place], np.float32), {}

    def step(self, action):
        reward = self.place + float(action[0])
        self.place -= 1
        return np.array([self.place], np.float32), reward, self.place == 0, False, {}


KEYS = torch.zeros(2, 4, dtype=torch.int64)


def half(obs, is_first, keys):
    return np.full((*obs.shape[:2], 1), 0.5, np.float32)


def countdown_episode(member, e, seed, counter=0):
    env = Countdown()
    env.reset(seed=env_seeds(seed, "eval", e + 1, counter)[e])
    start = env.place
    # start + (start - 1) + .. + 1 and start times the action 0.5 in [-1, 1] = 1.5 in [-3, 3]
    return Episode(member, e, start * (start + 1) / 2 + 1.5 * start, start)


def test_returns_and_lengths_by_hand():
    episodes = Evaluator(Countdown, [4, 7], 5)(half)
    assert episodes == [countdown_episode(m, e, seed) for m, seed in enumerate((4, 7)) for e in range(5)]
    assert len({e.length for e in episodes}) > 1


def test_more_than_ten_episodes_run_in_rounds():
    evaluator = Evaluator(Countdown, [4], 23)
    assert evaluator(half) == [countdown_episode(0, e, 4) for e in range(23)]
    assert len(evaluator._envs[0]) == 10
    evaluator.close()


def test_policy_sees_is_first_at_starts_only():
    seen = []

    def policy(obs, is_first, keys):
        seen.append((obs.copy(), is_first.copy()))
        return half(obs, is_first, keys)

    Evaluator(Countdown, [4, 7], 3)(policy)
    assert seen[0][1].all()
    assert not any(first.any() for _, first in seen[1:])
    assert seen[0][0].shape == (2, 3, 1)
    assert seen[0][0].dtype == np.float32


def test_policy_sees_is_first_again_in_the_next_round():
    firsts = []

    def policy(obs, is_first, keys):
        firsts.append(is_first.copy())
        return half(obs, is_first, keys)

    Evaluator(Countdown, [4], 12)(policy)
    starts = [i for i, first in enumerate(firsts) if first.any()]
    assert len(starts) == 2
    assert (firsts[starts[0]].shape, firsts[starts[1]].shape) == ((1, 10), (1, 2))


def test_every_step_draws_other_numbers():
    seen = []

    def policy(obs, is_first, keys):
        seen.append(keys.clone())
        return half(obs, is_first, keys)

    Evaluator(Countdown, [4, 7], 12)(policy, 3)
    keys = torch.cat(seen)
    assert len(keys.unique(dim=0)) == len(keys) > 10
    assert (keys[:, 3] > 0).all()  # 0 is what the starts are drawn from


def test_progress_counts_finished_episodes():
    counts = []
    Evaluator(Countdown, [4, 7], 6)(half, 0, lambda ended, step: counts.append(ended))
    assert counts == sorted(counts)
    assert counts[-1] == 12


PENDULUM = EnvFactory("Pendulum-v1", {"max_episode_steps": 20}, ())


def linear(obs, is_first, keys):
    return np.tanh(obs.sum(-1, keepdims=True))


def test_same_seed_and_counter_give_the_same_episodes_whatever_the_population():
    alone = Evaluator(PENDULUM, [5], 3)(linear, 40)
    together = Evaluator(PENDULUM, [9, 5, 2], 3)(linear, 40)
    assert [e._replace(member=0) for e in together if e.member == 1] == alone


@pytest.mark.parametrize(("few", "many"), [(1, 2), (2, 3), (3, 10), (10, 13)])
def test_same_episodes_whatever_their_number(few, many):
    first = Evaluator(PENDULUM, [5], few)(linear, 40)
    assert Evaluator(PENDULUM, [5], many)(linear, 40)[:few] == first


def test_another_counter_or_seed_gives_other_episodes():
    returns = {
        tuple(e.ret for e in Evaluator(PENDULUM, [seed], 2)(linear, counter))
        for seed, counter in ((5, 0), (5, 1), (6, 0), (6, 1))
    }
    assert len(returns) == 4
    assert len({e.ret for e in Evaluator(PENDULUM, [5], 12)(linear)}) == 12  # no episode twice


def test_second_call_of_an_evaluator_equals_a_fresh_one():
    evaluator = Evaluator(PENDULUM, [5], 3)
    evaluator(linear, 1)
    assert evaluator(linear, 2) == Evaluator(PENDULUM, [5], 3)(linear, 2)


def test_episodes_equal_a_hand_stepped_env():
    (episode,) = Evaluator(PENDULUM, [5], 1)(linear, 40)
    env = make_env("Pendulum-v1", {"max_episode_steps": 20})
    obs, _ = env.reset(seed=env_seeds(5, "eval", 1, 40)[0])
    total, length, over = 0.0, 0, False
    while not over:
        action = np.clip(2.0 * np.tanh(obs.sum(keepdims=True)), -2, 2).astype(np.float32)  # bounds of Pendulum: 2
        obs, reward, terminated, truncated, _ = env.step(action)
        total, length, over = total + float(reward), length + 1, terminated or truncated
    assert length == episode.length == 20
    assert episode.ret == pytest.approx(total, rel=1e-5)  # the clip is done in float32 there


def test_greedy_policy_has_no_exploration_noise_and_follows_the_state():
    def act(state, carry, obs, is_first, key):
        return torch.tanh(obs * state["w"]), carry

    state = {"w": torch.tensor([1.0, 2.0])}
    policy = GreedyPolicy(act, state)
    obs, first = np.ones((2, 3, 1), np.float32), np.ones((2, 3), bool)
    action = policy(obs, first, KEYS)
    assert np.array_equal(action, policy(obs, first, KEYS))
    assert action.shape == (2, 3, 1)
    assert action[:, 0, 0] == pytest.approx([np.tanh(1.0), np.tanh(2.0)])
    state["w"].fill_(3.0)  # states are updated in place
    assert policy(obs, first, KEYS)[:, 0, 0] == pytest.approx([np.tanh(3.0)] * 2)


def test_greedy_policy_hands_the_carry_on():
    def act(state, carry, obs, is_first, key):
        (count,) = carry
        count = count + 1
        return obs * 0 + count, (count,)

    policy = GreedyPolicy(act, {"w": torch.zeros(2)}, begin=lambda n: (torch.zeros(n, 1),))
    obs, first = np.zeros((2, 3, 1), np.float32), [np.full((2, 3), t in (0, 3)) for t in range(5)]
    assert [float(policy(obs, is_first, KEYS)[1, 2, 0]) for is_first in first] == [1.0, 2.0, 3.0, 1.0, 2.0]


TINY = {
    "env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 20}, "steps": 60, "learning_starts": 20,
    "hidden": (16, 16), "batch_size": 16, "compile": "off", "tensorboard": False, "threads": 1, "seeds": (0, 1),
}  # fmt: skip


def test_sac_evaluates_its_greedy_policy(tmp_path):
    evaluator = Evaluator(PENDULUM, [0, 1], 2)
    results = []

    def look(run):
        if run.step == 60:
            state = run._attached["agents"].tree.state
            net = sac.build_net(spec, run.config)

            def act(state, carry, obs, is_first, key):
                return sac.act(net, run.config, state, carry, obs, is_first, key, explore=False)

            results.extend([evaluator(GreedyPolicy(act, state), 60) for _ in range(2)])

    spec = env_spec(PENDULUM())
    sac.train(sac.Config(out=str(tmp_path / "run"), eval_every=0, eval_episodes=2, **TINY), callback=look)
    assert results[0] == results[1]
    text = (tmp_path / "run" / "evaluations.csv").read_text().splitlines()[1:]
    assert [float(line.split(",")[4]) for line in text] == [e.ret for e in results[0]]


def test_evaluations_do_not_disturb_training(tmp_path):
    for name, every, episodes in (("often", 7, 3), ("never", 0, 0)):
        sac.train(sac.Config(out=str(tmp_path / name), eval_every=every, eval_episodes=episodes, **TINY))
    (_, often), (_, never) = (checkpoint.load_checkpoint(tmp_path / n / "checkpoints") for n in ("often", "never"))
    assert [k for k in often["agents"] if not torch.equal(often["agents"][k], never["agents"][k])] == []
    assert (tmp_path / "often" / "evaluations.csv").read_text().count("\n") == 1 + 9 * 2 * 3  # at 7, 14 .. 56 and 60
    assert not (tmp_path / "never" / "evaluations.csv").exists()


def test_greedy_policy_of_a_loop_is_each_agents_own():
    layer = torch.nn.Linear(17, 6)
    state = {"weight": torch.randn(3, 6, 17), "bias": torch.randn(3, 6)}

    def act(state, carry, obs, is_first, key):
        return torch.func.functional_call(layer, state, (obs,)), carry

    obs, first = np.random.default_rng(0).normal(size=(3, 5, 17)).astype(np.float32), np.ones((3, 5), bool)
    keys = torch.zeros(3, 4, dtype=torch.int64)
    together = GreedyPolicy(act, state, Execution("loop"))(obs, first, keys)
    for i in range(3):
        alone = {k: v[i : i + 1] for k, v in state.items()}
        own = GreedyPolicy(act, alone, Execution("loop"))(obs[i : i + 1], first[i : i + 1], keys[:1])
        assert np.array_equal(together[i], own[0])
