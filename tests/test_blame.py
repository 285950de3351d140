"""What is said of an environment that cannot be made: its package, versions, the reason; and of one in a process of
its own."""

from __future__ import annotations

import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from deeprl.envs import blame
from deeprl.envs.make import make_env
from deeprl.errors import DeeprlError

GYMNASIUM, MUJOCO = (f"{name} {metadata.version(name)}" for name in ("gymnasium", "mujoco"))


def refusal(env: str, **kwargs: Any) -> str:
    with pytest.raises(DeeprlError) as error:
        make_env(env, kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_package_and_version_are_named() -> None:
    said = refusal("Pendulum-v1", gravity=9.81)
    assert said.startswith(f"Pendulum-v1 with arguments {{'gravity': 9.81}} ({GYMNASIUM}): ")
    assert "mujoco" not in said


def test_mujoco_is_named_where_it_took_part() -> None:
    assert refusal("Pusher-v4").startswith(f"Pusher-v4 ({GYMNASIUM}, {MUJOCO}): ")
    arguments = "{'xml_file': 'absent.xml'}"
    said = refusal("HalfCheetah-v5", xml_file="absent.xml")
    assert said.startswith(f"HalfCheetah-v5 with arguments {arguments} ({GYMNASIUM}, {MUJOCO}): ")
    assert refusal("HalfCheetah-v3").startswith(f"HalfCheetah-v3 ({GYMNASIUM}): ")  # it does not come so far


def robots(monkeypatch: pytest.MonkeyPatch, version: str = "1.4.2") -> None:
    """A package whose environments fail in a module for MuJoCo without a word, as gymnasium-robotics does."""
    utilities = types.ModuleType("robots.utils.mujoco_utils")
    exec("def joints():\n    assert False", utilities.__dict__)
    package = types.ModuleType("robots")
    package.__dict__["utilities"] = utilities
    exec("class Robot:\n    def __init__(self):\n        utilities.joints()", package.__dict__)
    monkeypatch.setitem(sys.modules, "robots", package)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"robots": ["my-robots"]})
    known = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version if name == "my-robots" else known(name))


def test_a_silent_assertion_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    robots(monkeypatch)
    gym.register("Robot-v0", entry_point="robots:Robot")
    try:
        expected = f"(my-robots 1.4.2, {MUJOCO}): AssertionError in robots.utils.mujoco_utils, line 2"
        assert refusal("robots:Robot-v0") == f"robots:Robot-v0 {expected}"
    finally:
        gym.registry.pop("Robot-v0")


def test_an_error_of_gymnasium_in_a_known_environment_is_not_told_as_an_unknown_name() -> None:
    def fails() -> gym.Env:
        raise gym.error.Error("no such maze")

    gym.register("Maze-v0", entry_point=fails)
    try:
        assert refusal("Maze-v0") == "Maze-v0: no such maze"
    finally:
        gym.registry.pop("Maze-v0")


def test_malformed_and_unknown_names_are_told_as_such() -> None:
    assert refusal("bad name!").startswith("unknown environment 'bad name!'")
    assert refusal("Pendulom-v1").startswith("unknown environment 'Pendulom-v1'; did you mean Pendulum-v1")


def test_mujoco_is_found_behind_other_errors() -> None:
    def raised(name: str) -> BaseException:
        module = types.ModuleType(name)
        exec("def fail():\n    raise ValueError('x')", module.__dict__)
        try:
            try:
                module.fail()
            except ValueError as error:
                raise RuntimeError("told otherwise") from error
        except RuntimeError as error:
            return error

    assert [blame.involves_mujoco(raised(name)) for name in ("mujoco.renderer", "dm_control.rl", "my_module")] == [
        True, True, False
    ]  # fmt: skip


SCRIPT = """import deeprl
deeprl.train("sac", env="Pendulum-v1", out="run", env_backend="async", steps=20, learning_starts=10, batch_size=4,
    hidden=[8], eval_episodes=0, compile="off", threads=1, tensorboard=False)
"""


@pytest.mark.parametrize(("file", "said"), [("script.py", 'below if __name__ == "__main__":'), ("-", "<stdin>")])
def test_scripts_that_new_processes_cannot_read_are_refused_in_one_line(file: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", file],
        input=SCRIPT, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert last.startswith("deeprl.errors.DeeprlError: env_backend async: ")
    assert said in last
    assert "bootstrapping" not in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()
