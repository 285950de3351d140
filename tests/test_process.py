"""What the calling program has set does not reach deeprl, and what deeprl sets is set back."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from offline_helpers import write_made

import deeprl
from deeprl.commands.evaluate import assess
from deeprl.commands.main import main
from deeprl.core.process import torch_defaults
from deeprl.data.datasets import load_dataset
from deeprl.data.info import describe
from deeprl.errors import DeeprlError
from deeprl.run.progress import Progress, is_terminal, show

TINY: dict[str, Any] = {
    "env": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 5}, "steps": 12, "learning_starts": 6, "batch_size": 4,
    "hidden": [4], "eval_episodes": 0, "threads": 1, "compile": "off", "tensorboard": False,
}  # fmt: skip
DQN = TINY | {"env": "CartPole-v1", "utd": 1.0, "train_every": 1, "value": "c51", "prioritized": True, "n_step": 2}
OBS = np.array([1.0, 0.0, 0.5])


@contextlib.contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


PROGRAMS = {
    "float64": lambda: default(torch.float64),
    "bfloat16": lambda: default(torch.bfloat16),
    "default device": default_device,
    "with device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "sac"
    deeprl.train("sac", out=out, **TINY)
    return out


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    modules = deeprl.load(run_dir).modules()
    return {f"{n}.{k}": p for n, module in modules.items() for k, p in module.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert all(found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in expected.items())


# --- what the program has set ---


@pytest.mark.parametrize("program", PROGRAMS)
def test_training_is_the_same_whatever_the_program_has_set(program: str, plain: Path, tmp_path: Path) -> None:
    with PROGRAMS[program]():
        deeprl.train("sac", out=tmp_path / "run", **TINY)
    assert_same(weights(tmp_path / "run"), weights(plain))


@pytest.mark.parametrize("program", ["float64", "default device", "inference mode"])
def test_dqn_with_all_its_parts_is_the_same_whatever_the_program_has_set(program: str, tmp_path: Path) -> None:
    deeprl.train("dqn", out=tmp_path / "plain", **DQN)
    with PROGRAMS[program]():
        deeprl.train("dqn", out=tmp_path / "run", **DQN)
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "plain"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_loading_acting_and_evaluating_are_the_same_whatever_the_program_has_set(
    program: str, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = deeprl.load(plain)(OBS)
    returns = assess(plain, 1)
    with PROGRAMS[program]():
        loaded = deeprl.load(plain)
        inside = loaded(OBS)
        played = assess(plain, 1)
        modules = loaded.modules()
    assert np.array_equal(inside, expected)
    assert np.array_equal(loaded(OBS), expected)
    assert np.array_equal(played, returns)
    modules["actor"](torch.zeros(3))[0].sum().backward()  # no tensor of an inference mode
    assert_same({k: p.detach() for k, p in modules["actor"].named_parameters()}, dict(weights_of(plain, "actor")))


def weights_of(run_dir: Path, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    for key, parameter in deeprl.load(run_dir).modules()[name].named_parameters():
        yield key, parameter.detach()


def test_a_policy_loaded_outside_acts_in_inference_mode_and_can_be_copied(plain: Path) -> None:
    policy = deeprl.load(plain)
    expected = policy(OBS)
    with torch.inference_mode():
        assert np.array_equal(policy(OBS), expected)
    assert np.array_equal(copy.deepcopy(policy)(OBS), expected)


@pytest.mark.parametrize("program", ["float64", "default device", "inference mode"])
def test_datasets_are_the_same_whatever_the_program_has_set(program: str, tmp_path: Path) -> None:
    file = write_made(tmp_path / "made.npz", rows=40)
    plain = load_dataset(file)
    with PROGRAMS[program]():
        found = load_dataset(file)
        told = describe(found)
    assert told == describe(plain)
    for ours, expected in zip((*found.data, found.returns), (*plain.data, plain.returns), strict=True):
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected)
        assert not ours.is_inference()


def test_own_networks_may_choose_their_type_themselves() -> None:
    with default(torch.float64), torch_defaults():
        assert torch.nn.Linear(1, 1).weight.dtype == torch.float32
        assert torch.nn.Linear(1, 1, dtype=torch.float64).weight.dtype == torch.float64


# --- what deeprl sets ---


def test_a_run_sets_threads_and_precision_back(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    inside = []
    deeprl.train("sac", out=tmp_path / "run", callback=lambda run: inside.append(torch.get_num_threads()), **TINY)
    assert set(inside) == {1}
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "high")


@pytest.mark.parametrize("where", ["callback", "networks", "device"])
def test_a_run_that_fails_sets_everything_back(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise ZeroDivisionError

    if where == "device":
        monkeypatch.setattr("deeprl.core.population.keep_freed_memory", fail)
    torch.set_num_threads(2)
    how = {"callback": {"callback": fail}, "networks": {"net": fail}, "device": {}}[where]
    with default(torch.float64):
        with torch.device("meta"), torch.inference_mode():
            with pytest.raises(ZeroDivisionError):
                deeprl.train("sac", out=tmp_path / "run", **TINY, **how)
            assert torch.is_inference_mode_enabled()
            assert torch.zeros(1).device.type == "meta"
        assert torch.get_num_threads() == 2


def test_the_last_of_several_threads_sets_back() -> None:
    first_is_in, second_is_out = threading.Event(), threading.Event()
    seen = []

    def first() -> None:
        with torch_defaults():
            first_is_in.set()
            second_is_out.wait(10)
            seen.append(torch.get_default_dtype())

    with default(torch.float64):
        thread = threading.Thread(target=first)
        thread.start()
        assert first_is_in.wait(10)
        with torch_defaults():
            torch.set_float32_matmul_precision("medium")
        seen += [torch.get_default_dtype(), torch.get_float32_matmul_precision()]
        second_is_out.set()
        thread.join()
        assert seen == [torch.float32, "medium", torch.float32]
        assert torch.get_float32_matmul_precision() == "highest"


def test_a_precision_that_torch_cannot_tell_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed() -> str:
        raise RuntimeError("you have used mix of the legacy and new APIs to set the matmul precision")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    with torch_defaults():
        assert torch.zeros(1).dtype == torch.float32


def test_the_command_line_sets_the_format_of_warnings_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.formatwarning
    assert main(["evaluate", "no such run"]) == 2
    assert warnings.formatwarning is before


# --- streams ---


class Writer:
    """What notebooks, services and test runners put in the place of a stream, at its least."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


class Broken(Writer):
    def write(self, text: str) -> None:
        raise OSError


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Writer(), Broken(), closed()], ids=["none", "writer", "broken", "closed"])
def test_a_run_needs_neither_stdout_nor_stderr(stream: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("deeprl.run.progress._LINE_SECONDS", 0.0)
    run = deeprl.train("sac", out=tmp_path / "run", **TINY)
    show("a line")
    show("a line", sys.stderr)
    assert main(["evaluate", "no such run"]) == 2
    assert run.finished
    if type(stream) is Writer:
        assert "no such run" in stream.text


def test_only_a_terminal_is_one() -> None:
    class Terminal(Writer):
        def isatty(self) -> bool:
            return True

    assert [is_terminal(s) for s in (Terminal(), Writer(), None, closed())] == [True, False, False, False]


def test_progress_is_made_without_a_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    Progress("sac", 10).update(1)


def test_an_error_before_the_run_begins_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    threads = torch.get_num_threads()
    with pytest.raises(DeeprlError, match="is not empty"):
        deeprl.train("sac", out=tmp_path / "full", **TINY | {"threads": 2})
    assert torch.get_num_threads() == threads
