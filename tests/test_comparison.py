"""`deeprl compare`: what is compared with what, the numbers by hand, verdicts, and what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from test_report import write_run

from deeprl.commands.main import main
from deeprl.errors import DeeprlError
from deeprl.reporting.comparison import ROW_COLUMNS, compare
from deeprl.reporting.entrants import read_entrants
from deeprl.reporting.overall import BY_RANGE, BY_REFERENCES, Sample, over_steps, overall
from deeprl.reporting.table import results, write_rows


def words(root: Path, *names: str) -> list[str]:
    return [f"{name}={root / name}" for name in names]


def change(run: Path, **keys: object) -> Path:
    """Change what the record of a run says."""
    info = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(info | keys))
    return run


def table(path: Path, *rows: str, header: str = "algorithm,env,seed,step,return") -> Path:
    path.write_text("\n".join([header, *rows, ""]))
    return path


def printed(capsys: pytest.CaptureFixture[str], *sources: object) -> str:
    capsys.readouterr()
    assert main(["compare", *map(str, sources)]) == 0
    return capsys.readouterr().out


def test_a_difference_is_that_of_the_means_with_welchs_interval(tmp_path):
    a, b = [100.0, 110.0, 120.0, 105.0], [140.0, 160.0, 150.0, 170.0]
    write_run(tmp_path / "a", "Hopper-v5", a)
    write_run(tmp_path / "b", "Hopper-v5", b)
    found = compare(read_entrants(words(tmp_path, "a", "b")))
    (duel,) = found.duels
    expected = scipy.stats.ttest_ind(b, a, equal_var=False)
    assert duel.difference.value == pytest.approx(np.mean(b) - np.mean(a))
    assert duel.difference[1:3] == pytest.approx(expected.confidence_interval())
    assert duel.adjusted_p == pytest.approx(expected.pvalue)
    assert (duel.name, duel.verdict, duel.chance.value) == ("b", "better", 1.0)
    (reverse,) = compare(read_entrants(words(tmp_path, "b", "a"))).duels
    assert (reverse.name, reverse.verdict, reverse.chance.value) == ("a", "worse", 0.0)
    assert found.together is None  # one task


def test_what_three_seeds_do_not_show_is_not_claimed(tmp_path, capsys):
    write_run(tmp_path / "a", "Hopper-v5", [100.0, 200.0, 300.0])
    write_run(tmp_path / "b", "Hopper-v5", [200.0, 300.0, 400.0])
    told = printed(capsys, *words(tmp_path, "a", "b"))
    assert "not shown" in told
    assert "better" not in told


def test_verdicts_are_corrected_for_all_of_a_table(tmp_path, capsys):
    # One task alone: better. Beside five others where nothing is shown its p is six times as large.
    a, b = [0.0, 1.0, 2.0, 3.0], [2.5, 3.5, 4.5, 5.5]
    p = scipy.stats.ttest_ind(b, a, equal_var=False).pvalue
    assert 0.02 < p < 0.05
    for name, values in (("a", a), ("b", b)):
        write_run(tmp_path / name / "one", "Own0-v0", values)
    assert compare(read_entrants(words(tmp_path, "a", "b"))).duels[0].verdict == "better"
    for k in range(1, 6):
        for name in "ab":
            write_run(tmp_path / name / str(k), f"Own{k}-v0", [0.0, 1.0, 2.0])
    found = compare(read_entrants(words(tmp_path, "a", "b")))
    assert found.duels[0].adjusted_p == pytest.approx(6 * p)
    assert {duel.verdict for duel in found.duels} == {"not shown"}
    assert "p is corrected for the 6 verdicts of this table (Holm)" in printed(capsys, *words(tmp_path, "a", "b"))


def test_the_final_policy_counts_or_the_one_of_a_step_never_the_best(tmp_path, capsys):
    # linear curves with evaluations at 5,000 to 20,000: the first are the best of these
    write_run(tmp_path / "a", "Hopper-v5", [-100.0, -200.0])
    write_run(tmp_path / "b", "Hopper-v5", [-400.0, -600.0])
    entrants = read_entrants(words(tmp_path, "a", "b"))
    assert compare(entrants).standings["Hopper-v5"]["b"].returns == [-400.0, -600.0]
    early = compare(entrants, at=5_000).standings["Hopper-v5"]["b"]
    assert (early.returns, early.steps) == ([-100.0, -150.0], (5_000, 5_000))
    between = compare(entrants, at=12_000)
    assert between.standings["Hopper-v5"]["b"].steps == (10_000, 10_000)
    assert "Hopper-v5: nobody looked at 12,000; the last looks before are at 10,000." in between.notes
    with pytest.raises(DeeprlError, match="--at 100: seed 0 of a on Hopper-v5 begins at 5,000"):
        compare(entrants, at=100)


def test_other_budgets_are_said_with_the_step_that_is_common(tmp_path, capsys):
    write_run(tmp_path / "a", "Hopper-v5", [1.0, 2.0])
    write_run(tmp_path / "b", "Hopper-v5", [3.0, 4.0], last=10_000, state="running")
    told = " ".join(printed(capsys, *words(tmp_path, "a", "b")).split())
    assert "other budgets, in simulator steps: a 20,000, b 10,000; --at 10000 compares at one step" in told
    assert "b: run . is unfinished" in told


def test_runs_and_their_rows_are_the_same_numbers(tmp_path):
    write_run(tmp_path / "a", "Hopper-v5", [1.0, 2.0, 4.0])
    write_run(tmp_path / "b", "Hopper-v5", [3.0, 5.0, 9.0], label="other")
    for name in "ab":
        write_rows(tmp_path / f"{name}.csv", results(tmp_path / name))
    runs = compare(read_entrants(words(tmp_path, "a", "b")))
    rows = compare(read_entrants([str(tmp_path / f"{name}.csv") for name in "ab"]))
    assert rows.duels == runs.duels
    assert rows.units == {"Hopper-v5": "simulator steps"}


def test_cells_of_one_sweep_are_compared_with_the_first(tmp_path):
    for env in ("Hopper-v5", "Walker2d-v5"):
        write_run(tmp_path / env / "plain", env, [1.0, 2.0])
        write_run(tmp_path / env / "big", env, [3.0, 5.0], label="big")
    found = compare(read_entrants([str(tmp_path)]))
    assert found.names == ["sac", "sac big"]
    assert [(duel.env, duel.name) for duel in found.duels] == [("Hopper-v5", "sac big"), ("Walker2d-v5", "sac big")]
    beside = read_entrants([f"x={tmp_path}", f"y={tmp_path / 'Hopper-v5' / 'big'}"])
    assert [entrant.name for entrant in beside] == ["x: sac", "x: sac big", "y"]


def test_algorithms_that_differ_from_task_to_task_are_said(tmp_path):
    write_run(tmp_path / "a" / "1", "Hopper-v5", [1.0, 2.0])
    write_run(tmp_path / "a" / "2", "Walker2d-v5", [1.0, 2.0], label="big")
    (entrant,) = read_entrants([f"a={tmp_path / 'a'}"])
    assert entrant.notes == ["a is another algorithm on each task: sac, sac big."]


def test_only_one_task_under_one_unit_is_compared(tmp_path):
    write_run(tmp_path / "a" / "hopper", "Hopper-v5", [1.0, 2.0])
    change(
        write_run(tmp_path / "a" / "own", "Own-v0", [1.0, 2.0]), evaluated_in={"env": "Own-v0", "env_kwargs": {"g": 1}}
    )
    change(
        write_run(tmp_path / "b" / "own", "Own-v0", [3.0, 4.0]), evaluated_in={"env": "Own-v0", "env_kwargs": {"g": 2}}
    )
    write_run(tmp_path / "b" / "walker", "Walker2d-v5", [1.0, 2.0])
    with pytest.raises(DeeprlError) as error:
        compare(read_entrants(words(tmp_path, "a", "b")))
    told = str(error.value)
    assert 'Own-v0 is not the same task: b has arguments {"g": 2.0}, a arguments {"g": 1.0}: not compared.' in told
    assert "Hopper-v5 is not compared: it is in a only." in told
    unit = "algorithm,env,seed,step,return,unit"
    one = table(tmp_path / "one.csv", *(f"x,T,{s},5,1,decisions" for s in (0, 1)), header=unit)
    other = table(tmp_path / "other.csv", *(f"x,T,{s},5,1,gradient steps" for s in (0, 1)), header=unit)
    with pytest.raises(DeeprlError, match="other counts gradient steps, one decisions: not compared"):
        compare(read_entrants([str(one), str(other)]))


def test_how_long_actions_are_held_does_not_make_another_task(tmp_path):
    for name, repeat in (("a", 1), ("b", 2)):
        place = {"env": "dmc/walker-run", "env_kwargs": {"action_repeat": repeat}}
        change(write_run(tmp_path / name, "dmc/walker-run", [1.0, 2.0]), evaluated_in=place)
    assert len(compare(read_entrants(words(tmp_path, "a", "b"))).duels) == 1


def test_one_seed_and_returns_that_are_not_finite_show_nothing(tmp_path):
    write_run(tmp_path / "a", "Hopper-v5", [1.0, 2.0, 3.0])
    write_run(tmp_path / "one", "Hopper-v5", [900.0])
    write_run(tmp_path / "nan", "Hopper-v5", [900.0, float("nan"), 901.0])
    found = compare(read_entrants(words(tmp_path, "a", "one", "nan")))
    assert [duel.verdict for duel in found.duels] == ["not shown"] * 2
    assert "Hopper-v5, one: one seed, so nothing can be shown." in found.notes
    assert "Hopper-v5, nan: a return is not finite, so there are no statistics." in found.notes


def test_agents_that_are_equal_in_everything_are_samples_each_and_noted(tmp_path):
    rows = [f"x,T,{seed},{step},{value}" for seed, value in ((0, 1), (0, 3), (1, 5)) for step in (5, 10)]
    a, b = table(tmp_path / "a.csv", *rows), table(tmp_path / "b.csv", *rows[8:], *rows[4:])
    found = compare(read_entrants([str(a), str(b)]))
    assert found.standings["T"]["a"].returns == [1.0, 3.0, 5.0]
    assert "T, a: seed 0 occurs more than once: no independent samples." in found.notes


def test_rows_for_a_file_and_a_picture(tmp_path, capsys):
    for name, shift in (("a", 0.0), ("b", 5.0)):
        for env in ("Hopper-v5", "Walker2d-v5"):
            write_run(tmp_path / name / env, env, [1.0 + shift, 2.0 + shift, 3.5 + shift])
    out, png = tmp_path / "new" / "table.csv", tmp_path / "new" / "picture.png"
    told = printed(capsys, *words(tmp_path, "a", "b"), "--csv", out, "--png", png)
    rows = list(csv.DictReader(out.open()))
    assert tuple(rows[0]) == ROW_COLUMNS
    assert [(row["env"], row["algorithm"], row["seeds"], row["verdict"]) for row in rows] == [
        ("Hopper-v5", "b", "3", "better"), ("Walker2d-v5", "b", "3", "better")
    ]  # fmt: skip
    assert float(rows[0]["difference"]) == 5.0
    assert png.read_bytes().startswith(b"\x89PNG")
    # min-max over both: a 0 to 0.333, b 0.667 to 1; three runs are not trimmed, six are: floor(6 / 4) = 1 from each end
    assert f"Over 2 tasks, scores normalised by {BY_RANGE}".split()[:6] == "Over 2 tasks, scores normalised by".split()
    assert BY_RANGE[:40] in told
    a = np.repeat([0.0, 1.0, 2.5], 2) / 7.5
    assert f"IQM {np.mean(a[1:5]):.3g} (" in told
    printed(capsys, *words(tmp_path, "a", "b"), "--csv", out)  # which replaces it


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{}/a"], "one algorithm, a: nothing to compare it with"),
        (["{}/nowhere", "{}/a"], "nowhere: no such file or directory"),
        (["x={}/nowhere", "{}/a"], "nowhere: no such file or directory"),
        (["{}/a", "{}/a"], "two are called 'a': name them, NAME=PATH"),
        (["{}/empty", "{}/a"], "no runs in"),
        (["{}/grades.csv", "{}/a"], "lacks the column algorithm"),
        (["{}/broken.csv", "{}/a"], "broken.csv row 2 is broken"),
        (["{}/nothing.csv", "{}/a"], "nothing.csv: no rows"),
        (["{}/a", "b={}/a", "--at", "0"], "--at: must be positive"),
        (["{}/a", "b={}/a", "--csv", "{}/grades.csv"], "exists and is no table of"),
        (["{}/a", "b={}/a", "--csv", "{}/a/evaluations.csv"], "belongs to the records of the run"),
        (["{}/a", "b={}/a", "--png", "{}/picture.jpg"], "pictures are .png"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(arguments, complaint, tmp_path, capsys):
    write_run(tmp_path / "a", "Hopper-v5", [1.0, 2.0])
    (tmp_path / "empty").mkdir()
    table(tmp_path / "grades.csv", "1,2", header="name,grade")
    table(tmp_path / "broken.csv", "x,T,0,5,high")
    table(tmp_path / "nothing.csv")
    assert main(["compare", *(word.format(tmp_path) for word in arguments)]) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1


def test_peers_files_are_compared_too(tmp_path, capsys):
    peers = Path(__file__).parent / "data" / "peers"
    rows = [f"dqn,CartPole-v1,{seed},1024,{value}" for seed, value in ((0, 500), (1, 490), (2, 495))]
    ours = table(tmp_path / "ours.csv", *rows)
    found = compare(read_entrants([f"sb3={peers}", str(ours)]))
    assert found.standings["CartPole-v1"]["sb3"].returns == pytest.approx([71 / 3, 104 / 3])
    assert found.duels[0].verdict == "better"
    (tmp_path / "folder").mkdir()
    copy = tmp_path / "folder" / "evaluations.npz"
    copy.write_bytes((peers / "CartPole-v1_1" / "evaluations.npz").read_bytes())
    assert main(["compare", f"sb3={copy}", str(ours)]) == 2
    assert "does not tell its environment: sb3@ENVIRONMENT=" in capsys.readouterr().err
    assert "CartPole-v1" in printed(capsys, f"sb3@CartPole-v1={copy}", ours)


# --- over all tasks ---


def test_scores_by_references_are_preferred_to_those_within_the_comparison():
    known = {"a": {"s": [Sample(5.0, 50.0)] * 2, "t": [Sample(9.0, 90.0)] * 2}}
    found = overall(known)
    assert found is not None
    assert found.how == BY_REFERENCES
    assert found.scores["a"].tolist() == [[0.5, 0.9], [0.5, 0.9]]
    assert overall({"a": {"s": [Sample(5.0)], "t": [Sample(9.0)]}}) is None  # nothing to put it between
    assert overall({}) is None


def test_scores_within_a_comparison_are_by_hand_and_tasks_without_any_are_left_out():
    a = {"s": [0.0, 5.0], "t": [-1.0, 0.0], "flat": [1.0, 1.0], "bad": [math.nan, 1.0], "alone": [1.0]}
    b = {"s": [10.0, 5.0, 7.0], "t": [1.0, 0.0], "flat": [1.0, 1.0], "bad": [1.0, 1.0]}
    made = {name: {task: [Sample(x) for x in own[task]] for task in own} for name, own in (("a", a), ("b", b))}
    found = overall(made)
    assert found is not None
    assert (found.how, found.tasks) == (BY_RANGE, ["s", "t"])
    # s: 0 to 10; t: -1 to 1; b has three runs on s: the first two count
    assert found.scores["a"].tolist() == [[0.0, 0.0], [0.5, 0.5]]
    assert found.scores["b"].tolist() == [[1.0, 1.0], [0.5, 0.5]]
    assert found.spans == {"s": (0.0, 10.0), "t": (-1.0, 1.0)}
    assert found.notes == [
        "bad is left out over all tasks: a return is not finite.",
        "flat is left out over all tasks: all returns are equal.",
        "b has more than 2 runs on some tasks: over all tasks the first 2 of each count.",
    ]


def test_scores_over_steps_are_at_common_steps_by_the_span_of_final_returns():
    def curve(**returns: float) -> dict[int, Sample]:
        return {int(step[1:]): Sample(ret) for step, ret in returns.items()}

    curves = {
        "a": {"s": [curve(_5=-10.0, _10=0.0)], "t": [curve(_5=0.0, _7=3.0, _10=2.0)]},
        "b": {"s": [curve(_1=0.0, _5=5.0, _10=10.0), curve(_5=0.0)], "t": [curve(_5=3.0, _10=4.0)]},
    }
    finals = {n: {t: [seed[max(seed)] for seed in seeds] for t, seeds in own.items()} for n, own in curves.items()}
    together = overall(finals)
    assert together is not None
    steps, tables = over_steps(together, curves)
    # b's second seed on s has no partner on t; spans are 0 to 10 and 2 to 4
    assert steps == [5, 10]
    assert tables["a"].tolist() == [[[-1.0, 0.0], [-1.0, 0.0]]]
    assert tables["b"].tolist() == [[[0.5, 1.0], [0.5, 1.0]]]
    scored = {"a": {t: [{s: Sample(9.0, 10.0 * s) for s in (1, 2)}] for t in "st"}}
    known = overall({"a": {t: [seeds[0][2]] for t, seeds in scored["a"].items()}})
    assert known is not None
    assert over_steps(known, scored)[1]["a"].tolist() == [[[0.1, 0.2], [0.1, 0.2]]]
