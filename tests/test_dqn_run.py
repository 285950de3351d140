"""DQN from sampling to a finished run: populations, exact resume, images, every combination of its extensions."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_equal, cast
from torch import Tensor

import deeprl
from deeprl import nets
from deeprl.core import rng
from deeprl.core.population import Execution, freezing, member, new_agents, over_agents
from deeprl.core.spec import EnvSpec, Transition
from deeprl.core.tree import tree_leaves, tree_map
from deeprl.envs import restorable
from deeprl.envs import state as env_state
from deeprl.envs.make import make_env
from deeprl.errors import DeeprlError
from deeprl.online import dqn
from deeprl.replay import FrameReplay, Replay
from deeprl.replay.samplers import Priorities, Window, n_step, prioritized, uniform_rows
from deeprl.run import checkpoint
from deeprl.run.fused import Rows
from deeprl.run.loop import Run

SPEC = EnvSpec((3,), 0, (), (), actions=4)
VALUES = ("scalar", "c51", "hl_gauss", "two_hot")
ALL = {"value": "c51", "double": True, "dueling": True, "n_step": 3, "prioritized": True, "max_grad_norm": 10.0}
SMALL_NET = {"hidden": (16, 16), "batch_size": 16, "learning_starts": 50, "buffer_size": 64}
# 120 steps; from step 40 on bursts of 5 updates, every 10 steps.
TINY = {
    "env": "CartPole-v1",
    "steps": 120,
    "learning_starts": 30,
    "utd": 0.5,
    "train_every": 10,
    "target_every": 25,
    "batch_size": 16,
    "buffer_size": 70,  # the ring wraps around
    "hidden": (16, 16),
    "lr": 1e-3,
    "epsilon_steps": 200.0,
    "compile": "off",
    "precision": "strict",
    "tensorboard": False,
    "threads": 1,
    "eval_every": 50,
    "eval_episodes": 2,
    "log_every": 7,
}


def config(out: Path, **settings: Any) -> dqn.Config:
    return dqn.Config(out=str(out), **(TINY | settings))


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file without its column wall_s."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(file)]


def final(directory: Path) -> dict[str, Tensor]:
    """The tensors of the newest checkpoint by name."""
    found = checkpoint.load_checkpoint(directory / "checkpoints")
    assert found is not None
    return found[1]["agents"]


def assert_same_run(one: Path, other: Path) -> None:
    expected, found = final(one), final(other)
    assert expected.keys() == found.keys()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(one / name) == rows(other / name)
        assert len(rows(one / name)) > 0


def train_with_stops(settings: dqn.Config, stops: tuple[int, ...]) -> Run:
    """The same call again and again, each stopped by its callback at the next of `stops`; the last one finishes."""
    for stop in stops:
        run = dqn.train(settings, callback=lambda run, stop=stop: run.step == stop)
        assert (run.step, run.finished) == (stop, False)
    run = dqn.train(settings)
    assert run.finished
    return run


def of_run(run: Run) -> tuple[dqn.State, Replay]:
    return run._attached["agents"].tree.state, run._attached["replay"]


def assert_finite(tree: Any) -> None:
    assert all(bool(leaf.isfinite().all()) for leaf in tree_leaves(tree))


# --- populations ---


def filled_replay(agents: int, rows: int, dtype: torch.dtype = torch.float32) -> Replay:
    """Random transitions of one environment per agent, with ends of both kinds."""
    random = np.random.default_rng(0)
    replay = Replay(agents, rows, SPEC)
    for _ in range(rows):
        obs, next_obs = random.normal(size=(2, agents, 1, 3)).astype(np.float32)
        ends = random.random((2, agents, 1)) < 0.1
        replay.add(
            Transition(obs, random.integers(4, size=(agents, 1)), random.normal(size=(agents, 1)), *ends, next_obs)
        )
    replay.data = cast(replay.data, dtype)
    return replay


def learn_some(config: dqn.Config, replay: Replay, execution: Execution, updates: int, dtype: torch.dtype) -> Any:
    """The learner over the agents of a population for some updates, priorities included."""
    net = dqn.build_net(SPEC, config)
    seeds = config.seeds
    agents = new_agents([cast(dqn.init(net, config.member(i), rng.key(s, "init")), dtype) for i, s in enumerate(seeds)])
    priorities = Priorities(len(seeds), replay.capacity)
    priorities.add(slice(None))
    priorities.values, priorities.largest = priorities.values.to(dtype), priorities.largest.to(dtype)
    learn = over_agents(freezing(dqn.learner(net, config)), execution, shared=(4, 5), donate=True)
    metrics = {}
    for t in range(updates):
        keys = rng.Streams(seeds)("sample", t)
        step = torch.tensor(t * config.steps // updates)
        metrics, drawn = learn(agents, Rows(replay.data, priorities.values), keys, keys, replay.extent, step)
        priorities.update(*drawn)
    return agents, metrics, priorities.values


@pytest.mark.parametrize("is_prioritized", [False, True])
def test_learner_is_sampler_and_update_with_the_agents_own_settings(is_prioritized: bool) -> None:
    # discount 0.5; after a quarter of the run beta is 0.4 + 0.6 / 4.
    chosen = {"n_step": 3, "discount": 0.5, "priority_beta": 0.4, "prioritized": is_prioritized}
    config = dqn.Config(**(SMALL_NET | chosen))
    net, replay = dqn.build_net(SPEC, config), filled_replay(1, 64)
    state, data = dqn.init(net, config, rng.key(0, "init")), tree_map(lambda x: x[0], replay.data)
    priority, key, window = torch.arange(256.0), rng.key(0, "sample"), Window(3, 1)
    step = torch.tensor(config.steps // 4)
    new, metrics, (row, _) = dqn.learner(net, config)(state, Rows(data, priority), key, key, replay.extent, step)
    weight = None
    if is_prioritized:
        drawn, weight = prioritized(data, replay.extent, priority, key, 16, window, torch.tensor(0.55))
    else:
        drawn = uniform_rows(data, replay.extent, key, 16, window)
    as_it_acted = dqn.with_epsilon(config, state, step - 1)
    expected = dqn.update(net, config, as_it_acted, n_step(data, drawn, window, 0.5), weight)
    assert torch.equal(row, drawn)
    for ours, theirs in zip(tree_leaves((new, metrics)), tree_leaves(expected[:2]), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("value", ["scalar", "c51"])
def test_per_agent_settings_equal_single_runs(value: Any) -> None:
    config = dqn.Config(
        seeds=(0, 0, 5),
        lr=(1e-3, 1e-2, 3e-3),
        adam_eps=(1e-8, 1e-2, 1e-4),
        discount=(0.9, 0.99, 0.5),
        epsilon_end=(0.1, 0.2, 0.3),
        epsilon_steps=(10.0, 20.0, 30.0),
        priority_alpha=(0.0, 0.5, 1.0),
        priority_beta=(0.0, 0.4, 1.0),
        **(SMALL_NET | ALL | {"value": value}),
    )
    replay = filled_replay(3, 64, torch.float64)
    agents, _, priority = learn_some(config, replay, Execution(), 10, torch.float64)
    for i in range(3):
        own = filled_replay(3, 64, torch.float64)
        own.data = tree_map(lambda x, i=i: x[i : i + 1], own.data)
        alone, _, its_priority = learn_some(config.member(i), own, Execution(), 10, torch.float64)
        for ours, theirs in zip(tree_leaves(member(agents, i)), tree_leaves(member(alone, 0)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(priority[i], its_priority[0], rtol=1e-9, atol=1e-9)
    # and the settings matter: agents 0 and 1 have one seed and part ways
    weight = agents.state.params["advantage.0.weight"]
    assert not torch.equal(weight[0], weight[1])
    assert agents.frozen_at.tolist() == [-1, -1, -1]


# Half of all: any three of the four switches in every combination.
@pytest.mark.parametrize(
    ("value", "dueling", "double", "drawn_by_priority", "n"),
    [c for c in itertools.product(VALUES, *[(False, True)] * 3, (1, 3)) if (sum(c[1:4]) + c[4] // 3) % 2 == 0],
)
def test_every_combination_learns_finite_numbers(
    value: Any, dueling: bool, double: bool, drawn_by_priority: bool, n: int
) -> None:
    chosen = {"value": value, "dueling": dueling, "double": double, "prioritized": drawn_by_priority, "n_step": n}
    config = dqn.Config(**(SMALL_NET | {"hidden": (8,)} | chosen))
    agents, metrics, priority = learn_some(config, filled_replay(1, 64), Execution(), 3, torch.float32)
    assert_finite((agents, metrics, priority))
    assert agents.state.step.tolist() == [3]
    start = dqn.init(dqn.build_net(SPEC, config), config, rng.key(0, "init"))
    assert_equal(member(agents.state.target, 0), start.target)
    assert all(not torch.equal(p[0], start.params[k]) for k, p in agents.state.params.items())


@pytest.mark.compiled
@pytest.mark.parametrize("extensions", [{}, pytest.param(ALL, marks=pytest.mark.inductor)])
def test_compiled_learner_equals_the_eager_one(extensions: dict[str, Any]) -> None:
    # One update differs by rounding, ten by more of it: Adam divides by gradients that may be near zero.
    config = dqn.Config(seeds=(0, 1), **(SMALL_NET | extensions))
    replay = filled_replay(2, 64)
    eager, fast = (
        learn_some(config, replay, Execution(compile=bool(compiled)), 10, torch.float32)[0].state
        for compiled in (False, True)
    )
    assert fast.step.tolist() == [10, 10]
    for name, p in eager.params.items():
        assert float((fast.params[name] - p).norm()) < 1e-4 * float(p.norm()), name


# --- runs ---

# Stops: before learning, at a copy into the target, in the middle of a burst's interval twice in a row, at an
# evaluation, right before the end.
CASES = {
    "plain": ({"seeds": (0, 1)}, (13, 25, 44, 45, 100)),
    "everything": (ALL | {"seeds": (0, 1)}, (25, 44, 45, 117)),
    "loop": (ALL | {"seeds": (0, 1), "backend": "loop"}, (13, 57)),
    "two_envs": (ALL | {"envs_per_agent": 2, "eval_epsilon": 0.3, "reward_clip": 0.5}, (26, 44, 58)),
    "hl_gauss": ({"value": "hl_gauss", "prioritized": True, "loss": "huber"}, (44, 73)),
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_continued_run_is_identical(case: str, tmp_path: Path) -> None:
    settings, stops = CASES[case]
    run = dqn.train(config(tmp_path / "whole", **settings))
    assert run.updates == 45
    train_with_stops(config(tmp_path / "parts", **settings), stops)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_population_equals_its_members_alone(backend: Any, tmp_path: Path) -> None:
    settings = ALL | {"backend": backend, "lr": (1e-3, 1e-4, 3e-3), "seeds": (4, 5, 6)}
    settings |= {"steps": 70, "eval_every": 0, "eval_episodes": 1}
    dqn.train(config(tmp_path / "three", **settings))
    three = final(tmp_path / "three")
    for i, seed in enumerate((4, 5, 6)):
        out = tmp_path / str(seed)
        dqn.train(config(out, **(settings | {"lr": settings["lr"][i], "seeds": (seed,)})))
        for name, alone in final(out).items():
            if backend == "loop":
                assert torch.equal(three[name][i], alone[0]), name
            else:
                torch.testing.assert_close(three[name][i], alone[0], rtol=1e-3, atol=1e-4)
        if backend == "loop":
            own = [r for r in rows(tmp_path / "three" / "evaluations.csv") if r["seed"] == str(seed)]
            assert [r | {"member": "0"} for r in own] == rows(out / "evaluations.csv")


def test_target_is_copied_in_its_rhythm_and_epsilon_falls(tmp_path: Path) -> None:
    params, targets, epsilons = {}, {}, {}

    def look(run: Run) -> None:
        state, _ = of_run(run)
        params[run.step], targets[run.step] = cast((state.params, state.target), torch.float32)
        epsilons[run.step] = float(state.epsilon)

    dqn.train(config(tmp_path / "run"), callback=look)
    assert len(params) == 120
    for step in range(25, 120):
        assert_equal(targets[step], params[step // 25 * 25])
    for step in range(1, 25):
        assert_equal(targets[step], params[1])  # the initial ones: nothing was learned yet
    assert not torch.equal(params[49]["advantage.0.weight"], params[50]["advantage.0.weight"])
    assert torch.equal(params[50]["advantage.0.weight"], params[59]["advantage.0.weight"])
    # At an update, that of the last action, chosen after 119 steps: 1 - 0.95 * 89 / 200, and at the first after 39.
    assert epsilons[30] == epsilons[39] == 1.0
    assert epsilons[40] == epsilons[49] == pytest.approx(1 - 0.95 * 9 / 200)
    assert epsilons[120] == float(final(tmp_path / "run")["state.epsilon"]) == pytest.approx(0.57725)


def test_priorities_follow_the_updates_and_new_rows_get_the_largest(tmp_path: Path) -> None:
    run = dqn.train(config(tmp_path / "run", prioritized=True, value="c51"), callback=lambda run: run.step == 115)
    priorities = run._attached["priorities"]
    values, largest = priorities.values[0, :70], float(priorities.largest)
    # 70 rows: steps 111 .. 115, after the last burst of updates, stand in rows 40 .. 44.
    assert values[40:45].tolist() == [largest] * 5
    assert len(values.unique()) > 30
    assert largest == pytest.approx(max(1.0, float(values.max())))
    assert not priorities.values[0, 70:].any()


def test_clipped_rewards_are_the_learners_alone(tmp_path: Path) -> None:
    run = dqn.train(config(tmp_path / "run", reward_clip=0.25))
    assert of_run(run)[1].data.reward.unique().tolist() == [0.25]
    for name, kind in (("metrics.csv", "train/"), ("evaluations.csv", "")):
        pairs = [(float(r[f"{kind}return"]), float(r[f"{kind}length"])) for r in rows(tmp_path / "run" / name)]
        ended = [pair for pair in pairs if pair[0] > 0]  # nan where no episode ended
        assert len(ended) > 0
        assert all(ret == length for ret, length in ended)  # CartPole gives 1 for every step


def test_trained_policy_acts_in_whole_numbers(tmp_path: Path) -> None:
    run = deeprl.train("dqn", **(TINY | {"out": str(tmp_path / "run"), "steps": 60}))
    policy = deeprl.load(run.directory)
    one, several = policy(np.zeros(4)), policy(np.random.default_rng(0).normal(size=(9, 4)))
    assert isinstance(one, int | np.integer)
    assert (several.shape, several.dtype) == ((9,), np.int64)
    assert set(several.tolist()) <= {0, 1}
    state, _ = of_run(run)
    net = dqn.build_net(EnvSpec((4,), 0, (), (), actions=2), run.config)
    q = dqn.outputs(net, member(state, 0).params, torch.zeros(1, 4))
    assert one == int(q.argmax())


def test_continuous_actions_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DeeprlError, match=r"^dqn needs discrete actions, not 1 continuous ones"):
        deeprl.train("dqn", **(TINY | {"env": "Pendulum-v1", "out": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


# --- images ---

IMAGES = {
    "steps": 60,
    "learning_starts": 20,
    "train_every": 5,
    "utd": 0.2,
    "batch_size": 8,
    "buffer_size": 40,
    "hidden": (16,),
    "eval_every": 0,
    "eval_episodes": 1,
    "env_kwargs": {"frame_stack": 2},
    "n_step": 3,
    "prioritized": True,
}


def test_frame_stacks_train_and_resume_exactly(tmp_path: Path) -> None:
    settings = IMAGES | {"env": "probe_envs:ProbeDiscreteSavedPictures-v0", "seeds": (0, 1)}
    run = dqn.train(config(tmp_path / "whole", **settings))
    state, replay = of_run(run)
    assert isinstance(replay, FrameReplay)
    assert (replay.data.frames.dtype, replay.data.frames.shape[3:]) == (torch.uint8, (36, 36))
    assert replay.spec.obs_shape == (2, 36, 36)
    assert state.params["torso.layers.0.weight"].shape == (2, 32, 2, 8, 8)
    assert run.updates == 8
    assert_finite(state)
    train_with_stops(config(tmp_path / "parts", **settings), (13, 32, 33))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    # Q of a stack of frames, as the environment gives it
    assert deeprl.load(run.directory, seed=1)(np.zeros((2, 36, 36), np.uint8)) in (0, 1)


def test_no_window_or_stack_reaches_over_an_episode_that_a_resumed_run_started_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restorable, "how_restorable", lambda env: "no")
    # Episodes of 7 steps whose pixels are 10 t: stopped at step 32, which is t = 4; then it begins again at t = 0.
    settings = IMAGES | {"env": "probe_envs:ProbeDiscretePictures-v0", "buffer_size": 60}
    _, replay = of_run(train_with_stops(config(tmp_path / "run", **settings), (32,)))
    assert "cannot be restored exactly: 1 episodes start anew" in capsys.readouterr().out
    data = tree_map(lambda x: x[0], replay.data)
    batch = n_step(data, torch.tensor([29, 30, 31, 32, 33]), Window(3, 1, 2), 0.5)
    assert batch.obs[..., 0, 0].tolist() == [[0, 10], [10, 20], [20, 30], [0, 0], [0, 10]]
    assert batch.next_obs[..., 0, 0].tolist() == [[30, 40], [30, 40], [30, 40], [20, 30], [30, 40]]
    assert batch.reward.tolist() == [1.75, 1.5, 1.0, 1.75, 1.75]
    assert batch.discount.tolist() == [0.125, 0.25, 0.5, 0.125, 0.125]


def test_minatar_trains_on_single_boolean_frames_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("minatar")
    settings = IMAGES | {"env": "MinAtar/Breakout-v1", "env_kwargs": {}, "steps": 300, "learning_starts": 100}
    settings |= {"log_every": 50, "double": True, "buffer_size": 150}
    run = dqn.train(config(tmp_path / "whole", **settings))
    state, replay = of_run(run)
    assert isinstance(replay, FrameReplay)
    assert (replay.data.frames.dtype, replay.data.frames.shape[3:]) == (torch.bool, (10, 10, 4))
    assert isinstance(dqn.build_net(replay.spec, run.config).q.torso, nets.MinAtarCNN)
    assert run.updates == 40
    assert_finite(state)
    train_with_stops(config(tmp_path / "parts", **settings), (55, 163))
    env = make_env("MinAtar/Breakout-v1")
    env.reset(seed=0)
    assert env_state.capture(env) is not None
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
