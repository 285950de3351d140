"""Units as tasks of a Ray cluster on this machine. `benchmarks/cluster.py` loses a node of one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_helpers import assert_same_run, config

from deeprl.errors import DeeprlError
from deeprl.launch.glance import last_lines, log_of
from deeprl.launch.launcher import Launching, launch
from deeprl.launch.planned import Planned
from deeprl.online import sac

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")

from deeprl.launch import ray as on_ray  # noqa: E402

BEFORE = {"steps": 28, "learning_starts": 27, "eval_every": 0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without resources, and a node with two CPUs."""
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False},
    )
    made.add_node(num_cpus=2, object_store_memory=memory)
    yield made
    made.shutdown()


def unit(out: Path, **settings: Any) -> Planned:
    return Planned("sac", config(out, **(BEFORE | settings)))


def test_units_are_trained_and_failures_named(cluster: Any, tmp_path: Path) -> None:
    units = [unit(tmp_path / "fine"), unit(tmp_path / "broken", env="Nowhere-v0")]
    launching = Launching("ray", address=cluster.address)
    launching.reach()
    fine, broken = launch(units, tmp_path, launching)
    assert (fine.state, broken.state) == ("finished", "failed")
    assert "Nowhere" in broken.cause
    sac.train(config(tmp_path / "here", **BEFORE))
    assert_same_run(tmp_path / "here", tmp_path / "fine")
    assert not list(tmp_path.glob(".probe*"))
    assert not ray.is_initialized()


def test_what_is_asked_to_stop_has_a_checkpoint(cluster: Any, tmp_path: Path) -> None:
    endless = unit(tmp_path / "run", steps=10_000_000, learning_starts=9_000_000, buffer_size=1_000)
    with on_ray.RayHands([endless], tmp_path, cluster.address, {}, None) as hands:
        hands.start(0)
        until = time.monotonic() + 120
        while not (tmp_path / "run" / "status.json").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        hands.stop()
        while not (ends := hands.ended()):
            assert time.monotonic() < until
            time.sleep(0.05)
    assert [(end.number, end.status) for end in ends] == [(0, 143)]
    assert "stopped at step" in last_lines(log_of(endless.directory), 1)[0]


def test_resources_that_no_node_has(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(DeeprlError, match=r"no node of the cluster has 4 CPU, 1 fast \(.*: 2 CPU, 0 fast"):
        on_ray.RayHands([], tmp_path, cluster.address, {"CPU": 4, "fast": 1}, None)
    assert not ray.is_initialized()


def test_node_that_does_not_share_the_directory(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "_seen", lambda probe: "")
    with pytest.raises(DeeprlError, match=rf"node .* does not see {tmp_path}; out must be a directory that all"):
        on_ray.RayHands([], tmp_path, cluster.address, {}, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379"])
def test_unreachable_address_is_one_line_within_20_s(address: str) -> None:
    began = time.monotonic()
    with pytest.raises(DeeprlError, match=rf"--address {address}: no .*; name HOST:PORT of a cluster") as error:
        Launching("ray", address=address).reach()
    assert time.monotonic() - began < 20
    assert "\n" not in str(error.value)
