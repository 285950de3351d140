"""The Python face: training, loading, own environments and own networks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import deeprl
from deeprl.commands.evaluate import assess
from deeprl.envs.make import make_env
from deeprl.envs.vector import env_seeds
from deeprl.errors import DeeprlError
from deeprl.nets import MLP, CriticEnsemble
from deeprl.run import checkpoint
from deeprl.run.evaluate import Evaluator, GreedyPolicy

TINY = {
    "steps": 180, "learning_starts": 100, "hidden": [16, 16], "batch_size": 16, "eval_every": 0, "eval_episodes": 2,
    "compile": "off", "threads": 1, "tensorboard": False,
}  # fmt: skip

OWN_ENV = '''
import gymnasium as gym
import numpy as np


class Reach(gym.Env):
    """Be at the target: the action moves the point, the reward is minus the distance."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(np.array([-1.0, 0.0]), np.array([3.0, 0.5]), dtype=np.float64)

    def __init__(self, speed=0.1):
        self.speed = speed

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point = self.np_random.uniform(-1, 1, 2)
        return self.point.copy(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, np.float64)), action
        self.point = self.point + self.speed * np.asarray(action)
        return self.point.copy(), -float(np.abs(self.point).sum()), False, False, {}


class Halved(gym.RewardWrapper):
    def reward(self, reward):
        return reward / 2


gym.register("Reach-v0", entry_point=Reach, max_episode_steps=20)
'''


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "run"
    settings = TINY | {"normalize_obs": True}
    return deeprl.train(
        "sac", env="Pendulum-v1", seeds=[3, 5], out=str(out), actor_lr=[1e-3, 1e-4], **settings
    ).directory


def assert_recorded_is_played(run_dir: Path | str, make: Callable[[], gym.Env]) -> None:
    """Playing with `load`ed agents gives the very returns that the run recorded for its final policies."""
    rows = deeprl.results(run_dir)
    final = max(row["step"] for row in rows)
    for row in (row for row in rows if row["step"] == final):
        policy = deeprl.load(run_dir, seed=row["seed"])
        returns = []
        for start in env_seeds(row["seed"], "eval", 2, final):
            env = make()
            obs, _ = env.reset(seed=start)
            policy.reset()
            total, over = 0.0, False
            while not over:
                obs, reward, terminated, truncated, _ = env.step(policy(obs))
                total, over = total + float(reward), terminated or truncated
            returns.append(total)
        assert np.mean(returns) == pytest.approx(row["return"], rel=1e-4)


def test_policy_equals_the_evaluated_agent(run_dir: Path) -> None:
    assert_recorded_is_played(run_dir, lambda: gym.make("Pendulum-v1"))


SMALL_SIMBA = {"actor_width": 8, "critic_width": 8, "critic_blocks": 1}
SMALL_ALGORITHMS: dict[str, dict[str, Any]] = {
    "dqn": {"env": "CartPole-v1", "hidden": [8], "epsilon_steps": 10_000},  # random while it explores
    "td3": {"env": "Pendulum-v1", "hidden": [8], "normalize_obs": True},
    "simba": {"env": "Pendulum-v1", **SMALL_SIMBA},
    "simba_v2": {"env": "Pendulum-v1", "bins": 11, **SMALL_SIMBA},
    "srl": {"env": "Pendulum-v1", "hidden": [8], "units": 8, "critic_hidden": [8], "model_hidden": [8]},
    "bc": {"actor": "gaussian", "hidden": [8]},
    "iql": {"hidden": [8]},
    "cql": {"actor_hidden": [8], "critic_hidden": [8], "bc_steps": 0},
    "edac": {"hidden": [8]},
}


@pytest.mark.parametrize("algorithm", SMALL_ALGORITHMS)
def test_evaluations_are_of_the_policy_without_exploration(algorithm: str, tmp_path: Path) -> None:
    own = SMALL_ALGORITHMS[algorithm] | {"steps": 30, "batch_size": 4, "out": str(tmp_path / "run")}
    own |= {"eval_every": 0, "eval_episodes": 2, "compile": "off", "threads": 1, "tensorboard": False}
    if "env" in own:
        own |= {"learning_starts": 20}
    else:
        from offline_helpers import write_made

        own |= {"env": "offline_helpers:MadeLinear-v0", "normalize_obs": "obs"}
        own |= {"dataset": write_made(tmp_path / "a.npz")}
    assert_recorded_is_played(deeprl.train(algorithm, **own).directory, lambda: gym.make(own["env"]))


def test_policy_that_keeps_some_randomness_draws_anew_at_every_call(tmp_path: Path) -> None:
    own = SMALL_ALGORITHMS["dqn"] | {"steps": 30, "learning_starts": 20, "eval_episodes": 0, "eval_epsilon": 1.0}
    policy = deeprl.load(deeprl.train("dqn", out=str(tmp_path / "run"), compile="off", **own).directory)
    obs = np.zeros((64, 4), np.float32)
    assert not np.array_equal(policy(obs), policy(obs))


def test_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(import gymnasium\nimport deeprl.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    few = "steps=60, learning_starts=30, batch_size=8, eval_episodes=1"
    assert code.count("steps=20_000") == 1
    names: dict[str, Any] = {}
    exec(code.replace("steps=20_000", few), names)
    assert {row["seed"] for row in names["rows"]} == {0, 1, 2, 3}
    assert names["truncated"]
    assert set(names["networks"]) == {"actor", "critic"}


def test_policy_takes_one_observation_or_a_batch(run_dir: Path) -> None:
    policy = deeprl.load(run_dir, seed=5)
    batch = np.random.default_rng(0).normal(size=(7, 3))
    actions = policy(batch)
    assert actions.shape == (7, 1)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 2.0
    np.testing.assert_allclose(policy(batch[2]), actions[2], rtol=1e-5)
    assert policy.settings == {"actor_lr": 1e-4}
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        policy(np.zeros(4))


def test_networks_of_a_trained_agent_do_what_its_policy_does(run_dir: Path) -> None:
    policy = deeprl.load(run_dir, seed=3)
    parts = policy.modules()
    assert set(parts) == {"actor", "critic", "obs_norm"}
    obs = torch.randn(5, 3)
    mean, _ = parts["actor"](parts["obs_norm"](obs))
    torch.testing.assert_close(2.0 * torch.tanh(mean), torch.from_numpy(policy(obs.numpy())))
    assert parts["critic"](parts["obs_norm"](obs), torch.tanh(mean)).shape == (2, 5)
    with torch.no_grad():  # they are copies
        parts["actor"].trunk[0].weight.zero_()
    assert policy._state.actor["trunk.0.weight"].any()


def test_networks_of_an_agent_that_learned_from_a_dataset(tmp_path: Path) -> None:
    from offline_helpers import write_made

    own = {"dataset": write_made(tmp_path / "a.npz"), "steps": 5, "hidden": [8], "compile": "off", "eval_episodes": 0}
    for normalize in ("obs", "off"):
        out = str(tmp_path / normalize)
        policy = deeprl.load(deeprl.train("td3_bc", out=out, normalize_obs=normalize, **own).directory)
        parts, obs = policy.modules(), torch.randn(5, 3)
        assert set(parts) == {"actor", "critic"} | ({"obs_norm"} if normalize == "obs" else set())
        seen = parts["obs_norm"](obs) if normalize == "obs" else obs
        torch.testing.assert_close(parts["actor"](seen), torch.from_numpy(policy(obs.numpy())))


def test_networks_with_buffers_and_shared_weights_come_back(tmp_path: Path) -> None:
    class Tied(Tall):
        def __init__(self) -> None:
            super().__init__(3, 1)
            self.register_buffer("scale", torch.tensor(0.5))
            self.again = self.body

        def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, log_std = super().forward(self.scale * obs)
            return mean, log_std

    def make(spec: deeprl.core.spec.EnvSpec, config: object) -> tuple[nn.Module, nn.Module]:
        return Tied(), CriticEnsemble(3, 1, (8,))

    few = {"steps": 40, "learning_starts": 20, "batch_size": 4, "compile": "off", "eval_episodes": 0}
    run = deeprl.train("sac", env="Pendulum-v1", net=make, out=str(tmp_path / "run"), **few)
    policy, obs = deeprl.load(run.directory, net=make), torch.randn(5, 3)
    mean, _ = policy.modules()["actor"](obs)
    torch.testing.assert_close(2.0 * torch.tanh(mean), torch.from_numpy(policy(obs.numpy())))


def test_policy_uses_the_normaliser(run_dir: Path) -> None:
    policy = deeprl.load(run_dir, seed=3)
    stats = policy._state.obs_stats
    assert stats["count"] == 180
    before = policy([1.0, 0.0, 8.0])
    stats["mean"] += 1.0
    assert policy([1.0, 0.0, 8.0]) != before


def test_load_names_the_agents_it_has(run_dir: Path) -> None:
    with pytest.raises(DeeprlError, match=r"2 agents fit.*member=0 \(seed 3, actor_lr=0.001\)"):
        deeprl.load(run_dir)
    with pytest.raises(DeeprlError, match="0 agents fit seed=4"):
        deeprl.load(run_dir, seed=4)
    assert deeprl.load(run_dir, member=1).seed == 5


def test_results_make_a_table(run_dir: Path) -> None:
    rows = deeprl.results(run_dir)
    assert {r["seed"] for r in rows} == {3, 5}
    assert all(r["algorithm"] == "sac" and r["env"] == "Pendulum-v1" and r["step"] == 180 for r in rows)
    from deeprl.reporting import table as module

    assert deeprl.results is module.results  # importing deeprl.reporting must not hide it


def test_wrong_settings_name_the_key(tmp_path: Path) -> None:
    with pytest.raises(DeeprlError, match="actor_rl: unknown setting; did you mean actor_lr"):
        deeprl.train("sac", actor_rl=1e-3)
    with pytest.raises(DeeprlError, match=r"steps: expected int, not 1\.5"):
        deeprl.train("sac", steps=1.5)


def test_own_environment_and_wrapper_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reach_module.py").write_text(OWN_ENV)
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {
        "env": "reach_module:Reach-v0",
        "env_kwargs": {"speed": 0.5},
        "wrappers": ["reach_module:Halved"],
    }
    run = deeprl.train("sac", seeds=[0], out="run", **settings, **TINY)
    policy = deeprl.load("run")
    action = policy([0.3, 0.4])
    assert np.all(action >= [-1.0, 0.0])
    assert np.all(action <= [3.0, 0.5])
    assert_recorded_is_played("run", lambda: make_env(settings["env"], settings["env_kwargs"], settings["wrappers"]))
    assert run.step == 180


class Tall(nn.Module):
    """An actor that is no MLP of ours: a layer norm in front, own start of the last layer."""

    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(obs_dim), nn.Linear(obs_dim, 12), nn.SiLU())
        self.head = nn.Linear(12, 2 * action_dim)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.head.weight)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = self.head(self.body(obs)).chunk(2, -1)
        return mean, log_std.clamp(-5, 2)


def own_net(spec: deeprl.core.spec.EnvSpec, config: object) -> tuple[nn.Module, nn.Module]:
    return Tall(spec.obs_dim, spec.action_dim), CriticEnsemble(spec.obs_dim, spec.action_dim, (8,), 3)


def test_own_network_trains_and_loads(tmp_path: Path) -> None:
    run = deeprl.train("sac", env="Pendulum-v1", seeds="0-1", net=own_net, out=str(tmp_path / "run"), **TINY)
    policy = deeprl.load(run.directory, seed=0, net=own_net)
    assert policy([0.1, 0.2, 0.3]).shape == (1,)
    saved = checkpoint.load_checkpoint(run.directory / "checkpoints")
    assert saved is not None
    assert saved[1]["agents"]["state.critic.layers.0.weight"].shape == (2, 3, 4, 8)
    assert saved[1]["agents"]["state.actor.head.weight"].abs().max() > 0  # started at zero, has learned
    with pytest.raises(DeeprlError, match=r"has networks of its own \(.*:own_net\)"):
        deeprl.load(run.directory, seed=0)
    with pytest.raises(DeeprlError, match="pass the run's own net="):
        deeprl.load(run.directory, seed=0, net=deeprl.online.sac.make_net)
    with pytest.raises(DeeprlError, match=r"another run \(custom_net.*\); it goes on from Python, where its net="):
        deeprl.train("sac", env="Pendulum-v1", seeds="0-1", out=str(run.directory), **TINY)
    assert assess(run.directory, 1, net=own_net).shape == (2, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda obs, action: obs[:, 0], r"\(3,\)"),
        (lambda obs, action: obs[None, :, :1], r"\(1, 3, 1\)"),
        (lambda obs, action: obs[:, :1], r"\(3, 1\)"),
    ],
)
def test_own_critic_of_the_wrong_shape_is_refused(values: Any, message: str) -> None:
    class Critic(nn.Module):
        def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
            return values(obs, action)

    with pytest.raises(DeeprlError, match=f"critic must return values .critics, batch.*{message}"):
        deeprl.train("sac", env="Pendulum-v1", net=lambda spec, config: (Tall(3, 1), Critic()), **TINY)


def test_own_network_with_dropout_is_refused() -> None:
    def make(spec: deeprl.core.spec.EnvSpec, config: object) -> tuple[nn.Module, nn.Module]:
        return nn.Sequential(nn.Dropout(), Tall(3, 1)), CriticEnsemble(3, 1, (8,))

    with pytest.raises(DeeprlError, match="Dropout keeps state or draws numbers"):
        deeprl.train("sac", env="Pendulum-v1", net=make, **TINY)


def test_own_network_by_name_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from deeprl.nets import CriticEnsemble, TanhGaussianActor\n"
        "def small(spec, config):\n"
        "    sizes = (spec.obs_dim, spec.action_dim, (5,))\n"
        "    return TanhGaussianActor(*sizes), CriticEnsemble(*sizes)\n"
    )
    monkeypatch.chdir(tmp_path)
    from deeprl.online import sac

    config = sac.Config(env="Pendulum-v1", net="my_nets:small", out="own", steps=200, learning_starts=100,
                        batch_size=16, eval_episodes=1, compile="off", threads=1)  # fmt: skip
    sac.train(config)
    assert deeprl.load("own")._state.actor["trunk.0.weight"].shape == (5, 3)
    named = {k: v for k, v in TINY.items() if k != "hidden"} | {"env": "Pendulum-v1", "out": "named"}
    assert deeprl.train("sac", net="my_nets:small", **named).config.net == "my_nets:small"
    assert deeprl.load("named", net="my_nets:small")._state.actor["trunk.0.weight"].shape == (5, 3)
    assert deeprl.dry_run("sac", net="my_nets:small", **named).total > 0


def test_networks_are_ordinary_modules() -> None:
    net = MLP(3, (8,), 2)
    torch.optim.SGD(net.parameters(), 0.1)
    net(torch.zeros(5, 3)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_callback_stops_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(run: deeprl.run.loop.Run) -> bool:
        seen.append(run.step)
        return run.step >= 40

    run = deeprl.train("sac", env="Pendulum-v1", seeds=[0], out=str(tmp_path / "run"), callback=stop, **TINY)
    assert seen == list(range(1, 41))
    assert not run.finished
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [40]


def test_population_policy_and_single_policy_agree(run_dir: Path) -> None:
    from deeprl.run.trained import load_population

    population = load_population(run_dir)
    found = Evaluator(lambda: gym.make("Pendulum-v1"), [3, 5], 1)(GreedyPolicy(population.act(), population.state), 7)
    assert [e.member for e in found] == [0, 1]
    assert found[0].ret != found[1].ret
    obs = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    together = GreedyPolicy(population.act(), population.state)(obs, np.zeros((2, 4), bool), torch.zeros(2, 4).long())
    for i in (0, 1):
        np.testing.assert_allclose(2.0 * together[i], deeprl.load(run_dir, member=i)(obs[i]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_bf16_products_leave_actions_and_parameters_in_f32(backend: str, tmp_path: Path) -> None:
    settings = TINY | {"backend": backend, "precision": "bf16", "out": str(tmp_path / "run")}
    run = deeprl.train("sac", env="Pendulum-v1", seeds=[0, 1], **settings)
    assert run.finished
    assert run.frozen == []
    saved = checkpoint.load_checkpoint(run.directory / "checkpoints")
    assert saved is not None
    agents = saved[1]["agents"]
    assert {v.dtype for k, v in agents.items() if v.is_floating_point()} == {torch.float32}
    assert agents["state.step"].tolist() == [80, 80]
