"""Memory: what is stated is allocated, what is available is what the system says, the impossible is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deeprl
from deeprl import nets
from deeprl.commands.main import main
from deeprl.core import footprint
from deeprl.core.spec import EnvSpec
from deeprl.core.tree import tree_leaves
from deeprl.errors import DeeprlError
from deeprl.launch.sweep import run_sweep
from deeprl.replay import Replay

TINY: dict[str, Any] = {
    "steps": 400, "learning_starts": 100, "batch_size": 8, "hidden": (16, 16), "seeds": (0, 1, 2),
    "eval_episodes": 0, "compile": "off", "tensorboard": False, "threads": 1,
}  # fmt: skip
PICTURES = {"env": "probe_envs:ProbeDiscreteSavedPictures-v0", "env_kwargs": {"frame_stack": 2}, "hidden": (8,)}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("sac", {"env": "Pendulum-v1", "buffer_size": 250, "normalize_obs": True, "critics": 3}),
    "sac_four_envs": ("sac", {"env": "Pendulum-v1", "buffer_size": 250, "envs_per_agent": 4}),
    "sac_settings": ("sac", {"env": "Pendulum-v1", "actor_lr": (1e-3, 1e-4, 1e-5), "target_entropy": -1.0}),
    "td3": ("td3", {"env": "Pendulum-v1", "backend": "loop"}),
    "dqn": ("dqn", {"env": "CartPole-v1", "buffer_size": 300}),
    "dqn_prioritized": ("dqn", {"env": "CartPole-v1", "prioritized": True, "n_step": 3}),
    "dqn_frames": ("dqn", {"env": "MinAtar/Breakout-v1", "hidden": (8,), "prioritized": True, "envs_per_agent": 3}),
    "dqn_frame_stacks": ("dqn", PICTURES | {"buffer_size": 90}),
}
PENDULUM = EnvSpec((3,), 1, (-2.0,), (2.0,))


def allocated(part: Any) -> int:
    """Bytes that the tensors and arrays of an object really hold, those that all agents share left out."""
    values = list(vars(part).values())
    tensors = [t for v in values for t in (v if isinstance(v, tuple) else (v,)) if isinstance(t, torch.Tensor)]
    return of_storages(t for t in tensors if t.dim() > 0) + sum(v.nbytes for v in values if isinstance(v, np.ndarray))


def of_storages(tensors: Iterable[torch.Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("case", CASES)
def test_stated_bytes_are_those_of_the_arrays_of_a_run(case: str, tmp_path: Path) -> None:
    algorithm, settings = CASES[case]
    if settings["env"].startswith("MinAtar"):
        pytest.importorskip("minatar")
    settings = TINY | settings
    needs = deeprl.dry_run(algorithm, **settings)
    run = deeprl.train(algorithm, **settings, out=tmp_path / "run", callback=lambda run: True)
    agents = run._attached["agents"].tree
    assert all(len(leaf) == 3 and leaf.is_contiguous() for leaf in tree_leaves(agents))
    groups = dict(needs.groups)
    for name in ("replay", "priorities"):
        if name in run._attached:
            assert 3 * groups.pop(name) == allocated(run._attached[name]), name
    assert 3 * sum(groups.values()) == of_storages(tree_leaves(agents))
    assert needs.agents == 3
    assert needs.total == 3 * needs.per_agent


def test_groups_by_hand() -> None:
    needs = deeprl.dry_run("sac", **(TINY | {"env": "Pendulum-v1", "steps": 1000}))
    # 3 observations, 1 action, two layers of 16. Actor: 3*16+16 + 16*16+16 + 2*(16+1) = 370 numbers;
    # each critic: 4*16+16 + 16*16+16 + 16+1 = 369, of which there are two.
    parameters, targets = 4 * (370 + 2 * 369), 4 * 2 * 369
    # Adam: two moments of each, and of log alpha; two powers for each of three optimizers
    moments = 2 * parameters + 4 * 2 + 4 * 2 * 3
    # log alpha, six settings, mean and variance and count of 3 observations; int64: step, frozen_at, cause
    other = 4 * (1 + 6 + 3 + 3 + 1) + 8 * 3
    # two observations, action, reward: 8 floats; terminated, truncated: 2 bytes; for min(10^6, 1000) transitions
    replay = 1000 * (4 * 8 + 2)
    assert needs.groups == {
        "parameters": parameters, "target networks": targets, "optimizer moments": moments, "other state": other,
        "replay": replay,
    }  # fmt: skip
    assert needs.per_agent == parameters + targets + moments + other + replay


def test_frames_of_atari_size_by_hand() -> None:
    from deeprl.replay import FrameReplay

    spec = EnvSpec((4, 84, 84), 0, (), (), "uint8", actions=6, frame_stack=4)
    needs = footprint.needs_of(8, "cpu", replay=FrameReplay(1, 10**6, spec, device="meta"))
    # one frame a row, a spare one for every 16th, and 4 + 2 more; a row: four int64 (newest, depth, action, and on the
    # host the oldest frame needed), reward, two bools; two int64 and a bool of where the environment is, and skip
    frames = 10**6 + 10**6 // 16 + 4 + 2
    assert needs.groups["replay"] == frames * 84 * 84 + 10**6 * (4 * 8 + 4 + 2) + 8 + 8 + 1 + 8 + 8


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_600, "1 MB"), (1_664_000_000, "1.66 GB"),
     (106 * 10**9, "106 GB"), (2176 * 10**12, "2.18 PB"), (5 * 10**21, "5 ZB"), (None, "unknown")],
)  # fmt: skip
def test_text_by_hand(number: int | None, expected: str) -> None:
    assert footprint.text(number) == expected


# --- what is available ---

MEMINFO = (
    "MemTotal:       24684012 kB\nMemFree:        1000000 kB\nMemAvailable:   20000000 kB\nHugePages_Total:       0\n"
)
STAT = "anon 1\ninactive_file 500\ntotal_inactive_file 700"


def system(root: Path, monkeypatch: pytest.MonkeyPatch, membership: str, groups: dict[str, dict[str, str]]) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO)
    (root / "proc/self/cgroup").write_text(membership)
    for path, files in groups.items():
        folder = root / "cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in ({"memory.stat": STAT} | files).items():
            (folder / name).write_text(content + "\n")
    monkeypatch.setattr(footprint, "PROC", root / "proc")
    monkeypatch.setattr(footprint, "CGROUPS", root / "cgroup")


def limit_2(most: str, used: int) -> dict[str, str]:
    return {"memory.max": most, "memory.current": str(used)}


def limit_1(most: int, used: int) -> dict[str, str]:
    return {"memory.limit_in_bytes": str(most), "memory.usage_in_bytes": str(used)}


@pytest.mark.parametrize(
    ("membership", "groups", "expected"),
    [
        ("", {}, 20_480_000_000),  # MemAvailable alone: 20,000,000 * 1024
        ("0::/\n", {"": {}}, 20_480_000_000),
        ("0::/a\n", {"a": limit_2("max", 5)}, 20_480_000_000),
        # 10^9 - (4 * 10^8 - 500 that files would give back)
        ("0::/a\n", {"a": limit_2("1000000000", 400_000_000)}, 600_000_500),
        ("0::/a/b\n", {"a/b": limit_2("max", 5), "a": limit_2("3000", 1000)}, 2500),  # the outer one counts too
        ("0::/a/b\n", {"a/b": limit_2("2000", 1000), "a": limit_2("9000", 1000)}, 1500),
        ("0::/outside\n", {"": limit_2("7000", 1000)}, 6500),  # a container sees its own group as the root
        ("4:memory:/a\n1:cpu:/b\n0::/\n", {"memory/a": limit_1(2000, 1500)}, 1200),  # version 1
        ("4:cpu,memory:/a\n", {"memory/a": limit_1(2**63 - 4096, 1500)}, 20_480_000_000),
    ],
)
def test_available_is_the_smaller_of_machine_and_cgroup(
    membership: str, groups: dict[str, dict[str, str]], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system(tmp_path, monkeypatch, membership, groups)
    assert footprint.available("cpu") == expected


def test_available_without_linux_is_an_upper_bound_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "PROC", tmp_path)
    monkeypatch.setattr(footprint.os, "sysconf_names", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 2})
    monkeypatch.setattr(footprint.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert footprint.available("cpu") == 4_096_000
    monkeypatch.setattr(footprint.os, "sysconf_names", {})
    assert footprint.available("cpu") is None
    assert footprint.Needs(1, "cpu", {"replay": 10**18}).fit()


def test_available_on_cuda_counts_the_reserve_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert footprint.available("cuda:1") == 1300


def test_this_machine_has_memory() -> None:
    free = footprint.available("cpu")
    assert free is None or free > 50_000_000


# --- refusal ---


def test_replay_without_room_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "available", lambda device: 20 * 10**9)
    made = []
    monkeypatch.setattr(Replay, "_allocate", lambda self, real=Replay._allocate: (made.append(self.device), real(self)))
    with pytest.raises(DeeprlError) as refused:
        Replay(64, 10**7, PENDULUM)
    # 34 bytes a transition
    assert str(refused.value) == (
        "64 agents need 21.8 GB of memory (340 MB each, of which replay 340 MB), and 20 GB are available on cpu: "
        "lower buffer_size or the number of seeds"
    )
    assert made == ["meta"]


@pytest.mark.parametrize("room", [-1, 0])
def test_border_of_the_refusal(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "available", lambda device: 2 * 100 * 34 + room)
    if room < 0:
        with pytest.raises(DeeprlError, match=r"2 agents need 6\.8 kB"):
            Replay(2, 100, PENDULUM)
    else:
        assert Replay(2, 100, PENDULUM).data.obs.shape == (2, 100, 3)


def test_replay_of_an_earlier_population_is_given_back_first(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.disable()
    try:
        earlier = Replay(2, 100, PENDULUM)
        gone = weakref.ref(earlier.data.obs)
        del earlier  # but it and its history refer to each other
        assert gone() is not None
        monkeypatch.setattr(footprint, "available", lambda device: 10**9 if gone() is None else 0)
        Replay(2, 100, PENDULUM)
    finally:
        gc.enable()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_impossible_run_is_one_line_and_status_2(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "sac", "--env", "Pendulum-v1", "--seeds", "0-63", "--steps", "1_000_000_000_000"]  # 34 bytes each
    assert main([*words, "--buffer-size", "1_000_000_000_000", *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("deeprl: 64 agents need 2.18 PB of memory (34 TB each, of which replay 34 TB), and ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_a_table_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(footprint, "available", lambda device: 20 * 10**9)
    words = "--env CartPole-v1 --seeds 0-3 --buffer-size 1000 --prioritized --threads 1 --out here".split()
    assert main(["train", "dqn", "--dry-run", *words]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "dqn CartPole-v1: 4 agents, 4 environments".split()
    assert lines[1] == ["each", "agent", "all", "4"]
    # two observations of 4, reward: 36 bytes; action: 8; two ends: 2
    assert ["replay", "46", "kB", "184", "kB"] in lines
    assert ["priorities", "4.1", "kB", "16.4", "kB"] in lines  # 1000 rounded up to 1024, and the largest, in float32
    assert ["available", "on", "cpu", "20", "GB"] in lines
    assert " ".join(lines[-1]) == footprint.LEFT_OUT
    assert list(tmp_path.iterdir()) == []


def test_dry_run_calls_own_networks_and_names_what_is_wrong() -> None:
    def make(spec: EnvSpec, config: Any) -> Any:
        return nets.QNetwork(torch.nn.Identity(), spec.obs_dim, spec.actions, (7,), 1, False)

    settings = TINY | {"env": "CartPole-v1"}
    needs = deeprl.dry_run("dqn", net=make, **settings)
    assert needs.groups["parameters"] == 4 * (4 * 7 + 7 + 7 * 2 + 2)
    with pytest.raises(DeeprlError, match="sac needs continuous actions"):
        deeprl.dry_run("sac", **settings)
    with pytest.raises(DeeprlError, match="did you mean CartPole-v1"):
        deeprl.dry_run("dqn", **(settings | {"env": "CartPol-v1"}))


def test_device_meta_is_no_device_to_train_on() -> None:
    with pytest.raises(DeeprlError, match=r"^device meta computes nothing"):
        deeprl.train("dqn", **(TINY | {"env": "CartPole-v1", "device": "meta"}))


def test_sweep_warns_of_a_population_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sweep.toml"
    head = f'out = "{tmp_path / "out"}"\n[defaults]\nseeds = "0-2"\nhidden = [16, 16]\n'
    tiny = {"steps": 400, "learning_starts": 100, "eval_episodes": 0, "threads": 1}
    head += "\n".join(f"{name} = {value}" for name, value in tiny.items())
    file.write_text(
        f'{head}\ntensorboard = false\n[[experiment]]\nalgorithm = "dqn"\nenv = "CartPole-v1"\n'
        "[experiment.grid]\nbuffer_size = [100, 400]\n"
    )
    # 46 bytes a transition: 13.8 and 55.2 kB of replay, and less than 20 kB of networks
    monkeypatch.setattr(footprint, "available", lambda device: 50_000)
    with pytest.raises(DeeprlError, match=r"^3 agents need"):
        run_sweep(file)
    out = capsys.readouterr().out
    assert "warning: dqn CartPole-v1 buffer_size=400: 3 agents need" in out
    assert "buffer_size=100: 3 agents need" not in out
    assert (tmp_path / "out" / "dqn" / "CartPole-v1_buffer_size=100" / "status.json").exists()
