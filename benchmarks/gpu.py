"""What can only be known on a GPU: whether it computes what the CPU does, and how fast. One command, within minutes.

    python benchmarks/gpu.py                       # on cuda, rows to benchmarks/results/gpu.csv
    python benchmarks/gpu.py --device cpu --small  # the kit itself, with small numbers

Needs this checkout, a Python with torch 2.11 or later and numpy, and the wheels of what `deeprl` imports for
environments on the device and datasets (10 MiB together): gymnasium, cloudpickle, farama-notifications, h5py,
jaxtyping, wadler-lindig, tyro, docstring-parser, typeguard, typing-extensions. Nothing has to be installed: it runs
from the checkout, and those wheels may lie unpacked on the PYTHONPATH. Graphs for a GPU need Triton, which comes with
torch for CUDA, and a C compiler.

Cases are done in order of importance (`gpu_cases.cases`), each within a time of its own, until `--minutes` are over:
    a    random bits are those of the CPU
    b    eager updates are those of the CPU to rounding, a population its members alone
    c    compiled updates are eager ones, graphs of CUDA exactly compiled ones
    d    a run that is killed goes on as if it had not been
    e    updates/s alone, for 1, 16 and 256 agents, beside one eager agent in the style of scripts
    f    steps/s of the whole loop in environments on the device
    g    what 64 agents learn
A row is written as soon as it is measured. What stands in `--csv` or `--done` already, measured or passed on a device
of this name, is not done again (`--again`: it is). A case that fails is a row that says why, and the others go on; the
command then ends with 1.
"""

from __future__ import annotations

import argparse
import csv
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent)]  # the checkout, where it is not installed

import torch  # noqa: E402
from gpu_cases import Bench, Case, Finding, cases  # noqa: E402
from speed_rows import append, device_name, versions_told  # noqa: E402

from deeprl.run import provenance  # noqa: E402

COLUMNS = (
    *("stage", "case", "agents", "value", "unit", "bar", "passed", "detail", "seconds"),
    *("device", "versions", "commit", "command"),
)
RESULTS = Path(__file__).parent / "results" / "gpu.csv"


class OverTimeError(Exception):
    """A case took longer than it may."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise OverTimeError in what takes longer."""

    def over(*_: object) -> None:
        raise OverTimeError(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def base(row: dict[str, str]) -> tuple[str, str, str]:
    """What a row is of: stage, case and device."""
    return row["stage"], row["case"].partition(":")[0], row["device"]


def rows_in(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def already(paths: list[Path], device: str) -> set[tuple[str, str, str]]:
    """What has passed, or was measured, on a device of this name."""
    rows = [row for path in dict.fromkeys(paths) for row in rows_in(path) if row["device"] == device]
    return {base(row) for row in rows} - {base(row) for row in rows if row["passed"] != "yes"}


def forget(path: Path, what: tuple[str, str, str]) -> None:
    """Take the rows of an earlier try out of a file."""
    rows = rows_in(path)
    kept = [row for row in rows if base(row) != what]
    if len(kept) < len(rows):
        path.unlink()
        for row in kept:
            append(path, COLUMNS, row)


def findings(case: Case, bench: Bench, seconds: float) -> list[tuple[Finding, float]]:
    """What a case finds, with the time it took; a failure is a finding."""
    found: list[tuple[Finding, float]] = []
    begun = time.monotonic()
    try:
        with within(seconds):
            for finding in case.find(bench):
                found.append((finding, time.monotonic() - begun))
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        found.append((Finding(float("nan"), "failed", 0.0, reason, name="failed"), time.monotonic() - begun))
    return found


def row_of(case: Case, finding: Finding, seconds: float, where: dict[str, str]) -> dict[str, Any]:
    return {
        "stage": case.stage,
        "case": f"{case.name}: {finding.name}" if finding.name else case.name,
        "agents": finding.agents,
        "value": f"{finding.value:.6g}",
        "unit": finding.unit,
        "bar": "" if finding.bar is None else f"{finding.bar:g}",
        "passed": "yes" if finding.passed else "no",
        "detail": finding.detail,
        "seconds": f"{seconds:.1f}",
    } | where


def work(args: argparse.Namespace, folder: Path) -> int:
    """Do what is left to do, within the time. Returns how many cases have failed."""
    begun, failed = time.monotonic(), 0
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else device_name("cpu")
    words = " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]) if args.command is None else args.command
    where = {"device": device, "versions": versions_told("deeprl", "torch", "numpy", "gymnasium")}
    where |= {"commit": provenance.commit(), "command": words}
    done = set() if args.again else already([args.csv, args.done], device)
    bench = Bench(args.device, args.small, folder, 0.2 if args.small else 3.0)
    for case in cases(args.small):
        left = args.minutes * 60 - (time.monotonic() - begun)
        what = (case.stage, case.name, device)
        if what in done or (args.stages and case.stage not in args.stages):
            continue
        if left < min(case.box_s, 15.0):
            print(f"{case.stage} {case.name}: no time left", flush=True)
            continue
        forget(args.csv, what)
        found = findings(case, bench, min(case.box_s, left))
        for finding, seconds in found:
            row = row_of(case, finding, seconds, where)
            append(args.csv, COLUMNS, row)
            print(*(row[k] for k in COLUMNS[:9]), sep="  ", flush=True)
        failed += not all(finding.passed for finding, _ in found)
    print(f"{time.monotonic() - begun:.0f} s on {device} (Python {platform.python_version()}); {failed} cases failed")
    return failed


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--stages", default="", help="these alone, such as abc")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="where rows go")
    parser.add_argument("--done", type=Path, default=RESULTS, help="rows of what need not be done again")
    parser.add_argument("--again", action="store_true", help="do all of it")
    parser.add_argument("--small", action="store_true", help="small numbers: to try the kit itself")
    args = parser.parse_args(words)
    args.command = None if words is None else "python benchmarks/gpu.py"
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no GPU of CUDA here; --device cpu --small tries the kit itself")
    with tempfile.TemporaryDirectory() as folder:
        return 1 if work(args, Path(folder)) else 0


if __name__ == "__main__":
    sys.exit(main())
