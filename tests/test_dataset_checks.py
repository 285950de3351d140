"""Bad datasets, one fault each: a message of one line names the file, the key and the row, and nothing is written."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from recordings import episodes, flat, write, write_minari

from deeprl.commands.main import main
from deeprl.data.datasets import load_dataset, peek
from deeprl.errors import DeeprlError

TOY = "recordings:DatasetToy-v0"
pytestmark = pytest.mark.filterwarnings("ignore:::minari")

Arrays = dict[str, Any]
Fault = Callable[[Arrays], Any]


def drop(key: str) -> Fault:
    return lambda a: a.pop(key)


def put(key: str, index: Any, value: Any, dtype: Any = None) -> Fault:
    """Other numbers at an index, after a cast."""

    def fault(a: Arrays) -> None:
        a[key] = np.array(a[key], dtype)
        a[key][index] = value

    return fault


def swap(key: str, change: Callable[[np.ndarray], Any]) -> Fault:
    """Another array."""

    def fault(a: Arrays) -> None:
        a[key] = change(a[key])

    return fault


def empty(a: Arrays) -> None:
    for key in a:
        a[key] = a[key][:0]


def endless(a: Arrays) -> None:
    a["terminals"][:] = a["timeouts"][:] = False


def limitless(a: Arrays) -> None:
    """Nothing tells where episodes are cut."""
    del a["timeouts"], a["next_observations"]


def hopeless(a: Arrays) -> None:
    """Every row is cut, and no successor is known."""
    del a["next_observations"]
    a["terminals"][:], a["timeouts"][:] = False, True


# 13 rows: episodes of 5 rows (cut), of 1 row (terminal, row 5), of 7 rows (cut).
CONTENTS: dict[str, tuple[Fault, str, int]] = {
    "no_observations": (drop("observations"), "observations: missing", -1),
    "no_actions": (drop("actions"), "actions: missing", -1),
    "no_rewards": (drop("rewards"), "rewards: missing", -1),
    "no_terminals": (drop("terminals"), "terminals: missing", -1),
    "no_timeouts": (limitless, "timeouts: missing", 0),
    "observations_of_rank_1": (swap("observations", lambda x: x[:, 0]), "observations: shape (13,)", 0),
    "observations_of_rank_3": (swap("observations", lambda x: x[..., None]), "observations: shape (13, 2, 1)", 0),
    "actions_of_rank_1": (swap("actions", lambda x: x[:, 0]), "actions: shape (13,)", 0),
    "rewards_of_rank_2": (swap("rewards", lambda x: np.stack([x, x], 1)), "rewards: shape (13, 2)", 0),
    "rewards_of_rank_0": (swap("rewards", lambda x: x[0]), "rewards: shape ()", 0),
    "terminals_of_rank_2": (swap("terminals", lambda x: np.stack([x, x], 1)), "terminals: shape (13, 2)", 0),
    "fewer_actions": (swap("actions", lambda x: x[:-2]), "actions: 11 rows", 11),
    "more_actions": (swap("actions", lambda x: np.concatenate([x, x])), "actions: 26 rows", 13),
    "fewer_rewards": (swap("rewards", lambda x: x[:-1]), "rewards: 12 rows", 12),
    "fewer_terminals": (swap("terminals", lambda x: x[:4]), "terminals: 4 rows", 4),
    "fewer_timeouts": (swap("timeouts", lambda x: x[:3]), "timeouts: 3 rows", 3),
    "fewer_next_observations": (swap("next_observations", lambda x: x[:-1]), "next_observations: 12 rows", 12),
    "one_observation_too_many": (swap("observations", lambda x: x[[*range(13), 0]]), "actions: 13 rows", 13),
    "narrow_next_observations": (swap("next_observations", lambda x: x[:, :1]), "next_observations: shape", 0),
    "no_rows": (empty, "observations: no rows", 0),
    "no_columns": (swap("observations", lambda x: x[:, :0]), "observations: rows of no numbers", 0),
    "no_columns_of_actions": (swap("actions", lambda x: x[:, :0]), "actions: rows of no numbers", 0),
    "nan_in_observations": (put("observations", (7, 1), np.nan), "observations, row 7: not finite; 1 number is", 7),
    "nan_in_two_rows": (put("observations", slice(3, 5), np.nan), "observations, row 3: not finite; 4 numbers are", 3),
    "infinite_observation": (put("observations", (12, 0), np.inf), "observations, row 12: not finite", 12),
    "observation_beyond_float32": (put("observations", (2, 0), 1e300, float), "observations, row 2: not finite", 2),
    "nan_in_actions": (put("actions", (9, 0), np.nan), "actions, row 9: not finite", 9),
    "nan_in_rewards": (put("rewards", 6, np.nan), "rewards, row 6: not finite", 6),
    "infinite_reward": (put("rewards", 0, -np.inf), "rewards, row 0: not finite", 0),
    "nan_in_next_observations": (put("next_observations", 4, np.nan), "next_observations, row 4: not finite", 4),
    "action_too_high": (
        put("actions", (8, 1), 2.5),
        "actions, row 8: beyond the bounds [-2, 2] (numbers beyond: 1;",
        8,
    ),
    "action_too_low": (put("actions", ([6, 3], [0, 1]), -9), "(numbers beyond: 2; the worst: -9 in row 3)", 3),
    "no_end": (endless, "terminals, timeouts: no episode ends anywhere", 0),
    "no_successor": (hopeless, "observations: no row has a successor", 0),
    "terminal_of_2": (put("terminals", 10, 2, int), "terminals, row 10: 2 is neither 0 nor 1", 10),
    "negative_terminal": (put("terminals", 1, -1, int), "terminals, row 1: -1 is neither", 1),
    "half_a_terminal": (put("terminals", 5, 0.5, float), "terminals, row 5: 0.5 is neither", 5),
    "nan_in_terminals": (put("terminals", 11, np.nan, float), "terminals, row 11: nan is neither", 11),
    "timeout_of_3": (put("timeouts", 6, 3, np.uint8), "timeouts, row 6: 3 is neither", 6),
    "complex_observations": (swap("observations", lambda x: x + 1j), "observations: complex64 is no type", 0),
    "rewards_as_text": (swap("rewards", lambda x: x.astype("S5")), "rewards: |S5 is no type of numbers", 0),
    "discrete_actions": (swap("actions", lambda x: np.zeros(13, int)), "actions: discrete actions (int64", 0),
    "discrete_flags": (swap("actions", lambda x: np.zeros(13, bool)), "actions: discrete actions (bool, from", 0),
    "structured_rewards": (swap("rewards", lambda x: np.zeros(13, "f4,f4")), "rewards: [('f0', '<f4')", 0),
}


def refused(source: str, *expected: str, env: str = "", **options: Any) -> str:
    """The message with which a dataset is refused."""
    folder = Path(source).parent if Path(source).parent.is_dir() else Path()
    before = sorted(folder.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeeprlError) as caught:
            load_dataset(source, env, **options)
    message = str(caught.value)
    assert "\n" not in message
    for text in expected:
        assert text in message, message
    assert sorted(folder.iterdir()) == before
    return message


@pytest.mark.parametrize("ending", [".npz", ".hdf5"])
@pytest.mark.parametrize("name", CONTENTS)
def test_bad_contents_are_refused(tmp_path: Path, name: str, ending: str) -> None:
    fault, expected, row = CONTENTS[name]
    arrays: Arrays = flat()
    fault(arrays)
    source = write(tmp_path / f"{name}{ending}", arrays)
    row_named = f"row {row}" if row >= 0 else ""
    message = refused(source, expected, row_named, env="" if name == "no_timeouts" else TOY)
    assert message.startswith(f"{source}: ")


@pytest.mark.parametrize("ending", [".npz", ".hdf5"])
@pytest.mark.parametrize("dtype", ["i8", "u1", "bool"])
@pytest.mark.parametrize("width", [1, 3])
def test_columns_of_integers_are_discrete_actions(tmp_path: Path, ending: str, dtype: str, width: int) -> None:
    actions = np.random.default_rng(0).integers(0, 2, (13, width)).astype(dtype)
    source = write(tmp_path / f"column{ending}", flat() | {"actions": actions})
    what = f"actions: discrete actions ({np.dtype(dtype)}, from row 0 on); only continuous ones are read; save"
    refused(source, what)
    refused(source, "actions: 1 numbers" if width == 1 else "actions: 3 numbers", env=TOY)


def test_a_column_beside_discrete_actions_is_one_of_them(tmp_path: Path) -> None:
    arrays = {"observations": np.zeros((13, 4)), "next_observations": np.ones((13, 4))}
    source = write(tmp_path / "cart.npz", flat() | arrays | {"actions": np.ones((13, 1))})
    refused(source, "actions: discrete actions (CartPole-v1 has 2 of them); only continuous", env="CartPole-v1")


def test_integers_are_continuous_where_bounds_or_an_environment_say_so(tmp_path: Path) -> None:
    """As of a controller that knows full thrust alone."""
    arrays = flat() | {"actions": np.random.default_rng(0).integers(-2, 3, (13, 2))}
    for dataset in (
        load_dataset(write(tmp_path / "toy.npz", arrays), TOY),
        load_dataset(write(tmp_path / "own.hdf5", arrays, action_low=[-2, -2], action_high=[2, 2])),
    ):
        np.testing.assert_array_equal(dataset.data.action, arrays["actions"] / 2)


def test_where_the_bounds_come_from_is_told_and_how_to_name_them(tmp_path: Path) -> None:
    many = flat() | {"actions": np.full((13, 2), 50.0)}
    source = write(tmp_path / "units.npz", many)
    message = refused(
        source, "beyond the bounds [-1, 1], which are taken as no environment is named (numbers beyond: 26"
    )
    assert message.endswith("; name the environment (--env), or scale the actions to [-1, 1]")
    given = {"observations": np.zeros((400, 2)), "rewards": np.zeros(400), "terminals": np.arange(400) % 20 == 19}
    given |= {"actions": np.zeros((400, 2)), "timeouts": np.zeros(400, bool)}
    given["actions"][:8] = (1.01, 0)  # one in a hundred, and by a two-hundredth of the width
    clips = "; clip=True (--clip-actions) clips them"
    assert refused(write(tmp_path / "few.npz", given), "(--env), or scale").endswith(clips)
    given["actions"][8] = 0, -1.01
    assert "clip" not in refused(write(tmp_path / "more.npz", given))
    given["actions"][:8], given["actions"][8] = 0, (2, 0)
    assert "clip" not in refused(write(tmp_path / "far.npz", given))
    assert refused(source, "beyond the bounds [-2, 2] (numbers", env=TOY).endswith(clips)
    absent = write(tmp_path / "own.hdf5", many, env="no_such_package:Some-v0")
    refused(absent, "which are taken as the environment cannot be made here (no_such_package:Some-v0: No module named")


# --- damaged files ---


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    source = write(tmp_path / "trap.npz", flat() | {"rewards": np.array([Trap()] * 13, object)})
    refused(source, "rewards: pickled objects", "row 0", env=TOY)
    assert not (tmp_path / "sprung").exists()


def test_words_in_hdf5_are_no_pickled_objects(tmp_path: Path) -> None:
    source = write(tmp_path / "text.hdf5", flat() | {"rewards": ["none"] * 13})
    refused(source, "rewards: words, which are not read, from row 0 on", env=TOY)
    ragged = h5py.vlen_dtype(np.float32)
    del (arrays := flat())["rewards"]
    source = write(tmp_path / "ragged.hdf5", arrays)
    with h5py.File(source, "a") as file:
        file.create_dataset("rewards", (13,), ragged)
    refused(source, "rewards: objects, which are not read", env=TOY)


def test_the_worst_action_is_the_one_furthest_beyond_its_bound(tmp_path: Path) -> None:
    arrays = flat()
    arrays["actions"][[2, 5]] = (0, 4.5), (3.9, 0)  # 0.5 and 1.9 beyond
    source = write(tmp_path / "own.hdf5", arrays, action_low=[-2, -4], action_high=[2, 4])
    refused(source, "actions, row 2: beyond", "(numbers beyond: 2; the worst: 3.9 in row 5)")


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("ending", [".npz", ".hdf5"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (half, "damaged, truncated"),
        (lambda data: data[:-5], "damaged, truncated"),
        (lambda data: data[:20], "damaged, truncated"),
        (lambda data: b"", "the file is empty"),
        (lambda data: b"no such format\n" * 99, "damaged, truncated"),
    ],
    ids=["half", "without_its_end", "begin", "empty", "text"],
)
def test_damaged_files_are_refused(
    tmp_path: Path, ending: str, change: Callable[[bytes], bytes], expected: str
) -> None:
    path = tmp_path / f"damaged{ending}"
    write(path, flat())
    path.write_bytes(change(path.read_bytes()))
    refused(str(path), str(path), expected)
    with pytest.raises(DeeprlError):
        peek(str(path))


def archive(path: Path, **members: bytes) -> str:
    """An archive of the toy's arrays, with other bytes for some of them."""
    write(path, flat())
    with zipfile.ZipFile(path) as file:
        held = {name: file.read(name) for name in file.namelist()} | {f"{k}.npy": v for k, v in members.items()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in held.items():
            file.writestr(name, data)
    return str(path)


def member(path: Path, key: str) -> bytes:
    write(path, flat())
    with zipfile.ZipFile(path) as file:
        return file.read(f"{key}.npy")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-4],
        lambda data: data + b"1234",
        lambda data: b"\x00" + data[1:],
        lambda data: data.replace(b"'shape': (13, 2)", b"'shape': (99, 2)"),
        lambda data: data.replace(b"'shape': (13, 2)", b"'shape': (-3, 2)"),
        lambda data: data.replace(b"'descr'", b"'nonse'"),
        lambda data: b"",
    ],
    ids=["short", "long", "magic", "shape", "negative_shape", "header", "empty"],
)
def test_damaged_arrays_are_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "damaged.npz"
    source = archive(path, actions=change(member(path, "actions")))
    refused(source, f"{source}: actions: damaged, truncated", env=TOY)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "flipped.npz"
    rewards = member(path, "rewards")
    data = bytearray(Path(archive(path)).read_bytes())
    data[data.index(rewards[-32:])] ^= 1
    path.write_bytes(data)
    refused(str(path), "rewards: damaged", "CRC", env=TOY)


def test_a_group_instead_of_an_array_is_refused(tmp_path: Path) -> None:
    arrays = flat()
    del arrays["rewards"]
    source = write(tmp_path / "group.hdf5", arrays | {"rewards/values": np.zeros(13)})
    refused(source, f"{source}: rewards: a group, not an array", env=TOY)


def test_a_block_of_hdf5_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "block.hdf5"
    with h5py.File(path, "w") as file:
        for key, array in flat().items():
            file.create_dataset(key, data=array, compression="gzip", fletcher32=True)
        where = file["rewards"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[where + 8] ^= 255
    path.write_bytes(data)
    refused(str(path), f"{path}: rewards: damaged", env=TOY)


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({"env_kwargs": "{"}, "attribute env_kwargs: not JSON"),
        ({"env_kwargs": [1]}, "attribute env_kwargs: expected an object, not [1]"),
        ({"about": "[]"}, "attribute about: expected an object"),
        ({"action_low": {"a": 1}}, "attribute action_low: expected a list of numbers"),
        ({"score_range": [1]}, "attribute score_range: expected a lower and a higher return, not [1]"),
        ({"score_range": [1, 2, 3]}, "attribute score_range: expected a lower and a higher return, not [1, 2, 3]"),
        ({"score_range": [2, 2]}, "attribute score_range: expected a lower and a higher return, not [2, 2]"),
        ({"action_high": ["1", "2"]}, "attribute action_high: expected a list of numbers"),
        ({"action_low": [-2], "action_high": [2]}, "actions: 2 numbers from row 0 on, but 1 lower and 1 upper"),
        ({"action_low": [-2, -2]}, "actions, row"),
        ({"action_low": [2, -2], "action_high": [2, 2]}, "actions: bounds 2.0 and 2.0 of number 0, from row 0 on"),
        (
            {"action_low": [-2, -np.inf], "action_high": [2, 2]},
            "actions: bounds -inf and 2.0 of number 1, from row 0 on",
        ),
        ({"env": TOY, "action_low": [-3, -2], "action_high": [2, 2]}, "actions: bounds (-3.0, -2.0) to"),
    ],
)
def test_bad_attributes_are_refused(tmp_path: Path, attrs: dict[str, Any], expected: str) -> None:
    source = write(tmp_path / "own.hdf5", flat(), **attrs)
    refused(source, f"{source}: {expected}")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("Pendulum-v1", "observations: 2 numbers from row 0 on, but Pendulum-v1 has 3: a dataset of another"),
        ("MountainCarContinuous-v0", "actions: 2 numbers from row 0 on, but MountainCarContinuous-v0 has 1: a dataset"),
        ("MountainCar-v0", "actions: 2 numbers from row 0 on, but MountainCar-v0 has 3 discrete ones: a dataset"),
        ("FrozenLake-v1", "FrozenLake-v1 observes Discrete(16)"),
        ("Pendulom-v1", "unknown environment 'Pendulom-v1'; did you mean Pendulum-v1"),
    ],
)
def test_another_environment_is_refused(tmp_path: Path, env: str, expected: str) -> None:
    refused(write(tmp_path / "toy.npz", flat()), expected, env=env)


def test_sources_that_are_no_datasets_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    refused(str(tmp_path / "none.npz"), "none.npz: no such file")
    refused(str(tmp_path / "none.csv"), "unknown kind of file '.csv'; known: .npz, .hdf5, .h5")
    (tmp_path / "data").write_text("")
    refused(str(tmp_path / "data"), "unknown kind of file ''")
    refused(str(tmp_path), "there is no metadata.json in it")
    refused("D4RL/door/human-v2", "to download it: deeprl dataset download D4RL/door/human-v2)")
    for source in ("hopper", "door/human", "no good-v0"):
        assert "download" not in refused(source, f"{source}: neither a file (.npz")
    assert not root.exists()
    root.mkdir()
    write_minari(root, "toy/plane-v0")
    refused("toy/plain-v0", "dataset download toy/plain-v0)", "did you mean toy/plane-v0?")
    assert main(["dataset", "info", str(tmp_path / "none.npz")]) == 2
    assert capsys.readouterr().err == f"deeprl: {tmp_path / 'none.npz'}: no such file\n"


# --- Minari ---


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a stand-in for the network."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(minari, "download_dataset", lambda name: write_minari(tmp_path, name))
    assert main(["dataset", "download", "toy/plane-v0"]) == 0
    assert capsys.readouterr().out == f"toy/plane-v0: {tmp_path / 'toy/plane-v0'}\n"
    assert len(load_dataset("toy/plane-v0")) == 13


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ValueError("Couldn't find any version\nof it"),
            "toy/none-v0: cannot be downloaded (Couldn't find any version)",
        ),
        (ConnectionError(), "toy/none-v0: cannot be downloaded (ConnectionError)"),
        (
            ImportError('huggingface_hub is not installed. Please install it using `pip install "minari[hf]"`'),
            "toy/none-v0: needs huggingface_hub; install it with: pip install 'deeprl[download]'",
        ),
        (ImportError("pip install it"), "toy/none-v0: cannot be downloaded (pip install it)"),
        (None, "toy/none-v0: neither a file"),  # nothing came
    ],
)
def test_a_failed_download_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any, expected: str
) -> None:
    def fail(name: str) -> None:
        if error is not None:
            raise error

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(minari, "download_dataset", fail)
    assert main(["dataset", "download", "toy/none-v0"]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_only_ids_are_downloaded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(minari, "download_dataset", pytest.fail)
    assert main(["dataset", "download", "door/human"]) == 2
    assert "door/human: expected the id of a Minari dataset" in capsys.readouterr().err


def test_files_of_minari_are_told_for_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    folder = write_minari(tmp_path, "toy/plane-v0")
    source = str(folder / "data/main_data.hdf5")
    refused(source, f"{source}: the episodes of a Minari dataset; name its folder, {folder}, or its id")
    (folder / "data/metadata.json").unlink()  # as Minari 0.4 wrote
    old = "of Minari before 0.5, without the metadata.json that later ones have, which is not read; remove it and"
    refused(source, f"{source}: the episodes of a Minari dataset {old}")
    for name in (str(folder), str(folder / "data"), "toy/plane-v0"):
        refused(name, f"{name}: a dataset {old} download it again")
    copy = tmp_path / "copy.h5"
    copy.write_bytes(Path(source).read_bytes())
    refused(str(copy), f"{copy}: the episodes of a Minari dataset {old}")


def parts_with(number: int, key: str, change: Callable[[np.ndarray], Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = episodes()
    parts[number][key] = change(parts[number][key])
    return parts


def nan_at(row: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[row] = np.nan
        return array

    return change


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (parts_with(2, "observations", nan_at(7)), "episode_2/observations, row 7: not finite"),  # the last successor
        (parts_with(2, "observations", nan_at(0)), "episode_2/observations, row 0: not finite"),
        (parts_with(1, "actions", nan_at(0)), "episode_1/actions, row 0: not finite"),
        (parts_with(2, "rewards", nan_at(3)), "episode_2/rewards, row 3: not finite"),
        (parts_with(0, "actions", lambda a: a * 2), "beyond the bounds [-2, 2]"),
        (parts_with(0, "observations", lambda a: a[:-1]), "episode_0/observations: 5 rows, not 6"),
        (parts_with(2, "actions", lambda a: a[:-3]), "episode_2/actions: 4 rows, not 7; rewards has 7, and the first"),
        (parts_with(2, "terminations", lambda a: a[:1]), "episode_2/terminations: 1 rows, not 7"),
        (parts_with(1, "observations", lambda a: a[:, :1]), "episode_1/observations: a row is float32 (1,), where"),
        (parts_with(2, "truncations", lambda a: a + 2), "episode_2/truncations, row 0: 2 is neither 0 nor 1"),
        ([], "no episodes"),
    ],
    ids=range(11),
)
def test_bad_minari_episodes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[dict[str, Any]], expected: str
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_minari(tmp_path, parts=parts)
    assert refused("toy/plane-v0", expected, "row ").startswith("toy/plane-v0: ")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"data_format": "arrow"}, "data_format 'arrow': only Minari's hdf5"),
        ({"observation_space": "{}"}, "metadata.json, observation_space: damaged"),
        ({"env_spec": "{}"}, "metadata.json, env_spec: damaged"),
        (
            {"action_space": json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": 3})},
            "action_space: Discrete(3); supported are flat Box spaces",
        ),
    ],
)
def test_bad_minari_metadata_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: dict[str, Any], expected: str
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_minari(tmp_path, **metadata)
    refused("toy/plane-v0", "toy/plane-v0: ", expected)
    if "env_spec" not in metadata:
        with pytest.raises(DeeprlError):
            peek("toy/plane-v0")


def test_minari_observations_of_parts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    parts: list[dict[str, Any]] = [part | {"observations": {"at": part["observations"]}} for part in episodes()]
    write_minari(tmp_path, parts=parts, observes=spaces.Dict({"at": spaces.Box(-4, 4, (2,))}))
    refused("toy/plane-v0", "observation_space: Dict", "observations of several parts are not read")


def test_damaged_minari_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = write_minari(tmp_path) / "data"
    whole = (data / "main_data.hdf5").read_bytes()
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
    refused("toy/plane-v0", "toy/plane-v0: episode_1/rewards: missing")
    (data / "main_data.hdf5").write_bytes(half(whole))
    refused("toy/plane-v0", "main_data.hdf5: damaged, truncated")
    (data / "main_data.hdf5").unlink()
    refused("toy/plane-v0", "main_data.hdf5: damaged, truncated")
    (data / "metadata.json").write_text("{")
    refused("toy/plane-v0", "metadata.json: damaged, truncated")
