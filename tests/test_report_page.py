"""The page of a report: its first table, what is folded, others beside ours, all tasks, the checklist, films."""

from __future__ import annotations

import csv
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from test_comparison import change
from test_report import panels, write_run

import deeprl
from deeprl.commands.main import main
from deeprl.errors import DeeprlError
from deeprl.reporting.checklist import SEED_COLUMNS
from deeprl.reporting.page import CSS, FIRST_HEADER
from deeprl.reporting.peers import Peer
from deeprl.reporting.report import write_report

PEERS = Path(__file__).parent / "data" / "peers"


class Tables(HTMLParser):
    """Tables of a page: whether each is folded, its class, and its rows of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[bool, str, list[list[str]]]] = []
        self._folded, self._cell = False, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "details":
            self._folded = True
        elif tag == "table":
            self.found.append((self._folded, dict(attrs).get("class") or "", []))
        elif tag == "tr":
            self.found[-1][2].append([])
        elif tag in ("td", "th"):
            self.found[-1][2][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._folded = self._folded and tag != "details"
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.found[-1][2][-1][-1] += data


def tables(page: str) -> list[tuple[bool, str, list[list[str]]]]:
    parser = Tables()
    parser.feed(page)
    return parser.found


def table_of(page: str, *columns: str) -> list[dict[str, str]]:
    """The one table with these columns."""
    (rows,) = [rows for _, _, rows in tables(page) if set(columns) <= set(rows[0])]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.fixture
def three_tasks(tmp_path: Path) -> Path:
    for env, scale in (("Hopper-v5", 100.0), ("CartPole-v1", 480.0), ("dmc/walker-run", 7.0)):
        for label, factor in (("", 1.0), ("big", 1.02)):
            finals = [scale * factor * x for x in (1.0, 0.9, 0.8, 0.2)]
            write_run(tmp_path / "runs" / env / (label or "plain"), env, finals, label=label)
    return tmp_path / "runs"


def test_the_first_table_fits_the_page_whatever_the_names(tmp_path):
    long = "ANameThatHasNoPlaceToBreakItAtAll" * 4 + "-v0"
    write_run(tmp_path / "runs" / "a", long, [-123456.7, -1.0, 5.0], label="another name that goes on and on" * 3)
    page = write_report(tmp_path / "runs").read_text()
    folded, style, rows = tables(page)[0]
    assert (folded, style) == (False, "fit")
    assert [len(row) for row in rows] == [5, 5]
    assert rows[0] == ["Environment", "Cell", "Seeds", "Mean return, 95 % t interval", "IQM, 95 % bootstrap"]
    assert rows[1][2] == "3"
    # Its width is that of the page, at most 72 x 16 pixels; shares of it are fixed, and texts break anywhere.
    assert "max-width: 72rem" in CSS
    assert "table.fit { width: 100%; table-layout: fixed; }" in CSS
    assert re.search(r"\.fit th, \.fit td \{[^}]*white-space: normal; overflow-wrap: anywhere", CSS)
    assert sum(FIRST_HEADER.values()) == 100
    assert page.index("<table class=") < page.index("<details><summary>All columns")


def test_the_other_columns_are_folded_below_it(tmp_path):
    write_run(tmp_path / "runs" / "a", "Hopper-v5", [1.0, 2.0])
    page = write_report(tmp_path / "runs").read_text()
    folded, _, rows = tables(page)[1]
    assert folded
    assert {"Steps", "Std", "Score", "Episodes", "Wall s", "Frozen seeds"} <= set(rows[0])


def test_bands_end_where_returns_do_and_means_stay(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    fill = Axes.fill_between

    def seen(self, x, low, high, **kwargs):
        drawn.append((np.asarray(low), np.asarray(high)))
        return fill(self, x, low, high, **kwargs)

    monkeypatch.setattr(Axes, "fill_between", seen)
    write_run(tmp_path / "a", "CartPole-v1", [500.0, 490.0, 100.0])
    write_report(tmp_path / "a")
    ((low, high),) = drawn
    assert (low.min(), high.max()) == (0.0, 500.0)  # t(2) would lead from -227 to 953
    other = change(write_run(tmp_path / "b", "CartPole-v1", [500.0, 490.0, 100.0]), evaluated_in=None)
    change(other, evaluated_in={"env": "CartPole-v1", "env_kwargs": {}, "wrappers": ["my:Wrapper"]})
    write_report(other)
    assert drawn[1][0].min() < 0.0
    assert drawn[1][1].max() > 500.0


def test_many_tasks_are_in_one_picture_with_the_same_curves(three_tasks, monkeypatch):
    found = panels(monkeypatch)
    page = write_report(three_tasks).read_text()
    assert (three_tasks / "report" / "over_all_tasks_curves.png").exists()
    curves = [panel for panel in found if len(panel) == 2 and len(panel[0][0]) == 4]
    assert curves[3:6] == curves[:3]  # one picture each, then all of them in one
    assert 'alt="Learning curves on all tasks"' in page
    assert "Each task alone" not in page  # three are few enough to be seen at once


def test_aggregates_over_tasks_say_what_they_are_normalised_by(three_tasks):
    shutil.rmtree(three_tasks / "dmc")
    page = write_report(three_tasks).read_text()
    assert "<h2>Over all tasks</h2>" in page
    assert "Scores are normalised by the least and greatest return of any run compared here" in page
    assert (three_tasks / "report" / "over_all_tasks_bars.png").stat().st_size > 5_000
    for env in ("Hopper-v5", "CartPole-v1"):
        for run in (three_tasks / env).iterdir():
            change(run, spec={"score_range": [0.0, 1000.0]})
    assert "Scores are normalised by D4RL's references".replace("'", "&#x27;") in write_report(three_tasks).read_text()


def test_one_task_or_one_algorithm_without_references_has_no_aggregates(tmp_path):
    write_run(tmp_path / "a", "Hopper-v5", [1.0, 2.0])
    write_run(tmp_path / "b", "Walker2d-v5", [1.0, 2.0])
    assert "<h2>Over all tasks</h2>" not in write_report(tmp_path).read_text()
    assert not list((tmp_path / "report").glob("over_all_tasks*"))


def published(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["algorithm,env,seed,step,return", *rows, ""]), encoding="utf-8")
    return path


def test_others_are_compared_at_a_step_that_both_have(tmp_path):
    write_run(tmp_path / "runs" / "a", "Hopper-v5", [100.0, 120.0, 110.0])
    rows = [f"Theirs,Hopper-v5,{s},{step},{10 + s}" for s in (0, 1, 2) for step in (7_000, 12_000, 90_000)]
    first = published(tmp_path / "one.csv", *rows)
    second = published(tmp_path / "two.csv", "Theirs,Hopper-v5,0,20000,50", "Late,Hopper-v5,0,90000,50")
    page = write_report(tmp_path / "runs", published=[first, second]).read_text()
    theirs, again = table_of(page, "Ours is", "Other")
    # at 12,000 theirs are 10, 11, 12, ours at 10,000 half of the finals: 50, 60, 55
    assert (theirs["Step"], theirs["Its step"], theirs["Difference"]) == ("10,000", "12,000", "44")
    assert theirs["Mean return"].startswith("55 (")
    assert (theirs["Other"], theirs["Ours is"]) == ("Theirs, published", "better")
    assert (again["Other"], again["Its step"]) == ("Theirs, published (two)", "20,000")
    assert again["Ours is"] == "not shown"  # one seed of theirs
    assert "Hopper-v5: Late, published, has no step up to the last of sac that both have recorded." in page


def test_peers_files_are_drawn_and_compared(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "a", "CartPole-v1", [400.0, 300.0], last=20_000)
    found = panels(monkeypatch)
    page = write_report(tmp_path / "runs", peers=[Peer("sb3", PEERS)]).read_text()
    theirs = [(29 / 3 + 218 / 3) / 2, (28 / 3 + 113 / 3) / 2, (38 / 3 + 161 / 3) / 2, (71 / 3 + 104 / 3) / 2]
    (own, (steps, returns)) = found[0]
    assert own[0] == [5_000, 10_000, 15_000, 20_000]
    assert (steps, returns) == ([256, 512, 768, 1024], pytest.approx(theirs))
    assert "CartPole-v1: sb3, peer, has no step up to the last of sac that both have recorded." in page
    assert main(["report", str(tmp_path / "runs"), "--peer", f"sb3={PEERS}"]) == 0


def test_a_peer_that_cannot_be_read_leaves_no_report(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", "CartPole-v1", [4.0, 3.0])
    assert main(["report", str(tmp_path / "runs"), "--peer", "sb3=nowhere"]) == 2
    assert "nowhere: no such file" in capsys.readouterr().err
    with pytest.raises(DeeprlError, match="no returns of another library"):
        write_report(tmp_path / "runs", peers=[Peer("x", tmp_path / "runs")])
    assert not (tmp_path / "runs" / "report").exists()


def test_the_checklist_states_seeds_budgets_and_evaluations(tmp_path):
    config = {"eval_every": 5_000}
    write_run(tmp_path / "a", "Hopper-v5", [1.0, 2.0], seeds=[3, 7], config=config)
    write_run(tmp_path / "b", "Hopper-v5", [1.0], seeds=[9], last=10_000, config=config)
    page = write_report(tmp_path).read_text()
    (row,) = table_of(page, "Which", "Steps of all")
    assert (row["Seeds"], row["Which"]) == ("3", "3 7 9")
    assert (row["Steps of each"], row["Steps of all"]) == ("10,000 to 20,000 simulator steps", "50,000")
    assert (row["Evaluated every"], row["Episodes"]) == ("5,000 steps", "2")
    assert "Search: none is recorded here" in page


def test_films_of_the_runs_are_linked_from_their_cells(tmp_path):
    run = write_run(tmp_path / "runs" / "a run", "Hopper-v5", [1.0, 2.0], seeds=[1, 12])
    other = write_run(tmp_path / "runs" / "b", "Walker2d-v5", [1.0], seeds=[1])
    for name in ("episode_seed_12.gif", "episode_seed_1_step_500.mp4", "episode_seed_3.gif", "episode_seed_1.txt"):
        (run / name).write_bytes(b"film")
    (other / "episode_seed_2.gif").write_bytes(b"film")
    page = write_report(tmp_path / "runs", tmp_path / "else where").read_text()
    assert re.findall(r'<a href="([^"]*)">film', page) == ["../runs/a%20run/episode_seed_1_step_500.mp4"]


def test_of_equal_seeds_a_film_belongs_to_the_member_that_it_names(tmp_path):
    members = [{"member": m, "seed": 0, "settings": {"critic_lr": lr}} for m, lr in enumerate((0.1, 0.2))]
    run = write_run(tmp_path / "runs" / "a", "Hopper-v5", [1.0, 2.0], seeds=[0, 0])
    change(run, members=members)
    (run / "episode_seed_0_member_1.gif").write_bytes(b"film")
    rows = re.findall(r"<tr><td>Hopper-v5</td><td>(.*?)</td>", write_report(tmp_path / "runs").read_text())
    assert [("film" in row, "0.2" in row) for row in rows[:2]] == [(False, False), (True, True)]


def test_listed_evaluation_seeds_repeat_the_final_evaluation(tmp_path):
    few = {"steps": 20, "learning_starts": 10, "batch_size": 4, "hidden": [8], "eval_episodes": 2, "seeds": (0, 5)}
    few |= {"compile": "off", "threads": 1, "tensorboard": False, "env": "Pendulum-v1"}
    deeprl.train("sac", out=str(tmp_path / "run"), **few)
    write_report(tmp_path / "run")
    with (tmp_path / "run" / "report" / "evaluation_seeds.csv").open() as file:
        listed = list(csv.DictReader(file))
    with (tmp_path / "run" / "evaluations.csv").open() as file:
        recorded = [row for row in csv.DictReader(file) if row["step"] == "20"]
    assert tuple(listed[0]) == SEED_COLUMNS
    assert len(listed) == len(recorded) == 4
    for row, evaluation in zip(listed, recorded, strict=True):
        assert (row["seed"], row["episode"], row["step"]) == (evaluation["seed"], evaluation["episode"], "20")
        policy, env = deeprl.load(tmp_path / "run", seed=int(row["seed"])), gym.make("Pendulum-v1")
        obs, _ = env.reset(seed=int(row["reset_seed"]))
        total, over = 0.0, False
        while not over:
            obs, reward, _, over, _ = env.step(policy(obs))
            total += float(reward)
        assert total == pytest.approx(float(evaluation["return"]), rel=1e-4)
