import base64
import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest
from matplotlib.text import Text

from deeprl.errors import DeeprlError
from deeprl.reporting.curves import plain, read_published, short
from deeprl.reporting.report import _file_name, write_report
from deeprl.reporting.table import results

HEADER = "step,member,seed,episode,return,length,wall_s\n"


def write_run(path, env, finals, label="", state="finished", last=None, frozen=(), seeds=None, config=()):
    """Members with linear curves that end at `finals` (mean of two episodes, final - 1 and final + 1)."""
    path.mkdir(parents=True)
    seeds = seeds or list(range(len(finals)))
    last = last or 20_000
    info = {
        "format": 1,
        "algorithm": "sac",
        "config": {"env": env, "steps": 20_000, "seeds": seeds, "label": label, **dict(config)},
        "members": [{"member": m, "seed": seed, "settings": {}} for m, seed in enumerate(seeds)],
        "versions": {"deeprl": "0.1.0", "torch": "2.9.0"},
        "commit": "abc1234",
        "device": "cpu (test, 1 thread)",
        "host": "here",
        "command": f"deeprl train sac --env {env} --name <b>",
        "config_hash": "0123456789ab",
    }
    (path / "config.json").write_text(json.dumps(info))
    status = {"state": state, "step": last, "frozen": list(frozen)}
    status |= {"wall_s": 60.0, "first_update_s": 12.0, "updates_per_s": 1000.0}
    (path / "status.json").write_text(json.dumps(status))
    with (path / "evaluations.csv").open("w") as file:
        file.write(HEADER)
        for step in range(5_000, last + 1, 5_000):
            for m, seed in enumerate(seeds):
                value = finals[m] * step / last
                file.write(f"{step},{m},{seed},0,{value - 1},200,{step / 500}\n")
                file.write(f"{step},{m},{seed},1,{value + 1},200,{step / 500}\n")
    return path


@pytest.fixture
def sweep(tmp_path):
    """Two environments, two cells, three seeds; seed 2 of one run diverged, one run is at half its steps."""
    root = tmp_path / "my sweep"
    frozen = [{"member": 2, "seed": 2, "update": 1234, "step": 2300, "cause": "critic_loss"}]
    write_run(root / "hopper" / "plain", "Hopper-v5", [100.0, 200.0, 300.0])
    write_run(root / "hopper" / "big", "Hopper-v5", [150.0, 160.0, 20.0], label="big", frozen=frozen)
    write_run(root / "walker", "dmc/walker-run", [4.0, 6.0, 8.0])
    write_run(root / "walker big", "dmc/walker-run", [1.0, 2.0, 3.0], label="big", state="running", last=10_000)
    return root


def summary(root):
    rows = csv.DictReader((root / "report" / "summary.csv").open())
    return {(row["env"], row["label"]): row for row in rows}


def test_report_writes_all_files(sweep):
    assert write_report(sweep) == sweep / "report" / "index.html"
    names = {path.name for path in (sweep / "report").iterdir()}
    assert names == {
        "index.html", "summary.csv", "evaluation_seeds.csv", "config.json", "report.json", "curve_Hopper-v5.png",
        "curve_dmc-walker-run.png", "over_all_tasks_bars.png", "over_all_tasks_profiles.png",
        "over_all_tasks_efficiency.png",
    }  # fmt: skip
    for path in (sweep / "report").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_report_goes_where_told(sweep, tmp_path):
    assert write_report(sweep, tmp_path / "elsewhere" / "r") == tmp_path / "elsewhere" / "r" / "index.html"
    assert not (sweep / "report").exists()


def test_report_twice_writes_the_same_page(sweep):
    first = write_report(sweep).read_bytes()
    assert write_report(sweep).read_bytes() == first


@pytest.mark.parametrize("name", ["a$b$$c", "x_{$", "$x_{$", r"\$", r"$\frac$", "50 $ and 60 $"])
def test_names_are_drawn_as_they_are_not_as_formulas(name, tmp_path):
    write_run(tmp_path / "runs" / "one", f"Own{name}-v0", [1.0, 2.0], label=name)
    published = tmp_path / "published.csv"
    lines = "".join(f"{name},Own{name}-v0,{seed},{step},{seed}\n" for seed in (0, 1) for step in (5_000, 20_000))
    published.write_text("algorithm,env,seed,step,return\n" + lines, encoding="utf-8")
    write_report(tmp_path / "runs", published=[published])
    assert len(list((tmp_path / "runs" / "report").glob("curve_*.png"))) == 1
    assert Text()._preprocess_math(plain(name)) == (name, False)


def test_summary_numbers_are_hand_computed(sweep):
    write_report(sweep)
    row = summary(sweep)["Hopper-v5", ""]
    assert (row["algorithm"], row["settings"], row["seeds"], row["episodes"]) == ("sac", "{}", "3", "2")
    assert (row["step"], row["step_min"], row["values"]) == ("20000", "20000", "0:100.0 1:200.0 2:300.0")
    # mean 200, std 100, t(2, 0.975) = 4.302653: half width 4.302653 * 100 / sqrt(3) = 248.4138
    assert float(row["mean"]) == 200.0
    assert float(row["std"]) == 100.0
    assert float(row["mean_lo"]) == pytest.approx(200 - 248.4138, abs=1e-3)
    assert float(row["mean_hi"]) == pytest.approx(200 + 248.4138, abs=1e-3)
    # floor(3/4) = 0 cut: IQM = mean. Resamples of 100 three times: 1/27 = 3.7 % > 2.5 %, so the interval is the range
    assert [float(row[key]) for key in ("iqm", "iqm_lo", "iqm_hi")] == [200.0, 100.0, 300.0]
    assert [float(row[key]) for key in ("wall_s", "updates_per_s")] == [60.0, 1000.0]
    assert row["frozen_seeds"] == ""


def test_summary_columns_are_in_order(sweep):
    write_report(sweep)
    assert (sweep / "report" / "summary.csv").read_text().splitlines()[0] == (
        "algorithm,env,label,settings,cell,unit,seeds,step,step_min,mean,mean_lo,mean_hi,std,iqm,iqm_lo,iqm_hi,"
        "score,score_lo,score_hi,values,episodes,wall_s,updates_per_s,frozen_seeds"
    )


def test_frozen_agent_stays_in_statistics_and_is_named(sweep):
    page = write_report(sweep).read_text()
    row = summary(sweep)["Hopper-v5", "big"]
    # (150 + 160 + 20) / 3 = 110
    assert float(row["mean"]) == 110.0
    assert row["frozen_seeds"] == "2"
    who = "Diverged: seed 2 (member 2) of run hopper/big (sac, Hopper-v5)"
    assert f"{who} was frozen after 2,300 simulator steps, update 1234: critic_loss was not finite." in page
    assert "diverged, frozen after 2,300 simulator steps: critic_loss" in page


def test_run_that_ended_with_all_agents_diverged_is_named_and_not_unfinished(tmp_path):
    frozen = [{"member": m, "seed": m, "update": 9, "step": 9_000, "cause": "reward"} for m in range(2)]
    write_run(tmp_path / "a", "Pendulum-v1", [-400.0, -200.0], state="diverged", last=10_000, frozen=frozen)
    page = write_report(tmp_path).read_text()
    assert "All agents of run a (sac, Pendulum-v1) diverged: it ended after 10,000 simulator steps." in page
    assert "Unfinished" not in page
    assert summary(tmp_path)["Pendulum-v1", ""]["frozen_seeds"] == "0 1"


def test_unfinished_run_is_named(sweep):
    page = write_report(sweep).read_text()
    how_far = "10,000 simulator steps of 20,000 simulator steps (state: running)"
    assert f"Unfinished: run walker big (sac, dmc/walker-run) is at {how_far}." in page
    assert page.count("Unfinished:") == 1


def test_final_policy_is_last_evaluation_not_best(tmp_path):
    # linear curves from -100 at step 5000 to -400 at 20000: the best is the first
    write_run(tmp_path / "a", "Pendulum-v1", [-400.0, -200.0])
    write_report(tmp_path)
    assert summary(tmp_path)["Pendulum-v1", ""]["values"] == "0:-400.0 1:-200.0"


def test_seeds_of_different_length_are_noted(tmp_path):
    write_run(tmp_path / "a", "Pendulum-v1", [1.0])
    write_run(tmp_path / "b", "Pendulum-v1", [3.0], seeds=[1], last=10_000, state="running")
    page = write_report(tmp_path).read_text()
    row = summary(tmp_path)["Pendulum-v1", ""]
    assert (row["step"], row["step_min"], row["mean"], row["wall_s"]) == ("20000", "10000", "2.0", "120.0")
    assert "seeds differ in their last step (10,000 to 20,000 simulator steps)" in page
    assert "<td>10,000 to 20,000 simulator steps</td>" in page


def test_other_settings_are_other_cells_and_repeated_seeds_are_noted(tmp_path):
    # critic_lr is one value or one value per member, all equal: no difference
    write_run(tmp_path / "a", "Pendulum-v1", [1.0, 2.0], config={"batch_size": 64, "critic_lr": [0.1, 0.1], "out": "a"})
    write_run(tmp_path / "b", "Pendulum-v1", [3.0], config={"batch_size": 128, "critic_lr": 0.1, "out": "b"})
    page = write_report(tmp_path).read_text()
    with (tmp_path / "report" / "summary.csv").open() as file:
        cells = [(row["settings"], row["seeds"]) for row in csv.DictReader(file)]
    assert cells == [('{"batch_size": 128}', "1"), ('{"batch_size": 64}', "2")]
    assert "seed 0 occurs more than once" not in page
    write_run(tmp_path / "c", "Pendulum-v1", [4.0], config={"batch_size": 128, "critic_lr": 0.1, "out": "c"})
    assert "seed 0 occurs more than once" in write_report(tmp_path).read_text()


def test_single_seed_has_no_interval(tmp_path):
    write_run(tmp_path / "a", "Pendulum-v1", [5.0])
    page = write_report(tmp_path).read_text()
    row = summary(tmp_path)["Pendulum-v1", ""]
    assert [row[key] for key in ("mean", "mean_lo", "std", "iqm", "iqm_lo")] == ["5.0", "", "", "5.0", ""]
    assert "one seed, so no interval" in page


def test_non_finite_return_leaves_statistics_empty_and_is_noted(tmp_path):
    write_run(tmp_path / "a", "Pendulum-v1", [5.0, float("nan")])
    page = write_report(tmp_path).read_text()
    assert summary(tmp_path)["Pendulum-v1", ""]["mean"] == ""
    assert "the final return of seed 1 is not finite" in page


def test_run_without_evaluations_is_reported_without_numbers(tmp_path):
    path = write_run(tmp_path / "a", "Pendulum-v1", [5.0], state="running")
    (path / "evaluations.csv").write_text("")
    page = write_report(tmp_path).read_text()
    assert "No evaluation yet: seed 0" in page
    assert (tmp_path / "report" / "summary.csv").read_text().strip() == ""


def test_page_holds_everything_and_asks_the_net_for_nothing(sweep):
    page = write_report(sweep).read_text()
    assert not re.search(r"http|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    together = (f"over_all_tasks_{what}" for what in ("bars", "profiles", "efficiency"))
    pictures = (*together, "curve_Hopper-v5", "curve_dmc-walker-run")
    assert len(sources) == 5
    for source, name in zip(sources, (f"{picture}.png" for picture in pictures), strict=True):
        assert source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.split(",")[1]) == (sweep / "report" / name).read_bytes()
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_page_shows_every_seed_and_run(sweep):
    page = write_report(sweep).read_text()
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in page.splitlines() if line.startswith("<tr>")]
    assert ["Hopper-v5", "sac", "1", "20,000 simulator steps", "200.0", "2", "", "hopper/plain"] in cells
    assert ["dmc/walker-run", "sac big", "2", "10,000 simulator steps", "3", "2", "", "walker big"] in cells
    run = ["walker", "finished", "3", "60", "12", "1,000.0", "cpu (test, 1 thread)", "abc1234", "0123456789ab"]
    assert [*run, "deeprl 0.1.0, torch 2.9.0", "deeprl train sac --env dmc/walker-run --name &lt;b&gt;"] in cells


def test_config_json_holds_every_run(sweep):
    write_report(sweep)
    configs = json.loads((sweep / "report" / "config.json").read_text())
    assert [entry["run"] for entry in configs] == ["hopper/big", "hopper/plain", "walker", "walker big"]
    original = json.loads((sweep / "walker" / "config.json").read_text())
    assert {key: configs[2][key] for key in original} == original


def test_directory_without_runs_raises_its_name(tmp_path):
    with pytest.raises(DeeprlError, match=str(tmp_path)):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_file_names_of_similar_environments_differ():
    assert _file_name("curve_a/b", []) == "curve_a-b.png"
    assert _file_name("curve_A b", ["curve_a-b.png"]) == "curve_A-b_2.png"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (500, "500"), (2500, "2.5k"), (1_000_000, "1M"), (-1500, "\N{MINUS SIGN}1.5k")]
)
def test_tick_labels_are_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize("module", ["stats", "pairwise", "peers", "comparison", "read", "curves", "panels", "report"])
def test_module_imports_no_torch_and_matplotlib_only_inside_functions(module):
    source = importlib.util.find_spec(f"deeprl.reporting.{module}").origin
    lines = Path(source).read_text().splitlines()
    imports = [line for line in lines if re.match(r"\s*(import|from)\s", line)]
    assert not [line for line in imports if "torch" in line]
    assert not [line for line in imports if "matplotlib" in line and not line.startswith(" ")]


# --- action repeat, and the curves of others ---

PUBLISHED = """algorithm,env,seed,step,return,source
Theirs,Hopper-v5,0,10000,120.0,somewhere
Theirs,Hopper-v5,1,10000,140.0,somewhere
Theirs,Hopper-v5,0,90000,900.0,somewhere
Other,Walker2d-v5,0,10000,1.0,somewhere
"""


def test_steps_of_a_run_with_action_repeat_are_simulator_steps(tmp_path):
    frozen = [{"member": 0, "seed": 0, "update": 7, "step": 15_000, "cause": "critic_loss"}]
    run = write_run(tmp_path / "run", "dmc/walker-run", [4.0, 6.0], frozen=frozen)
    info = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(info | {"spec": {"action_repeat": 2}}))
    rows = results(run)
    assert [row["step"] for row in rows] == [10_000, 20_000, 30_000, 40_000] * 2
    assert [row["frozen"] for row in rows] == [False, False, True, True] + [False] * 4
    write_report(run)
    assert summary(run)[("dmc/walker-run", "")]["step"] == "40000"


def test_published_curves_are_read_by_environment_algorithm_and_seed(tmp_path):
    (tmp_path / "theirs.csv").write_text(PUBLISHED)
    found = read_published(tmp_path / "theirs.csv")
    assert found == {
        "Hopper-v5": {"Theirs": [{10_000: 120.0, 90_000: 900.0}, {10_000: 140.0}]},
        "Walker2d-v5": {"Other": [{10_000: 1.0}]},
    }


def test_published_curves_are_drawn_where_the_environment_is_ours(sweep, tmp_path):
    (tmp_path / "theirs.csv").write_text(PUBLISHED)
    names = ("curve_Hopper-v5.png", "curve_dmc-walker-run.png")
    write_report(sweep)
    plain = [(sweep / "report" / name).read_bytes() for name in names]
    write_report(sweep, published=[tmp_path / "theirs.csv"])
    beside = [(sweep / "report" / name).read_bytes() for name in names]
    assert plain[0] != beside[0]
    assert plain[1] == beside[1]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [("env,seed", "env,sede", "lacks the column seed"), ("140.0", "high", "row 3 is broken")],
)
def test_broken_published_curves_are_named(tmp_path, old, new, complaint):
    (tmp_path / "theirs.csv").write_text(PUBLISHED.replace(old, new))
    with pytest.raises(DeeprlError, match=complaint):
        read_published(tmp_path / "theirs.csv")
    with pytest.raises(DeeprlError, match="No such file"):
        read_published(tmp_path / "nowhere.csv")


def drawn(monkeypatch):
    """Labels of the lines of all figures from now on, with how many points each has."""
    from matplotlib.figure import Figure

    found: dict[str, int] = {}
    save = Figure.savefig

    def seen(self, *args, **kwargs):
        for line in (line for axes in self.axes for line in axes.get_lines()):
            if not str(line.get_label()).startswith("_"):
                found[str(line.get_label())] = len(line.get_xdata())
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", seen)
    return found


def test_curves_without_a_common_step_are_single_seeds(sweep, tmp_path, monkeypatch):
    (tmp_path / "theirs.csv").write_text(PUBLISHED.replace("Theirs,Hopper-v5,1,10000", "Theirs,Hopper-v5,1,10001"))
    found = drawn(monkeypatch)
    write_report(sweep, published=[tmp_path / "theirs.csv"])
    assert found["Theirs, published (n = 2, no step in common)"] == 1  # up to the last step of ours, 20,000
    assert found["sac (n = 3)"] == 4


def test_published_curves_that_begin_after_ours_are_told_and_not_in_the_legend(sweep, tmp_path, monkeypatch):
    (tmp_path / "theirs.csv").write_text(PUBLISHED.replace(",10000,", ",80000,"))
    found = drawn(monkeypatch)
    page = write_report(sweep, published=[tmp_path / "theirs.csv"]).read_text()
    assert not [label for label in found if "published" in label]
    assert "Hopper-v5: Theirs, published, is not drawn: it begins at 80,000, ours ends at 20,000." in page


def test_a_file_without_a_curve_of_our_environments_is_told(sweep, tmp_path):
    (tmp_path / "theirs.csv").write_text(PUBLISHED.replace("Hopper", "Swimmer"))
    page = write_report(sweep, published=[tmp_path / "theirs.csv"]).read_text()
    assert "Others: there is no curve of these environments; there are curves of Swimmer-v5, Walker2d-v5." in page


def test_cells_of_several_versions_or_references_are_noted(tmp_path):
    for name, seed, version, references in (("a", 0, "2.9.0", [0.0, 1.0]), ("b", 1, "2.10.0", [0.0, 2.0])):
        run = write_run(tmp_path / name, "Hopper-v5", [1.0], seeds=[seed])
        info = json.loads((run / "config.json").read_text())
        info |= {"versions": {"torch": version}, "spec": {"score_range": references}}
        (run / "config.json").write_text(json.dumps(info))
    page = write_report(tmp_path).read_text()
    row = summary(tmp_path)["Hopper-v5", ""]
    assert (row["seeds"], row["mean"], row["score"]) == ("2", "1.0", "")
    assert "Hopper-v5, sac: its runs are of several versions of torch (2.10.0, 2.9.0)." in page
    assert "Hopper-v5, sac: its runs are scored by other reference returns, so there is no score." in page


def test_a_dataset_with_the_name_of_an_environment_has_a_figure_of_its_own(tmp_path):
    write_run(tmp_path / "online", "medium", [1.0])
    offline = write_run(tmp_path / "offline", "Hopper-v5", [1.0], config={"dataset": "medium.hdf5"})
    info = json.loads((offline / "config.json").read_text()) | {"algorithm": "bc"}
    info["datasets"] = {"medium.hdf5": {"path": "/data/hopper/medium.hdf5", "sha256": "ab" * 32}}
    (offline / "config.json").write_text(json.dumps(info))
    write_report(tmp_path)
    pictures = sorted(path.name for path in (tmp_path / "report").glob("*.png"))
    assert pictures == ["curve_hopper-medium.png", "curve_medium.png"]
    units = {(row["env"], row["unit"]) for row in results(tmp_path)}
    assert units == {("medium", "simulator steps"), ("hopper/medium", "gradient steps")}


# --- runs that began from others ---


def add_pretraining(run, first=-20_000):
    """Records of before the run, of members 0 and 1, and their Q-values in it."""
    lines = [f"{step},{m},{m},{m + 1.0},{step / 1000}" for m in (0, 1) for step in range(first, 1, 10_000)]
    (run / "pretraining.csv").write_text("\n".join(["step,member,seed,return,q", *lines, ""]))
    add_q(run)


def add_q(run):
    lines = [f"{step},{m},{m},{step / 1000}" for m in (0, 1) for step in (10_000, 20_000)]
    (run / "metrics.csv").write_text("\n".join(["step,member,seed,train/q", *lines, ""]))


def panels(monkeypatch):
    """Of all figures from now on: x and y of each thick line in each panel."""
    from matplotlib.figure import Figure

    found: list[list[tuple[list[float], list[float]]]] = []
    save = Figure.savefig

    def seen(self, *args, **kwargs):
        for axes in self.axes:
            lines = [line for line in axes.get_lines() if line.get_linewidth() == 2.0]
            found.append([(list(line.get_xdata()), list(line.get_ydata())) for line in lines])
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", seen)
    return found


def test_what_was_before_a_run_is_drawn_left_of_zero_and_q_below(tmp_path, monkeypatch):
    warm = write_run(tmp_path / "warm", "Hopper-v5", [4.0, 8.0], label="warm")
    scratch = write_run(tmp_path / "scratch", "Hopper-v5", [2.0, 4.0], label="scratch")
    write_report(tmp_path)
    rows, plain = results(tmp_path), summary(tmp_path)
    add_pretraining(warm)
    add_q(scratch)
    found = panels(monkeypatch)
    page = write_report(tmp_path).read_text()
    returns, q = found
    online = [5_000, 10_000, 15_000, 20_000]
    assert returns == [
        (online, [0.75, 1.5, 2.25, 3.0]),
        ([-20_000, -10_000, 0, *online], [1.5, 1.5, 1.5, 1.5, 3.0, 4.5, 6.0]),
    ]
    assert q == [
        ([10_000, 20_000], [10.0, 20.0]),
        ([-20_000, -10_000, 0, 10_000, 20_000], [-20.0, -10.0, 0.0, 10.0, 20.0]),
    ]
    assert "not drawn" not in page
    assert (results(tmp_path), summary(tmp_path)) == (rows, plain)


def test_more_steps_before_a_run_than_in_it_are_left_out_and_noted(tmp_path, monkeypatch):
    add_pretraining(write_run(tmp_path / "warm", "Hopper-v5", [4.0, 8.0]), first=-50_000)
    found = panels(monkeypatch)
    page = write_report(tmp_path).read_text()
    assert [line[0][0] for (line,) in found] == [-20_000, -20_000]
    assert "Hopper-v5, sac: offline steps -50,000 to -20,000 are not drawn: there are 20,000 online." in page


def test_without_q_or_without_pretraining_there_is_one_panel(tmp_path, monkeypatch):
    warm = write_run(tmp_path / "warm", "Hopper-v5", [4.0, 8.0])
    add_q(warm)
    found = panels(monkeypatch)
    write_report(tmp_path)
    (warm / "metrics.csv").unlink()
    (warm / "pretraining.csv").write_text("step,member,seed,return,q\n-1000,0,0,1.0,\n-1000,1,1,2.0,\n")
    write_report(tmp_path)
    assert [[line[0][0] for line in panel] for panel in found] == [[5_000], [-1_000]]


def test_agents_that_act_and_have_a_dataset_are_drawn_in_their_environment(tmp_path):
    for name, dataset in (("a", "medium.hdf5"), ("b", "expert.hdf5")):
        config = {"dataset": dataset, "envs_per_agent": 1}
        write_run(tmp_path / name, "Hopper-v5", [1.0], config=config)
    write_run(tmp_path / "c", "Hopper-v5", [1.0])
    write_report(tmp_path)
    assert [path.name for path in (tmp_path / "report").glob("*.png")] == ["curve_Hopper-v5.png"]
    assert {env for env, _ in summary(tmp_path)} == {"Hopper-v5", "medium", "expert"}


def test_a_broken_record_of_before_is_named(tmp_path):
    run = write_run(tmp_path / "warm", "Hopper-v5", [4.0])
    (run / "pretraining.csv").write_text("step,member,seed,return,q\n-1000,0,0,high,1.0\n")
    with pytest.raises(DeeprlError, match=r"pretraining\.csv row 2 is broken"):
        write_report(tmp_path)
