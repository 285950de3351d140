"""From rounds to rows: medians, ratios, what each number includes, and the files that hold them."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speed_modes import Mode

COLUMNS = ["algorithm", "env", "agents", "variant", "includes", "steps_per_s", "ratio_to", "ratio", "cores", "threads"]
COLUMNS += ["precision", "device", "versions", "command"]
KEY = ("algorithm", "env", "agents", "variant", "precision", "device", "ratio_to")
MEDIANS = ("steps_per_s", "first_update_s", "compile_s", "other_load")  # of the rounds of a mode, in the JSON file

Row = dict[str, str]
Rounds = dict[Mode, list[dict[str, Any]]]  # what each round gave


def rates(rounds: Rounds, mode: Mode) -> list[float]:
    return [result["steps_per_s"] for result in rounds[mode]]


def span(values: Sequence[float], form: str = ".4g") -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


def device_name(device: str) -> str:
    if device != "cpu":
        return device  # deeprl's worker names the card
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    return found[1] if found else platform.machine()


def version_text(*described: Mapping[str, str]) -> str:
    return " against ".join(" ".join(f"{name}={v}" for name, v in one.items()) for one in described)


def typed_command(script: str, args: argparse.Namespace, names: Iterable[str]) -> str:
    """The command as a user would type it: no path of this machine. Flags without a value are left out."""
    words = [f"python benchmarks/{script}"]
    for name in names:
        value = getattr(args, name)
        flag = f"--{name.replace('_', '-')}"
        if name == "peers":
            value = ",".join(
                pair.split("=")[0] if os.path.isabs(pair.partition("=")[2]) else pair for pair in value.split(",")
            )
        if isinstance(value, Path):
            value = "" if value.is_absolute() else value
        if name == "set":
            words += [f"{flag} {pair}" for pair in value]
        elif value or value == 0:
            words.append(f"{flag} {','.join(map(str, value)) if isinstance(value, list) else value}")
    return " ".join(words)


def conditions(args: argparse.Namespace, mode: Mode, result: Mapping[str, Any], *versions: Mapping[str, str]) -> Row:
    """The columns that every row ends with: under what it was measured. result: one of the mode's."""
    return {
        "cores": str(args.cores),
        "threads": str(mode.threads),
        "precision": result["precision"],
        "device": device_name(result["device"]),
        "versions": version_text(*versions),
        "command": args.command,
    }


def row(args: argparse.Namespace, rounds: Rounds, mode: Mode, against: Mode | None = None) -> Row:
    first, speeds = rounds[mode][0], rates(rounds, mode)
    described = [rounds[one][0]["versions"] for one in (mode, against) if one]
    noise = max(result["other_load"] for one in (mode, against) if one for result in rounds[one])
    spread, what, ratio = speeds, "rate", ""
    if against:
        spread = [ours / theirs for ours, theirs in zip(speeds, rates(rounds, against), strict=True)]
        what, ratio = "ratio", f"{statistics.median(spread):.2f}"
    first_update, compilation = (
        span([result[name] for result in rounds[mode]], ".1f") for name in ("first_update_s", "compile_s")
    )
    extent = f"{what}: median of {len(spread)} rounds of {args.seconds:g} s, range {span(spread)}"
    apart = f"apart: first update after {first_update} s; slow turns, such as compilation, {compilation} s"
    return {
        "algorithm": args.algorithm,
        "env": args.env,
        "agents": str(mode.agents),
        "variant": mode.name,
        "includes": f"{first['includes']}; {extent}, other load at most {noise:.2f} cores; {apart}",
        "steps_per_s": f"{statistics.median(speeds):.1f}",
        "ratio_to": against.name if against else "",
        "ratio": ratio,
    } | conditions(args, mode, first, *described)


def table(args: argparse.Namespace, rounds: Rounds) -> list[Row]:
    """A row of each mode, and one of each mode of deeprl against the best mode of each peer at the same work.

    Its own, in Gymnasium's environments, is such a peer to the others.
    """
    measured = [mode for mode in rounds if mode.library != "matmul"]
    rows = [row(args, rounds, mode) for mode in measured]
    for side in dict.fromkeys(mode.side for mode in measured if not mode.backend):
        same = [mode for mode in measured if mode.side == side]
        best = max(same, key=lambda mode: statistics.median(rates(rounds, mode)))
        ours = [m for m in measured if (m.library, m.what) == ("deeprl", best.what) and m.side != side]
        rows += [row(args, rounds, m, best) for m in ours]
    return rows


def save(path: Path, rows: list[Row], columns: Sequence[str] = COLUMNS, key: Sequence[str] = KEY) -> None:
    """Write rows into a file; they replace those with the same key, whose `ratio_to` is any mode of the same peer."""

    def identity(one: Row) -> tuple[str, ...]:
        return tuple(one[name].split(":")[0] if name == "ratio_to" else one[name] for name in key)

    fresh = {identity(one) for one in rows}
    stored = csv.DictReader(path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
    kept = [old for old in stored if identity(old) not in fresh]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


def versions_told(*names: str) -> str:
    """What the rows of a file were computed with, such as `torch=2.13.0`: these packages, or all that are known."""
    from deeprl.run import provenance

    return " ".join(f"{k}={v}" for k, v in provenance.versions().items() if not names or k in names)


def append(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Write a row behind those of a file, which gets its header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def save_json(
    path: Path, args: argparse.Namespace, rounds: Rounds, rows: list[Row], failed: Mapping[str, str], **more: Any
) -> None:
    """Everything that this run measured, each round's own numbers included, and why what failed did."""
    modes = [
        {
            "variant": mode.name,
            "agents": mode.agents,
            "what": mode.what,
            "every": mode.every,
            **{name: statistics.median(r[name] for r in results) for name in MEDIANS},
            "rounds": results,
        }
        for mode, results in rounds.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"command": args.command, "rows": rows, **more, "modes": modes, "failed": failed}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
