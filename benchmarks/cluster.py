"""A sweep on a Ray cluster of two nodes on this machine, one of which is killed in the middle.

    pip install 'deeprl[ray]'
    python benchmarks/cluster.py --csv benchmarks/results/cluster.csv

Four small populations, one at a time on each node: DQN and SAC on two environments each. When both nodes are at work
and have checkpoints, the processes of one are ended by SIGKILL: Ray's own, and the worker that trains. Ray starts its
task again on the node that is left. Expected are a report, a status of 0, and the rows of `metrics.csv` and
`evaluations.csv` (all but `wall_s`) of the same sweep without a cluster. `resumed`: populations that went on from a
checkpoint, by their logs; `identical`: populations with equal rows. Rows are appended.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fault_runs import ROOT
from speed_rows import append

from deeprl.launch.glance import glances
from deeprl.run import provenance

COLUMNS = ["case", "populations", "finished", "identical", "resumed", "killed_at", "status", "seconds", "ok"]
COLUMNS += ["commit", "device", "versions", "command"]
SWEEP = """
out = "{out}"
[defaults]
steps = {steps}
learning_starts = 100
hidden = [32, 32]
batch_size = 32
buffer_size = 1_000
eval_every = 400
eval_episodes = 1
log_every = 50
checkpoint_minutes = 0.02
compile = "off"
threads = 1
tensorboard = false
seeds = "0-1"
[[experiment]]
algorithm = "dqn"
env = ["CartPole-v1", "Acrobot-v1"]
epsilon_steps = 400
[[experiment]]
algorithm = "sac"
env = ["Pendulum-v1", "MountainCarContinuous-v0"]
"""
_WAIT_S = 300.0


def rows(file: Path) -> list[dict[str, str]]:
    """A CSV file of a run without `wall_s`."""
    with file.open(newline="", encoding="utf-8") as lines:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(lines)]


def same_rows(one: Path, other: Path) -> bool:
    """Whether two run directories have the same metrics and evaluations."""
    return all(rows(one / name) == rows(other / name) for name in ("metrics.csv", "evaluations.csv"))


def begin_sweep(place: Path, name: str, steps: int, *more: str) -> subprocess.Popen[bytes]:
    """`deeprl sweep` in a process of its own, with its directory `place/name` and a log beside it."""
    file = place / f"{name}.toml"
    file.write_text(SWEEP.format(out=place / name, steps=steps), encoding="utf-8")
    command = [sys.executable, "-m", "deeprl", "sweep", str(file), *more]
    with (place / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)


def descendants(pid: int) -> list[int]:
    """The processes below one, by their entries in /proc."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def at_work(out: Path) -> dict[str, int]:
    """The populations that are being trained, each with the process that does."""
    with contextlib.suppress(Exception):  # nothing there yet
        return {
            run.name: int(run.where.split()[0]) for run in glances(out) if run.state == "running" and run.step > 100
        }
    return {}


def kill_node(cluster: Any, nodes: list[Any], out: Path) -> tuple[str, int]:
    """End a node that is at work as a loss of power would. Returns the population that it was at, and its step."""
    began = time.monotonic()
    while len(runs := at_work(out)) < 2 or not all(list((out / name / "checkpoints").glob("0*")) for name in runs):
        if time.monotonic() - began > _WAIT_S:
            raise SystemExit(f"the nodes were not at work within {_WAIT_S:.0f} s; see {out}.log")
        time.sleep(0.05)
    for node in nodes:
        (raylet,) = node.all_processes["raylet"]
        below = descendants(raylet.process.pid)
        for name, pid in runs.items():
            if pid in below:
                step = next(run.step for run in glances(out) if run.name == name)
                for each in [raylet.process.pid, *below]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(each, signal.SIGKILL)
                cluster.remove_node(node, allow_graceful=False)
                return name, step
    raise SystemExit("none of the nodes has a worker below it")


def with_a_node_killed(place: Path, steps: int) -> tuple[str, int, float]:
    """The sweep on a cluster. Returns where it was hit, its exit status and its seconds."""
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    head = {"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
        began = time.monotonic()
        sweep = begin_sweep(place, "cluster", steps, "--launcher", "ray", "--address", cluster.address)
        name, step = kill_node(cluster, nodes, place / "cluster")
        return f"{name} at {step}", sweep.wait(_WAIT_S), time.monotonic() - began
    finally:
        cluster.shutdown()


def outcome(place: Path, hit: str, status: int, seconds: float) -> dict[str, Any]:
    """The row: what is there after all, beside the sweep without a cluster."""
    cluster, alone = place / "cluster", place / "alone"
    runs = glances(cluster)
    same = [same_rows(cluster / run.name, alone / run.name) for run in runs]
    logs = [(cluster / f"{run.name}.log").read_text(encoding="utf-8") for run in runs]
    resumed = sum("ended without leaving" in log for log in logs)
    finished = sum(run.state == "finished" for run in runs)
    report = (cluster / "report" / "index.html").exists()
    return {
        "case": "one of two nodes killed", "populations": len(runs), "finished": finished, "identical": sum(same),
        "resumed": resumed, "killed_at": hit, "status": status, "seconds": round(seconds, 1),
        "ok": finished == sum(same) == len(runs) and status == 0 and report and resumed == 1,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_600, help="of each agent (default 1600)")
    parser.add_argument("--csv", type=Path, help="append the row to this file")
    parser.add_argument("--keep", type=Path, help="leave directories and logs there")
    options = parser.parse_args()
    place = options.keep or Path(tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    hit, status, seconds = with_a_node_killed(place, options.steps)
    if begin_sweep(place, "alone", options.steps, "--jobs", "2").wait() != 0:
        raise SystemExit((place / "alone.log").read_text(encoding="utf-8"))
    words = ["python", "benchmarks/cluster.py", *(["--csv", str(options.csv)] if options.csv else [])]
    words += ["--steps", str(options.steps)] if options.steps != parser.get_default("steps") else []
    versions = provenance.versions() | {"ray": importlib.metadata.version("ray")}
    about = {"commit": provenance.commit(), "device": provenance.device_name("cpu", 1), "command": shlex.join(words)}
    told = " ".join(f"{name}={version}" for name, version in versions.items())
    row = outcome(place, hit, status, seconds) | about | {"versions": told}
    print(json.dumps(row, indent=1))
    if options.csv:
        append(options.csv, COLUMNS, row)
    if not options.keep:
        shutil.rmtree(place)
    raise SystemExit(0 if row["ok"] else 1)


if __name__ == "__main__":
    main()
