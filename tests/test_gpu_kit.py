"""The kit for a GPU, tried on the CPU: every stage with small numbers, what fails, what is not done again."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu
import gpu_cases
from gpu_cases import Bench, Case, Finding

FEW = ("sac", "dqn", "iql")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_stage_passes_and_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cases, "TINY", {name: gpu_cases.TINY[name] for name in FEW})
    path = tmp_path / "gpu.csv"
    words = ["--device", "cpu", "--small", "--csv", str(path), "--done", str(path)]
    assert gpu.main(words) == 0
    found = rows(path)
    assert {row["stage"] for row in found} == set("abcdefg")
    assert {row["case"] for row in found if row["stage"] == "c"} == {"sac", "sac: graph"}
    assert {case.name for case in gpu_cases.cases() if case.stage == "c"} == set(FEW) | {"simba_v2"}
    assert all(row["passed"] == "yes" for row in found)
    assert all(float(row["value"]) > 0 for row in found if row["stage"] in "ef")
    content = path.read_text()
    assert gpu.main(words) == 0
    assert path.read_text() == content


def test_cases_that_fail_are_rows_and_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = [True]

    def breaks(bench: Bench) -> Iterator[Finding]:
        yield Finding(2.0, "largest difference", 1.0 if faulty[0] else 3.0)
        if faulty[0]:
            raise ValueError("of no use")

    def lasts(bench: Bench) -> Iterator[Finding]:
        if faulty[0]:
            time.sleep(30.0)
        yield Finding(1.0, "updates/s")

    def works(bench: Bench) -> Iterator[Finding]:
        yield Finding(1.0, "updates/s")

    made: Any = lambda small: [Case("b", "x", 20.0, breaks), Case("e", "y", 0.3, lasts), Case("e", "z", 20.0, works)]  # noqa: E731
    monkeypatch.setattr(gpu, "cases", made)
    path = tmp_path / "gpu.csv"
    words = ["--device", "cpu", "--csv", str(path), "--done", str(path)]
    assert gpu.main(words) == 1
    told = [(row["case"], row["passed"], row["detail"]) for row in rows(path)]
    assert told == [
        ("x", "no", ""),
        ("x: failed", "no", "ValueError: of no use"),
        ("y: failed", "no", "OverTimeError: not done within 0 s"),
        ("z", "yes", ""),
    ]
    faulty[0] = False
    assert gpu.main(words) == 0
    assert [(row["case"], row["passed"]) for row in rows(path)] == [("z", "yes"), ("x", "yes"), ("y", "yes")]
    assert gpu.main([*words, "--minutes", "0", "--again"]) == 0  # no time for any of them
    assert len(rows(path)) == 3


def test_a_gpu_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--minutes", "1"])
    assert "no GPU of CUDA" in capsys.readouterr().err
