"""Sweep files: what is planned, what is trained together, what is wrong and where."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deeprl.errors import DeeprlError
from deeprl.launch.sweep import read_sweep, run_sweep
from deeprl.run.lock import Lock

TINY = """
[defaults]
steps = 60
learning_starts = 30
hidden = [16, 16]
batch_size = 16
eval_every = 30
eval_episodes = 1
compile = "off"
threads = 1
tensorboard = false
"""


def write(path: Path, text: str) -> Path:
    file = path / "sweep.toml"
    file.write_text(text)
    return file


def test_members_that_can_share_a_population_do(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        TINY
        + """
[[experiment]]
algorithm = "sac"
env = ["Pendulum-v1", "MountainCarContinuous-v0"]
seeds = "0-2"
[experiment.grid]
actor_lr = [1e-4, 3e-4]
batch_size = [8, 32]
""",
    )
    out, plan = read_sweep(file)
    assert out == Path("runs/sweep")
    # 2 environments x 2 batch sizes; each population has 2 learning rates x 3 seeds
    assert [(p.config.env, p.config.batch_size) for p in plan] == [
        ("Pendulum-v1", 8), ("Pendulum-v1", 32), ("MountainCarContinuous-v0", 8), ("MountainCarContinuous-v0", 32)
    ]  # fmt: skip
    for planned in plan:
        assert planned.config.seeds == (0, 1, 2, 0, 1, 2)
        assert planned.config.actor_lr == (1e-4, 1e-4, 1e-4, 3e-4, 3e-4, 3e-4)
        assert planned.config.label == f"batch_size={planned.config.batch_size}"
    assert plan[0].directory == Path("runs/sweep/sac/Pendulum-v1_batch_size=8")


def test_sweep_trains_reports_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    head = f'out = "{out}"\n'
    one = '\n[[experiment]]\nalgorithm = "sac"\nenv = "Pendulum-v1"\nseeds = "0-1"\n'
    grid = "[experiment.grid]\ndiscount = [0.9, 0.99]\n"
    page = run_sweep(write(tmp_path, head + TINY + one + grid))
    assert page == out / "report" / "index.html"
    assert (out / "report" / "curve_Pendulum-v1.png").stat().st_size > 5_000
    with (out / "report" / "summary.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 2
    evaluations = (out / "sac" / "Pendulum-v1" / "evaluations.csv").read_bytes()
    capsys.readouterr()
    # the same file with one more experiment: the first population is left as it is
    more = '\n[[experiment]]\nalgorithm = "sac"\nenv = "MountainCarContinuous-v0"\nseeds = [7]\n'
    run_sweep(write(tmp_path, head + TINY + one + grid + more))
    text = capsys.readouterr().out
    assert "[1/2] sac Pendulum-v1: finished before" in text
    assert "[2/2] sac MountainCarContinuous-v0: 1 agents x 60 steps" in text
    assert (out / "sac" / "Pendulum-v1" / "evaluations.csv").read_bytes() == evaluations


EXPERIMENT = '[[experiment]]\nalgorithm = "sac"\nenv = "Pendulum-v1"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[experiment]\n", "sweep.toml: "),  # the parser names line and column itself
        ("title = 1\n" + EXPERIMENT, "sweep.toml:1: title: unknown key"),
        ("[defaults]\nstepz = 3\n" + EXPERIMENT, "sweep.toml:2: stepz: unknown setting; did you mean steps"),
        (EXPERIMENT + "steps = 1.5\n", "sweep.toml:4: steps: expected int, not 1.5"),
        (EXPERIMENT + 'steps = "many"\n', "sweep.toml:4: steps: expected int, not 'many'"),
        (EXPERIMENT + 'seeds = "a-b"\n', "sweep.toml:4: seeds: seeds are numbers"),
        (EXPERIMENT + "compile = true\n", "sweep.toml:4: compile: expected auto, on, off, not True"),
        (EXPERIMENT + "[experiment.grid]\nactor_rl = [1.0]\n", "sweep.toml:5: actor_rl: unknown setting; did you mean"),
        (EXPERIMENT + "[experiment.grid]\ntau = 0.1\n", "sweep.toml:5: tau: a grid lists the values to try"),
        (EXPERIMENT + EXPERIMENT + "batch_size = 0\n", "sweep.toml:7: batch_size: must be positive"),
        ('[[experiment]]\nalgorithm = "sax"\nenv = "a"\n', "sweep.toml:2: unknown algorithm 'sax'; did you mean sac"),
        ('[[experiment]]\nalgorithm = "sac"\n', "experiment 1 has no env"),
        ("", "no [[experiment]] in it"),
        ("out = 3\n" + EXPERIMENT, "sweep.toml:1: out: expected text"),
        ("defaults = 3\n" + EXPERIMENT, "sweep.toml:1: defaults: expected a table"),
        (EXPERIMENT + "grid = 3\n", "sweep.toml:4: grid: expected one table"),
        (EXPERIMENT + EXPERIMENT, "experiments 1 and 2 train the same, sac Pendulum-v1; leave one of them out"),
        (EXPERIMENT + EXPERIMENT + 'label = "a"\n' + EXPERIMENT, "experiments 1 and 3 train the same"),
        (
            EXPERIMENT + EXPERIMENT + "tau = 0.1\n",
            "sac/Pendulum-v1; give one of them a label",
        ),
        (
            EXPERIMENT.replace('"Pendulum-v1"', '["a:B-v0", "a/B-v0"]'),
            "experiment 1 would write two populations",
        ),
        (EXPERIMENT + "[experiment.grid]\ncritic_lr = [3e-4, 3e-4]\n", "sweep.toml:5: critic_lr: 0.0003 twice"),
        (EXPERIMENT + "[experiment.grid]\ntau = [3e-4, 0.0003]\n", "sweep.toml:5: tau: 0.0003 twice"),
        (EXPERIMENT + "[experiment.grid]\ntau = [1, 0.5, 1.0]\n", "sweep.toml:5: tau: 1.0 twice"),
        (EXPERIMENT + '[experiment.grid]\ntarget_entropy = ["auto", "auto"]\n', "5: target_entropy: auto twice"),
        (EXPERIMENT + "[experiment.grid]\nbatch_size = [128, 128]\n", "sweep.toml:5: batch_size: 128 twice"),
        (EXPERIMENT + "[experiment.grid]\nhidden = [[8, 9], [8, 9]]\n", "sweep.toml:5: hidden: [8, 9] twice"),
        (EXPERIMENT + "[experiment.grid]\nenv_kwargs = [{g = 1}, {g = 1}]\n", "5: env_kwargs: {'g': 1} twice"),
        (EXPERIMENT + '[experiment.grid]\nseeds = ["0-1", "0,1"]\n', "sweep.toml:5: seeds: [0, 1] twice"),
        (EXPERIMENT + "seeds = [0, 1, 0]\n", "sweep.toml:4: seeds: 0 twice"),
        (EXPERIMENT.replace('"Pendulum-v1"', '["a", "b", "a"]'), "sweep.toml:3: env: a twice"),
        ('[[experiment]]\nalgorithm = "bc"\ndataset = ["a", "a"]\n', "sweep.toml:3: dataset: a twice"),
        (EXPERIMENT.replace('"sac"', '["sac", "sac"]'), "sweep.toml:2: algorithm: sac twice"),
        (EXPERIMENT + 'out = "x"\n', "sweep.toml:4: out: belongs at the top"),
    ],
)
def test_mistakes_are_named_with_file_line_and_key(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DeeprlError) as error:
        read_sweep(write(tmp_path, text))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_label_helps_where_it_is_advised(tmp_path: Path) -> None:
    assert len(read_sweep(write(tmp_path, EXPERIMENT + EXPERIMENT + 'tau = 0.1\nlabel = "slow"\n'))[1]) == 2


def test_equal_seeds_of_other_settings_are_no_repetition(tmp_path: Path) -> None:
    (planned,) = read_sweep(write(tmp_path, EXPERIMENT + "seeds = [0, 0]\nactor_lr = [1e-4, 3e-4]\n"))[1]
    assert planned.config.seeds == (0, 0)


LABELS = """
import sys
from deeprl.launch.sweep import read_sweep

for file in sys.argv[1:]:
    print(ascii(read_sweep(file)[1][0].config.label))
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_sweep_files_are_utf_8_in_every_locale(locale: str, tmp_path: Path) -> None:
    files = [tmp_path / "plain.toml", tmp_path / "marked.toml"]
    for file, mark in zip(files, ("", "\ufeff"), strict=True):
        file.write_text(mark + EXPERIMENT + 'label = "h\u00f6her"\n', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-X", "utf8=0", "-c", LABELS, *map(str, files)],
        env={**os.environ, "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True, text=True, encoding="ascii", timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.split() == [ascii("h\u00f6her")] * 2, done.stderr


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_said_to_be_so(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(EXPERIMENT + 'label = "h\u00f6her"\n', encoding=encoding)
    with pytest.raises(DeeprlError, match=r"sweep\.toml: not a text file in UTF-8$"):
        read_sweep(file)


def test_unknown_environment_stops_before_anything_is_trained(tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = write(tmp_path, f'out = "{out}"\n{TINY}{EXPERIMENT}[[experiment]]\nalgorithm = "sac"\nenv = "Hoper-v5"\n')
    with pytest.raises(DeeprlError, match="Hopper-v5"):
        run_sweep(file)
    assert not out.exists()


def test_labelled_and_unlabelled_experiments_lie_side_by_side(tmp_path: Path) -> None:
    labelled = EXPERIMENT + 'label = "other"\n'
    for text in (EXPERIMENT + labelled, labelled + EXPERIMENT):
        directories = {p.directory for p in read_sweep(write(tmp_path, text))[1]}
        assert directories == {Path("runs/sweep/sac/Pendulum-v1"), Path("runs/sweep/sac/Pendulum-v1_other")}


def test_unsupported_actions_stop_before_anything_is_trained(tmp_path: Path) -> None:
    out = tmp_path / "out"
    envs = 'env = ["Pendulum-v1", "CartPole-v1"]\n'
    file = write(tmp_path, f'out = "{out}"\n{TINY}[[experiment]]\nalgorithm = "sac"\n{envs}')
    with pytest.raises(DeeprlError, match="sac needs continuous actions"):
        run_sweep(file)
    assert not out.exists()


def test_the_files_that_are_shipped_are_right() -> None:
    shipped = sorted((Path(__file__).parent.parent / "benchmarks" / "sweeps").glob("*.toml"))
    assert shipped
    for file in shipped:
        assert read_sweep(file)[1]


def test_population_that_another_process_trains_is_left_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(
        tmp_path,
        f'out = "{tmp_path / "runs"}"\n'
        + TINY
        + """
[[experiment]]
algorithm = "sac"
env = ["Pendulum-v1", "MountainCarContinuous-v0"]
""",
    )
    taken = tmp_path / "runs" / "sac" / "Pendulum-v1"
    taken.mkdir(parents=True)
    other = Lock(taken)
    other.acquire()
    run_sweep(file)
    shown = capsys.readouterr().out
    assert f"[1/2] sac Pendulum-v1: left to another process ({taken} is in use by process" in shown
    assert [p.name for p in taken.iterdir()] == ["run.lock"]
    other.release()
    run_sweep(file)
    shown = capsys.readouterr().out
    assert "left to another process" not in shown
    assert "[2/2] sac MountainCarContinuous-v0: finished before" in shown
    assert json.loads((taken / "status.json").read_text())["state"] == "finished"


def test_datasets_are_populations_and_in_a_grid_agents_of_one(tmp_path: Path) -> None:
    file = tmp_path / "offline.toml"
    file.write_text(
        """
        [defaults]
        steps = 10
        [[experiment]]
        algorithm = ["bc", "iql"]
        dataset = ["one.hdf5", "two.npz"]
        seeds = "0-1"
        [[experiment]]
        algorithm = "td3_bc"
        env = "Hopper-v5"
        seeds = "0-1"
        [experiment.grid]
        dataset = ["one.hdf5", "two.npz"]
        """
    )
    out, plan = read_sweep(file)
    assert [str(p.directory.relative_to(out)) for p in plan] == [
        *("bc/one", "bc/two", "iql/one", "iql/two", "td3_bc/2_datasets"),
    ]
    assert [p.config.dataset for p in plan[:2]] == ["one.hdf5", "two.npz"]
    assert plan[4].config.dataset == ("one.hdf5", "one.hdf5", "two.npz", "two.npz")
    assert plan[4].config.env == "Hopper-v5"
