"""Films: what environments draw, what is said of an episode, where a film is written."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import deeprl
from deeprl.commands.frames import Frames
from deeprl.commands.main import main
from deeprl.commands.watch import _drawn, watch
from deeprl.envs.make import make_env
from deeprl.errors import DeeprlError

FEW: dict[str, Any] = {"steps": 20, "learning_starts": 10, "batch_size": 4, "hidden": [8], "eval_episodes": 0}
FEW |= {"compile": "off", "threads": 1, "tensorboard": False}


class Drawn(gym.Env):
    """An episode of 30 steps with a reward of 1 each, whose pictures get brighter; it breaks at step `fails_at`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    fails_at = -1

    def __init__(self, render_mode: str | None = None):
        self.render_mode, self.t = render_mode, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(2, np.float32), 1.0, False, self.t >= 30, {}

    def render(self) -> Any:
        if self.t == self.fails_at:
            raise ZeroDivisionError("no window")
        return np.full((16, 20, 3), self.t, np.uint8)


class Undrawn(Drawn):
    def __init__(self) -> None:
        super().__init__()


gym.register("Drawn-v0", entry_point=Drawn)
gym.register("Undrawn-v0", entry_point=Undrawn)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seed 0 with two learning rates, and seed 1."""
    out = tmp_path_factory.mktemp("films") / "run"
    own = {"seeds": [0, 0, 1], "actor_lr": [1e-3, 1e-4, 1e-3], "snapshot_every": 10}
    deeprl.train("sac", env="Drawn-v0", out=str(out), **FEW, **own)
    return out


# --- frames ---


def filmed(*frames: Any) -> list[np.ndarray]:
    film = Frames("Any-v0")
    for frame in frames:
        film.add(frame)
    return film.pictures()


def full(shape: tuple[int, ...], value: Any, dtype: Any) -> np.ndarray:
    return np.full(shape, value, dtype)


COLOUR, GREY = (200, 160, 3), (200, 160)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([full(COLOUR, 7, np.uint8)], [7]),
        ([full(GREY, 7, np.uint8)], [7]),
        ([full((*GREY, 1), 7, np.uint8)], [7]),
        ([full((*GREY, 4), 255, np.uint8)], [255]),
        ([np.dstack([full(COLOUR, 100, np.uint8), full(GREY, 51, np.uint8)])], [224]),  # 0.2 * 100 + 0.8 * 255
        ([full(COLOUR, 7, np.int64)], [7]),
        ([full(COLOUR, 255, np.uint16)], [255]),
        ([full(GREY, True, bool), full(GREY, False, bool)], [255, 0]),
        ([full(COLOUR, 0.5, np.float32)], [128]),  # 127.5
        ([full(COLOUR, 1.0 + 1e-6, np.float64)], [255]),
        ([full(COLOUR, 100.0, np.float32)], [100]),
        ([full(COLOUR, 1.0, np.float32), full(COLOUR, 100.0, np.float32)], [1, 100]),  # the film tells, not the frame
        ([full(COLOUR, 1.0, np.float32), full(COLOUR, 0.0, np.float32)], [255, 0]),
        ([[full(COLOUR, 3, np.uint8), full(COLOUR, 4, np.uint8)]], [4]),
        ([(full(COLOUR, 3, np.uint8),)], [3]),
    ],
)
def test_frames_of_all_kinds_become_pictures(frames: list[Any], expected: list[int]) -> None:
    pictures = filmed(*frames)
    assert [p.shape for p in pictures] == [COLOUR] * len(frames)
    assert [p.dtype for p in pictures] == [np.uint8] * len(frames)
    assert [int(p[0, 0, 0]) for p in pictures] == expected
    assert all((p == p[0, 0, 0]).all() for p in pictures)


def test_every_colour_survives_as_a_float() -> None:
    ramp = np.arange(256).reshape(16, 16)
    for frame in (ramp.astype(np.float64), (ramp / 255).astype(np.float32)):
        assert (filmed(frame)[0][::10, ::10, 0] == ramp).all()


def test_small_frames_are_enlarged_and_later_changes_of_the_array_do_not_show() -> None:
    board = full((10, 20, 3), 5, np.uint8)
    film = Frames("Any-v0")
    film.add(board)
    board[:] = 9
    (picture,) = film.pictures()
    assert picture.shape == (160, 320, 3)
    assert (picture == 5).all()


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (None, r"render gives nothing \(None\)"),
        ("ascii", "render gives text"),
        ([], "render gives a list"),
        ([[1, 2], [3]], "render gives a list"),
        (full((3, 64, 64), 0, np.uint8), r"render gives an array of shape \(3, 64, 64\) of uint8"),
        (full((0, 64, 3), 0, np.uint8), r"of shape \(0, 64, 3\)"),
        (np.array(["a"]), r"of shape \(1,\) of <U1"),
        (full(COLOUR, 256, np.int64), "render gives values from 256 to 256"),
        (full(COLOUR, -1, np.int32), "render gives values from -1 to -1"),
        (full(COLOUR, 300.0, np.float32), "render gives values from 300 to 300"),
        (full(COLOUR, np.nan, np.float32), "render gives values that are not finite"),
    ],
)
def test_what_is_no_frame_is_refused_in_one_line(drawn: Any, said: str) -> None:
    with pytest.raises(DeeprlError, match=f"^cannot draw Any-v0: .*{said}.*; expected an array") as error:
        filmed(drawn)
    assert "\n" not in str(error.value)


def test_frames_of_other_shapes_are_refused() -> None:
    with pytest.raises(DeeprlError, match=r"^cannot draw Any-v0: .*\(30, 20, 3\).*\(16, 20, 3\) before"):
        filmed(full((16, 20, 3), 0, np.uint8), full((30, 20, 3), 0, np.uint8))


def test_only_failures_of_mujoco_name_it() -> None:
    def broken(module: str) -> gym.Env:
        made = types.ModuleType(module)
        exec("def render():\n    raise RuntimeError('no display')", made.__dict__)
        env = Drawn("rgb_array")
        env.render = made.render  # type: ignore[method-assign]
        return env

    for module in ("gymnasium.envs.mujoco.mujoco_rendering", "mujoco.renderer", "dm_control._render"):
        with pytest.raises(DeeprlError, match=r"^cannot draw Drawn: RuntimeError: no display; MuJoCo needs EGL"):
            _drawn(broken(module))
    with pytest.raises(DeeprlError, match=r"^cannot draw Drawn: RuntimeError: no display$"):
        _drawn(broken("my_module"))


# --- what is said, and what cannot be drawn ---


def test_a_cut_episode_is_not_told_as_complete(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    film = tmp_path / "a.gif"
    for steps, said in (
        (29, "30 frames, return 29.0 so far: cut at --max-steps 29"),
        (30, "31 frames, return 30.0"),
        (31, "31 frames, return 30.0"),
    ):
        watch(run_dir, seed=1, out=str(film), max_steps=steps)
        assert capsys.readouterr().out == f"{film}: {said}\n"


def test_an_environment_that_takes_no_render_mode_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = deeprl.train("sac", env="Undrawn-v0", out=str(tmp_path / "run"), **FEW)
    assert main(["watch", str(run.directory)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "deeprl: Undrawn-v0 cannot be drawn: its constructor takes no render_mode"


def test_the_environment_of_the_readme_trains_and_is_filmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# my_module\.py.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_module.py").write_text(code, encoding="utf-8")
    try:
        own = {"env": "my_module:Reach-v0", "env_kwargs": {"speed": 2}, "wrappers": ["my_module:Wrapper"]}
        run = deeprl.train("sac", out="run", **FEW, **own)
        assert main(["watch", str(run.directory)]) == 0
        env = make_env("my_module:Reach-v0", render=True)
        env.reset(seed=0)
        assert np.asarray(env.render()).max() == 255  # something is to be seen
    finally:
        gym.registry.pop("Reach-v0", None)
    with Image.open("run/episode_seed_0.gif") as film:
        assert film.n_frames > 10


# --- where films are written ---


def test_films_of_several_agents_and_moments_have_names_of_their_own(run_dir: Path) -> None:
    films = {watch(run_dir, member=m, max_steps=3, step=step).name for m in range(3) for step in (None, 10)}
    assert films == {
        "episode_seed_0_member_0.gif", "episode_seed_0_member_0_step_10.gif",
        "episode_seed_0_member_1.gif", "episode_seed_0_member_1_step_10.gif",
        "episode_seed_1.gif", "episode_seed_1_step_10.gif",
    }  # fmt: skip
    before = sorted(p.name for p in run_dir.iterdir())
    watch(run_dir, member=0, max_steps=3)  # the same agent's is replaced
    assert sorted(p.name for p in run_dir.iterdir()) == before


@pytest.mark.parametrize("ending", ["gif", "mp4", "GIF"])
def test_a_failure_leaves_the_earlier_film(
    ending: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = tmp_path / f"a.{ending}"
    watch(run_dir, seed=1, out=str(film), max_steps=3)
    before = film.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Drawn, "fails_at", 2)
        with pytest.raises(DeeprlError, match=r"^cannot draw Drawn-v0: ZeroDivisionError: no window$"):
            watch(run_dir, seed=1, out=str(film), max_steps=3)
    with monkeypatch.context() as patch:  # while it is being written
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
        with pytest.raises(OSError, match="disk"):
            watch(run_dir, seed=1, out=str(film), max_steps=4)
    assert film.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [film.name]


def test_the_number_of_steps_must_be_positive(run_dir: Path) -> None:
    with pytest.raises(DeeprlError, match=r"^--max-steps: must be positive, not 0"):
        watch(run_dir, seed=1, max_steps=0)
