"""A sweep of 3 algorithms x 3 environments x 5 seeds with two workers, killed twice on the way.

    python benchmarks/sweep_killed.py --csv benchmarks/results/sweep_killed.csv

The same command, `deeprl sweep FILE --jobs 2`, is started three times. The first two are ended by SIGKILL of the
process group, workers included, when 30 % and 65 % of all steps are done. Expected is one report on nine finished
populations of five agents, and that nothing was trained twice:
    repeated   rows of metrics.csv or evaluations.csv whose step, member and episode a row before has already
    missing    rows that an undisturbed run has and that are not there: a row every `log_every` steps once it learns,
               every episode of every evaluation
    touched    files of populations that were finished at a kill, their logs included, and are not the same at the end
    sessions   worker processes of all populations: nine, and one more for each population that a kill has hit
`finished_before`: populations that were finished at each kill. Rows are appended.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fault_runs import ROOT
from speed_rows import append

from deeprl.launch.glance import Glance, glances, log_of
from deeprl.run import provenance
from deeprl.run.records import read_about

COLUMNS = ["agents", "steps", "kills", "populations", "finished", "finished_before", "sessions", "repeated", "missing"]
COLUMNS += ["touched", "report", "seconds", "ok", "commit", "device", "versions", "command"]
SWEEP = """
out = "{out}"
[defaults]
steps = {steps}
seeds = "0-4"
learning_starts = {starts}
batch_size = 64
eval_every = {evaluated}
eval_episodes = 2
log_every = {logged}
checkpoint_minutes = 0.1
threads = 1
[[experiment]]
algorithm = ["sac", "td3"]
env = {envs}
hidden = [64, 64]
[[experiment]]
algorithm = "simba"
env = {envs}
actor_width = 32
critic_width = 64
"""
_ENVS = '["Pendulum-v1", "MountainCarContinuous-v0", "InvertedPendulum-v5"]'
_KILL_AT = (0.3, 0.65)  # of all steps


def begin(file: Path) -> subprocess.Popen[bytes]:
    """The command, with a process group of its own and a log beside the file."""
    command = [sys.executable, "-m", "deeprl", "sweep", str(file), "--jobs", "2"]
    with file.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)


def share(runs: list[Glance]) -> float:
    """How much of all steps is done."""
    return sum(run.step for run in runs) / sum(run.steps for run in runs)


def kill_at(file: Path, out: Path, part: float) -> dict[Path, str]:
    """One session, ended when so much is done. Returns the files of finished populations with digests."""
    process = begin(file)
    while not (out / "sweep.json").exists() or share(glances(out)) < part:
        if process.poll() is not None:
            raise SystemExit(f"the sweep ended before {part:.0%}: {file.with_suffix('.log')}")
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return digests([out / run.name for run in glances(out) if run.state == "finished"])


def digests(directories: list[Path]) -> dict[Path, str]:
    """All files of populations, and their logs, by path: digest and time of the last change."""
    files = [file for directory in directories for file in directory.rglob("*") if file.is_file()]
    files += [log_of(directory) for directory in directories]
    return {file: f"{hashlib.sha256(file.read_bytes()).hexdigest()} {file.stat().st_mtime_ns}" for file in files}


def rows_of(run: Path) -> tuple[int, int]:
    """How many rows of a run are repeated, and how many are missing."""
    config = read_about(run)["config"]
    steps, agents = config["steps"], len(config["seeds"])
    logged = {s for s in range(config["log_every"], steps + 1, config["log_every"]) if s > config["learning_starts"]}
    evaluated = {*range(config["eval_every"], steps + 1, config["eval_every"]), steps}
    expected = {("metrics.csv", s, m, "") for s in logged | {steps} for m in range(agents)}
    expected |= {
        ("evaluations.csv", s, m, str(e))
        for s in evaluated for m in range(agents) for e in range(config["eval_episodes"])
    }  # fmt: skip
    found = Counter[tuple[str, int, int, str]]()
    for name in ("metrics.csv", "evaluations.csv"):
        with (run / name).open(newline="", encoding="utf-8") as file:
            found.update((name, int(r["step"]), int(r["member"]), r.get("episode", "")) for r in csv.DictReader(file))
    return sum(count - 1 for count in found.values()), len(expected - found.keys())


def judge(out: Path, before: list[dict[Path, str]], steps: int, seconds: float) -> dict[str, Any]:
    """The row: what is there after all."""
    runs = glances(out)
    places = [out / run.name for run in runs]
    after = digests(places)
    touched = sum(after.get(file) != digest for kept in before for file, digest in kept.items())
    repeated, missing = (sum(numbers) for numbers in zip(*map(rows_of, places), strict=True))
    sessions = sum(log_of(place).read_text(encoding="utf-8").count("\n== ") + 1 for place in places)
    finished = sum(run.state == "finished" for run in runs)
    done = [len({file.parent for file in kept if file.name == "config.json"}) for kept in before]
    with (out / "report" / "summary.csv").open(newline="", encoding="utf-8") as file:
        report = len(list(csv.DictReader(file)))
    fine = finished == len(runs) == report == 9 and not repeated and not missing and not touched
    return {
        "agents": sum(run.agents for run in runs), "steps": steps, "kills": len(before), "populations": len(runs),
        "finished": finished, "finished_before": " ".join(map(str, done)), "sessions": sessions, "repeated": repeated,
        "missing": missing, "touched": touched, "report": f"{report} cells", "seconds": round(seconds, 1),
        "ok": fine and sessions <= len(runs) + 2 * len(before),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000, help="of each agent (default 5000)")
    parser.add_argument("--csv", type=Path, help="append the row to this file")
    parser.add_argument("--keep", type=Path, help="leave directories and logs there, which must not exist")
    options = parser.parse_args()
    place = options.keep or Path(tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=options.keep is None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    file, out, steps = place / "sweep.toml", place / "runs", options.steps
    sizes = {"steps": steps, "starts": steps // 10, "evaluated": steps // 5, "logged": max(steps // 50, 1)}
    file.write_text(SWEEP.format(out=out, envs=_ENVS, **sizes), encoding="utf-8")
    began = time.monotonic()
    before = [kill_at(file, out, part) for part in _KILL_AT]
    if (status := begin(file).wait()) != 0:
        raise SystemExit(f"status {status} of the last session: {file.with_suffix('.log').read_text(encoding='utf-8')}")
    row = judge(out, before, steps, time.monotonic() - began)
    words = ["python", "benchmarks/sweep_killed.py", *(["--csv", str(options.csv)] if options.csv else [])]
    words += ["--steps", str(steps)] if steps != parser.get_default("steps") else []
    told = " ".join(f"{name}={version}" for name, version in provenance.versions().items())
    row |= {"commit": provenance.commit(), "device": provenance.device_name("cpu", 1), "versions": told}
    row |= {"command": shlex.join(words)}
    print(json.dumps(row, indent=1))
    if options.csv:
        append(options.csv, COLUMNS, row)
    if not options.keep:
        shutil.rmtree(place)
    raise SystemExit(0 if row["ok"] else 1)


if __name__ == "__main__":
    main()
