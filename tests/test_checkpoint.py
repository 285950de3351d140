import hashlib
import json
import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch

from deeprl.errors import DeeprlError
from deeprl.run import checkpoint


def content(value=0.0):
    return {"agents": {"w": torch.full((3, 2), value)}, "run": {"updates": int(value)}}


def assert_loads(directory, step, value):
    found, loaded = checkpoint.load_checkpoint(directory)
    assert found == step
    assert torch.equal(loaded["agents"]["w"], torch.full((3, 2), value))
    assert loaded["run"]["updates"] == value


@pytest.fixture
def two(tmp_path):
    """Checkpoints 10 and 20, and the path of the newest."""
    checkpoint.save(tmp_path, 10, content(1.0))
    return checkpoint.save(tmp_path, 20, content(2.0))


def test_nested_data_come_back_equal(tmp_path):
    generator = np.random.default_rng(3).bit_generator.state
    saved = {
        "tensors": {
            "f": torch.randn(3, 4),
            "b": torch.tensor([True, False]),
            "i": torch.tensor(7),
            "e": torch.empty(0),
        },
        "half": torch.randn(5).bfloat16(),
        "list": [1, 2.5, "text", None, True, [torch.ones(2)]],
        "tuple": (1, 2),
        "generator": generator,  # holds integers of 128 bits
        "not finite": [float("inf"), float("-inf")],
    }
    checkpoint.save(tmp_path, 5, saved)
    step, loaded = checkpoint.load_checkpoint(tmp_path)
    assert step == 5
    for name, value in saved["tensors"].items():
        assert loaded["tensors"][name].dtype == value.dtype
        assert torch.equal(loaded["tensors"][name], value)
    assert torch.equal(loaded["half"], saved["half"])
    assert loaded["list"][:5] == [1, 2.5, "text", None, True]
    assert torch.equal(loaded["list"][5][0], torch.ones(2))
    assert loaded["tuple"] == (1, 2)
    assert loaded["generator"] == generator
    assert loaded["not finite"] == saved["not finite"]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float64).reshape(2, 3)[:, ::2],
        np.array(3.5),
        np.array([True, False]),
        np.array([], np.float32),
        np.arange(3, dtype=np.uint64),
        np.arange(3, dtype=np.int32),
    ],
)
def test_arrays_come_back_as_equal_tensors(array, tmp_path):
    checkpoint.save(tmp_path, 1, {"x": array})
    loaded = checkpoint.load_checkpoint(tmp_path)[1]["x"]
    assert isinstance(loaded, torch.Tensor)
    assert loaded.numpy().dtype == array.dtype
    assert loaded.shape == array.shape
    assert np.array_equal(loaded.numpy(), array)


def test_numpy_scalars_come_back_as_numbers(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": [np.float64(0.1), np.int64(3), np.bool_(True)]})
    assert checkpoint.load_checkpoint(tmp_path)[1]["x"] == [0.1, 3, True]


def test_view_of_a_large_tensor_is_saved_alone(tmp_path):
    large = torch.zeros(1_000_000)
    path = checkpoint.save(tmp_path, 1, {"x": large[:10]})
    assert (path / "state.pt").stat().st_size < 10_000  # 40 bytes of data and the file format, not 4 MB


def test_only_the_newest_are_kept(tmp_path):
    for step in (10, 20, 30, 100):
        checkpoint.save(tmp_path, step, content(step), keep=2)
    assert checkpoint.steps(tmp_path) == [30, 100]
    checkpoint.save(tmp_path, 110, content(110.0), keep=1)
    assert checkpoint.steps(tmp_path) == [110]


def test_steps_beyond_nine_digits_stay_in_order(tmp_path):
    for step in (999_999_999, 1_000_000_000):
        checkpoint.save(tmp_path, step, content(1.0))
    assert checkpoint.load_checkpoint(tmp_path)[0] == 1_000_000_000


def test_same_step_again_replaces(tmp_path):
    checkpoint.save(tmp_path, 10, content(1.0))
    checkpoint.save(tmp_path, 10, content(2.0))
    assert_loads(tmp_path, 10, 2.0)


def test_no_checkpoint_gives_none(tmp_path):
    assert checkpoint.load_checkpoint(tmp_path) is None
    assert checkpoint.load_checkpoint(tmp_path / "absent") is None


def test_good_checkpoint_gives_no_warning(two):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_loads(two.parent, 20, 2.0)


def test_manifest_holds_size_and_digest(two):
    manifest = json.loads((two / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"]) == (2, 20)
    assert manifest["files"].keys() == {"state.pt"}
    data = (two / "state.pt").read_bytes()
    assert manifest["files"]["state.pt"] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sign(path, manifest):
    """Write a manifest whose own digest is right."""
    manifest.pop("check", None)
    text = json.dumps(manifest | {"check": checkpoint._check(manifest)})
    (path / "manifest.json").write_text(text)


def truncate(path):
    file = path / "state.pt"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(path):
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


def empty(path):
    (path / "state.pt").write_bytes(b"")


def remove_state(path):
    (path / "state.pt").unlink()


def remove_manifest(path):
    (path / "manifest.json").unlink()


def half_a_manifest(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text[: len(text) // 2])


def flip_a_bit_of_the_manifest(path):
    """The 2 of `"format": 2` becomes a 3: not what a newer version has written."""
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"format": 2', '"format": 3'))


def other_step(path):
    manifest = json.loads((path / "manifest.json").read_text()) | {"step": 30}
    sign(path, manifest)


def wrong_manifest(path):
    (path / "manifest.json").write_text('["not a manifest"]')


def binary_manifest(path):
    (path / "manifest.json").write_bytes(b"\xff\xfe\x00")


BREAKERS = [
    truncate, flip_a_bit, empty, remove_state, remove_manifest, half_a_manifest, wrong_manifest, binary_manifest,
    flip_a_bit_of_the_manifest, other_step,
]  # fmt: skip


@pytest.mark.parametrize("damage", BREAKERS)
def test_broken_checkpoint_is_named_and_the_one_before_used(damage, two):
    damage(two)
    with pytest.warns(UserWarning, match="000000020 is broken"):
        assert_loads(two.parent, 10, 1.0)


@pytest.mark.parametrize("damage", BREAKERS)
def test_all_broken_raises(damage, two):
    for step in (10, 20):
        damage(two.parent / f"{step:09d}")
    with pytest.warns(UserWarning, match="is broken"), pytest.raises(DeeprlError, match=r"all checkpoints in .* are"):
        checkpoint.load_checkpoint(two.parent)


@pytest.mark.parametrize(("written", "age"), [(3, "newer"), (1, "older")])
def test_format_of_another_version_raises(written, age, two):
    sign(two, json.loads((two / "manifest.json").read_text()) | {"format": written})
    with pytest.raises(DeeprlError, match=f"has checkpoint format {written}, of a {age} deeprl; this one reads 2"):
        checkpoint.load_checkpoint(two.parent)


class Hostile:
    """Unpickling an instance makes a directory."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


def forge(path, write):
    """Replace the state file and give it a manifest with the right size and digest."""
    write(path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    data = (path / "state.pt").read_bytes()
    sign(path, manifest | {"files": {"state.pt": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}})


@pytest.mark.parametrize("how", ["torch zip", "torch legacy", "plain pickle"])
def test_hostile_pickle_is_not_executed(how, two, tmp_path):
    sentinel = tmp_path / "sentinel"

    def write(file):
        if how == "plain pickle":
            file.write_bytes(pickle.dumps({"agents": Hostile(sentinel)}, protocol=2))
        else:
            torch.save({"agents": Hostile(sentinel)}, file, _use_new_zipfile_serialization=how == "torch zip")

    forge(two, write)
    with pytest.warns(UserWarning, match="000000020 is broken"):
        assert_loads(two.parent, 10, 1.0)
    assert not sentinel.exists()
    torch.load(two / "state.pt", weights_only=False) if how != "plain pickle" else pickle.loads(
        (two / "state.pt").read_bytes()
    )
    assert sentinel.is_dir()  # the payload was live


def test_other_file_with_the_right_digest_is_broken(two):
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("hello", "world")

    forge(two, write)
    with pytest.warns(UserWarning, match="000000020 is broken"):
        assert_loads(two.parent, 10, 1.0)


def test_leftover_temporary_directory_is_ignored_and_replaced(two):
    leftover = two.parent / ".000000030.tmp"
    leftover.mkdir()
    (leftover / "state.pt").write_bytes(b"half")
    assert_loads(two.parent, 20, 2.0)
    checkpoint.save(two.parent, 30, content(3.0))
    assert_loads(two.parent, 30, 3.0)
    assert not leftover.exists()


def test_foreign_names_are_ignored(two):
    (two.parent / "1_notes").mkdir()
    (two.parent / "readme.txt").write_text("x")
    assert checkpoint.steps(two.parent) == [10, 20]


def test_failed_save_leaves_the_old_ones(two):
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        checkpoint.save(two.parent, 30, {"x": lambda: 0})
    assert_loads(two.parent, 20, 2.0)


@pytest.mark.parametrize("value", [{1, 2}, object(), type("Word", (str,), {})("a"), {frozenset(): 1}])
def test_what_could_not_be_loaded_is_not_saved(value, tmp_path):
    with pytest.raises(TypeError, match="a checkpoint cannot hold"):
        checkpoint.save(tmp_path, 1, {"x": value})
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_may_be_keys(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": {np.int64(3): 1, (np.int64(1), "a"): (2, [3])}})
    assert checkpoint.load_checkpoint(tmp_path)[1]["x"] == {3: 1, (1, "a"): (2, [3])}


def test_the_place_of_the_logs_is_brought_to_the_disk_as_well(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("os.fsync", lambda file: flushed.append(os.fstat(file).st_ino))
    checkpoint.save(tmp_path / "checkpoints", 1, {"x": 1})
    assert tmp_path.stat().st_ino in flushed


def test_checkpoint_that_may_not_be_read_is_not_taken_for_broken(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": step})
    monkeypatch.setattr("builtins.open", _denied)
    monkeypatch.setattr("pathlib.Path.open", _denied)
    with pytest.raises(PermissionError):
        checkpoint.load_checkpoint(tmp_path)


def _denied(*args, **settings):
    raise PermissionError(13, "Permission denied")
