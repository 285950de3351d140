"""`deeprl dataset create`: what is recorded, how it ends, which policies, and that both formats say the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

import deeprl
from deeprl.commands.dataset import _KINDS
from deeprl.commands.main import main
from deeprl.data.datasets import load_dataset
from deeprl.envs.make import FreshWorld
from deeprl.errors import DeeprlError
from deeprl.make_data import candidates, collect, writers
from deeprl.make_data.collect import KINDS, Request, choose, create
from deeprl.make_data.recorder import Recorder, Share, Source
from tests.test_policies import SNAPSHOTS, written

LIMIT, EDGE = 7, 3.0

pytestmark = pytest.mark.filterwarnings("ignore:.*share an object", "ignore:.*reward is a NaN")


class Walk(gym.Env):
    """s' = 0.9 s + a (1, -1/2), reward s'_0 - a; ends beyond the edge, and after seven steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(np.array([-2.0]), np.array([1.0]), dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1.0, 1.0, 2)
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert -2.0 <= action[0] <= 1.0
        self.state *= 0.9  # in place, as careless environments do
        self.state += float(action[0]) * np.array([1.0, -0.5])
        return self.state, self.state[0] - float(action[0]), bool(abs(self.state[0]) > EDGE), False, {}


class Broken(Walk):
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.state, float("nan"), False, False, {}


for _name, _class in (("CollectWalk-v0", Walk), ("CollectBroken-v0", Broken)):
    if _name not in gym.registry:
        gym.register(_name, _class, max_episode_steps=LIMIT)


def steady(action: float) -> Source:
    return Source(f"steady:{action:g}", lambda obs, noise, _: np.full((len(obs), 1), action))


def noisy(obs: np.ndarray, noise: np.random.Generator, _: object) -> np.ndarray:
    return noise.normal(-0.5, 2.0, (len(obs), 1))


NOISY = Source("noisy", noisy)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder(lambda: gym.make("CollectWalk-v0"), width=4)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def own_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Policies whose actions are 0.25 s_0 + b, nearly: three snapshots, and one of another run."""
    zeros = {"obs_mean": np.zeros((3, 2)), "obs_std": np.ones((3, 2)), "log_std": np.full((3, 1), -1.0)}
    layers = {"w0": np.array([[[0.5], [0.0]]] * 3), "b0": np.zeros((3, 1)), "w1": np.full((3, 1, 1), 0.5)}
    last = {"b1": np.zeros((3, 1)), "w2": np.ones((3, 1, 1)), "b2": [[-1.0], [0.0], [0.5]]}
    train = {"iteration": [0, 10, 20], **zeros, **layers, **last}
    one = {k: np.asarray(v)[:1] for k, v in train.items()}
    return [str(written(tmp_path / "train.npz", train)), str(written(tmp_path / "other.npz", one, b2=[[0.3]]))]


def columns(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {key: array[:] for key, array in file.items()}


def request(target: Path | str, files: list[str] = [], **changes: Any) -> Request:  # noqa: B006
    values = {"env": "CollectWalk-v0", "kind": "full-replay", "steps": 100, "policies": tuple(files)}
    return Request(str(target), **(values | changes))


# --- what is recorded ---


def test_every_successor_is_what_the_action_leads_to(tmp_path: Path, files: list[str]) -> None:
    create(request(tmp_path / "d.hdf5", files))
    d = columns(tmp_path / "d.hdf5")
    assert {k: (v.shape, v.dtype.name) for k, v in d.items()} == {
        **dict.fromkeys(("observations", "next_observations"), ((100, 2), "float32")),
        **{"actions": ((100, 1), "float64"), "rewards": ((100,), "float32")},
        **dict.fromkeys(("terminals", "timeouts"), ((100,), "bool")),
        "metadata_episode_complete": (((d["terminals"] | d["timeouts"]).sum(),), "bool"),
    }
    s, a = d["observations"].astype(np.float64), d["actions"].astype(np.float64)
    np.testing.assert_allclose(d["next_observations"], 0.9 * s + a * [1.0, -0.5], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d["rewards"], d["next_observations"][:, 0] - a[:, 0], rtol=1e-5, atol=1e-6)
    goes_on = ~(d["terminals"] | d["timeouts"])[:-1]
    np.testing.assert_array_equal(d["next_observations"][:-1][goes_on], d["observations"][1:][goes_on])


def test_actions_are_clipped_before_they_act(recorder: Recorder) -> None:
    actions = np.concatenate([e.action for e in recorder.episodes(NOISY, 200, (0,))])
    assert actions.min() == -2.0
    assert actions.max() == 1.0


@pytest.mark.parametrize("steps", [1, 3, 7, 8, 100, 137])
def test_steps_are_met_exactly_and_ends_are_what_they_were(recorder: Recorder, steps: int) -> None:
    episodes = list(recorder.episodes(NOISY, steps, (0,)))
    assert sum(len(e.reward) for e in episodes) == steps
    for e in episodes:
        assert len(e.obs) == len(e.action) + 1 == len(e.reward) + 1
        assert (np.abs(e.obs[1:-1, 0]) <= EDGE).all()
        assert e.terminated == (abs(e.obs[-1, 0]) > EDGE)
        assert e.complete == (e.terminated or len(e.reward) == LIMIT)
    assert all(e.complete for e in episodes[:-1])
    if steps == 100:
        assert {e.terminated for e in episodes[:-1]} == {True, False}


def test_episodes_do_not_depend_on_how_many_are_played_together() -> None:
    """Else the short ones, which end first, would be preferred."""
    found = []
    for width in (1, 3, 10):
        recorder = Recorder(lambda: gym.make("CollectWalk-v0"), width)
        found.append(list(recorder.episodes(Source("up", lambda obs, noise, _: 0.5 + 0.2 * obs[:, :1]), 60, (3,))))
        assert len({len(e.reward) for e in found[-1]}) > 1
        recorder.close()
    for other in found[1:]:
        assert [e.seed for e in other] == [e.seed for e in found[0]]
        for ours, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(ours.obs, theirs.obs)
            assert ours.terminated == theirs.terminated


def test_at_most_so_many_episodes(recorder: Recorder) -> None:
    assert [e.complete for e in recorder.episodes(NOISY, 10_000, (0,), at_most=6)] == [True] * 6


def test_shares(recorder: Recorder) -> None:
    shares = [Share(steady(-0.1), 1), Share(steady(0.2), 3), Share(steady(0.1), 2)]
    played = list(collect.collect(recorder, shares, 99, seed=0))
    actions = np.concatenate([e.action[:, 0] for e in played])
    np.testing.assert_array_equal(actions, np.float64([-0.1] * 17 + [0.2] * 49 + [0.1] * 33))  # 16.5, 66, 99
    with pytest.raises(DeeprlError, match="steps: 2 are too few for a mixture of 3"):
        list(collect.collect(recorder, shares, 2, seed=0))


def test_the_same_request_makes_the_same_set(tmp_path: Path, files: list[str]) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        create(request(tmp_path / f"{name}.hdf5", files, kind="medium-replay", seed=seed))
    a, b, c = (columns(tmp_path / f"{name}.hdf5") for name in "abc")
    for key, rows in a.items():
        np.testing.assert_array_equal(rows, b[key])
    assert not np.array_equal(a["observations"], c["observations"])


def test_numbers_that_are_not_finite_leave_nothing_behind(tmp_path: Path) -> None:
    for target in ("d.hdf5", "walk/d-v0"):
        where = tmp_path / target if target.endswith("hdf5") else target
        with pytest.raises(DeeprlError, match="random: met observations, actions or rewards that are not finite"):
            create(request(where, env="CollectBroken-v0", kind="random"))
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["namespace_metadata.json"]


# --- formats ---


def test_minari_and_hdf5_say_the_same(tmp_path: Path, files: list[str]) -> None:
    import minari

    create(request(tmp_path / "d.hdf5", files, seed=2))
    summary = create(request("walk/full-v3", files, seed=2))
    d, stored = columns(tmp_path / "d.hdf5"), minari.load_dataset("walk/full-v3")
    episodes = list(stored.iterate_episodes())
    assert (stored.total_steps, stored.total_episodes) == (100, summary.episodes)
    for key, rows in (
        ("observations", [e.observations[:-1] for e in episodes]),
        ("next_observations", [e.observations[1:] for e in episodes]),
        ("actions", [e.actions for e in episodes]),
        ("rewards", [e.rewards for e in episodes]),
        ("terminals", [e.terminations for e in episodes]),
        ("timeouts", [e.truncations for e in episodes]),
    ):
        np.testing.assert_array_equal(np.concatenate(rows), d[key], err_msg=key)
        assert np.concatenate(rows).dtype == d[key].dtype
    assert (d["terminals"] | d["timeouts"]).sum() == summary.episodes
    assert minari.list_local_datasets().keys() == {"walk/full-v3"}
    ours, theirs = load_dataset("walk/full-v3"), load_dataset(str(tmp_path / "d.hdf5"))
    assert all(torch.equal(a, b) for a, b in zip(ours.data, theirs.data, strict=True))
    assert torch.equal(ours.ends, theirs.ends)
    assert (ours.env, theirs.env) == ("CollectWalk-v0",) * 2


def test_what_a_file_says_of_itself(tmp_path: Path, files: list[str]) -> None:
    create(request(tmp_path / "d.hdf5", files, seed=4))
    with h5py.File(tmp_path / "d.hdf5") as file:
        attributes = dict(file.attrs)
    assert attributes["env"] == "CollectWalk-v0"
    assert {k: json.loads(attributes[k]) for k in ("env_kwargs", "action_low", "action_high")} == {
        "env_kwargs": {}, "action_low": [-2.0], "action_high": [1.0],
    }  # fmt: skip
    about = json.loads(attributes["about"])
    assert about["policies"] == ["train:0", "train:10", "train:20", "other:0"]
    assert (about["seed"], about["steps"], about["noise"]) == (4, 100, "sampled actions")
    assert about["recipe"].startswith("full-replay, equal shares")
    assert str(tmp_path) not in attributes["about"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for target in (tmp_path / "d.hdf5", "walk/d-v0"):
        create(request(target, kind="random", steps=10))
        with pytest.raises(DeeprlError, match="remove it first"):
            create(request(target, kind="random", steps=10))


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "minari/walk/.d-v0.part/data").mkdir(parents=True)
    (tmp_path / "minari/walk/.d-v0.part/data/main_data.hdf5").write_text("half")
    (tmp_path / "d.hdf5.part").write_text("half")
    assert create(request("walk/d-v0", kind="random", steps=10)).transitions == 10
    assert create(request(tmp_path / "d.hdf5", kind="random", steps=10)).transitions == 10
    assert not list(tmp_path.rglob("*.part"))


def test_environments_of_own_constructors_are_named(tmp_path: Path) -> None:
    origin = writers.Origin("module:Own-v0", {"speed": 2}, "", {"wrappers": ["module:Wrapper"]})
    spec = writers._env_spec(Walk(), origin)
    assert spec.id == "module:Own-v0"
    assert [w.entry_point for w in spec.additional_wrappers] == ["module:Wrapper"]


def test_wrappers_of_the_library_are_not_named() -> None:
    """The reader would take an environment for wrapped that `make_env` always wraps."""
    made = FreshWorld(gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), -1.0, 1.0))
    spec = writers._env_spec(made, writers.Origin("Pendulum-v1", {}, "", {}))
    assert [w.name for w in spec.additional_wrappers] == ["RescaleAction"]


def test_sets_of_a_run_with_wrappers_can_be_read(tmp_path: Path) -> None:
    settings = {"steps": 4, "learning_starts": 2, "hidden": [8, 8], "batch_size": 2, "eval_every": 0, "seeds": [0]}
    settings |= {"eval_episodes": 0, "compile": "off", "threads": 1, "tensorboard": False}
    env, wrapper = "recordings:DatasetToy-v0", "recordings:Longer"
    run = deeprl.train("sac", env=env, wrappers=[wrapper], out=str(tmp_path / "run"), **settings)
    for target in (str(tmp_path / "d.hdf5"), "walk/d-v0"):
        create(request(target, env="", kind="expert", runs=(str(run.directory),), steps=20))
        dataset = load_dataset(target)
        assert dataset.spec.obs_dim == 3
        assert "was wrapped in recordings:Longer; name them" in dataset.env_problem
        assert load_dataset(target, wrappers=(wrapper,)).env_problem == ""


def test_a_file_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    create(request("~/d.hdf5", kind="random", steps=10))
    assert (tmp_path / "d.hdf5").is_file()
    with pytest.raises(DeeprlError, match="exists; remove it first"):
        create(request("~/d.hdf5", kind="random", steps=10))


# --- which policies ---

NAMES = ("run:0", "run:20", "run:500", "other")
FOUR = [Source(name, noisy) for name in NAMES]


@pytest.mark.parametrize(
    ("kind", "chosen", "names"),
    [
        ("expert", {}, ["run:500"]),
        # a third of the way from 10 to 100 is 40
        ("medium", {}, ["other"]),
        ("medium", {"medium": "20"}, ["run:20"]),
        # from 10 to 25 it is 15
        ("medium", {"expert": "run:20"}, ["run:0"]),
        ("medium-expert", {}, ["other", "run:500"]),
        ("medium-expert", {"medium": "0", "expert": "other"}, ["run:0", "other"]),
        ("medium-replay", {}, ["run:0", "run:20", "other"]),
        ("medium-replay", {"medium": "20"}, ["run:0", "run:20"]),
        ("full-replay", {}, list(NAMES)),
    ],
)
def test_kinds(kind: str, chosen: dict[str, str], names: list[str]) -> None:
    shares = choose(kind, FOUR, lambda: [10.0, 12.0, 25.0, 100.0, 48.0], **chosen)
    assert [share.source.name for share in shares] == names
    assert {share.weight for share in shares} == {1.0}


def test_nothing_is_measured_where_nothing_depends_on_it() -> None:
    def never() -> list[float]:
        raise AssertionError

    for kind in ("medium", "expert"):
        assert choose(kind, FOUR[:1], never)[0].source is FOUR[0]
    choose("medium-expert", FOUR, never, "0", "500")
    choose("full-replay", FOUR, never)


def test_the_whole_way_from_returns_to_a_mixture(tmp_path: Path, files: list[str], capsys: Any) -> None:
    """The snapshots 0, 10 and 20 have returns of about -3, 0 and 6, random actions -6: a third of the way is -2."""
    summary = create(request(tmp_path / "d.hdf5", files[:1], kind="medium-expert"))
    assert summary.sources == ("train:0", "train:20")
    assert (summary.transitions, summary.score) == (100, pytest.approx(float("nan"), nan_ok=True))
    assert "mean returns of 5 episodes: random" in capsys.readouterr().out
    d = columns(tmp_path / "d.hdf5")
    assert d["actions"][:50].mean() < 0.2 < d["actions"][50:].mean()
    assert d["timeouts"][49] or d["terminals"][49]
    ends = np.flatnonzero(d["terminals"] | d["timeouts"]) + 1
    returns = np.add.reduceat(d["rewards"], [0, *ends[:-1]])
    whole = (np.diff(ends, prepend=0) == LIMIT) | d["terminals"][ends - 1]
    assert summary.mean_return == pytest.approx(returns[whole].mean(), rel=1e-5)
    assert (summary.episodes, summary.complete) == (len(ends), whole.sum())


def test_mean_actions(tmp_path: Path, files: list[str]) -> None:
    create(request(tmp_path / "d.hdf5", files[1:], kind="expert", mean_action=True))
    d = columns(tmp_path / "d.hdf5")
    s = d["observations"][:, :1] / (1.0 + 1e-6)
    np.testing.assert_allclose(d["actions"], np.tanh(0.5 * np.tanh(0.5 * s)) + 0.3, atol=1e-6)


def test_agents_of_a_run(tmp_path: Path) -> None:
    settings = {"steps": 20, "learning_starts": 10, "hidden": [8, 8], "batch_size": 8, "eval_every": 0}
    settings |= {"eval_episodes": 0, "compile": "off", "threads": 1, "tensorboard": False, "seeds": [3, 4]}
    run = str(deeprl.train("sac", env="CollectWalk-v0", out=str(tmp_path / "run"), **settings).directory)
    asked = {"env": "", "runs": (run,), "agent_seed": 4, "kind": "expert"}
    assert create(request(tmp_path / "explore.hdf5", **asked)).sources == ("run:seed_4",)
    create(request(tmp_path / "mean.hdf5", **asked, mean_action=True))
    noisy, mean = (columns(tmp_path / f"{name}.hdf5") for name in ("explore", "mean"))
    np.testing.assert_allclose(mean["actions"], deeprl.load(run, seed=4)(mean["observations"]), atol=1e-5)
    assert np.abs(noisy["actions"] - deeprl.load(run, seed=4)(noisy["observations"])).max() > 0.1
    both = create(request(tmp_path / "both.hdf5", **(asked | {"kind": "full-replay", "agent_seed": None})))
    assert both.sources == ("run:seed_3", "run:seed_4")
    with pytest.raises(DeeprlError, match="no agent of seed 5; it has 3, 4"):
        create(request(tmp_path / "none.hdf5", **(asked | {"agent_seed": 5})))
    with pytest.raises(DeeprlError, match="trained in CollectWalk-v0, whose spaces are not those of Pendulum-v1"):
        create(request(tmp_path / "none.hdf5", **(asked | {"env": "Pendulum-v1"})))


# --- the command ---


def test_the_command(tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dataset", "create", str(tmp_path / "d.hdf5"), "--env", "CollectWalk-v0", "--steps", "1_00"]
    assert main([*words, "--kind", "medium", "--policy", files[0], "--policy", files[1], "--medium", "10"]) == 0
    out = capsys.readouterr().out
    assert "policies: train:10\n" in out
    assert "d.hdf5: 100 transitions, " in out
    assert "complete); of the complete ones: mean return " in out
    assert load_dataset(str(tmp_path / "d.hdf5")).about["recipe"] == "medium, the policy named 10"
    assert "; of all ones: mean return" in str(create(request(tmp_path / "e.hdf5", kind="random", steps=2)))


def test_the_recipe_tells_what_was_named(files: list[str]) -> None:
    recipe = collect._recipe(request("x-v0", files, kind="medium-expert", medium="10", expert="20"))
    assert (
        recipe == f"medium-expert, {KINDS['medium-expert']}; medium: the policy named 10; expert: the policy named 20"
    )
    assert collect._recipe(request("x-v0", files, kind="medium", expert="20")).endswith("; expert: the policy named 20")
    assert collect._recipe(request("x-v0", files, kind="expert")) == f"expert, {KINDS['expert']}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "medum", "--policy", "TRAIN"], "unknown kind 'medum'; did you mean medium"),
        (["--kind", "medium"], "kind medium: needs 1 or more policies (files or runs), not 0"),
        (["--kind", "medium-expert", "--policy", "OTHER"], "kind medium-expert: needs 2 or more policies"),
        (["--kind", "random", "--policy", "OTHER"], "kind random: acts without policies"),
        (["--kind", "expert", "--policy", "TRAIN", "--expert", "7"], "--expert 7: 0 policies fit; have train:0, train"),
        (["--kind", "expert", "--policy", "TRAIN", "--policy", "OTHER", "--expert", "0"], "2 policies fit"),
        (["--kind", "random", "--medium", "0"], "--medium: does nothing for kind random"),
        (["--kind", "random", "--expert", "0"], "--expert: does nothing for kind random"),
        (["--kind", "random", "--agent-seed", "0"], "--agent-seed: does nothing for kind random"),
        (["--kind", "random", "--mean-action"], "--mean-action: does nothing for kind random"),
        (["--kind", "expert", "--policy", "TRAIN", "--agent-seed", "0"], "--agent-seed: does nothing without --run"),
        (["--kind", "expert", "--policy", "TRAIN", "--medium", "0"], "--medium: does nothing for kind expert"),
        (["--kind", "full-replay", "--policy", "TRAIN", "--medium", "0"], "--medium: does nothing for kind full"),
        (["--kind", "full-replay", "--policy", "TRAIN", "--expert", "0"], "--expert: does nothing for kind full"),
        (
            ["--kind", "medium", "--policy", "TRAIN", "--medium", "0", "--expert", "20"],
            "--expert: does nothing for kind medium where --medium is named",
        ),
        (["--kind", "random", "--steps", "-5"], "steps: must be positive, not -5"),
        (["--kind", "random", "--seed", "-1"], "seed: must be in 0 .. 2^32 - 1"),
        (["--kind", "expert", "--policy", "none.npz"], "none.npz: no such file"),
        (["--kind", "expert", "--policy", "SMALL"], "policy small:0 has 1 observations and 1 actions; CollectWalk-v0"),
        (["--kind", "expert", "--run", "."], "."),
        (["--kind", "random", "--env", "CartPole-v1"], "CartPole-v1: datasets are of vectors and continuous actions"),
        (["--kind", "random", "--env", "CollectWolk-v0"], "unknown environment"),
        (["--kind", "random", "--env", ""], "--env: name the environment"),
        (["--kind", "random", "--env-kwargs", "[1]"], "--env-kwargs: expected a JSON object, not [1]"),
        (["--kind", "random", "--env-kwargs", "{"], "--env-kwargs: expected a JSON object"),
    ],
)
def test_wrong_commands(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    known = {"TRAIN": files[0], "OTHER": files[1], "SMALL": str(written(tmp_path / "small.npz", SNAPSHOTS))}
    target = str(tmp_path / "d.hdf5")
    words = [known.get(w, w) for w in words]
    assert main(["dataset", "create", target, "--env", "CollectWalk-v0", "--steps", "100", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path(target).exists()


@pytest.mark.parametrize("target", ["walk/medium", "no good-v0", "d.npz", "walk/../d-v0"])
def test_wrong_targets(target: str) -> None:
    with pytest.raises(DeeprlError, match=r"expected a file \.hdf5 or \.h5, or a Minari id such as"):
        create(request(target, kind="random"))


def test_the_help_tells_the_kinds() -> None:
    for kind, text in KINDS.items():
        assert f"  {kind:13}  {text}\n" in _KINDS


def test_candidates_of_one_name() -> None:
    with pytest.raises(DeeprlError, match="--medium 20: 2 policies fit"):
        candidates.named([*FOUR, Source("second:20", noisy)], "20", "--medium")
