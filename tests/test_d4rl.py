"""What D4RL's files were recorded in: an Ant without contact forces, a pen that ends its episode when it is dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from recordings import write

import deeprl
from deeprl.commands.main import main
from deeprl.data.d4rl import WRAPPERS, DroppedPenEnds, recorded_in
from deeprl.data.datasets import load_dataset
from deeprl.data.info import describe
from deeprl.envs.make import EnvFactory, make_env
from deeprl.errors import DeeprlError
from deeprl.make_data.collect import Request, create
from deeprl.run.directory import evaluated_in
from deeprl.run.records import read_about

ANT = "deeprl.data.d4rl:NoContactForces"
CONTACTS = {"use_contact_forces": True}
QUICK: dict[str, Any] = {
    "steps": 4, "batch_size": 4, "hidden": [4], "compile": "off", "threads": 1, "eval_episodes": 1,
}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:::minari"),
    pytest.mark.filterwarnings("ignore:.*out of date.*"),
]


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.spec("Ant-v4"), "max_episode_steps", 20)


def ant_file(path: Path, rows: int = 40) -> str:
    """Random numbers as D4RL stores Ant's: 27 that vary, 84 zeros."""
    generator = np.random.default_rng(0)
    obs = np.concatenate([generator.normal(size=(rows, 27)), np.zeros((rows, 84))], 1)
    arrays = {
        "observations": obs,
        "next_observations": np.roll(obs, -1, 0),
        "actions": generator.uniform(-1, 1, (rows, 8)),
        "rewards": generator.normal(size=rows),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 10 == 9,
    }
    return write(path, arrays)


def train(out: Path, source: str, **settings: Any) -> Any:
    return deeprl.train("bc", dataset=source, out=str(out), **QUICK, **settings)


def test_an_ant_of_d4rl_has_27_numbers_and_84_zeros_and_pays_for_no_contact() -> None:
    ours, plain = (make_env("Ant-v4", {}, wrappers) for wrappers in ((ANT,), ()))
    assert ours.observation_space.shape == (111,)
    starts = ours.reset(seed=3)[0], plain.reset(seed=3)[0]
    plain.action_space.seed(0)
    for _ in range(50):  # it falls on its feet within the first ten
        action = plain.action_space.sample()
        (obs, reward, *_), (expected, paid, *_) = ours.step(action), plain.step(action)
        np.testing.assert_array_equal(obs, [*expected, *[0.0] * 84])
        assert reward == paid
    np.testing.assert_array_equal(starts[0], [*starts[1], *[0.0] * 84])


class Pen(gym.Env):
    """45 numbers; the pen, whose height is number 26, sinks by 0.01 m in every step."""

    observation_space = gym.spaces.Box(-9, 9, (45,))
    action_space = gym.spaces.Box(-1, 1, (24,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.height = 0.104
        return self.shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.height -= 0.01
        return self.shown(), -5.0, False, False, {}

    def shown(self) -> np.ndarray:
        return np.where(np.arange(45) == 26, self.height, 0.0).astype(np.float32)


def test_a_dropped_pen_ends_its_episode() -> None:
    env = DroppedPenEnds(Pen())
    env.reset()
    assert [env.step(None)[2] for _ in range(4)] == [False, False, True, True]  # at 0.094, 0.084, 0.074, 0.064 m


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("ant-medium-v2", ("Ant-v4", {}, (ANT,))),
        ("ant_full_replay-v0", ("Ant-v4", {}, (ANT,))),
        ("hopper-medium-expert-v2", ("Hopper-v4", {}, ())),
        (
            "pen-human-v1",
            ("gymnasium_robotics:AdroitHandPen-v1", {"max_episode_steps": 100}, ("deeprl.data.d4rl:DroppedPenEnds",)),
        ),
        ("door-human-v1", ("gymnasium_robotics:AdroitHandDoor-v1", {}, ())),
        ("antmaze-umaze-v2", ("", {}, ())),
    ],
)
def test_names_tell_what_was_recorded_in(stem: str, expected: Any) -> None:
    assert recorded_in(stem) == expected
    assert WRAPPERS.issuperset(expected[2])


def test_an_ant_file_is_of_the_ant_that_was_recorded(tmp_path: Path) -> None:
    dataset = load_dataset(ant_file(tmp_path / "ant-medium-v2.npz"))
    assert (dataset.env, dataset.env_kwargs, dataset.wrappers, dataset.env_problem) == ("Ant-v4", {}, (ANT,), "")
    assert dataset.notes == ()
    assert f"environment: Ant-v4, wrapped in {ANT}; 111 observations" in describe(dataset)


def test_what_is_named_is_put_around_what_was_recorded_or_in_its_place(tmp_path: Path) -> None:
    path, other = ant_file(tmp_path / "ant-medium-v2.npz"), "gymnasium.wrappers:RecordEpisodeStatistics"
    assert load_dataset(path, "Ant-v4").wrappers == (ANT,)
    assert load_dataset(path, wrappers=[other]).wrappers == (ANT, other)
    assert load_dataset(path, wrappers=[ANT, other]).wrappers == (ANT, other)
    forces = load_dataset(path, env_kwargs=CONTACTS)  # as all runs were evaluated before
    assert (forces.env_kwargs, forces.wrappers, forces.env_problem) == (CONTACTS, (), "")
    zeros = "observations that are constant in the dataset, but not in Ant-v4 (or another number there), so that"
    assert [note.startswith(zeros) for note in forces.notes] == [False, True]
    with pytest.raises(DeeprlError, match="111 numbers from row 0 on, but Ant-v5 has 105"):
        load_dataset(path, "Ant-v5")


def test_an_ant_file_with_contact_forces_is_told_of(tmp_path: Path) -> None:
    path = ant_file(tmp_path / "ant-medium-v2.npz")
    arrays = dict(np.load(path))
    arrays["observations"][5, [40, 110]] = 0.5
    found = load_dataset(write(Path(path), arrays)).notes
    assert found == (f"observations that vary in the dataset, but are constant in Ant-v4 wrapped in {ANT}: 40, 110",)


def test_runs_on_an_ant_file_are_evaluated_and_resumed_in_its_ant(tmp_path: Path) -> None:
    path, out = ant_file(tmp_path / "ant-medium-v2.npz"), tmp_path / "run"
    train(out, path, callback=lambda run: run.step == 2)
    assert evaluated_in(read_about(out)) == EnvFactory("Ant-v4", {}, (ANT,))
    assert main(["resume", str(out)]) == 0
    assert sum(1 for _ in (out / "evaluations.csv").open()) == 2
    assert main(["evaluate", str(out), "--episodes", "1"]) == 0


def test_data_of_such_a_run_and_their_corrupted_copy_are_of_its_ant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    train(tmp_path / "run", ant_file(tmp_path / "ant-medium-v2.npz"))
    create(Request("ant/made-v0", "", "expert", 20, 0, (), (str(tmp_path / "run"),)))
    corrupt = str(tmp_path / "noisy.hdf5")
    assert main(["dataset", "corrupt", "ant/made-v0", corrupt, "--element", "reward"]) == 0
    for source in ("ant/made-v0", corrupt):
        dataset = load_dataset(source)
        assert (dataset.env, dataset.wrappers, dataset.env_problem) == ("Ant-v4", (ANT,), "")
        assert not dataset.data.obs[:, 27:].any()


def test_a_run_that_was_evaluated_elsewhere_goes_on_there_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As all runs on such files were before the library had its wrapper."""
    path, out = ant_file(tmp_path / "ant-medium-v2.npz"), tmp_path / "run"
    train(out, path, callback=lambda run: run.step == 2)
    about = json.loads((out / "config.json").read_text())
    about["evaluated_in"] = {"env": "Ant-v4", "env_kwargs": CONTACTS, "wrappers": []}
    (out / "config.json").write_text(json.dumps(about))
    capfd.readouterr()
    assert train(out, path).finished
    assert (
        f"evaluations go on in Ant-v4 with {CONTACTS}, where this run began; ant-medium-v2 was recorded in Ant-v4,"
        f" wrapped in {ANT}, and new runs are evaluated there"
    ) in capfd.readouterr().out
    assert evaluated_in(read_about(out)) == EnvFactory("Ant-v4", CONTACTS, ())
    assert main(["evaluate", str(out), "--episodes", "1"]) == 0
