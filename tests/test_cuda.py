"""What runs on a GPU, tried without one: whole runs on pretended GPUs (`pretend_gpu`) with recordings by a stand-in."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import offline_helpers
import pytest
import torch
from pretend_gpu import GpuTensor, pretended_gpus, waited

import deeprl
from deeprl.core import footprint
from deeprl.core.cuda_graphs import Recorded
from deeprl.core.population import Execution, resolve_device
from deeprl.core.tree import flatten, tree_map, write_into
from deeprl.data.datasets import load_dataset
from deeprl.errors import DeeprlError
from deeprl.make_data.corruption import corrupt
from deeprl.online import sac
from deeprl.run.directory import execution_of
from deeprl.run.learning import sampled
from deeprl.run.provenance import device_name
from deeprl.run.trained import load_population

ONE: dict[str, Any] = {"batch_size": 4, "eval_episodes": 0, "threads": 1, "tensorboard": False, "seeds": [0, 1]}
SHORT = {"env_kwargs": {"max_episode_steps": 3}, "steps": 7, "learning_starts": 3}
CONTINUOUS = ONE | SHORT | {"env": "Pendulum-v1"}
SIMBA = CONTINUOUS | {"actor_width": 4, "critic_width": 4, "critic_blocks": 1, "utd": 1.0}
DISCRETE = (
    ONE | SHORT | {"env": "CartPole-v1", "steps": 8, "utd": 1.0, "train_every": 1, "target_every": 3, "hidden": [4]}
)
PICTURES = DISCRETE | {"env": "probe_envs:ProbeDiscreteSavedPictures-v0", "env_kwargs": {"frame_stack": 2}, "n_step": 2}
LOGGED = ONE | {"steps": 5}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("sac", CONTINUOUS | {"hidden": [4], "normalize_obs": True}),
    "td3": ("td3", CONTINUOUS | {"hidden": [4], "normalize_obs": True}),
    "simba": ("simba", SIMBA),
    "simba_v2": ("simba_v2", SIMBA | {"bins": 5}),
    "srl": ("srl", CONTINUOUS | {"hidden": [4], "units": 4, "critic_hidden": [4], "model_hidden": [4]}),
    "sac, device": ("sac", CONTINUOUS | {"hidden": [4], "env_backend": "device"}),
    "pictures, device": (
        "dqn", DISCRETE | {"env": "Catch-v0", "env_backend": "device", "env_kwargs": {"pixels": True, "size": [4, 3]}}
    ),
    "dqn": ("dqn", DISCRETE),
    "dqn, all extensions": (
        "dqn", DISCRETE | {"value": "c51", "bins": 5, "prioritized": True, "n_step": 2, "double": True, "dueling": True}
    ),
    "pictures": ("dqn", PICTURES),
    "bc": ("bc", LOGGED | {"hidden": [4]}),
    "td3_bc": ("td3_bc", LOGGED | {"hidden": [4]}),
    "rebrac": ("rebrac", LOGGED | {"hidden": [4]}),
    "cql": ("cql", LOGGED | {"actor_hidden": [4], "critic_hidden": [4], "sampled_actions": 2, "bc_steps": 2,
                             "calibrated": True}),
    "edac": ("edac", LOGGED | {"hidden": [4], "critics": 3}),
    "iql": ("iql", LOGGED | {"hidden": [4], "dropout": 0.1}),
    "riql": ("riql", LOGGED | {"hidden": [4], "critics": 3}),
}  # fmt: skip


def stand_in(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """As a recording does it: nothing is computed while it is made, and results lie in one place."""
    recorded: Any = function.__closure__[0].cell_contents  # type: ignore[index]
    before = tree_map(torch.clone, recorded._args)
    results = function()
    write_into(recorded._args, before)
    recordings.append(recorded)
    return lambda: write_into(results, function()), results


recordings: list[Recorded] = []


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Two pretended GPUs; functions are not compiled, but recorded."""
    recordings.clear()
    monkeypatch.setattr("deeprl.core.population._compiled", lambda function, execution: function)
    monkeypatch.setattr("deeprl.core.population.Recorded", functools.partial(Recorded, record=stand_in))
    with pretended_gpus(monkeypatch) as used:
        yield used


def trained(name: str, out: Path, **settings: Any) -> Any:
    algorithm, own = RUNS[name]
    if own.get("env") is None:
        own = own | {"dataset": offline_helpers.write_made(out.parent / f"{out.name}.npz", rows=40)}
    return deeprl.train(algorithm, out=out, **own | settings)


def parameters(run_dir: Path, device: str = "cpu") -> dict[str, np.ndarray]:
    return {k: v.cpu().numpy() for k, v in flatten(load_population(run_dir, device=device).state).items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    unequal = [k for k, v in expected.items() if not np.array_equal(found[k], v)]
    assert not unequal, unequal


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name not in ("sac", "iql")]


@pytest.mark.parametrize("name", ["sac", "iql", *SLOW])
def test_every_algorithm_learns_on_a_gpu_what_it_learns_on_a_cpu(name: str, tmp_path: Path, gpus: list[int]) -> None:
    on_cpu = trained(name, tmp_path / "cpu", compile="off")
    on_gpu = trained(name, tmp_path / "gpu", compile="on", device="cuda")
    assert on_cpu.finished
    assert on_gpu.finished
    assert on_gpu.execution.device == "cuda:0"
    assert recordings
    assert {x.gpu for r in recordings for x in flatten(r._results).values()} == {0}  # type: ignore[attr-defined]
    assert_same(parameters(tmp_path / "gpu", "cuda"), parameters(tmp_path / "cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sac", "dqn, all extensions", "pictures"])
def test_a_run_stopped_on_a_gpu_goes_on_there_exactly(name: str, tmp_path: Path, gpus: list[int]) -> None:
    trained(name, tmp_path / "whole", compile="on", device="cuda")
    stopped = trained(name, tmp_path / "halves", compile="on", device="cuda", callback=lambda run: run.step == 5)
    assert not stopped.finished
    assert trained(name, tmp_path / "halves", compile="on", device="cuda").finished
    assert_same(parameters(tmp_path / "halves"), parameters(tmp_path / "whole"))


def test_an_update_waits_for_nothing_on_the_gpu(tmp_path: Path, gpus: list[int]) -> None:
    config = sac.Config(**CONTINUOUS | {"hidden": (4,), "seeds": (0, 1)}, device="cuda", out=str(tmp_path / "run"))
    net = sac.build_net(offline_helpers.SPEC, config, None, "cuda:0")
    learn = sampled(sac.update, net, config)
    state = tree_map(lambda x: x.to("cuda:0"), sac.init(net, config.member(0), torch.tensor([0, 0, 0, 0])))
    data = tree_map(lambda x: x.to("cuda:0"), offline_helpers.made_dataset(40).data)
    size, key = torch.tensor(40, device="cuda:0"), torch.tensor([0, 3, 0, 0], device="cuda:0")
    waited.clear()
    with torch.no_grad():
        new, metrics, _ = learn(state, data, size, key, key)
    assert waited == []
    assert all(isinstance(x, GpuTensor) for x in flatten((new, metrics)).values())


@pytest.mark.slow
def test_an_adversary_on_a_gpu_finds_what_it_finds_on_a_cpu(
    tmp_path: Path, gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeprl.make_data.corruption.STEPS", 2)
    run = trained("edac", tmp_path / "run", compile="off")
    dataset = load_dataset(str(tmp_path / "run.npz"))
    on_cpu, on_gpu = (
        corrupt(dataset, "adversarial", ["observation", "action"], adversary=run.directory, device=device)
        for device in ("cpu", "cuda")
    )
    for ours, expected in zip(on_gpu.dataset.data, on_cpu.dataset.data, strict=True):
        assert torch.equal(ours, expected)


# --- which GPU ---


def test_a_gpu_has_an_index_from_the_start(gpus: list[int]) -> None:
    assert [resolve_device(d) for d in ("cuda", "auto", "cuda:1", "cpu", "cpu:0")] == [
        "cuda:0", "cuda:0", "cuda:1", "cpu", "cpu"
    ]  # fmt: skip
    torch.cuda.set_device(1)  # the program's choice
    assert resolve_device("cuda") == "cuda:1"
    assert resolve_device("auto") == "cuda:1"
    for wrong in ("mps", "gpu", "cuda:x", "", "xla:0"):
        with pytest.raises(DeeprlError, match=r"^device: expected cpu, cuda"):
            resolve_device(wrong)
    with pytest.raises(DeeprlError, match=r"device cuda:2: this torch .* sees 2 CUDA GPUs"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(("device", "expected"), [("cuda", 0), ("auto", 0), ("cuda:1", 1)])
def test_a_run_uses_its_gpu_and_hands_back_the_one_in_use_before(
    device: str, expected: int, tmp_path: Path, gpus: list[int]
) -> None:
    trained("sac", tmp_path / "run", compile="off", device=device, steps=4, seeds=[0])
    assert expected in gpus[1:]
    assert torch.cuda.current_device() == 0
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (about["config"]["device"], about["execution"]["device"]) == (device, f"cuda:{expected}")
    assert about["device"] == f"cuda:{expected} (pretended {expected})"
    assert device_name("cuda:1", 1) == "cuda:1 (pretended 1)"


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_runs_that_have_stored_cuda_without_an_index_go_on(device: str, tmp_path: Path, gpus: list[int]) -> None:
    config = sac.Config(device=device)
    values = Execution(device="cuda").__dict__
    stored = {"config": {"device": device}, "execution": values}
    assert execution_of(stored, config, 0) == Execution(device="cuda:0")


def test_agents_are_loaded_to_any_gpu_and_act_there(tmp_path: Path, gpus: list[int]) -> None:
    obs = np.array([1.0, 0.0, 0.5])
    run = trained("sac", tmp_path / "run", compile="off", steps=4)
    expected = deeprl.load(run.directory, seed=1)(obs)
    for index, device in ((0, "auto"), (0, "cuda"), (1, "cuda:1")):
        policy = deeprl.load(run.directory, seed=1, device=device)
        assert np.array_equal(policy(obs), expected)
        assert {p.gpu for p in policy.modules()["actor"].parameters()} == {index}  # type: ignore[attr-defined]
    with pytest.raises(DeeprlError, match="device: expected"):
        deeprl.load(run.directory, seed=1, device="gpu")


def test_memory_is_asked_of_the_gpu_of_the_run(gpus: list[int]) -> None:
    needs = deeprl.dry_run("sac", device="cuda", **CONTINUOUS)
    assert needs.device == "cuda:0"
    assert (footprint.available("cuda:0"), footprint.available("cuda:1")) == (10**9, 2 * 10**9)


# --- recordings ---


class Streams:
    """torch.cuda's streams and recordings as they are documented: a recording that fails leaves its own stream."""

    def __init__(self, fails: bool):
        self.fails, self.stream, self.log = fails, "program's", list[str]()

    def graph(self, graph: Any, stream: str) -> contextlib.AbstractContextManager[None]:
        @contextlib.contextmanager
        def recording() -> Iterator[None]:
            self.stream = stream
            yield
            if self.fails:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            self.stream = "program's"

        return recording()

    def set_stream(self, stream: str) -> None:
        self.stream = stream


@pytest.mark.parametrize("fails", [False, True])
def test_a_recording_has_a_stream_of_its_gpu_and_leaves_the_programs(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = Streams(fails)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "own")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: cuda.stream)
    monkeypatch.setattr(torch.cuda, "graph", cuda.graph)
    monkeypatch.setattr(torch.cuda, "set_stream", cuda.set_stream)
    calls: list[str] = []
    function = Recorded(lambda x: calls.append(cuda.stream) or x, keep=True)
    with pytest.warns(UserWarning, match="^no CUDA graph.*capturing$") if fails else contextlib.nullcontext():
        for _ in range(4):
            function(torch.zeros(1))
    assert calls == ["program's", "program's", "own"] + ["program's"] * (2 if fails else 0)
    assert cuda.stream == "program's"
