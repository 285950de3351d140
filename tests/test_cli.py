"""The command line as a user meets it: exit status, one-line errors, what is printed and written."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from PIL import Image

import deeprl
from deeprl.commands.main import main

TINY = """--steps 300 --learning-starts 240 --hidden 16 16 --batch-size 16 --eval-every 150
--eval-episodes 2 --log-every 100 --compile off --threads 1 --no-tensorboard""".split()


def train(out: Path, *more: str) -> int:
    return main(["train", "sac", "--env", "Pendulum-v1", "--seeds", "0-1", *TINY, "--out", str(out), *more])


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong command prints; its exit status must be 2."""
    capsys.readouterr()
    assert main(words) == 2
    text = capsys.readouterr().err
    assert text.startswith("deeprl: ")
    assert text.count("\n") == 1
    return text


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert train(out) == 0
    return out


@pytest.mark.parametrize("words", [["--help"], ["list"]])
def test_help_and_list_answer_within_a_second(words: list[str]) -> None:
    best = 9.9
    for _ in range(3):  # the fastest of three: another process may hold the cores for a moment
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "deeprl.commands.main", *words], capture_output=True, check=True)
        best = min(best, time.perf_counter() - start)
    assert best < 1.0


def test_train_writes_a_run(run_dir: Path) -> None:
    rows = list(csv.DictReader((run_dir / "evaluations.csv").open()))
    # 2 seeds x 2 episodes at steps 150 and 300
    assert [(r["step"], r["seed"]) for r in rows] == [(s, m) for s in ("150", "300") for m in "0011"]
    assert {r["length"] for r in rows} == {"200"}


def test_train_again_continues_and_another_config_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_dir / "evaluations.csv").read_bytes()
    assert train(run_dir) == 0
    assert (run_dir / "evaluations.csv").read_bytes() == before
    words = ["train", "sac", "--env", "Pendulum-v1", "--seeds", "0-1", *TINY, "--out", str(run_dir), "--tau", "0.1"]
    message = error_of(capsys, *words)
    assert "holds another run" in message
    assert "tau" in message


def test_resume_goes_on_from_the_checkpoint(tmp_path: Path, run_dir: Path) -> None:
    out = tmp_path / "run"
    assert train(out, "--max-hours", "1e-9") == 0  # time for one step
    assert '"stopped"' in (out / "status.json").read_text()
    status = main(["resume", str(out)])
    assert status == 0
    # max_hours is stored with the run and counts anew: one more step
    assert '"step": 2' in (out / "status.json").read_text()


def test_module_runs_with_the_same_flags(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "deeprl.online.sac", "--env", "Pendulum-v1", *TINY, "--out", str(tmp_path / "run")]
    words += ["--steps", "60", "--learning-starts", "40", "--eval-every", "0", "--eval-episodes", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "finished at step 60" in done.stdout


def test_letters_that_the_locale_lacks_do_not_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(told, encoding="ascii"))
    assert main(["list"]) == 0
    print("h\u00f6her", flush=True)
    assert told.getvalue().endswith(b"h\\xf6her\n")


def test_evaluate_prints_every_seed(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "episodes.csv"
    assert main(["evaluate", str(run_dir), "--episodes", "3", "--csv", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = list(csv.DictReader(table.open()))
    assert [(r["seed"], r["episode"]) for r in rows] == [(s, e) for s in "01" for e in "012"]
    for seed, line in zip("01", lines, strict=True):
        mean = sum(float(r["return"]) for r in rows if r["seed"] == seed) / 3
        assert f"seed {seed}: {mean:,.2f}" in line


def test_report_and_rows_are_written(run_dir: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    assert main(["report", str(run_dir), "--out", str(tmp_path / "report"), "--rows", str(rows)]) == 0
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    # 2 seeds x 2 evaluations
    assert len(list(csv.DictReader(rows.open()))) == 4


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_watch_writes_a_film(run_dir: Path, tmp_path: Path, ending: str) -> None:
    film = tmp_path / f"film.{ending}"
    assert main(["watch", str(run_dir), "--seed", "1", "--out", str(film), "--max-steps", "12"]) == 0
    assert film.read_bytes()[:3] == b"GIF" if ending == "gif" else b"ftyp" in film.read_bytes()[:16]


def test_watch_films_games_of_few_large_cells(tmp_path: Path) -> None:
    pytest.importorskip("minatar")
    run = deeprl.train(
        "dqn", env="MinAtar/Breakout-v1", steps=60, learning_starts=40, batch_size=4, eval_episodes=0, compile="off",
        tensorboard=False, out=tmp_path / "run",
    )  # fmt: skip
    assert main(["watch", str(run.directory), "--max-steps", "20"]) == 0
    with Image.open(run.directory / "episode_seed_0.gif") as film:
        assert film.size == (160, 160)


def test_watch_needs_to_know_which_agent(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "member=1 (seed 1)" in error_of(capsys, "watch", str(run_dir))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "sax"], "unknown algorithm 'sax'; did you mean sac?"),
        (["train"], f"name an algorithm first; known: {', '.join(deeprl.ALGORITHMS)}"),
        (["train", "sac", "--env", "Pendulom-v1"], "did you mean Pendulum-v1"),
        (["train", "sac", "--env", "CartPole-v1"], "sac needs continuous actions (a flat Box), not 2 discrete"),
        (["train", "sac", "--device", "cuda:9", "--env", "Pendulum-v1"], "cuda:9"),
        (["train", "sac", "--steps", "0"], "steps: must be positive"),
        (["train", "sac", "--seeds", "0-2", "--tau", "0.1", "0.2"], "tau: 2 values for 3 seeds"),
        (["train", "sac", "--net", "no_such_module:f", "--env", "Pendulum-v1"], "no_such_module"),
        (["train", "sac", "--env", "Pendulum-v1", "--steps", "500"], "learning_starts: 10000 random steps leave none"),
        (["train", "sac", "--env", "Pendulum-v1", "--device", "gpu"], "device: expected cpu, cuda"),
        (["train", "sac", "--env", "Pendulum-v1", "--wrappers", "gymnasium.wrappers:RescaleAction"], "RescaleAction"),
        (["resume", "nowhere"], "nowhere is no run directory"),
        (["evaluate", "nowhere"], "nowhere is no run directory"),
        (["report", "nowhere"], "nowhere"),
        (["sweep", "nowhere.toml"], "nowhere.toml: No such file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if expected == "cuda:9":
        import torch

        if torch.cuda.device_count() > 9:
            pytest.skip("this machine has ten GPUs")
    assert expected in error_of(capsys, *words)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize("words", [["train", "sac", "--stepz", "3"], ["train", "sac", "--seeds", "x"], ["fly"]])
def test_wrong_flags_exit_with_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


def test_plain_output_has_progress_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = types.SimpleNamespace(monotonic=lambda: 100.0 * time.monotonic())  # there are none in the first two seconds
    monkeypatch.setattr("deeprl.run.progress.time", fast)
    words = ["train", "sac", "--env", "Pendulum-v1", *TINY, "--steps", "2700", "--learning-starts", "2680"]
    assert main([*words, "--eval-every", "1350", "--eval-episodes", "1", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"sac Pendulum-v1 x1: [\d,]+/2,700 .* steps/s .* left .*return -[\d,.]+ at", shown)


def test_warnings_are_lines_for_users(run_dir: Path, tmp_path: Path) -> None:
    """In a process of its own: pytest takes over how warnings are shown."""
    broken = tmp_path / "run"
    shutil.copytree(run_dir, broken)
    (newest,) = (broken / "checkpoints").iterdir()
    (newest / "state.pt").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "deeprl", "evaluate", str(broken)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()
    assert warning == f"warning: checkpoint {newest} is broken (the checksum of state.pt does not match)"
    assert error.startswith(f"deeprl: all checkpoints in {newest.parent} are broken; delete that directory")
