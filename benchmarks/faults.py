"""Fault injection: what kills, damaged files and full disks do to a run, and whether it goes on as if nothing had been.

    python benchmarks/faults.py kills --kills 100 --csv benchmarks/results/faults.csv
    python benchmarks/faults.py kills --kills 40 --signal TERM --csv benchmarks/results/faults.csv
    python benchmarks/faults.py files --csv benchmarks/results/faults.csv
    python benchmarks/faults.py disk --csv benchmarks/results/faults.csv

`kills`: each of the runs in `fault_runs.CASES` is trained once without interruption and once with SIGKILL at random
moments (`fault_kills.py`), each followed by the same command. In the end both must have the same agents (every tensor,
bit for bit), the same rows in metrics.csv and evaluations.csv but for the times, and the same TensorBoard values, each
once. `in_save`: kills that left a half-written checkpoint. `--signal TERM` or `INT` sends that to the process instead,
which must then write a checkpoint, say how to go on and exit with 128 plus the number of the signal.

`files`: damage to the files of an unfinished run (`fault_files.py`), a copy for each case. The same command must then
end with the result of the undisturbed run, having said which checkpoint it did not use, or refuse with one line and
status 2 and leave all files as they are; hostile pickles must not run.

`disk`: full disks, read-only and lost directories (`fault_disk.py`). The run must end with one line that names the file
and the newest good checkpoint; once there is space again, the same command must end with the undisturbed result. Cases
that need a mount are left out where that is not allowed.

The exit status is 1 if any case failed. Rows replace earlier rows of the same test and case.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import fault_disk
import fault_files
import fault_kills
from fault_runs import CASES

from deeprl.run import provenance

COLUMNS = ["test", "case", "outcome", "ok", "kills", "in_save", "resumed", "identical", "detail", "seed"]
COLUMNS += ["commit", "device", "versions", "command"]
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco")


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV file, in place of earlier ones of the same test and case."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    about = {"commit": provenance.commit(), "device": provenance.device_name("cpu", 1), "command": command}
    about["versions"] = " ".join(f"{name}={importlib.metadata.version(name)}" for name in PACKAGES)
    fresh = {(row["test"], row["case"]) for row in rows}
    stored = csv.DictReader(path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
    kept = [old for old in stored if (old["test"], old["case"]) not in fresh]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + [row | about for row in rows])


def kills(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The kills of all cases, shared out among them."""
    cases = {name: case for name, case in CASES.items() if not args.cases or name in args.cases}
    number = signal.Signals[f"SIG{args.signal}"]
    left, shares, rows = args.kills, sum(case.share for case in cases.values()), []
    for name, case in cases.items():
        own = round(left * case.share / shares)
        left, shares = left - own, shares - case.share
        rows.append({"test": number.name} | fault_kills.kill(name, case, args.out / "kills", own, args.seed, number))
        if args.csv:
            save(args.csv, rows[-1:])
    struck, identical = (sum(row[name] for row in rows) for name in ("kills", "identical"))
    in_save = sum(row["in_save"] for row in rows)
    print(f"{number.name}: {identical} of {struck} kills without a trace, {in_save} of them inside a save")
    return rows


def others(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The cases of `files` or `disk`."""
    module = {"files": fault_files, "disk": fault_disk}[args.what]
    rows = []
    for row in module.run(args.out, args.seed, args.cases):
        rows.append({"test": args.what, "seed": args.seed} | row)
        if args.csv:
            save(args.csv, rows[-1:])
    print(f"{args.what}: {sum(row['ok'] for row in rows)} of {len(rows)} cases as expected")
    return rows


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("what", choices=("kills", "files", "disk"))
    flags.add_argument("--kills", type=int, default=100, help="of kills: how many, all cases together")
    flags.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL", help="of kills")
    flags.add_argument("--cases", nargs="*", metavar="NAME", help="only these (of files and disk: names with this)")
    flags.add_argument("--seed", type=int, default=0, help="of the moments, bits and other random choices")
    flags.add_argument("--out", type=Path, default=Path("runs/faults"), help="where the runs go")
    flags.add_argument("--csv", type=Path, help="where rows go; without it they are only printed")
    args = flags.parse_args()
    args.out = args.out.absolute()
    rows = kills(args) if args.what == "kills" else others(args)
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


if __name__ == "__main__":
    main()
