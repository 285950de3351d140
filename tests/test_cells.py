"""What a cell is: agents that differ in nothing but their seed."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_records import write_run

import deeprl
from deeprl.config import per_agent_fields
from deeprl.config.runs import NOT_IDENTITY
from deeprl.reporting.cells import RECORD_ONLY, SETTINGS_ONLY, Task, agent_identity, cells_of, key_of, names_of_tasks
from deeprl.reporting.read import group, read_runs
from deeprl.reporting.report import write_report
from deeprl.reporting.table import results
from deeprl.run.directory import EXECUTION
from deeprl.run.trained import algorithm_module


def plain(algorithm: str) -> dict:
    """The settings of a run as config.json has them, all at their defaults."""
    config = algorithm_module(algorithm).Config
    given = {"dataset": "medium.hdf5"} if "dataset" in {f.name for f in dataclasses.fields(config)} else {}
    return json.loads(json.dumps(dataclasses.asdict(config(**given))))


def record(algorithm: str, seeds=(0,), members=None, facts=(), **changes) -> dict:
    """`config.json` of a run; members: per-agent settings of each, as a list in the settings."""
    varied = {k: [m[k] for m in members] for k in members[0]} if members else {}
    config = plain(algorithm) | changes | varied | {"seeds": list(seeds)}
    own = members or [{} for _ in seeds]
    listed = [{"member": i, "seed": s, "settings": own[i]} for i, s in enumerate(seeds)]
    return {"format": 1, "algorithm": algorithm, "config": config, "members": listed, **dict(facts)}


def other(value):
    """A value unlike this one, as another setting might have it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, value[-1]] if value else ["more"]  # the same numbers, one layer more
    return {"more": 1}


@pytest.mark.parametrize("algorithm", sorted(deeprl.ALGORITHMS))
def test_agents_that_differ_in_any_setting_never_share_a_cell(algorithm):
    """In several runs, in one population, and where one of them stands in a population and one alone."""
    base = plain(algorithm)
    several = per_agent_fields(algorithm_module(algorithm).Config)
    for name in set(base) - set(SETTINGS_ONLY):
        changed = other(base[name])
        alone = [(record(algorithm), 0), (record(algorithm, **{name: changed}), 0)]
        groups = [alone]
        if name in several:
            population = record(algorithm, (0, 0), [{name: base[name]}, {name: changed}])
            groups += [[(population, 0), (population, 1)], [(population, 0), alone[1]], [alone[0], (population, 1)]]
            assert cells_of([alone[0], (population, 0)])[0].key == cells_of([(population, 0)])[0].key
            assert len(set(cells_of([*alone, (population, 0), (population, 1)]))) == 2, name
        for agents in groups:
            one, two = cells_of(agents)
            assert one.key != two.key, name
            assert one[:4] != two[:4], name  # algorithm, env, label, settings: what tables show
            assert (one.env, one.name) != (two.env, two.name), name


@pytest.mark.parametrize("name", sorted({f.name for f in dataclasses.fields(algorithm_module("sac").Config)}))
def test_what_a_record_keeps_for_its_books_sets_nobody_apart(name):
    base = record("sac")
    changed = record("sac", **{name: other(plain("sac")[name])})
    same = key_of(agent_identity(base, 0)) == key_of(agent_identity(changed, 0))
    assert same == (name in SETTINGS_ONLY)


@pytest.mark.parametrize("name", [*RECORD_ONLY, "net_digest", "what_comes_some_day"])
def test_of_a_record_all_but_its_books_sets_agents_apart(name):
    if name == "members":
        return  # which every other test is about
    facts = {"changes": [{"name": "threads", "before": 1, "after": 2, "step": 5}]} if name == "changes" else {name: "x"}
    one, two = cells_of([(record("sac"), 0), (record("sac", facts=facts), 0)])
    assert (one == two) == (name in RECORD_ONLY)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_cells_are_the_classes_of_equal_settings(data):
    """Any mixture of runs and populations: cells are equal where the settings are, whatever the run."""
    lrs, widths = st.sampled_from([3e-4, 1e-3]), st.sampled_from([[16], [16, 16], [16, 16, 16]])
    labels = st.sampled_from(["", "a", "hidden=[16]"])
    agents, truth = [], []
    for _ in range(data.draw(st.integers(1, 5))):
        count, hidden, label = data.draw(st.integers(1, 3)), data.draw(widths), data.draw(labels)
        own = [{"actor_lr": data.draw(lrs)} for _ in range(count)]
        run = record("sac", tuple(range(count)), own, hidden=hidden, label=label)
        agents += [(run, i) for i in range(count)]
        truth += [(label, json.dumps(hidden), m["actor_lr"]) for m in own]
    found = cells_of(agents)
    for i, mine in enumerate(found):
        for j, theirs in enumerate(found):
            assert (mine == theirs) == (truth[i] == truth[j])
            assert (mine[:4] == theirs[:4]) == (truth[i] == truth[j])
            assert (mine.name == theirs.name) == (truth[i] == truth[j])


def test_a_default_that_is_written_out_is_the_default():
    old = record("sac")
    del old["config"]["critics"], old["config"]["log_std_range"]  # as by a version that did not have them
    assert key_of(agent_identity(old, 0)) == key_of(agent_identity(record("sac"), 0))
    whole = record("sac", actor_lr=1, facts={"evaluated_in": {"env": "HalfCheetah-v5", "env_kwargs": {}}})
    assert key_of(agent_identity(whole, 0)) == key_of(agent_identity(record("sac", actor_lr=1.0), 0))
    spec = {"obs_shape": [3], "action_dim": 1, "action_low": [-1.0], "action_high": [1.0]}
    new = record("sac", facts={"spec": spec | {"action_repeat": 1, "action_dtype": "float32"}})
    assert key_of(agent_identity(record("sac", facts={"spec": spec}), 0)) == key_of(agent_identity(new, 0))


def test_references_of_scores_are_no_part_of_an_agent():
    one, two = ({"spec": {"score_range": pair}} for pair in ([], [0.0, 1.0]))
    assert key_of(agent_identity(record("sac", facts=one), 0)) == key_of(agent_identity(record("sac", facts=two), 0))


def test_what_a_dataset_names_is_where_its_agents_are_evaluated():
    place = {"evaluated_in": {"env": "Hopper-v4", "env_kwargs": {}, "wrappers": []}}
    named, asked = record("bc", facts=place), record("bc", env="Hopper-v4", facts=place)
    assert key_of(agent_identity(named, 0)) == key_of(agent_identity(asked, 0))
    elsewhere = {"evaluated_in": {"env": "Hopper-v5", "env_kwargs": {}, "wrappers": []}}
    one, two = cells_of([(named, 0), (record("bc", facts=elsewhere), 0)])
    assert [json.loads(cell.settings) for cell in (one, two)] == [{"env": "Hopper-v4"}, {"env": "Hopper-v5"}]


def test_a_run_that_went_on_in_another_precision_is_a_cell_of_its_own():
    changes = [{"step": 5, "name": "precision", "before": "strict", "after": "bf16"}]
    runs = [record("sac", precision=p) for p in ("strict", "bf16")]
    mixed = record("sac", precision="bf16", facts={"changes": changes})
    cells = cells_of([(run, 0) for run in (*runs, mixed)])
    assert [json.loads(cell.settings)["precision"] for cell in cells] == ["strict", "bf16", "strict, then bf16"]


def test_what_a_run_is_known_again_by_and_what_a_cell_is_differ_in_reasons_alone():
    """A setting for the books of a run is one for those of a cell; how it is executed is both but for its precision."""
    assert set(SETTINGS_ONLY) == NOT_IDENTITY | set(EXECUTION) - {"precision"} | {"seeds"}


def kept(path, digest):
    return {"datasets": {"medium.hdf5": {"path": path, "sha256": digest}}}


def test_datasets_of_one_name_are_told_apart_by_their_folders():
    runs = [record("bc", facts=kept("/data/car/medium.hdf5", "aa" * 32))]
    runs.append(record("bc", facts=kept("/data/pendulum/medium.hdf5", "bb" * 32)))
    cells = cells_of([(run, 0) for run in runs])
    assert [(cell.env, cell.settings) for cell in cells] == [("car/medium", "{}"), ("pendulum/medium", "{}")]
    assert cells[0].key != cells[1].key


def test_copies_of_one_dataset_are_one():
    runs = [record("bc", facts=kept(f"/data/{place}/medium.hdf5", "aa" * 32)) for place in ("here", "there")]
    assert len(set(cells_of([(run, 0) for run in runs]))) == 1


def test_a_file_that_was_made_anew_is_told_by_its_digest():
    runs = [record("bc", facts=kept("/data/medium.hdf5", digest * 32)) for digest in ("ab", "cd")]
    assert [cell.env for cell in cells_of([(run, 0) for run in runs])] == ["medium (abababab)", "medium (cdcdcdcd)"]


def test_names_of_datasets_take_as_many_folders_as_they_need():
    tasks = [Task("m", "/x/a/b/m.npz", "1"), Task("m", "/y/a/b/m.npz", "2"), Task("n", "/x/n.npz", "3")]
    assert list(names_of_tasks(tasks).values()) == ["x/a/b/m", "y/a/b/m", "n"]


def test_own_networks_that_are_called_the_same_are_told_apart():
    runs = [record("sac", facts={"custom_net": "nets:make", "net_digest": d}) for d in ("1a", "2b")]
    assert [json.loads(cell.settings) for cell in cells_of([(run, 0) for run in runs])] == [
        {"net_digest": "1a"},
        {"net_digest": "2b"},
    ]


def test_a_label_that_reads_like_a_setting_is_put_in_quotation_marks():
    runs = [record("sac", batch_size=16, label="batch_size=16"), record("sac", batch_size=16)]
    runs.append(record("sac", batch_size=8))
    names = [cell.name for cell in cells_of([(run, 0) for run in runs])]
    assert names == ['sac "batch_size=16"', "sac batch_size=16", "sac batch_size=8"]


def test_results_summary_and_figures_have_the_same_cells(tmp_path):
    for i, hidden in enumerate(([16], [16, 16, 16])):
        write_run(tmp_path / "runs" / str(i), seeds=(2 * i, 2 * i + 1), config={"hidden": hidden})
    cells = group(read_runs(tmp_path / "runs"))
    rows = results(tmp_path / "runs")
    assert {(r["env"], r["label"], r["settings"], r["cell"]) for r in rows} == {
        (c.env, c.label, c.settings, c.key) for c in cells
    }
    write_report(tmp_path / "runs", tmp_path / "report")
    summary = (tmp_path / "report" / "summary.csv").read_text()
    assert all(f",{cell.key},simulator steps,2," in summary for cell in cells)
