import csv
import json

import pytest

from deeprl.errors import DeeprlError
from deeprl.reporting.cells import Cell
from deeprl.reporting.read import group, read_runs
from deeprl.reporting.report import summarise
from deeprl.reporting.table import COLUMNS, results, write_rows
from deeprl.run.records import read_about, read_status

HEADER = "step,member,seed,episode,return,length,wall_s\n"


def write_run(path, seeds=(0, 1), state="finished", frozen=(), config=(), settings=None, evaluations=None, spec=None):
    """A run of two evaluations of two episodes: returns of member m at step s are s + m and s + m + 1."""
    path.mkdir(parents=True)
    members = [{"member": m, "seed": seed, "settings": (settings or {}).get(m, {})} for m, seed in enumerate(seeds)]
    info = {
        "format": 1,
        "algorithm": "sac",
        "config": {
            "env": "Pendulum-v1",
            "steps": 200,
            "seeds": list(seeds),
            "label": "",
            "batch_size": 64,
            **dict(config),
        },
        "members": members,
        **({"spec": spec} if spec else {}),
        "versions": {"torch": "2.9.0"},
        "commit": "abc1234",
        "device": "cpu (test, 1 thread)",
        "command": "deeprl train sac",
        "config_hash": "0123456789ab",
    }
    (path / "config.json").write_text(json.dumps(info))
    status = {"state": state, "step": 200, "wall_s": 60.0, "updates_per_s": 1000.0, "frozen": list(frozen)}
    (path / "status.json").write_text(json.dumps(status))
    rows = [
        f"{step},{m},{seed},{e},{step + m + e},200,{step / 10}\n"
        for step in (100, 200)
        for m, seed in enumerate(seeds)
        for e in (0, 1)
    ]
    (path / "evaluations.csv").write_text(evaluations if evaluations is not None else HEADER + "".join(rows))
    return path


def row(**changes):
    values = dict.fromkeys(COLUMNS, "x") | {"step": 100, "return": 1.5, "score": None}
    return values | changes


def test_runs_that_were_executed_in_other_ways_are_of_one_cell(tmp_path):
    ways = ({"threads": 1}, {"threads": 2, "compile": "off"}, {"backend": "loop", "device": "cuda"})
    for i, way in enumerate(ways):
        write_run(tmp_path / str(i), seeds=(i,), config=way)
    write_run(tmp_path / "other", seeds=(0,), config={"precision": "bf16"})
    cells = group(read_runs(tmp_path))
    assert sorted(len(pairs) for pairs in cells.values()) == [1, 3]


def test_scores_put_the_random_policy_at_0_and_the_expert_at_100(tmp_path):
    write_run(tmp_path / "run", spec={"score_range": [50.5, 250.5]})
    assert [r["score"] for r in results(tmp_path)] == [25.0, 75.0, 25.5, 75.5]  # of 100.5, 200.5, 101.5, 201.5
    (run,) = read_runs(tmp_path)
    row = summarise(Cell("sac", "Pendulum-v1", "", "{}"), [(run, agent) for agent in run.agents])
    # Mean 201, deviation sqrt(0.5) over two seeds: 201 -+ 12.706 * 0.5.
    assert row["score"] == pytest.approx(75.25)
    assert (row["score_lo"], row["score_hi"]) == pytest.approx((75.25 - 6.353 / 2, 75.25 + 6.353 / 2), rel=1e-4)


def test_results_have_one_row_per_member_and_step(tmp_path):
    write_run(tmp_path / "sac" / "a", seeds=(3, 7))
    rows = results(tmp_path)
    assert [(r["member"], r["seed"], r["step"]) for r in rows] == [(0, 3, 100), (0, 3, 200), (1, 7, 100), (1, 7, 200)]
    # mean of the episodes step + m and step + m + 1
    assert [r["return"] for r in rows] == [100.5, 200.5, 101.5, 201.5]
    assert rows[0] == {
        "algorithm": "sac",
        "env": "Pendulum-v1",
        "seed": 3,
        "step": 100,
        "return": 100.5,
        "score": None,
        "wall_s": 10.0,
        "updates_per_s": 1000.0,
        "commit": "abc1234",
        "config_hash": "0123456789ab",
        "torch": "2.9.0",
        "device": "cpu (test, 1 thread)",
        "command": "deeprl train sac",
        "member": 0,
        "label": "",
        "settings": "{}",
        "cell": group(read_runs(tmp_path)).popitem()[0].key,
        "unit": "simulator steps",
        "frozen": False,
    }


def test_results_mark_a_frozen_agent_from_its_step_on(tmp_path):
    write_run(tmp_path / "a", frozen=[{"member": 1, "seed": 1, "update": 30, "step": 150, "cause": "q"}])
    assert [(r["member"], r["step"]) for r in results(tmp_path) if r["frozen"]] == [(1, 200)]


def test_results_of_a_run_directory_itself_are_read(tmp_path):
    assert len(results(write_run(tmp_path / "a"))) == 4


def names(root):
    return [run.name for run in read_runs(root)]


def test_run_inside_another_is_found(tmp_path):
    write_run(tmp_path / "base")
    write_run(tmp_path / "base" / "lr" / "high", seeds=(2,))
    for folder in ("checkpoints", "snapshots", "tensorboard", "report"):
        write_run(tmp_path / "base" / folder / "copy")
    assert names(tmp_path) == ["base", "base/lr/high"]
    assert names(tmp_path / "base") == [".", "lr/high"]
    assert {row["seed"] for row in results(tmp_path)} == {0, 1, 2}


def test_runs_are_found_through_links_each_once(tmp_path):
    root = tmp_path / "runs"
    write_run(root / "b")
    write_run(tmp_path / "disk" / "far")
    write_run(tmp_path / "disk" / "store" / "inner")
    for link, target in {"a": "b", "far": "../disk/far", "store": "../disk/store", "again": "../disk"}.items():
        (root / link).symlink_to(target)
    (root / "b" / "loop").symlink_to("..")
    (root / "out").symlink_to("../..")  # all that lies around, the runs above too
    (root / "nowhere").symlink_to("gone")
    write_run(tmp_path / "beside")
    assert names(root) == ["again/far", "again/store/inner", "b"]
    (root / "again").unlink()
    assert names(root) == ["b", "far", "store/inner"]
    (tmp_path / "link").symlink_to("runs")
    assert names(tmp_path / "link") == ["b", "far", "store/inner"]


def test_results_of_directory_without_runs_raise_its_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DeeprlError, match=f"no runs in {tmp_path}"):
        results(tmp_path)
    with pytest.raises(DeeprlError, match="absent"):
        results(tmp_path / "absent")


def test_half_written_last_line_of_running_run_is_left_out(tmp_path):
    text = HEADER + "100,0,0,0,5.0,200,1.0\n100,1,1,0,7.0,200,1.0\n200,0,0,0,6"
    write_run(tmp_path / "a", state="running", evaluations=text)
    assert [(r["seed"], r["step"], r["return"]) for r in results(tmp_path)] == [(0, 100, 5.0), (1, 100, 7.0)]


def test_incomplete_last_evaluation_of_running_run_is_left_out(tmp_path):
    full = "".join(f"100,{m},{m},{e},5.0,200,1.0\n" for m in (0, 1) for e in (0, 1))
    text = HEADER + full + "200,0,0,0,9.0,200,2.0\n200,0,0,1,9.0,200,2.0\n200,1,1,0,9.0,200,2.0\n"
    write_run(tmp_path / "a", state="running", evaluations=text)
    assert [(r["seed"], r["step"]) for r in results(tmp_path)] == [(0, 100), (0, 200), (1, 100)]


@pytest.mark.parametrize("text", ["", "step,mem", HEADER])
def test_running_run_without_evaluations_has_no_rows(tmp_path, text):
    write_run(tmp_path / "a", state="running", evaluations=text)
    assert results(tmp_path) == []


def test_run_before_its_first_evaluation_is_found(tmp_path):
    (write_run(tmp_path / "a", state="running") / "evaluations.csv").unlink()
    assert [run.name for run in read_runs(tmp_path)] == ["a"]
    assert results(tmp_path) == []


def test_missing_status_means_unfinished(tmp_path):
    (write_run(tmp_path / "a") / "status.json").unlink()
    assert not read_runs(tmp_path)[0].finished
    assert results(tmp_path)[0]["updates_per_s"] is None


def test_episode_written_twice_counts_once_with_its_later_value(tmp_path):
    # after a resume: 5 is replaced by 7
    text = HEADER + "100,0,0,0,5.0,200,1.0\n100,0,0,0,7.0,200,2.0\n"
    write_run(tmp_path / "a", seeds=(0,), evaluations=text)
    assert [r["return"] for r in results(tmp_path)] == [7.0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("200,0,0,0,oops,200,1.0\n", "row 3 is broken.*oops"),
        ("200,0,0\n", "row 3 is broken"),
        ("200,9,0,0,1.0,200,1.0\n", "row 3: member 9"),
    ],
)
def test_broken_csv_row_is_named(tmp_path, bad, message):
    write_run(tmp_path / "a", evaluations=HEADER + "100,0,0,0,5.0,200,1.0\n" + bad)
    with pytest.raises(DeeprlError, match=r"evaluations\.csv " + message):
        results(tmp_path)


def test_csv_without_a_needed_column_is_named(tmp_path):
    write_run(tmp_path / "a", evaluations="step,member,seed,episode,length,wall_s\n")
    with pytest.raises(DeeprlError, match=r"evaluations\.csv lacks the column return"):
        results(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "status.json"])
@pytest.mark.parametrize("text", ['{"format": 1,\n oops}', "[1]", ""])
def test_broken_json_is_named(tmp_path, name, text):
    (write_run(tmp_path / "a") / name).write_text(text)
    with pytest.raises(DeeprlError, match=name) as error:
        results(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"", b"\xff", b"[" * 100_000, b"\0"])
def test_all_readers_of_a_record_say_the_same_of_a_broken_one(tmp_path, content):
    run = write_run(tmp_path / "a")
    for name, read in (("config.json", read_about), ("status.json", read_status)):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(content)
        with pytest.raises(DeeprlError, match=name) as ours:
            read(run)
        with pytest.raises(DeeprlError, match=name) as theirs:
            results(tmp_path)
        assert str(ours.value) == str(theirs.value)
        (run / name).write_bytes(whole)


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"members": None}, {"config": {}}, {"members": [{"member": 0}]}, {"config": None}]
)
def test_config_that_breaks_the_format_is_named(tmp_path, change):
    path = write_run(tmp_path / "a") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DeeprlError, match=r"config\.json"):
        results(tmp_path)


def test_group_puts_members_of_equal_settings_into_one_cell(tmp_path):
    lrs = {m: {"critic_lr": lr} for m, lr in enumerate((3e-4, 0.1))}
    write_run(tmp_path / "a", seeds=(0, 1), settings=lrs, config={"critic_lr": [3e-4, 0.1]})
    write_run(tmp_path / "b", seeds=(2,), config={"critic_lr": 3e-4})
    write_run(tmp_path / "c", seeds=(0,), config={"label": "big"})
    cells = {cell.name: [agent.seed for _, agent in pairs] for cell, pairs in group(read_runs(tmp_path)).items()}
    assert cells == {"sac critic_lr=0.0003": [0, 2], "sac big": [0], "sac critic_lr=0.1": [1]}


def test_write_rows_writes_benchmark_columns_in_order(tmp_path):
    write_run(tmp_path / "a")
    path = tmp_path / "rows.csv"
    write_rows(path, results(tmp_path))
    lines = list(csv.reader(path.open()))
    assert ",".join(lines[0]) == (
        "algorithm,env,seed,step,return,score,wall_s,updates_per_s,commit,config_hash,torch,device,command,unit"
    )
    assert lines[1][:8] == ["sac", "Pendulum-v1", "0", "100", "100.5", "", "10.0", "1000.0"]
    assert lines[1][8:] == [
        "abc1234",
        "0123456789ab",
        "2.9.0",
        "cpu (test, 1 thread)",
        "deeprl train sac",
        "simulator steps",
    ]
    assert len(lines) == 5


def test_write_rows_twice_adds_nothing(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [row(command='deeprl "a, b"\nc'), row(seed=1), row(seed=1)]
    write_rows(path, rows)
    before = path.read_text()
    write_rows(path, rows)
    assert path.read_text() == before
    write_rows(path, [*rows, row(seed=2)])
    assert path.read_text() == before + before.splitlines()[-1].replace(",1,100", ",2,100") + "\n"


def test_write_rows_keeps_equal_rows_of_two_agents(tmp_path):
    write_rows(tmp_path / "rows.csv", [row(), row()])
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["wall_s", "updates_per_s", "commit", "torch", "device", "command", "score"])
def test_write_rows_knows_an_evaluation_that_was_computed_elsewhere(name, tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, [row()])
    before = path.read_text()
    write_rows(path, [row(**{name: "y"})])
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["algorithm", "env", "seed", "step", "return", "config_hash", "label"])
def test_write_rows_takes_another_evaluation(name, tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, [row()])
    write_rows(path, [row(**{name: 7})])
    assert len(path.read_text().splitlines()) == 3


def test_write_rows_knows_a_dataset_by_the_end_of_its_name(tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, [row(env="medium")])
    write_rows(path, [row(env="car/medium")])  # read together with another of this name
    assert len(path.read_text().splitlines()) == 2


def test_rows_of_a_run_that_went_on_have_each_evaluation_once(tmp_path):
    path = tmp_path / "rows.csv"
    early = HEADER + "".join(f"100,{m},{m},0,7.5,200,{10 + m}\n" for m in (0, 1))
    run = write_run(tmp_path / "a", seeds=(5, 5), state="stopped", evaluations=early)  # equal but for their settings
    write_rows(path, results(tmp_path))
    first = path.read_text()
    later = early.replace(",10\n", ",12\n") + "".join(f"200,{m},{m},0,8.5,200,30\n" for m in (0, 1))
    (run / "evaluations.csv").write_text(later)
    about = json.loads((run / "config.json").read_text()) | {"commit": "def5678", "device": "cpu (another)"}
    (run / "config.json").write_text(json.dumps(about))
    (run / "status.json").write_text(json.dumps({"state": "finished", "step": 200, "updates_per_s": 900.0}))
    write_rows(path, results(tmp_path))
    assert path.read_text().startswith(first)
    found = list(csv.DictReader(path.open()))
    assert [(r["seed"], r["step"], r["return"]) for r in found] == [("5", "100", "7.5")] * 2 + [("5", "200", "8.5")] * 2
    assert [r["commit"] for r in found] == ["abc1234"] * 2 + ["def5678"] * 2


def test_write_rows_goes_on_in_a_file_of_before_there_was_a_unit(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(",".join(COLUMNS[:-1]) + "\n")
    write_rows(path, [row(), row(seed=1)])
    write_rows(path, [row(), row(seed=1)])
    assert [len(line) for line in csv.reader(path.open())] == [len(COLUMNS) - 1] * 3


def test_write_rows_refuses_another_header(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DeeprlError, match=r"rows\.csv has the header a,b"):
        write_rows(path, [row()])
    assert path.read_text() == "a,b\n1,2\n"


def test_write_rows_refuses_row_without_a_column(tmp_path):
    with pytest.raises(DeeprlError, match=r"row 0 .* lacks algorithm"):
        write_rows(tmp_path / "rows.csv", [{k: v for k, v in row().items() if k != "algorithm"}])
    assert not (tmp_path / "rows.csv").exists()


def test_write_rows_mends_a_missing_last_newline(tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, [row()])
    path.write_text(path.read_text().rstrip("\n"))
    write_rows(path, [row(), row(seed=1)])
    assert len(list(csv.DictReader(path.open()))) == 2
