"""The parts of the offline benchmarks that need neither peers nor learning: what peers are given, and the tables."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import corrupted
import offline_table
from offline_peer import transitions

from deeprl.data.datasets import load_dataset


@pytest.fixture
def file(tmp_path):
    """Four episodes of five steps: one terminates, two are cut by a limit, of the last the recording stops."""
    draw = np.random.default_rng(0)
    rows = {"observations": draw.normal(size=(20, 3)), "actions": draw.uniform(-1, 1, (20, 2)), "rewards": np.ones(20)}
    rows |= {"terminals": np.arange(20) == 4, "timeouts": np.isin(np.arange(20), (9, 14))}
    with h5py.File(tmp_path / "set.hdf5", "w") as made:
        for key, column in rows.items():
            made[key] = column.astype(bool if key in ("terminals", "timeouts") else np.float32)
    return str(tmp_path / "set.hdf5")


def test_the_authors_code_learns_from_the_rows_that_deeprl_learns_from(file):
    theirs, ours = transitions(file), load_dataset(file).data
    assert theirs["terminals"].tolist() == [0.0] * 4 + [1.0] + [0.0] * 12  # 20 less 2 at limits less the very last
    for key, own in (("observations", ours.obs), ("actions", ours.action), ("rewards", ours.reward)):
        np.testing.assert_array_equal(theirs[key], own.numpy())
    going_on = theirs["terminals"] == 0.0
    np.testing.assert_array_equal(theirs["next_observations"][going_on], ours.next_obs.numpy()[going_on])


def rows_file(path, returns, column="return"):
    """returns: of (algorithm, dataset) -> those of seeds 0, 1, ... at step 2; at step 1 all are 0."""
    with path.open("w", newline="") as made:
        writer = csv.writer(made)
        writer.writerow(("algorithm", "env", "seed", "step", column))
        for (algorithm, env), values in returns.items():
            for seed, value in enumerate(values):
                writer.writerows((algorithm, env, seed, step, value * (step - 1)) for step in (2, 1))
    return path


def score(hopper_return):
    return 100.0 * (hopper_return + 20.272305) / (3234.3 + 20.272305)


def test_a_table_holds_the_last_step_and_averages_seed_by_seed(tmp_path):
    path = rows_file(
        tmp_path / "ours.csv", {("bc", "hopper-medium"): (0.0, 100.0), ("bc", "hopper-expert"): (1000.0, 3000.0)}
    )
    scores = offline_table.final_scores([path])
    assert scores["bc", "hopper-expert"] == pytest.approx({0: score(1000.0), 1: score(3000.0)})
    first = offline_table.final_scores([path], step=1)
    assert first["bc", "hopper-expert"] == pytest.approx({0: score(0.0), 1: score(0.0)})
    averages = offline_table.averages(scores, "bc", ["hopper-medium", "hopper-expert"])
    assert averages == pytest.approx([score(500.0), score(1550.0)])


def test_a_peer_is_beside_ours_with_two_standard_errors_of_the_difference(tmp_path, capsys):
    ours = rows_file(
        tmp_path / "ours.csv", {("iql", "hopper-medium"): (900.0, 1100.0), ("iql", "hopper-expert"): (10.0, 12.0)}
    )
    peers = {("iql:d3rlpy 2", "hopper-medium"): (1000.0, 1200.0), ("iql:authors", "hopper-expert"): (1000.0, 1200.0)}
    peers |= {("bc:d3rlpy 2", "hopper-medium"): (1.0, 2.0)}
    theirs = rows_file(tmp_path / "theirs.csv", peers)
    offline_table.beside(offline_table.final_scores([ours]), offline_table.final_scores([theirs]))
    near, far = capsys.readouterr().out.splitlines()[2:]
    # standard error: sqrt(20000 / 2 + 20000 / 2) = 141.4 in returns
    cells = [cell.strip() for cell in near.split("|")]
    assert (cells[4], cells[6:9]) == ("d3rlpy 2", ["-3.1", "8.7", "yes"])
    assert far.startswith("| hopper-expert | iql |")
    assert far.endswith("| NO |")


def test_riql_is_compared_with_iql_seed_by_seed_where_all_seeds_are_there(tmp_path, capsys):
    own = {("iql", "hopper-medium"): (0.0, 0.0), ("riql", "hopper-medium"): (100.0, 100.0)}
    for case, ours, theirs in (("random-reward", 100.0, 300.0), ("random-action", 200.0, 100.0)):
        for seed in range(2):  # of each file only the seed of its name is a row that counts
            own["iql", f"hopper-medium-{case}-{seed}"] = (ours, ours)
            own["riql", f"hopper-medium-{case}-{seed}"] = (theirs, theirs)
    own["iql", "hopper-medium-random-dynamics-0"] = own["riql", "hopper-medium-random-dynamics-0"] = (1.0, 1.0)
    rows = rows_file(tmp_path / "rows.csv", own, column="score")
    options = corrupted.Options("somewhere/hopper-medium.hdf5", seeds=2)
    corrupted.table(options, offline_table.final_scores([rows]))
    _, _, *lines = (line.split(" | ") for line in capsys.readouterr().out.splitlines())
    cases = ["clean", "random-action", "random-reward", "average of these attacks"]
    assert [line[0].strip("| ") for line in lines] == cases
    assert [float(line[3].split()[0]) for line in lines] == pytest.approx([100.0, -100.0, 200.0, 50.0])
    assert lines[2][4].startswith("69.7, 84.8, 15.1")
    assert lines[3][4].startswith("73.0, 87.7, 14.7")  # (76.3 + 69.7) / 2, (90.6 + 84.8) / 2
