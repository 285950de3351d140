"""Which episodes of a dataset are complete, and what goes by it: the best ones, ranges of returns, descriptions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import assert_equal
from offline_helpers import made_dataset
from recordings import flat, write, write_minari

from deeprl.data.datasets import Dataset, load_dataset
from deeprl.data.info import describe
from deeprl.data.offline import best_episodes, facts_of
from deeprl.data.rewards import reward_recipe
from deeprl.errors import DeeprlError
from deeprl.make_data.collect import Request, create
from deeprl.make_data.corruption import corrupt, write_hdf5

TOY = "recordings:DatasetToy-v0"  # its limit is 5 steps
FLAGS = "metadata_episode_complete"


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random actions: ten episodes of 200 steps, and 50 steps of one more. Its rewards are negative."""
    target = str(tmp_path_factory.mktemp("made") / "pendulum.hdf5")
    create(Request(target, "Pendulum-v1", "random", 2050))
    return target


def without_flags(source: str, target: Path) -> str:
    """A copy as earlier versions wrote it."""
    target.write_bytes(Path(source).read_bytes())
    with h5py.File(target, "a") as file:
        del file[FLAGS]
    return str(target)


def incomplete(dataset: Dataset) -> list[int]:
    return (~dataset.complete).nonzero().flatten().tolist()


# --- files ---


def test_what_we_record_tells_which_episodes_the_end_of_the_recording_cut(pendulum: str, tmp_path: Path) -> None:
    dataset = load_dataset(pendulum)
    assert len(dataset.ends) == 11
    assert incomplete(dataset) == [10]
    with h5py.File(pendulum) as file:
        assert file[FLAGS].dtype == bool
        # D4RL passes over keys with "metadata" in them where it goes through all arrays by row.
        rows: list[int] = []
        file.visititems(
            lambda name, item: rows.append(len(item)) if hasattr(item, "shape") and "meta" not in name else None
        )
        assert set(rows) == {2050}
    older = load_dataset(without_flags(pendulum, tmp_path / "older.hdf5"))
    assert incomplete(older) == [10]  # told by the length of the share and the limit of 200 steps
    assert older.digest() == dataset.digest()


def test_each_policys_last_episode_is_told_in_older_files_too(tmp_path: Path) -> None:
    """Two shares of half of 13 rows end at floor(6.5 + 0.5) = 7 and 13; the limit is 5 steps."""
    about = {"env": TOY, "steps": 13, "policies": ["a", "b"]}
    raw = flat((5, 2, 5, 1))
    raw["timeouts"] |= raw["terminals"]
    raw["terminals"][:] = False
    told: dict[str, Any] = {"env": TOY, "env_kwargs": {}, "about": about}
    assert incomplete(load_dataset(write(tmp_path / "cut.hdf5", raw, **told))) == [1, 3]
    ended = raw | {"terminals": np.arange(13) == 6, "timeouts": raw["timeouts"] & (np.arange(13) != 6)}
    assert incomplete(load_dataset(write(tmp_path / "ended.hdf5", ended, **told))) == [3]
    for name, other in {"no shares": {"env": TOY}, "another env": about | {"env": "Pendulum-v1"}}.items():
        assert incomplete(load_dataset(write(tmp_path / f"{name}.hdf5", raw, **told | {"about": other}))) == []


@pytest.mark.parametrize("flags", [[True, False], [1.0, 0.0, 1.0, 1.0], [[True]]])
def test_flags_that_are_not_one_for_each_episode_are_refused(flags: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "odd.hdf5", flat(), env=TOY)
    with h5py.File(path, "a") as file:
        file[FLAGS] = np.array(flags)
    with pytest.raises(DeeprlError, match=r"odd\.hdf5: metadata_episode_complete: expected one flag for each of"):
        load_dataset(path)


def test_the_end_of_somebody_elses_recording_is_no_end_unless_it_is_flagged(tmp_path: Path) -> None:
    """Short truncations are believed: D4RL's environments had other limits than those of today."""
    raw = flat((5, 3, 3))
    assert incomplete(load_dataset(write(tmp_path / "all.npz", raw), TOY)) == []
    raw["timeouts"][-1] = False
    assert incomplete(load_dataset(write(tmp_path / "stops.npz", raw), TOY)) == [2]
    terminal = raw | {"terminals": np.arange(11) == 10}
    assert incomplete(load_dataset(write(tmp_path / "terminal.npz", terminal), TOY)) == []


@pytest.mark.parametrize(("lengths", "expected"), [((5, 1, 5), []), ((5, 1, 3), [2])])
@pytest.mark.parametrize("known", [True, False])
def test_without_timeouts_the_limit_tells_whether_the_last_episode_is_complete(
    lengths: tuple[int, ...], expected: list[int], known: bool, tmp_path: Path
) -> None:
    raw = flat(lengths)
    for key in ("timeouts", *(() if known else ("next_observations",))):
        del raw[key]
    assert incomplete(load_dataset(write(tmp_path / "raw.npz", raw), TOY)) == expected


def test_minari_datasets_tell_it_in_the_metadata_of_their_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    create(Request("toy/random-v0", "Pendulum-v1", "random", 450))
    assert incomplete(load_dataset("toy/random-v0")) == [2]
    place = write_minari(tmp_path)
    assert incomplete(load_dataset("toy/plane-v0")) == []
    with h5py.File(place / "data" / "main_data.hdf5", "a") as file:
        last = max((name for name in file if name.startswith("episode_")), key=lambda name: int(name[8:]))
        file[last]["truncations"][-1] = file[last]["terminations"][-1] = False
    assert incomplete(load_dataset("toy/plane-v0")) == [int(last[8:])]


def test_corrupted_copies_keep_it(pendulum: str, tmp_path: Path) -> None:
    made = corrupt(load_dataset(pendulum), elements=["reward"])
    assert incomplete(made.dataset) == [10]
    write_hdf5(made, tmp_path / "noisy.hdf5")
    assert incomplete(load_dataset(str(tmp_path / "noisy.hdf5"))) == [10]


def test_a_recording_without_any_complete_episode_says_so(tmp_path: Path) -> None:
    target = str(tmp_path / "short.hdf5")
    create(Request(target, "Pendulum-v1", "random", 50))
    dataset = load_dataset(target)
    assert incomplete(dataset) == [0]
    assert dataset.notes == ("no episode is complete: all count as if they were",)
    assert_equal(best_episodes(dataset, 0.1).data, dataset.data)


# --- what goes by it ---


def of_three(complete: list[bool]) -> Dataset:
    returns = torch.tensor([1.0, 5.0, 9.0], dtype=torch.float64)
    return dataclasses.replace(made_dataset(60), returns=returns, complete=torch.tensor(complete))


def test_the_best_episodes_are_complete(pendulum: str) -> None:
    """The best tenth of ten complete ones is one of 200 rows, not the 50 rows behind them."""
    best = best_episodes(load_dataset(pendulum), 0.1)
    assert len(best) == 200
    assert best.complete.tolist() == [True]
    two = best_episodes(of_three([True, True, False]), 0.9)
    assert (two.returns.tolist(), two.ends.tolist()) == ([5.0], [20])
    assert best_episodes(of_three([False] * 3), 0.9).returns.tolist() == [5.0, 9.0]  # int(0.9 x 3) = 2


@pytest.mark.parametrize(
    ("complete", "scale"),
    [([True] * 3, 125.0), ([True, True, False], 250.0), ([False] * 3, 125.0)],  # 1000 / 8, 1000 / 4
)
def test_the_range_of_returns_is_that_of_complete_episodes(complete: list[bool], scale: float) -> None:
    assert reward_recipe(of_three(complete), "return-range") == (scale, 0.0)


def test_a_description_is_of_complete_episodes_and_counts_the_others(pendulum: str) -> None:
    dataset = load_dataset(pendulum)
    text = describe(dataset)
    assert "11 were cut, 1 of them where a recording stopped" in text
    assert f"returns of complete episodes: mean {dataset.returns[:10].mean():,.1f}, " in text
    assert "where a recording stopped" not in describe(made_dataset())
    assert "returns: mean" in describe(made_dataset())


# --- numbers that are equal but for rounding ---


def test_returns_that_differ_by_rounding_alone_cannot_be_scaled() -> None:
    """Twenty orders of the same rewards, whose sums differ in their last digits."""
    generator = np.random.default_rng(0)
    dataset = made_dataset(100, 5)
    order = np.concatenate([generator.permutation([0.1, 0.2, 0.3, 0.4, 0.7]) for _ in range(20)])
    returns = torch.tensor([sum(part) for part in order.reshape(20, 5).tolist()], dtype=torch.float64)
    assert returns.max() != returns.min()
    data = dataset.data._replace(reward=torch.from_numpy(order.astype(np.float32)))
    with pytest.raises(DeeprlError, match=r"^made: rewards return-range needs some that differ"):
        facts_of(dataclasses.replace(dataset, data=data, returns=returns), "off", "return-range")
    around_zero = returns - 1.7  # the size is that of the rewards, not of the sums
    with pytest.raises(DeeprlError, match=r"^made: rewards return-range needs some that differ"):
        facts_of(dataclasses.replace(dataset, data=data, returns=around_zero), "off", "return-range")
    apart = returns + 1e-3 * torch.arange(20)
    assert reward_recipe(dataclasses.replace(dataset, data=data, returns=apart), "return-range")[0] == pytest.approx(
        1000 / 0.019, rel=1e-6
    )


@pytest.mark.parametrize("value", [0.1, -3e7, 1e-20])
def test_rewards_that_differ_by_rounding_alone_cannot_be_standardized(value: float) -> None:
    dataset = made_dataset()
    reward = torch.full_like(dataset.data.reward, value)
    reward[::2] = torch.nextafter(reward[0], torch.tensor(0.0))
    data = dataset.data._replace(reward=reward)
    with pytest.raises(DeeprlError, match=r"^made: rewards standardize needs some that differ"):
        facts_of(dataclasses.replace(dataset, data=data), "off", "standardize")


def test_equal_returns_are_described() -> None:
    """Of returns that differ in their last digit no histogram can be drawn."""
    returns = torch.full((10,), 1.7, dtype=torch.float64)
    returns[0] = np.nextafter(1.7, 2.0)
    assert "returns: mean 1.7, min 1.7, max 1.7" in describe(dataclasses.replace(made_dataset(), returns=returns))
