"""The parts of the offline benchmarks that need neither peers nor learning: what peers are given, and the tables."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

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


def rows_file(path, returns):
    """returns: of (algorithm, dataset) -> those of seeds 0, 1, ... at step 2; at step 1 all are 0."""
    with path.open("w", newline="") as made:
        writer = csv.writer(made)
        writer.writerow(("algorithm", "env", "seed", "step", "return"))
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
