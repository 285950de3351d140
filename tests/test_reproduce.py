"""Reports that are run again: what equals to the bit, what lies within intervals, and what does not."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offline_helpers import write_made
from run_helpers import config
from test_records import write_run

from deeprl.commands.main import main
from deeprl.errors import DeeprlError
from deeprl.launch.reproduce import EQUAL, MISSING, OUTSIDE, WITHIN, judged, reproduce, summed_up
from deeprl.offline import bc
from deeprl.online import sac
from deeprl.reporting.report import write_report

CELL = {"cell": "0123456789ab", "name": "sac", "env": "Pendulum-v1"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one population with two cells of two seeds each."""
    place = tmp_path_factory.mktemp("report") / "my sweep"
    settings = {"seeds": (0, 1, 0, 1), "tau": (0.1, 0.1, 0.2, 0.2), "steps": 45, "threads": 0, "label": "tiny"}
    sac.train(config(place / "sac" / "run", **settings))
    return write_report(place).parent


def record(report: Path) -> dict[str, Any]:
    return json.loads((report / "report.json").read_text())


def changed(report: Path, place: Path, change: Any) -> Path:
    """A copy of the record in which the returns of rows are changed: change(row) -> how much is added to them."""
    found = record(report)
    for row in found["rows"]:
        row["returns"] = [x + change(row) for x in row["returns"]]
    place.write_text(json.dumps(found))
    return place


def test_the_record_has_all_that_a_rerun_needs(report: Path) -> None:
    found = record(report)
    (run,) = found["runs"]
    assert found["title"] == "my sweep"
    assert (run["run"], run["algorithm"], run["seeds"]) == ("sac/run", "sac", [0, 1, 0, 1])
    stored = json.loads((report.parent / "sac" / "run" / "config.json").read_text())
    for name in ("config", "config_hash", "commit", "versions", "execution", "command"):
        assert run[name] == stored[name]
    assert [cell["name"] for cell in found["cells"]] == ["sac tiny tau=0.1", "sac tiny tau=0.2"]
    with (report / "summary.csv").open() as file:
        for row, cell in zip(csv.DictReader(file), found["cells"], strict=True):
            assert float(row["mean"]) == cell["mean"]
            assert row["cell"] == cell["cell"]
    assert [(row["cell"], row["member"], row["step"]) for row in found["rows"]] == [
        (0, 0, 40), (0, 0, 45), (0, 1, 40), (0, 1, 45), (1, 2, 40), (1, 2, 45), (1, 3, 40), (1, 3, 45)
    ]  # fmt: skip
    assert all(len(row["returns"]) == 2 for row in found["rows"])
    assert found["command"] == f"deeprl reproduce '{report}'"
    assert f"deeprl reproduce &#x27;{report}&#x27;</code>" in (report / "index.html").read_text()
    assert "NaN" not in (report / "report.json").read_text()


def test_a_report_is_run_again_judged_and_gone_on_with(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "again")]
    assert main(["reproduce", str(report), *out]) == 0
    shown = capsys.readouterr().out
    assert "all: 4 of 4 rows equal to the bit, 0 within the intervals\n" in shown
    assert "finished before" not in shown
    again = json.loads((tmp_path / "again" / "sac" / "run" / "config.json").read_text())
    assert again["config"]["compile"] == "off"
    assert again["execution"] == record(report)["runs"][0]["execution"]
    # Another record, with the runs that are there: one seed in step 40 a little better, cell 0.2 far better at its end
    small = changed(report, tmp_path / "a.json", lambda row: (row["cell"], row["step"], row["seed"]) == (0, 40, 0))
    assert main(["reproduce", str(small), *out]) == 0
    shown = capsys.readouterr().out
    assert "finished before" in shown
    assert "sac tiny tau=0.1 on Pendulum-v1: 1 of 2 rows equal to the bit, 1 within the intervals\n" in shown
    far = changed(report, tmp_path / "b.json", lambda row: 1e6 * (row["cell"] == 1 and row["step"] == 45))
    assert main(["reproduce", str(far), *out]) == 1
    assert "all: 3 of 4 rows equal to the bit, 0 within the intervals, 1 outside\n" in capsys.readouterr().out
    assert main(["reproduce", str(far), *out, "--only", "sac tiny tau=0.1"]) == 0
    assert "all: 2 of 2 rows" in capsys.readouterr().out
    with (tmp_path / "again" / "reproduction.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["step"], row["verdict"], row["lo"]) for row in rows] == [
        ("sac tiny tau=0.1", "40", "equal", ""), ("sac tiny tau=0.1", "45", "equal", "")
    ]  # fmt: skip


def rows_of(*values: float, step: int = 100) -> list[dict[str, Any]]:
    """An episode of each agent."""
    return [
        {"run": "a", "member": m, "seed": m, "step": step, "unit": "simulator steps", "returns": [x]}
        for m, x in enumerate(values)
    ]


def test_verdicts_by_hand() -> None:
    before = rows_of(1.0, 2.0, 3.0) + rows_of(1.0, 2.0, 3.0, step=200)
    now = {("a", m): {100: (x,), 200: (y,)} for m, (x, y) in enumerate([(1.0, 2.0), (2.0, 3.0), (3.0, 4.0)])}
    one, two = judged(CELL, before, now)
    assert (one.step, one.verdict, math.isnan(one.low)) == (100, EQUAL, True)
    # variances 1 and 1 of 3 each: standard error sqrt(2 / 3), 4 degrees of freedom, t = 2.776445
    half = 2.776445 * math.sqrt(2 / 3)
    np.testing.assert_allclose([two.before, two.now, two.low, two.high], [2.0, 3.0, 1 - half, 1 + half], rtol=1e-6)
    assert two.verdict == WITHIN
    far = {agent: {step: (x[0] + 10.0,) for step, x in own.items()} for agent, own in now.items()}
    one, two = judged(CELL, before, far)
    assert (one.verdict, two.verdict) == (OUTSIDE, OUTSIDE)
    # two intervals that hold together with 95 %: t at 98.75 % is 3.495406
    np.testing.assert_allclose([one.low, one.high], 10 + np.array([-1, 1]) * 3.495406 * math.sqrt(2 / 3), rtol=1e-6)


def test_what_has_no_interval_is_outside_unless_it_is_equal() -> None:
    nan = float("nan")
    assert judged(CELL, rows_of(1.0), {("a", 0): {100: (1.5,)}})[0].verdict == OUTSIDE  # one seed
    both = judged(CELL, rows_of(1.0, nan), {("a", 0): {100: (1.0,)}, ("a", 1): {100: (nan,)}})
    assert both[0].verdict == EQUAL
    other = judged(CELL, rows_of(1.0, nan), {("a", 0): {100: (1.0,)}, ("a", 1): {100: (2.0,)}})
    assert other[0].verdict == OUTSIDE
    same = judged(CELL, rows_of(1.0, 1.0), {("a", 0): {100: (2.0,)}, ("a", 1): {100: (2.0,)}})
    assert (same[0].verdict, same[0].low, same[0].high) == (OUTSIDE, 1.0, 1.0)  # no spread
    gone = judged(CELL, rows_of(1.0, 2.0), {("a", 0): {100: (1.0,)}})
    assert gone[0].verdict == MISSING
    assert summed_up(gone) == [
        "sac on Pendulum-v1: 0 of 1 rows equal to the bit, 0 within the intervals, 1 missing",
        "  100 simulator steps: 1.5 in the report, nothing now; no interval",
        "all: 0 of 1 rows equal to the bit, 0 within the intervals, 1 missing",
    ]


def test_an_offline_report_is_run_again_as_long_as_its_data_are_there(tmp_path: Path) -> None:
    data = Path(write_made(tmp_path / "made.npz"))
    settings = {"hidden": (16, 16), "batch_size": 16, "compile": "off", "threads": 1, "tensorboard": False}
    settings |= {"eval_episodes": 2, "steps": 20, "env": "offline_helpers:MadeLinear-v0", "seeds": (0, 1)}
    bc.train(bc.Config(out=str(tmp_path / "run"), dataset=str(data), **settings))
    report = write_report(tmp_path / "run").parent
    _, verdicts = reproduce(report, tmp_path / "again")
    assert [v.verdict for v in verdicts] == [EQUAL]
    assert (tmp_path / "again" / "bc_0-1" / "config.json").exists()
    write_made(data, seed=1)
    with pytest.raises(DeeprlError, match=r"made.npz is not the file that it was when this run learned from it"):
        reproduce(report, tmp_path / "third")


def test_bad_records_are_refused_in_one_line(tmp_path: Path, report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(path: Path, *more: str) -> str:
        assert main(["reproduce", str(path), *more, "--out", str(tmp_path / "out")]) == 2
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        return shown

    def with_run(**change: Any) -> Path:
        found = record(report)
        found["runs"][0] |= change
        for row in found["rows"]:
            row["run"] = found["runs"][0]["run"]
        (tmp_path / "changed.json").write_text(json.dumps(found))
        return tmp_path / "changed.json"

    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "newer.json").write_text('{"format": 2, "runs": [], "cells": [], "rows": []}')
    assert "no report.json there; `deeprl report` writes it" in refused(tmp_path)
    assert "is no record of a report" in refused(tmp_path / "list.json")
    assert "has format 2; this deeprl reads 1" in refused(tmp_path / "newer.json")
    told = refused(report, "--only", "sac tiny tau=0.3")
    assert "the report has no cell 'sac tiny tau=0.3'; did you mean sac tiny tau=0." in told
    assert "is no name of a run below a directory" in refused(with_run(run="../elsewhere"))
    assert "its networks were passed from Python (m.f)" in refused(with_run(custom_net="m.f"))
    assert "unknown setting" in refused(with_run(config=record(report)["runs"][0]["config"] | {"gone": 1}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "reproduction.csv").write_text("a,b\n1,2\n")
    assert "exists and is no table of" in refused(report)
    assert not (tmp_path / "out" / "sac").exists()


def test_reports_of_older_runs_are_written_too(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")  # without execution, datasets
    folder = write_report(tmp_path / "runs").parent
    assert write_report(tmp_path / "runs").parent == folder  # again, in its place
    found = record(folder)
    assert [(row["member"], row["step"], row["returns"]) for row in found["rows"][:2]] == [
        (0, 100, [100.0, 101.0]), (0, 200, [200.0, 201.0])
    ]  # fmt: skip
    assert "execution" not in found["runs"][0]
