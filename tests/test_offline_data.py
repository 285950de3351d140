"""Offline runs: shared datasets, facts of a dataset, one agent's rows, exact resume, datasets that have changed."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeReward, TimeLimit
from helpers import assert_equal
from offline_helpers import SPEC, Linear, made, made_dataset, write_made
from recordings import write, write_minari

import deeprl
from deeprl.commands import main as cli
from deeprl.core import rng
from deeprl.data.offline import (
    OfflineConfig,
    OfflineData,
    best_episodes,
    facts_of,
    moments_of,
    returns_to_go,
    reward_recipe,
)
from deeprl.errors import DeeprlError
from deeprl.replay.samplers import sample
from deeprl.reporting.read import group, read_runs
from deeprl.reporting.table import results
from deeprl.run.directory import evaluated_in
from deeprl.run.records import read_about

TINY: dict[str, Any] = {
    "batch_size": 16,
    "steps": 30,
    "log_every": 10,
    "compile": "off",
    "threads": 1,
}
ENV = "offline_helpers:MadeLinear-v0"
KWARGS: dict[str, dict[str, Any]] = {"c": {}, "d": {"max_episode_steps": 7}}


# --- facts ---


def test_moments_by_hand_over_two_arrays() -> None:
    mean, std = moments_of([torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    assert mean.tolist() == [4.0]
    assert std.item() == pytest.approx(np.std([1, 3, 5, 7]))


def test_moments_do_not_cancel() -> None:
    values = 1e4 + torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    mean, std = moments_of([values])
    torch.testing.assert_close(std, values.double().std(0, correction=0).float(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(mean, values.double().mean(0).float())


def test_normalized_observations_are_centred_with_unit_deviation() -> None:
    dataset = made_dataset()
    seen = facts_of(dataset, "obs", "as-is").see(dataset.data.obs)
    assert seen.mean(0).abs().max() < 1e-5
    std = dataset.data.obs.std(0, correction=0)
    torch.testing.assert_close(seen.std(0, correction=0), std / (std + 1e-3), rtol=1e-5, atol=0.0)
    both = facts_of(dataset, "both", "as-is")
    stacked = torch.cat([dataset.data.obs, dataset.data.next_obs])
    torch.testing.assert_close(both.obs_mean, stacked.mean(0), rtol=1e-4, atol=1e-6)


def test_an_observation_that_never_changes_is_seen_as_zero() -> None:
    dataset = made_dataset()
    dataset.data.obs[:, 1] = dataset.data.next_obs[:, 1] = 7.0
    assert facts_of(dataset, "both", "as-is").see(dataset.data.obs)[:, 1].tolist() == [0.0] * len(dataset)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ("as-is", (1.0, 0.0)),
        ("minus-one", (1.0, -1.0)),
        ("cql-antmaze", (4.0, -2.0)),
        ("calql-antmaze", (10.0, -5.0)),
        ("calql-adroit", (10.0, 5.0)),
        ("times-100", (100.0, 0.0)),
        ("return-range", (250.0, 0.0)),
    ],
)
def test_rewards_by_hand(rewards: str, expected: tuple[float, float]) -> None:
    """Returns of 1 and 5: 1000 / 4."""
    dataset = made_dataset(60)
    dataset = dataclasses.replace(dataset, returns=torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64))
    assert reward_recipe(dataset, rewards) == expected


def test_standardized_rewards() -> None:
    dataset = made_dataset()
    value = facts_of(dataset, "off", "standardize").value(dataset.data.reward)
    assert value.mean().abs() < 1e-5
    assert value.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)


def test_equal_returns_cannot_be_scaled() -> None:
    dataset = dataclasses.replace(made_dataset(), returns=torch.ones(10, dtype=torch.float64))
    with pytest.raises(DeeprlError, match="made: rewards return-range needs some that differ"):
        facts_of(dataset, "off", "return-range")


def test_best_episodes_keeps_the_best_in_their_order() -> None:
    dataset = made_dataset(rows=100, length=10)
    best = best_episodes(dataset, 0.3)
    chosen = sorted(dataset.returns.argsort(descending=True)[:3].tolist())
    assert best.returns.tolist() == dataset.returns[chosen].tolist()
    assert best.ends.tolist() == [10, 20, 30]
    rows = [r for e in chosen for r in range(10 * e, 10 * e + 10)]
    assert_equal(best.data, type(best.data)(*(a[rows] for a in dataset.data)))
    assert len(best_episodes(dataset, 0.001)) == 10  # at least one


# --- the datasets of a population ---


def test_each_dataset_is_held_once_and_every_agent_draws_its_own_rows() -> None:
    a, b = made_dataset(200, name="a"), made_dataset(100, seed=1, name="b")
    config = OfflineConfig(dataset=("b", "a", "b"), seeds=(0, 1, 2))
    data = OfflineData([("b", b), ("a", a)], 400, config, "cpu")
    assert data.arrays.obs.shape == (300, 3)
    assert data.first.tolist() == [0, 100, 0]
    assert data.size.tolist() == [100, 200, 100]
    for i, own in enumerate((b, a, b)):
        batch = sample(data.arrays, data.size[i], rng.key(i, "sample"), 500, 0.9, data.first[i])
        rows = (batch.obs[:, None] == own.data.obs[None]).all(-1)
        assert rows.any(1).all()
        assert rows.any(0).float().mean() > 0.8  # of all of it


def test_a_single_dataset_is_not_copied() -> None:
    dataset = made_dataset()
    data = OfflineData([("a", dataset)], 0, OfflineConfig(dataset="a", seeds=(0, 1)), "cpu")
    assert data.arrays.obs.data_ptr() == dataset.data.obs.data_ptr()


def test_discount_is_zero_after_a_termination_alone() -> None:
    dataset = made_dataset()
    batch = sample(dataset.data, torch.tensor(200), rng.key(0, "sample"), 1000, 0.9)
    index = rng.randint(rng.key(0, "sample"), (1000,), torch.tensor(200))
    assert torch.equal(batch.discount == 0.0, dataset.data.terminated[index])
    assert (batch.discount[dataset.data.truncated[index]] == 0.9).all()


# --- runs ---


HIDDEN: dict[str, Any] = {"hidden": [16, 16]}
CQL: dict[str, Any] = {"actor_hidden": [16, 16], "critic_hidden": [16, 16], "bc_steps": 10, "calibrated": True}


def train(out: Path, algorithm: str = "iql", **settings: Any) -> Any:
    own = CQL if algorithm == "cql" else HIDDEN
    return deeprl.train(algorithm, **{**TINY, **own, "out": str(out), **settings})


@pytest.mark.parametrize("algorithm", ["bc", "iql", "td3_bc", "rebrac", "riql", "cql", "edac"])
def test_resume_is_exact(tmp_path: Path, algorithm: str) -> None:
    files = [write_made(tmp_path / f"{name}.npz", seed=i) for i, name in enumerate("ab")]
    settings: dict[str, Any] = {
        "dataset": [files[0], files[1], files[1]],
        "seeds": [0, 0, 1],
    }
    whole = train(tmp_path / "whole", algorithm, **settings)
    for stop in (7, 20):
        train(tmp_path / "parts", algorithm, **settings, callback=lambda run, at=stop: run.step == at)
    parts = train(tmp_path / "parts", algorithm, **settings)
    assert whole.step == parts.step == 30
    for seed, index in ((1, 2), (0, 1)):
        a, b = (deeprl.load(r.directory, seed=seed, member=index) for r in (whole, parts))
        assert_equal(a._state, b._state)
    without_times = [
        [",".join(line.split(",")[:3] + line.split(",")[4:]) for line in (r.directory / "metrics.csv").open()]
        for r in (whole, parts)
    ]
    assert without_times[0] == without_times[1]
    assert len(without_times[0]) == 1 + 3 * 3


def test_last_step_of_an_offline_run_has_a_row_of_metrics(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dataset": write_made(tmp_path / "a.npz"), "steps": 12, "log_every": 1000}
    train(tmp_path / "whole", "bc", **settings)
    train(tmp_path / "parts", "bc", **settings, callback=lambda run: run.step == 11)
    assert not (tmp_path / "parts" / "metrics.csv").exists()
    train(tmp_path / "parts", "bc", **settings)
    found = [list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("whole", "parts")]
    assert [[row["step"] for row in rows] for rows in found] == [["12"], ["12"]]
    assert [rows[0] | {"wall_s": ""} for rows in found] == [found[0][0] | {"wall_s": ""}] * 2


class OwnGenerator(Linear):
    """Pays what it draws from a generator that no seed reaches, whatever the policy: training is not restored here."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, *rest = super().step(action)
        return obs, float(self.generator.uniform()), *rest


# Environments whose episodes depend on those before: in themselves, and in a wrapper of which only its maker knows.
REMEMBERING = {
    "generator": lambda: TimeLimit(OwnGenerator(), 5),
    "wrapper": lambda: NormalizeReward(TimeLimit(Linear(), 5)),
}


@pytest.mark.parametrize("algorithm", ["bc", "td3"])
@pytest.mark.parametrize("kind", REMEMBERING)
def test_evaluations_after_a_resume_are_those_of_the_whole_run(
    kind: str, algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    about = gym.envs.registration.EnvSpec("Remembering-v0", REMEMBERING[kind])
    monkeypatch.setitem(gym.registry, "Remembering-v0", about)
    own = {"dataset": write_made(tmp_path / "a.npz")} if algorithm == "bc" else {"learning_starts": 5}
    settings = {"env": "Remembering-v0", "eval_every": 5, "eval_episodes": 2, **own}
    train(tmp_path / "whole", algorithm, **settings)
    capsys.readouterr()
    for stop in (7, 15):
        train(tmp_path / "parts", algorithm, **settings, callback=lambda run, at=stop: run.step == at)
    assert capsys.readouterr().out.count("every evaluation makes new environments") == 2
    train(tmp_path / "parts", algorithm, **settings)
    evaluations = [
        [line.rsplit(",", 1)[0] for line in (tmp_path / name / "evaluations.csv").open()] for name in ("whole", "parts")
    ]
    assert evaluations[0] == evaluations[1]
    assert len(evaluations[0]) == 1 + 6 * 2


def test_environments_that_forget_are_kept_from_one_evaluation_to_the_next(tmp_path: Path) -> None:
    made_before = []

    class Counted(Linear):
        def __init__(self) -> None:
            made_before.append(self)

    gym.register("Counted-v0", Counted, max_episode_steps=5)
    counts = []
    settings = {"dataset": write_made(tmp_path / "a.npz"), "env": "Counted-v0", "eval_every": 5, "eval_episodes": 2}
    train(tmp_path / "run", "bc", **settings, callback=lambda run: counts.append(len(made_before)))
    gym.registry.pop("Counted-v0")
    assert counts[5] == counts[-1] == counts[0] + 2


def test_a_changed_dataset_is_refused_on_resume(tmp_path: Path) -> None:
    file = write_made(tmp_path / "a.npz")
    train(tmp_path / "run", dataset=file, callback=lambda run: run.step == 10)
    write_made(tmp_path / "a.npz", seed=5)
    with pytest.raises(DeeprlError, match=r"a\.npz is not what it was when this run began"):
        train(tmp_path / "run", dataset=file)


def test_without_an_environment_it_trains_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run", dataset=write_made(tmp_path / "a.npz"))
    assert run.finished
    assert "no evaluations: a names no environment; give one with --env" in capfd.readouterr().out
    assert not (run.directory / "evaluations.csv").exists()
    assert cli.main(["evaluate", str(run.directory)]) == 2
    assert "no environment: none could be made for its dataset" in capfd.readouterr().err


def test_evaluations_in_the_environment_that_is_named(tmp_path: Path) -> None:
    file = write_made(tmp_path / "tiny-v0.npz")
    run = train(tmp_path / "run", dataset=file, env=ENV, seeds="0-1", eval_every=10, eval_episodes=3)
    rows = results(run.directory)
    assert {(r["env"], r["step"], r["seed"]) for r in rows} == {("tiny-v0", s, k) for s in (10, 20, 30) for k in (0, 1)}
    assert sum(1 for _ in (run.directory / "evaluations.csv").open()) == 1 + 2 * 3 * 3  # every episode


def test_an_environment_with_other_spaces_is_refused(tmp_path: Path) -> None:
    file = write_made(tmp_path / "a.npz")
    with pytest.raises(DeeprlError, match=r"a\.npz: observations: 3 numbers .* Pendulum-v1 has|a\.npz: actions"):
        train(tmp_path / "run", dataset=file, env="Pendulum-v1")
    assert not (tmp_path / "run").exists()


def test_actions_beyond_the_bounds_are_refused_or_clipped(tmp_path: Path) -> None:
    actions = made()["actions"]
    actions[3] = (1.5, -2.0)
    file = write_made(tmp_path / "a.npz", actions=actions)
    with pytest.raises(DeeprlError, match=r"--clip-actions"):
        train(tmp_path / "run", dataset=file, env=ENV, eval_episodes=0)
    learned: list[Any] = []

    def look(run: Any) -> None:
        learned.append(run._attached["data"].arrays.action)

    assert train(tmp_path / "run", dataset=file, env=ENV, eval_episodes=0, clip_actions=True, callback=look).finished
    assert learned[0][3].tolist() == [1.0, -1.0]
    assert learned[0].abs().max() == 1.0


def test_returns_of_a_population_are_those_of_sparse_rewards_if_so_set(tmp_path: Path) -> None:
    dataset = made_dataset(60)
    dataset.data.reward[:] = torch.where(torch.arange(60) == 45, 1.0, 0.0)  # one success, in the last episode
    config = OfflineConfig(dataset="a", seeds=(0, 1), rewards="calql-antmaze")
    data = OfflineData([("a", dataset)], 0, config, "cpu")
    for sparse in (True, False):
        found, first = data.returns_to_go((0.9, 0.5), sparse=sparse)
        own = [returns_to_go(10 * dataset.data.reward - 5, dataset.ends, d, sparse) for d in (0.9, 0.5)]
        for start, expected in zip(first, own, strict=True):
            torch.testing.assert_close(found[start : start + 60], expected)
        assert (found[first[0]].item() == pytest.approx(-50.0)) == sparse  # -5 / (1 - 0.9) in an episode that fails


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "dataset: name a file"),
        ({"dataset": "nothing.npz"}, "nothing.npz"),
        ({"dataset": ["a", "b", "c"], "seeds": "0-1"}, "dataset: 3 values for 2 seeds"),
        ({"dataset": "a", "batch_size": 0}, "batch_size: must be positive"),
        ({"dataset": "a", "normalize_obs": True}, "normalize_obs: expected off, obs, both"),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(DeeprlError, match=text):
        train(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_datasets_of_one_population_must_be_of_one_kind(tmp_path: Path) -> None:
    first = write_made(tmp_path / "a.npz")
    wide = np.zeros((200, 4), np.float32)
    other = write_made(tmp_path / "b.npz", observations=wide, next_observations=wide)
    with pytest.raises(DeeprlError, match=r"b\.npz and a are of different kinds: numbers of an observation 4 and 3$"):
        train(tmp_path / "run", dataset=[first, other], seeds=[0, 1])
    sources = [write(tmp_path / f"{name}.hdf5", made(), env=ENV, env_kwargs=kwargs) for name, kwargs in KWARGS.items()]
    with pytest.raises(DeeprlError, match=r"kinds: its arguments \{'max_episode_steps': 7\} and \{\}$"):
        train(tmp_path / "run", dataset=sources, seeds=[0, 1])


def test_a_population_of_minari_datasets_counts_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their metadata may count fewer; the arrays of all were then too short."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for name, count in (("toy/one-v0", 13), ("toy/two-v0", 3)):
        write_minari(tmp_path, name, total_steps=count)
    sizes: list[Any] = []
    run = train(
        tmp_path / "run", "bc", dataset=["toy/one-v0", "toy/two-v0"], seeds=[0, 0], steps=2,
        callback=lambda run: sizes.append(run._attached["data"].size.tolist()),
    )  # fmt: skip
    assert run.finished
    assert sizes[0] == [13, 13]


def test_a_run_evaluates_in_the_wrappers_that_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrapper = "gymnasium.wrappers:RecordEpisodeStatistics"
    source = write(tmp_path / "a.hdf5", made(), env=ENV, about={"wrappers": [wrapper]})
    unnamed = train(tmp_path / "unnamed", dataset=source, eval_episodes=1)
    assert f"no evaluations: {ENV} was wrapped in {wrapper}; name them with --wrappers" in capfd.readouterr().out
    assert not (unnamed.directory / "evaluations.csv").exists()
    named = train(tmp_path / "named", dataset=source, eval_episodes=1, wrappers=[wrapper])
    assert evaluated_in(read_about(named.directory)).wrappers == (wrapper,)
    assert (named.directory / "evaluations.csv").exists()
    train(tmp_path / "other", dataset=source, eval_episodes=1, env=ENV)
    assert f"a: the dataset is of {ENV} wrapped in {wrapper}; policies are evaluated in" in capfd.readouterr().out


def test_reports_tell_datasets_apart_and_normalise(tmp_path: Path) -> None:
    files = [write_made(tmp_path / f"{name}.npz", seed=i) for i, name in enumerate(("one", "two"))]
    run = train(tmp_path / "run", dataset=[files[0], files[1]], seeds=[0, 0], env=ENV, eval_episodes=1)
    (read,) = read_runs(run.directory)
    assert [agent.task for agent in read.agents] == ["one", "two"]
    assert [(cell.env, cell.settings) for cell in group([read])] == [("one", "{}"), ("two", "{}")]
    assert read.score(5.0) is None


def test_the_dry_run_counts_each_dataset_once(tmp_path: Path) -> None:
    files = [write_made(tmp_path / f"{name}.npz", rows) for name, rows in (("a", 100), ("b", 200))]
    needs = deeprl.dry_run("iql", dataset=[*files, files[0]], seeds=[0, 1, 2])
    # The larger one once more: it is read beside the arrays of all.
    assert needs.shared == (300 + 200) * (4 * (3 + 3 + 2 + 1) + 2)
    assert deeprl.dry_run("iql", dataset=files[1], seeds=[0, 1, 2]).shared == 200 * (4 * (3 + 3 + 2 + 1) + 2)
    assert needs.total == 3 * needs.per_agent + needs.shared
    assert "shared" in needs.table()


def test_a_dataset_from_the_command_line(tmp_path: Path) -> None:
    file = write_made(tmp_path / "a.npz")
    words = f"train bc --dataset {file} {file} --seeds 0-1 --steps 5 --hidden 8 --batch-size 4 --out {tmp_path / 'run'}"
    assert cli.main([*words.split(), "--env", ENV, "--eval-episodes", "1"]) == 0
    assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes", "2"]) == 0
    assert cli.main(["resume", str(tmp_path / "run")]) == 0
    assert cli.main(["train", "iql", "--env", ENV]) == 2  # no dataset


def test_spec_of_the_made_arrays() -> None:
    assert made()["observations"].shape == (200, *SPEC.obs_shape)
