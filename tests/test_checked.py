"""What environments give: taken as Gymnasium means it, or refused in one line; and never read as something of ours."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from odd_envs import Bare, Odd, Reused

import deeprl
from deeprl.envs.atari import GAME_LENGTH, GAME_OVER, GAME_RETURN
from deeprl.envs.checked import Checked
from deeprl.envs.make import EnvFactory, make_env
from deeprl.envs.restorable import how_restorable
from deeprl.envs.spaces import env_spec
from deeprl.envs.vector import Episode, PopulationEnvs
from deeprl.errors import DeeprlError
from deeprl.make_data.candidates import uniform_source
from deeprl.make_data.recorder import Recorder, Source
from deeprl.run.evaluate import Evaluator

REUSED = EnvFactory("odd_envs:Reused-v0", {}, ())
FEW: dict[str, Any] = {
    "steps": 30,
    "learning_starts": 10,
    "batch_size": 4,
    "hidden": [8],
    "eval_every": 0,
    "seeds": [0],
}
FEW |= {"eval_episodes": 1, "compile": "off", "threads": 1, "tensorboard": False}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gymnasium's checker warns of most of what these environments do."""
    monkeypatch.setattr(gym.logger, "min_level", gym.logger.ERROR + 1)


# --- arrays that an environment fills for all time ---


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_transitions_of_reused_arrays_are_what_each_step_gave(backend: Any) -> None:
    envs = PopulationEnvs(REUSED, [0, 1], 2, backend)
    move = np.full((2, 2, 1), 0.5, np.float32)
    found = [envs.step(move) for _ in range(15)]
    expected = [float(t % 7) for t in range(15)]
    for t, step in zip(expected, found, strict=True):
        assert (step.obs == t).all()
        assert (step.next_obs == t + 1).all()  # 7 where the episode was cut, not the 0 of the reset
        assert (step.reward == t + 1).all()
        assert (step.truncated == (t == 6)).all()
        assert (step.action == 0.5).all()
    # 1 + 2 + ... + 7, whatever the environment says of games
    assert envs.pop_episodes() == [Episode(m, e, 28.0, 7) for _ in range(2) for m in range(2) for e in range(2)]
    envs.close()


def test_evaluation_of_reused_arrays_counts_its_own_returns() -> None:
    seen = []

    def policy(obs: np.ndarray, is_first: np.ndarray, keys: Any) -> np.ndarray:
        seen.append(obs.ravel().tolist())
        return np.zeros((1, 2, 1), np.float32)

    assert Evaluator(REUSED, [0], 2)(policy) == [Episode(0, e, 28.0, 7) for e in range(2)]
    assert seen == [[float(t)] * 2 for t in range(7)]


def test_recorded_reused_arrays_are_what_each_step_gave() -> None:
    recorder = Recorder(REUSED, 2)
    source = Source("half", lambda obs, noise, _: np.full((len(obs), 1), 0.5))
    first, second = recorder.episodes(source, 10, (0,))
    assert first.obs.ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert first.reward.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (first.action == 0.5).all()  # not what the environment wrote into it
    assert second.obs.ravel().tolist() == [0, 1, 2, 3]


def test_only_a_step_that_ends_copies() -> None:
    env = Reused()
    layer = Checked(env)
    assert layer.reset()[0] is env.obs
    steps = [layer.step(np.zeros(1)) for _ in range(7)]
    assert [step[0] is env.obs for step in steps] == [True] * 6 + [False]


# --- names of ours ---


def test_infos_hold_our_own_entries_at_ends_only() -> None:
    class Ours(Reused):
        def _told(self) -> dict[str, Any]:
            return super()._told() | {GAME_OVER: True, GAME_RETURN: 3.5, GAME_LENGTH: 2}

    layer = Checked(Ours())
    assert layer.reset()[1] == {}
    infos = [layer.step(np.zeros(1))[4] for _ in range(7)]
    assert infos == [{}] * 6 + [{"deeprl.game_over": True, "deeprl.game_return": 3.5, "deeprl.game_length": 2}]


def test_action_repeat_of_an_environment_is_its_own_affair() -> None:
    for value in (4, (2, 5), len):
        env = Reused()
        env.action_repeat = value
        assert env_spec(env).action_repeat == 1


def test_training_and_evaluation_go_through_names_like_ours(tmp_path: Path) -> None:
    deeprl.train("sac", env="odd_envs:Reused-v0", out=str(tmp_path / "run"), **FEW)
    with (tmp_path / "run/evaluations.csv").open() as file:
        assert [(row["return"], row["length"]) for row in csv.DictReader(file)] == [("28.0", "7")]
    assert json.loads((tmp_path / "run/config.json").read_text())["spec"]["action_repeat"] == 1


def test_actions_of_doubles_are_inside_in_training_evaluation_policies_and_datasets(tmp_path: Path) -> None:
    settings = FEW | {"actor_lr": 1.0}  # so that its actions go to the bounds
    run = deeprl.train("td3", env="odd_envs:Doubles-v0", out=str(tmp_path / "run"), **settings)
    box = gym.spaces.Box(-0.4, 0.4, (1,), np.float64)
    policy = deeprl.load(run.directory)
    assert box.contains(policy(np.zeros(1, np.float32)))
    recorder = Recorder(EnvFactory("odd_envs:Doubles-v0", {}, ()), 2)
    for source in (uniform_source(recorder.spec), Source("far", lambda obs, noise, _: np.full((len(obs), 1), 2.0))):
        actions = np.concatenate([episode.action for episode in recorder.episodes(source, 20, (0,))])
        assert actions.dtype == np.float64
        assert all(box.contains(action) for action in actions)


# --- rules ---


TAKEN = ["", "ints", "list", "reward of one", "numpy ends", "int ends"]
REFUSED = {
    "no seed": r".*unexpected keyword argument 'seed'; reset\(\*, seed=None, options=None\) must return an observation",
    "obs alone": r"reset gives an array of shape \(2,\) of uint8; reset\(.*\) must return an observation and a dict",
    "three of reset": r"reset gives a tuple of 3 \(ndarray, dict, int\); reset",
    "no info": r"reset gives a tuple of 2 \(ndarray, NoneType\); reset",
    "shape": r"reset gives an array of shape \(2, 1\) of uint8 as observation; its space promises .* \(2,\) of uint8",
    "large": r"reset gives 300 in an array of shape \(2,\) of int64 as observation; its space .* of uint8",
    "half": r"reset gives 0\.5 in an array of shape \(2,\) of float64 as observation; its space .* of uint8",
    "text": r"reset gives 'none' as observation; its space promises",
    "ragged": r"reset gives a list of 2 \(list, list\) as observation; its space promises",
    "four": r"step gives a tuple of 4 \(ndarray, float, bool, dict\); step\(action\) must return five: observation,",
    "reward of two": r"step gives an array of shape \(2,\) of float64 as reward; expected a number",
    "no reward": r"step gives None as reward; expected a number",
    "no end": r"step gives None as terminated; expected a bool",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_broken_rules_are_named_at_the_start(kind: str) -> None:
    with pytest.raises(DeeprlError, match=f"^Odd-v0: {REFUSED[kind]}") as caught:
        how_restorable(make_env("odd_envs:Odd-v0", {"kind": kind}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["no info", "four", "three of reset"])
def test_what_gymnasiums_checker_finds_first_is_one_line_too(kind: str) -> None:
    with pytest.raises(DeeprlError, match=r"^OddChecked-v0: .*; (reset|step)\(.*\) must return") as caught:
        how_restorable(make_env("odd_envs:OddChecked-v0", {"kind": kind}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", TAKEN)
def test_what_peers_take_is_taken(kind: str) -> None:
    layer = Checked(Odd(kind))
    obs, info = layer.reset()
    assert (obs.dtype, obs.tolist(), info) == (np.uint8, [7 if kind in ("ints", "list") else 0, 0], {})
    for t in range(10):
        obs, reward, terminated, truncated, _ = layer.step(np.zeros(1, np.float32))
        assert (obs.dtype, obs.shape) == (np.uint8, (2,))
        assert (type(reward), reward) == (float, 2.0)
        assert (terminated, truncated) == (t == 9, False)
        assert {type(terminated), type(truncated)} == {bool}


@pytest.mark.parametrize("kind", ["reward of one", "ints"])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_populations_of_what_peers_take(kind: str, backend: Any) -> None:
    envs = PopulationEnvs(EnvFactory("odd_envs:Odd-v0", {"kind": kind}, ()), [0], 2, backend)
    for _ in range(10):
        step = envs.step(np.zeros((1, 2, 1), np.float32))
    assert step.next_obs.tolist() == [[[7.0 if kind == "ints" else 0.0, 0.0]] * 2]
    assert envs.pop_episodes() == [Episode(0, e, 20.0, 10) for e in range(2)]
    envs.close()


@pytest.mark.parametrize("kind", ["shape", "four", "reward of two"])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_rules_broken_later_end_a_run_in_one_line(kind: str, backend: Any, capfd: pytest.CaptureFixture) -> None:
    envs = PopulationEnvs(EnvFactory("odd_envs:Odd-v0", {"kind": kind, "late": 30}, ()), [0, 1], 1, backend)
    for _ in range(29):
        envs.step(np.zeros((2, 1, 1), np.float32))
    with pytest.raises(DeeprlError, match=r"^Odd-v0: step gives") as caught:
        envs.step(np.zeros((2, 1, 1), np.float32))
    assert "\n" not in str(caught.value)
    envs.close()
    assert capfd.readouterr().err == ""  # no trace of a worker


def test_errors_of_an_environments_own_stay_what_they_are() -> None:
    envs = PopulationEnvs(EnvFactory("odd_envs:Odd-v0", {"kind": "own error", "late": 30}, ()), [0], 1, "async")
    with pytest.raises(KeyError, match="of its own"):  # noqa: PT012
        for _ in range(30):
            envs.step(np.zeros((1, 1, 1), np.float32))
    envs.close()


def test_rules_broken_in_an_evaluation_are_one_line() -> None:
    late = EnvFactory("odd_envs:Odd-v0", {"kind": "shape", "late": 4}, ())
    with pytest.raises(DeeprlError, match=r"^Odd-v0: step gives an array of shape \(2, 1\)"):
        Evaluator(late, [0], 1)(lambda obs, is_first, keys: np.zeros((1, 1, 1), np.float32))


def test_an_environment_that_other_processes_do_not_know_is_one_line(capfd: pytest.CaptureFixture) -> None:
    gym.register("Unheard-v0", entry_point=Odd)
    try:
        with pytest.raises(DeeprlError, match=r"^env_backend async: .*name it module:Id .*or use env_backend sync"):
            PopulationEnvs(EnvFactory("Unheard-v0", {}, ()), [0], 1, "async")
    finally:
        gym.registry.pop("Unheard-v0")
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("error: in a process of its own: unknown environment 'Unheard-v0'")


def test_the_command_line_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from deeprl.commands.main import main

    words = ["train", "sac", "--env", "odd_envs:Odd-v0", "--out", str(tmp_path / "run"), "--threads", "1"]
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(main([*words, "--env-kwargs", '{"kind": "four"}']))
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("deeprl: Odd-v0: step gives a tuple of 4")
    assert not (tmp_path / "run").exists()


# --- what is no environment, or cannot be made ---


def test_environments_without_spaces_are_refused() -> None:
    with pytest.raises(DeeprlError, match=r"^Bare observes None; supported are Box"):
        env_spec(Bare())


def test_what_is_no_environment_is_refused() -> None:
    with pytest.raises(DeeprlError, match=r"^dict is no environment of Gymnasium"):
        PopulationEnvs(dict, [0])  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_environments_with_spaces_of_their_own_each_are_refused(backend: Any) -> None:
    with pytest.raises(DeeprlError, match=r"^Growing-v0: its spaces must be the same in all environments"):
        PopulationEnvs(EnvFactory("odd_envs:Growing-v0", {}, ()), [0, 1], 1, backend)


def test_names_of_other_packages_are_not_taken_for_theirs() -> None:
    theirs = type("Theirs", (Odd,), {"__module__": "theirs.box2d.bipedal_walker"})
    for name in ("MinAtar/Own-v0", "Walker-v0"):
        gym.register(name, entry_point=theirs, disable_env_checker=True)
        try:
            assert make_env(name).reset(seed=0)[0].tolist() == [0, 0]
        finally:
            gym.registry.pop(name)
    make_env("MinAtar/Breakout-v1").close()  # is there as well, whoever came first


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("mass"), "KeyError: 'mass'"),
        (AssertionError(), "AssertionError"),
        (ZeroDivisionError("division by zero"), "division by zero"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_errors_while_an_environment_is_made_are_one_line(error: Exception, said: str) -> None:
    class Fails(gym.Env):
        def __init__(self, **kwargs: Any):
            raise error

    gym.register("Fails-v0", entry_point=Fails)
    try:
        with pytest.raises(DeeprlError, match=f"^Fails-v0 with arguments {{'a': 1}}: .*{said}"):
            make_env("Fails-v0", {"a": 1})
    finally:
        gym.registry.pop("Fails-v0")


class Mission(gym.Space):
    """A space that Gymnasium cannot flatten, like MiniGrid's."""


@pytest.mark.parametrize(
    ("obs", "hint"),
    [
        (gym.spaces.Dict(image=gym.spaces.Box(0, 255, (7, 7, 3), np.uint8), mission=Mission()),
         r"\(no vector can hold mission; choose among image by a wrapper"),
        (gym.spaces.Dict(mission=Mission()), r"\(no vector can hold mission\)$"),
        (gym.spaces.Dict(a=gym.spaces.Sequence(gym.spaces.Box(0, 1)), b=gym.spaces.Discrete(2)),
         r"\(no vector can hold a; choose among b by"),
        (gym.spaces.Dict(a=gym.spaces.Discrete(2)), r"\(try --wrappers gymnasium.wrappers:FlattenObservation\)$"),
        (Mission(), r"$"),
    ],
)  # fmt: skip
def test_the_hint_to_flatten_is_given_where_it_works(obs: gym.Space, hint: str) -> None:
    env = Odd()
    env.observation_space = obs
    with pytest.raises(DeeprlError, match=rf"^Odd observes .*supported are Box vectors and images ?{hint}"):
        env_spec(env)
