"""Reading datasets: as a plain loop over the rows does it, from an environment with known successors, in memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recordings import EPISODES, Toy, episodes, flat, successor, write, write_minari

from deeprl.commands.main import main
from deeprl.data import files as dataset_files
from deeprl.data import rows as dataset_rows
from deeprl.data.datasets import Dataset, dataset_name, load_dataset, peek
from deeprl.data.info import broken_chains, coverage, describe, duplicates, problems
from deeprl.errors import DeeprlError

TOY = "recordings:DatasetToy-v0"
ADROIT = "gymnasium_robotics:AdroitHand"
pytestmark = [
    pytest.mark.filterwarnings("ignore:::minari"),
    pytest.mark.filterwarnings("ignore:.*out of date.*"),
]
ROWS = sum(EPISODES)


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "minari"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


def arrays_of(dataset: Dataset) -> dict[str, np.ndarray]:
    found = dataset.data._asdict() | {"ends": dataset.ends, "returns": dataset.returns}
    return {name: value.numpy() for name, value in found.items()}


def check_invariants(dataset: Dataset) -> None:
    data, last = dataset.data, torch.zeros(len(dataset), dtype=torch.bool)
    last[dataset.ends - 1] = True
    assert torch.equal(data.terminated ^ data.truncated, last)
    assert not (data.terminated & data.truncated).any()
    assert dataset.ends[-1] == len(dataset)
    assert len(dataset.ends) == len(dataset.returns)
    assert {str(a.dtype) for a in (data.obs, data.action, data.reward, data.next_obs)} == {"torch.float32"}


# --- the same numbers as a plain loop gives ---


def plain(raw: dict[str, np.ndarray]) -> dict[str, Any]:
    """Transitions by the words of the documentation, one row after the other."""
    kept, ends, returns, total, before = [], [], [], 0.0, 0
    rows = len(raw["rewards"])
    for i in range(rows):
        total += float(raw["rewards"][i])
        terminal, timeout = bool(raw["terminals"][i]), bool(raw["timeouts"][i])
        last = terminal or timeout or i == rows - 1
        if "next_observations" in raw:
            successor_of = raw["next_observations"][i]
        elif terminal:
            successor_of = raw["observations"][i]
        else:
            successor_of = None if last else raw["observations"][i + 1]
        if successor_of is not None:
            kept.append((raw["observations"][i], raw["actions"][i], raw["rewards"][i], terminal, successor_of))
        if last:
            if len(kept) > before:
                ends.append(len(kept))
                returns.append(total)
            total, before = 0.0, len(kept)
    obs, action, reward, terminated, next_obs = (np.array(x) for x in zip(*kept, strict=True))
    truncated = np.zeros(len(kept), bool)
    truncated[np.array(ends) - 1] = True
    found = {"obs": obs, "action": action, "reward": reward, "terminated": terminated, "next_obs": next_obs}
    found |= {"truncated": truncated & ~terminated, "ends": np.array(ends), "returns": np.array(returns)}
    return found


@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    known=st.booleans(),
    stops=st.booleans(),
    piece=st.sampled_from([1, 40, 100, 1 << 22]),
    ending=st.sampled_from([".npz", ".hdf5"]),
)
def test_transitions_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], known: bool, stops: bool, piece: int, ending: str
) -> None:
    raw = flat(lengths)
    raw["actions"] = raw["actions"] / 2  # [-1, 1], the bounds of a dataset without an environment
    if not known:
        del raw["next_observations"]
    if stops:
        raw["terminals"][-1] = raw["timeouts"][-1] = False
    path = tmp_path_factory.mktemp("data") / f"some{ending}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_files, "_PIECE", piece)
        dataset = load_dataset(write(path, raw))
    ours, expected = arrays_of(dataset), plain(raw)
    check_invariants(dataset)
    for name, value in expected.items():
        if name == "returns":
            np.testing.assert_allclose(ours[name], value, rtol=1e-12, atol=1e-12)
        else:
            np.testing.assert_array_equal(ours[name], value.astype(ours[name].dtype), name)


def test_all_kinds_of_files_give_the_same_numbers(tmp_path: Path, minari_root: Path) -> None:
    directory = write_minari(minari_root)
    sources = [write(tmp_path / f"toy{ending}", flat()) for ending in (".npz", ".hdf5", ".h5")]
    datasets = [load_dataset(source, TOY) for source in (*sources, "toy/plane-v0", str(directory))]
    assert len({dataset.digest() for dataset in datasets}) == 1
    assert [d.name for d in datasets] == ["toy", "toy", "toy", "toy/plane-v0", "plane-v0"]
    assert {peek(source) for source in (*sources, "toy/plane-v0")} == {(ROWS, 2, 2)}


@pytest.mark.parametrize("lengths", [EPISODES, (1,), (3, 3), (1, 1, 1)])
def test_minari_successors_are_those_of_the_environment(minari_root: Path, lengths: tuple[int, ...]) -> None:
    """T + 1 observations and T actions an episode: a reader that joins them runs one row further apart in each."""
    write_minari(minari_root, parts=episodes(lengths))
    dataset = load_dataset("toy/plane-v0")
    obs, action, next_obs = dataset.data.obs.numpy(), dataset.data.action.numpy(), dataset.data.next_obs.numpy()
    np.testing.assert_array_equal(next_obs, successor(obs, action * 2))
    np.testing.assert_array_equal(dataset.ends, np.cumsum(lengths))
    np.testing.assert_allclose(dataset.returns, [p["rewards"].sum() for p in episodes(lengths)])
    check_invariants(dataset)


def test_flat_successors_are_those_of_the_environment(tmp_path: Path) -> None:
    raw = flat()
    del raw["next_observations"]
    dataset = load_dataset(write(tmp_path / "toy.npz", raw), TOY)
    data, going = dataset.data, ~dataset.data.terminated
    expected = successor(data.obs.numpy(), data.action.numpy() * 2)
    np.testing.assert_array_equal(data.next_obs[going], expected[going.numpy()])
    assert torch.equal(data.next_obs[~going], data.obs[~going])
    assert len(dataset) == ROWS - 2  # of two episodes that were cut the last row is left out
    np.testing.assert_allclose(dataset.returns, load_dataset(write(tmp_path / "all.npz", flat()), TOY).returns)


@pytest.mark.parametrize("lengths", [(3, 2, 4, 1, 2), (1, 1, 4)])
def test_a_cut_row_that_is_its_own_successor_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    """What recorders write that never saw the successor; nothing may be bootstrapped from it."""
    monkeypatch.setattr(dataset_rows, "_BLOCK", 2)
    raw = flat(lengths)
    raw["timeouts"][-1] = False  # a recording that stops is cut as well
    last = np.cumsum(lengths) - 1
    raw["next_observations"][last] = raw["observations"][last]  # also after terminations, where nothing depends on it
    raw["next_observations"][2] = raw["observations"][2]  # last of the first episode, or first of the third
    dataset = load_dataset(write(tmp_path / "still.npz", raw), TOY)
    keep = np.ones(sum(lengths), bool)
    keep[last[::2]] = False  # the episodes of an even number are cut
    columns = ("observations", "actions", "rewards", "terminals", "next_observations")
    check_invariants(dataset)
    for key, array in zip(columns, (*dataset.data[:4], dataset.data.next_obs), strict=True):
        np.testing.assert_array_equal(array, (raw[key] / 2 if key == "actions" else raw[key])[keep])
    left = [n - (i % 2 == 0) for i, n in enumerate(lengths)]
    assert dataset.ends.tolist() == np.cumsum([n for n in left if n]).tolist()
    parts = np.split(raw["rewards"], last[:-1] + 1)
    np.testing.assert_allclose(dataset.returns, [p.sum() for p, n in zip(parts, left, strict=True) if n])
    count = (~keep).sum()
    assert f"rows left out, whose next observation is the observation itself where an episode was cut: {count}" in (
        dataset.notes
    )


def test_our_own_files_have_their_successors(tmp_path: Path) -> None:
    """Where the world stands still, each way through a file would else cost a row of each episode."""
    raw = flat()
    raw["next_observations"][4] = raw["observations"][4]
    path = write(tmp_path / "own.hdf5", raw, env=TOY, action_low=[-2, -2], action_high=[2, 2], about={})
    assert len(load_dataset(path)) == ROWS


def test_a_dataset_without_any_successor_is_refused(tmp_path: Path) -> None:
    raw = flat((1,))
    raw["next_observations"][:] = raw["observations"]
    with pytest.raises(DeeprlError, match="observations: no row has a successor in its episode, from row 0 on"):
        load_dataset(write(tmp_path / "none.npz", raw), TOY)


def test_without_timeouts_episodes_end_at_the_limit(tmp_path: Path) -> None:
    raw = flat((5, 3, 5, 5, 2))  # the limit of the environment is 5; the second and the fourth episode terminate
    del raw["timeouts"], raw["next_observations"]
    dataset = load_dataset(write(tmp_path / "old.hdf5", raw), TOY)
    assert dataset.ends.tolist() == [4, 7, 11, 16, 17]  # of those that were cut the last row is left out
    assert dataset.data.terminated.nonzero().flatten().tolist() == [6, 15]
    assert "timeouts: absent; episodes end at the limit of 5 steps" in problems(dataset)[0]


def as_qlearning_dataset(raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What d4rl.qlearning_dataset makes: successors are next rows, also of the next episode; rows of timeouts go."""
    kept = np.flatnonzero(~raw["timeouts"][:-1])
    arrays = {key: raw[key][kept] for key in ("observations", "actions", "rewards", "terminals")}
    return arrays | {"next_observations": raw["observations"][kept + 1]}


@pytest.mark.parametrize("ending", [".npz", ".hdf5"])
@pytest.mark.parametrize("piece", [1, 40, 1 << 22])
def test_without_timeouts_episodes_end_where_the_chain_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, ending: str
) -> None:
    monkeypatch.setattr(dataset_files, "_PIECE", piece)
    raw = flat((5, 3, 5, 5, 4))  # the second and the fourth terminate
    path = write(tmp_path / f"made{ending}", as_qlearning_dataset(raw))
    dataset = load_dataset(path, TOY)
    # Rows 0-3 of the first, 0-2 of the second, 0-3 of the third, 0-4 of the fourth, 0-2 of the fifth.
    assert dataset.ends.tolist() == [4, 7, 11, 16, 19]
    assert dataset.data.terminated.nonzero().flatten().tolist() == [6, 15]
    assert dataset.data.truncated.nonzero().flatten().tolist() == [3, 10, 18]
    sums = [raw["rewards"][a:b].sum() for a, b in ((0, 4), (5, 8), (8, 12), (13, 18), (18, 21))]
    np.testing.assert_allclose(dataset.returns, sums)
    assert dataset.notes == ("timeouts: absent; episodes end where next_observations do not go on in the next row: 3",)
    raw["actions"] /= 2  # [-1, 1]: no limit is needed, and so no environment
    assert load_dataset(write(tmp_path / f"halved{ending}", as_qlearning_dataset(raw))).ends.tolist() == [
        4,
        7,
        11,
        16,
        19,
    ]


def test_a_termination_at_a_break_stays_one(tmp_path: Path) -> None:
    raw = flat((5, 3, 2))
    del raw["timeouts"]  # every row is there, and its true successor
    dataset = load_dataset(write(tmp_path / "whole.npz", raw), TOY)
    assert dataset.ends.tolist() == [5, 8, 10]
    assert dataset.data.terminated.nonzero().flatten().tolist() == [7]
    assert dataset.data.truncated.nonzero().flatten().tolist() == [4, 9]


@pytest.mark.parametrize(("obs", "after"), [("f8", "f4"), ("f4", "f8"), ("f2", "f4"), ("f8", "f2"), (">f8", "g")])
def test_chains_hold_across_types(tmp_path: Path, obs: str, after: str) -> None:
    """A number and what rounding has made of it are one."""
    raw = as_qlearning_dataset(flat((5, 3, 5, 5, 4)))
    exact = raw["observations"] + np.random.default_rng(0).normal(size=raw["observations"].shape) * 1e-9
    chained = (raw["next_observations"][:-1] == raw["observations"][1:]).all(1)
    after_exact = raw["next_observations"].astype(np.float64)
    after_exact[:-1][chained] = exact[1:][chained]
    raw |= {"observations": exact.astype(obs), "next_observations": after_exact.astype(after)}
    assert load_dataset(write(tmp_path / "mixed.npz", raw), TOY).ends.tolist() == [4, 7, 11, 16, 19]


def test_one_chain_is_one_episode_and_longer_ones_than_the_limit_are_told(tmp_path: Path) -> None:
    raw = flat((9,))  # the limit of the environment is 5
    del raw["timeouts"]
    dataset = load_dataset(write(tmp_path / "long.npz", raw), TOY)
    assert dataset.ends.tolist() == [9]
    assert dataset.notes == (
        "timeouts: absent; episodes end where next_observations do not go on in the next row: 1; longer than the limit"
        f" of 5 steps of {TOY}: 1",
        "no episode is complete: all count as if they were",
    )


@pytest.mark.parametrize("known", [True, False])
def test_a_row_with_both_flags_is_a_termination(tmp_path: Path, known: bool) -> None:
    raw = flat()  # 5 rows, cut; 1 row, terminated; 7 rows, cut
    raw["terminals"][4] = raw["timeouts"][5] = True
    if not known:
        del raw["next_observations"]
    dataset = load_dataset(write(tmp_path / "both.npz", raw), TOY)
    assert dataset.data.terminated.nonzero().flatten().tolist() == [4, 5]
    assert dataset.data.truncated.nonzero().flatten().tolist() == [len(dataset) - 1]
    assert dataset.ends.tolist() == [5, 6, 13 if known else 12]
    assert dataset.notes[0] == "rows that are both terminations and truncations, taken as terminations: 2"


@pytest.mark.parametrize("ending", [".npz", ".hdf5"])
@pytest.mark.parametrize("dtype", ["g", "f2", "i8", "u8"])
def test_rewards_of_any_type_are_read(tmp_path: Path, ending: str, dtype: str) -> None:
    raw = flat() | {"rewards": np.arange(ROWS).astype(dtype)}
    dataset = load_dataset(write(tmp_path / f"long{ending}", raw), TOY)
    assert dataset.data.reward.tolist() == list(range(ROWS))
    assert dataset.returns.tolist() == [10.0, 5.0, 63.0]  # 0 + ... + 4, 5, 6 + ... + 12


# --- actions, environments, what files say of themselves ---


def test_actions_are_rescaled_and_those_within_one_are_untouched(tmp_path: Path) -> None:
    raw = flat()
    rescaled = load_dataset(write(tmp_path / "toy.npz", raw), TOY)
    np.testing.assert_array_equal(rescaled.data.action, raw["actions"] / 2)
    assert rescaled.spec.action_high == (2.0, 2.0)
    odd = raw | {"actions": np.full_like(raw["actions"], np.nextafter(np.float32(1), np.float32(0)))}
    untouched = load_dataset(write(tmp_path / "odd.npz", odd))
    np.testing.assert_array_equal(untouched.data.action, odd["actions"])
    own = write(tmp_path / "own.h5", raw, action_low=[-2, -4], action_high=[2, 4])
    np.testing.assert_array_equal(load_dataset(own).data.action, raw["actions"] / np.float32([2, 4]))


def test_clipping_is_asked_for_and_noted(tmp_path: Path) -> None:
    raw = flat()
    raw["actions"][4] = 2.5, -7
    path = write(tmp_path / "toy.npz", raw)
    dataset = load_dataset(path, TOY, clip=True)
    assert dataset.data.action[4].tolist() == [1, -1]
    assert "numbers of actions beyond the bounds, clipped: 2" in dataset.notes
    raw["actions"][4] = 2 + 1e-6, -2  # what rounding adds is no error
    assert load_dataset(write(tmp_path / "near.npz", raw), TOY).data.action[4].tolist() == [1, -1]


def test_a_file_of_our_own_says_where_it_comes_from(tmp_path: Path) -> None:
    raw = flat() | {"infos/qpos": np.zeros(3), "corruption/actions": np.ones(ROWS, bool)}
    path = write(
        tmp_path / "own.hdf5", raw, env=TOY, env_kwargs={"big": False}, action_low=[-2, -2], action_high=[2, 2],
        about={"policy": "random", "seeds": [1, 2]},
    )  # fmt: skip
    dataset = load_dataset(path)
    assert (dataset.env, dataset.env_kwargs, dataset.env_problem) == (TOY, {"big": False}, "")
    assert dataset.about == {"policy": "random", "seeds": [1, 2]}
    with pytest.raises(DeeprlError, match=r"bounds .* of another environment"):
        load_dataset(path, env_kwargs={"big": True})


def test_names_of_others_are_not_taken_for_our_own(tmp_path: Path) -> None:
    """Arrays and attributes of the library count in what the library wrote."""
    raw = flat() | {"actions": np.zeros((ROWS, 2))}
    path = write(tmp_path / "hopper_of_mine.hdf5", raw | {"episode_returns": np.array([1.0, 0.0, 0.0])})
    theirs: dict[str, Any] = {
        "about": "collected on Monday", "env": "my robot", "env_kwargs": 3, "action_low": "none", "score_range": [1],
    }  # fmt: skip
    with h5py.File(path, "a") as file:
        file.attrs.update(theirs)
    dataset = load_dataset(path)
    np.testing.assert_allclose(dataset.returns, [p["rewards"].sum() for p in episodes()], rtol=1e-6)
    assert (dataset.env, dataset.env_kwargs, dataset.about, dataset.spec.score_range) == ("", {}, {}, ())
    assert dataset.notes == ()


def test_files_from_before_the_mark_are_our_own(tmp_path: Path) -> None:
    """They have all five attributes, JSON but for the first one."""
    raw, said = longer()
    told = said | {"env_kwargs": {}, "action_low": [-2, -2], "action_high": [2, 2]}
    path = write(tmp_path / "old.hdf5", raw | {"episode_returns": np.array([7.0, 8.0, 9.0])}, **told)
    with h5py.File(path, "a") as file:
        del file.attrs["deeprl"]
    dataset = load_dataset(path)
    assert (dataset.env, dataset.about, dataset.returns.tolist()) == (TOY, told["about"], [7.0, 8.0, 9.0])
    for name in ("env", "env_kwargs", "action_low", "action_high", "about"):
        with h5py.File(path, "a") as file:
            value = file.attrs[name]
            del file.attrs[name]
        assert load_dataset(path, clip=True).env == "", name
        with h5py.File(path, "a") as file:
            file.attrs[name] = value
    assert load_dataset(path).env == TOY


def test_metadata_of_others_are_not_taken_for_our_own(minari_root: Path) -> None:
    theirs = {"corruption": "none, I hope", "wrappers": "none", "seed": 3, "recipe": "soup", "algorithm_name": "SAC"}
    write_minari(minari_root, **theirs)
    dataset = load_dataset("toy/plane-v0")
    assert "corruption" not in dataset.about
    assert "\norigin: algorithm SAC\n" in describe(dataset)
    assert not any("corrupted" in line for line in problems(dataset))


def test_steps_of_minari_are_counted_not_believed(minari_root: Path) -> None:
    write_minari(minari_root, total_steps=5)
    assert peek("toy/plane-v0").rows == ROWS
    assert load_dataset("toy/plane-v0").notes == (f"metadata.json counts 5 steps; the episodes have {ROWS}",)


def test_an_environment_that_is_not_here_does_not_keep_a_dataset_from_loading(tmp_path: Path) -> None:
    path = write(tmp_path / "own.hdf5", flat(), env="no_such_package:Some-v0", action_low=[-2] * 2, action_high=[2] * 2)
    dataset = load_dataset(path)
    assert "no_such_package" in dataset.env_problem
    assert dataset.spec.action_high == (2.0, 2.0)
    assert any("cannot be made here" in line for line in problems(dataset))
    with pytest.raises(DeeprlError, match="no_such_package"):
        load_dataset(path, "no_such_package:Some-v0")


@pytest.mark.parametrize(
    ("stem", "obs", "actions", "env", "kwargs", "highest"),
    [
        ("hopper_medium_replay-v2", 11, 3, "Hopper-v4", {}, 3234.3),
        ("halfcheetah_random-v0", 17, 6, "HalfCheetah-v4", {}, 12135.0),
        ("walker2d-full_replay-v1", 17, 6, "Walker2d-v4", {}, 4592.3),
        ("ant_medium_expert-v2", 111, 8, "Ant-v4", {}, 3879.7),
        ("door-human-v1", 39, 28, f"{ADROIT}Door-v1", {}, 2880.5693087298737),
        ("pen-cloned-v1", 45, 24, f"{ADROIT}Pen-v1", {"max_episode_steps": 100}, 3076.8331017826877),
    ],
)
def test_names_of_d4rl_imply_an_environment(
    tmp_path: Path, stem: str, obs: int, actions: int, env: str, kwargs: dict[str, Any], highest: float
) -> None:
    raw = {
        "observations": np.random.default_rng(0).normal(size=(4, obs)),
        "actions": np.zeros((4, actions)),
        "rewards": np.ones((4, 1)),
        "terminals": np.zeros(4, np.uint8),
        "timeouts": np.array([0, 0, 0, 1.0]),
    }
    dataset = load_dataset(write(tmp_path / f"{stem}.hdf5", raw))
    assert (dataset.env, dataset.env_kwargs) == (env, kwargs)
    assert dataset.spec.score_range[1] == highest
    assert dataset.returns.tolist() == [4.0]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (-20.272305, 3234.3)),
        ({"env": "Hopper-v5"}, (-20.272305, 3234.3)),
        ({"env_kwargs": {"max_episode_steps": 500}}, ()),
        ({"env": "Hopper-v4", "wrappers": ("gymnasium.wrappers:OrderEnforcing",)}, ()),
    ],
)
def test_scores_are_of_the_environment_that_policies_are_evaluated_in(
    tmp_path: Path, asked: dict[str, Any], expected: tuple[float, ...]
) -> None:
    raw = flat() | {"observations": np.random.default_rng(0).normal(size=(ROWS, 11)), "actions": np.zeros((ROWS, 3))}
    raw.pop("next_observations", None)
    assert load_dataset(write(tmp_path / "hopper-medium-v2.hdf5", raw), **asked).spec.score_range == expected


@pytest.mark.parametrize(("stored", "expected"), [([-20.272305, 3234.3], ()), ([1.0, 2.0], (1.0, 2.0))])
def test_references_that_an_earlier_version_took_by_the_name_alone_are_not_believed(
    tmp_path: Path, stored: list[float], expected: tuple[float, ...]
) -> None:
    """It wrote D4RL's into any file called hopper-medium. Others can only be those of a Minari dataset."""
    path = write(tmp_path / "hopper-medium.hdf5", flat())
    with h5py.File(path, "a") as file:
        file.attrs.update({"deeprl": "0.1.0", "env": TOY, "env_kwargs": "{}", "score_range": json.dumps(stored)})
    assert load_dataset(path).spec.score_range == expected


def test_a_name_that_only_resembles_one_of_d4rl_implies_nothing(tmp_path: Path) -> None:
    raw = flat() | {"actions": np.zeros((ROWS, 2))}
    assert load_dataset(write(tmp_path / "hopper_of_mine-v2.npz", raw)).env == ""


def test_minari_metadata_give_environment_bounds_and_references(minari_root: Path) -> None:
    spec = {"id": "DatasetToy-v0", "entry_point": "recordings:Toy", "max_episode_steps": 5, "kwargs": {"big": False}}
    write_minari(minari_root, env_spec=json.dumps(spec), ref_min_score=-10.0, ref_max_score=30.0, algorithm_name="x")
    dataset = load_dataset("toy/plane-v0")
    assert (dataset.env, dataset.env_kwargs, dataset.env_problem) == (TOY, {"big": False, "max_episode_steps": 5}, "")
    assert dataset.spec.score_range == (-10.0, 30.0)
    assert load_dataset("toy/plane-v0", TOY).spec.score_range == (-10.0, 30.0)
    assert load_dataset("toy/plane-v0", TOY, {"big": False, "max_episode_steps": 50}).spec.score_range == ()
    assert load_dataset("toy/plane-v0", wrappers=["gymnasium.wrappers:OrderEnforcing"]).spec.score_range == ()
    assert dataset.about["algorithm_name"] == "x"
    longer = spec | {"max_episode_steps": 9, "additional_wrappers": [{"name": "Flatten"}]}
    write_minari(minari_root, "toy/wrapped-v0", env_spec=json.dumps(longer))
    wrapped = load_dataset("toy/wrapped-v0")
    assert wrapped.env_kwargs == {"big": False, "max_episode_steps": 9}
    assert wrapped.env_problem == f"{TOY} was wrapped in Flatten; name them with --wrappers"
    assert load_dataset("toy/wrapped-v0", TOY).env_problem == ""


def test_arguments_of_minari_do_not_depend_on_what_is_imported(minari_root: Path) -> None:
    """The limit of a registered environment is the usual one, and of one that is not yet registered unknown."""
    found = []
    for name in ("DatasetToy-v0", "NotImportedYet-v0"):
        spec = {"id": name, "entry_point": "recordings:Toy", "max_episode_steps": 5}
        write_minari(minari_root, f"toy/{name}", env_spec=json.dumps(spec))
        found.append(load_dataset(f"toy/{name}").env_kwargs)
    assert found == [{"max_episode_steps": 5}] * 2


# --- wrappers ---

LONGER = "recordings:Longer"


def longer(**attrs: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and attributes of a file that `deeprl dataset create` made from a run with a wrapper."""
    raw = flat()
    for key in ("observations", "next_observations"):
        raw[key] = np.append(raw[key], raw[key].sum(1, keepdims=True), axis=1)
    said = {"env": TOY, "action_low": [-2, -2], "action_high": [2, 2], "about": {"wrappers": [LONGER], "seed": 3}}
    return raw, said | attrs


def test_a_recording_with_wrappers_needs_them_named(tmp_path: Path) -> None:
    raw, said = longer()
    path = write(tmp_path / "own.hdf5", raw, **said)
    unnamed = load_dataset(path, env_kwargs={"big": False})
    assert unnamed.env_problem == f"{TOY} was wrapped in {LONGER}; name them with --wrappers"
    assert (unnamed.spec.obs_dim, unnamed.spec.action_high, unnamed.notes) == (3, (2.0, 2.0), ())
    named = load_dataset(path, wrappers=(LONGER,))
    assert (named.env_problem, named.notes, named.about) == ("", (), {"wrappers": [LONGER], "seed": 3})
    assert named.digest() == unnamed.digest()
    with pytest.raises(DeeprlError, match=f"observations: 3 numbers from row 0 on, but {TOY} has 2"):
        load_dataset(path, TOY)
    with pytest.raises(DeeprlError, match="wrapper 'recordings:None'"):
        load_dataset(path, wrappers=("recordings:None",))


def test_another_environment_than_the_one_of_the_file_is_noted(tmp_path: Path) -> None:
    raw, said = longer()
    path = write(tmp_path / "own.hdf5", flat(), **(said | {"about": {}}))
    assert load_dataset(path, TOY).notes == ()
    (note,) = load_dataset(path, "DatasetToy-v0").notes
    assert note == f"the dataset is of {TOY}; policies are evaluated in DatasetToy-v0"
    path = write(tmp_path / "wrapped.hdf5", flat(), **said)
    dataset = load_dataset(path, TOY)
    assert dataset.notes == (f"the dataset is of {TOY} wrapped in {LONGER}; policies are evaluated in {TOY}",)
    assert dataset.about == {"seed": 3}
    path = write(tmp_path / "nowhere.hdf5", raw, **(said | {"env": ""}))
    nowhere = [load_dataset(path, wrappers=wrappers) for wrappers in ((), (LONGER,))]
    assert [(d.env, d.env_problem, d.about) for d in nowhere] == [("", "", {"seed": 3})] * 2


def test_wrappers_of_a_file_must_be_names(tmp_path: Path) -> None:
    raw, said = longer(about={"wrappers": "one:Two"})
    with pytest.raises(DeeprlError, match="attribute about: wrappers: expected a list of names, not one:Two"):
        load_dataset(write(tmp_path / "own.hdf5", raw, **said))


# --- odd files ---


def test_minari_episodes_may_end_in_both_ways_or_in_none(minari_root: Path) -> None:
    parts = episodes()
    parts[0]["terminations"][-1] = True
    parts[2]["truncations"][-1] = False
    write_minari(minari_root, parts=parts)
    dataset = load_dataset("toy/plane-v0")
    check_invariants(dataset)
    assert dataset.data.terminated[dataset.ends - 1].tolist() == [True, True, False]
    assert len(dataset.notes) == 2


def test_names_of_datasets() -> None:
    assert dataset_name("some/where/hopper-v2.hdf5") == "hopper-v2"
    assert dataset_name("D4RL/door/human-v2") == "D4RL/door/human-v2"


# --- digest and memory ---


def test_digest_changes_with_any_number(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path / "toy.npz", flat()), TOY)
    seen = {dataset.digest()}
    for array in (*dataset.data, dataset.ends, dataset.returns):
        before = array.view(-1)[3 % array.numel()].clone()
        array.view(-1)[3 % array.numel()] = ~before if array.dtype == torch.bool else before + 1
        seen.add(dataset.digest())
        array.view(-1)[3 % array.numel()] = before
    assert len(seen) == 9
    assert dataset.digest() in seen
    assert all(len(digest) == 8 and int(digest, 16) >= 0 for digest in seen)


@pytest.mark.parametrize("ending", [".npz", ".hdf5"])
@pytest.mark.parametrize("ends", ["unknown successors", "known successors", "chain"])
def test_a_dataset_is_never_in_memory_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, ends: str
) -> None:
    """What NumPy holds at most is counted; the final arrays are torch's."""
    rows = 50_000
    raw = {
        "observations": np.arange(rows)[:, None]
        // 1000
        * np.ones(32),  # float64: a copy of it is as large as all final arrays of observations
        "actions": np.zeros((rows, 4)),
        "rewards": np.zeros(rows),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 1000 == 999,
    }
    if ends != "unknown successors":
        raw["next_observations"] = raw["observations"]  # the last one of each episode is left out
    if ends == "chain":
        del raw["timeouts"]
    path = write(tmp_path / f"large{ending}", raw)
    monkeypatch.setattr(dataset_files, "_PIECE", 1 << 17)
    size = peek(path).bytes
    assert size == rows * (4 * (64 + 4 + 1) + 2)
    tracemalloc.start()
    try:
        dataset = load_dataset(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(dataset) == rows - 50
    assert peak < size / 8


# --- what is told of a dataset ---


def test_coverage_is_that_of_numpy() -> None:
    array = (np.random.default_rng(0).normal(size=(1000, 3)) * [1, 0, 5] + [1e6, 7, 0]).astype(np.float32)
    found = coverage(array)
    wide = array.astype(np.float64)
    for ours, expected in zip(found, (wide.mean(0), wide.std(0), wide.min(0), wide.max(0)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)
    assert found.constant.tolist() == [False, True, False]


def test_duplicates_and_broken_chains_are_counted(tmp_path: Path) -> None:
    raw = flat()
    dataset = load_dataset(write(tmp_path / "toy.npz", raw), TOY)
    assert (duplicates(dataset), broken_chains(dataset)) == (0, 0)
    raw["next_observations"][[0, 4, 5, 7]] += 1  # rows 4 and 5 are the last of their episodes
    for key in ("observations", "actions", "rewards"):
        raw[key][[9, 10]] = raw[key][8]
    dataset = load_dataset(write(tmp_path / "bad.npz", raw), TOY)
    assert duplicates(dataset) == 2
    assert broken_chains(dataset) == 4  # rows 0 and 7; 8 and 9, which the changed rows 9 and 10 follow


def test_problems_are_named(tmp_path: Path) -> None:
    raw = flat()
    raw["observations"][:, 1] = raw["next_observations"][:, 1] = 3e5
    raw["rewards"][:] = 2
    found = "\n".join(problems(load_dataset(write(tmp_path / "toy.npz", raw | {"actions": np.zeros((ROWS, 2))}))))
    for text in (
        "no environment is named", "observations that are constant: 1", "actions that are constant: 0, 1",
        "observations beyond 10,000: 1, up to 3e+05", "all rewards are 2",
    ):  # fmt: skip
        assert text in found


def test_info_describes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "toy.hdf5", flat((5, 5, 5, 2)))
    assert main(["dataset", "info", path, "--env", TOY]) == 0
    out = capsys.readouterr().out
    dataset = load_dataset(path, TOY)
    assert out == describe(dataset) + "\n"
    for text in (
        "toy: 17 transitions in 4 episodes", dataset.digest(), "2 actions in [-2, 2]", "no reference scores",
        "lengths: mean 4.25, min 2, max 5; 2 episodes terminated, 2 were cut", "observation 1 ", "problems: none found",
    ):  # fmt: skip
        assert text in out
    assert main(["dataset", "info", str(tmp_path / "none.npz")]) == 2


def test_info_reads_as_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, said = longer()
    words = ["dataset", "info", write(tmp_path / "own.hdf5", raw, **said)]
    assert main(words) == 0
    assert f"- the environment cannot be made here: {TOY} was wrapped in {LONGER}" in capsys.readouterr().out
    assert main([*words, "--wrappers", LONGER]) == 0
    assert "problems: none found" in capsys.readouterr().out
    assert main([*words, "--wrappers", LONGER, "--env-kwargs", '{"big": true}']) == 2
    assert f"but those of {TOY} wrapped in {LONGER} are (-4.0, -4.0)" in capsys.readouterr().err
    assert main([*words, "--env-kwargs", "[]"]) == 2
    assert "--env-kwargs: expected a JSON object, not []" in capsys.readouterr().err


def test_info_tells_where_a_dataset_comes_from(tmp_path: Path, minari_root: Path) -> None:
    write_minari(minari_root, algorithm_name="SAC")
    assert "\norigin: algorithm SAC\n" in describe(load_dataset("toy/plane-v0"))
    raw, said = longer()
    assert "\norigin: seed 3\n" in describe(load_dataset(write(tmp_path / "own.hdf5", raw, **said)))
    said["about"] |= {
        "recipe": "expert, the policy",
        "policies": [f"p:{i}" for i in range(14)],
        "noise": "mean actions",
    }
    text = describe(load_dataset(write(tmp_path / "more.hdf5", raw, **said)))
    policies = " + ".join(f"p:{i}" for i in range(12))
    assert f"origin: expert, the policy; policies {policies} and 2 more; noise mean actions; seed 3\n" in text
    assert f"environment: {TOY}, wrapped in {LONGER}; 3 observations" in text
    assert "origin" not in describe(load_dataset(write(tmp_path / "toy.npz", flat()), TOY))


def test_info_tells_first_that_a_dataset_is_corrupted(tmp_path: Path) -> None:
    protocol = {"attack": "random", "elements": ["action", "reward"], "rate": 0.3, "scale": 1.0, "mode": "transition"}
    protocol |= {"seed": 7, "source": "hopper", "digest": "12345678"}
    raw = flat() | {"actions": np.zeros((ROWS, 2))}
    first = problems(load_dataset(write(tmp_path / "own.hdf5", raw, about={"corruption": protocol})))[0]
    assert first == (
        "the dataset is corrupted: attack random, elements action + reward, rate 0.3, scale 1.0, mode transition,"
        " seed 7, source hopper"
    )
    odd = load_dataset(write(tmp_path / "odd.hdf5", raw, about={"corruption": "yes"}))
    assert problems(odd)[0] == "the dataset is corrupted: how is not told"


def test_info_gives_scores_where_there_are_references(minari_root: Path) -> None:
    write_minari(minari_root, ref_min_score=0.0, ref_max_score=50.0)
    dataset = load_dataset("toy/plane-v0")
    assert f"normalised mean {float(dataset.returns.mean()) * 2:.1f} (0 is 0, 100 is 50)" in describe(dataset)


def test_the_toy_environment_is_one() -> None:
    env = Toy()
    obs, _ = env.reset(seed=3)
    np.testing.assert_array_equal(env.step(np.float32([1, 2]))[0], obs / 2 + np.float32([1, 2]))
