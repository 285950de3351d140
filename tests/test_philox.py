"""The operator draws what torch's own operations draw, bit for bit, and where it cannot be built they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deeprl.core import philox, rng

DRAWS: dict[str, Callable[[rng.Key], Tensor]] = {
    "bits": lambda key: rng.bits(key, (3, 5)),
    "uniform": lambda key: rng.uniform(key, (7,), -1.0, 2.0),
    "normal": lambda key: rng.normal(key, (9, 2)),
    "normal in float64": lambda key: rng.normal(key, (5,), torch.float64),
    "randint": lambda key: rng.randint(key, (11,), 1000),
    "permutation": lambda key: rng.permutation(key, 13),
    "split": lambda key: torch.stack(rng.split(key, 3)),
    "fold_in": lambda key: rng.fold_in(key, 2**32 - 1),
    "nothing": lambda key: rng.bits(key, (0,)),
}


def test_published_vector() -> None:
    # Random123's known answers for philox4x32-10: counter and key all ones. A lane is a Python number of 64 bits.
    ones = 0xFFFFFFFF
    words = philox.operator(torch.tensor([ones, ones, ones, ones]), ones, 1, ones)
    assert words.flatten().tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("draw", DRAWS)
def test_bits_are_those_of_the_operations_alone_and_vmapped(draw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, keys = DRAWS[draw], rng.Streams((0, 5, 2**32 - 1))("sample", 7)
    assert philox.operator_available(keys[0])
    alone, together = torch.stack([function(key) for key in keys]), torch.vmap(function)(keys)
    monkeypatch.setattr(philox, "operator_available", lambda key: False)
    plain = torch.stack([function(key) for key in keys])
    assert torch.equal(alone, plain)
    assert torch.equal(together, plain)
    assert alone.dtype == plain.dtype


def test_two_levels_of_vmap_and_keys_that_are_not_contiguous() -> None:
    keys = torch.stack([rng.Streams((0, 1, 2))("sample", t) for t in range(2)])
    nested = torch.vmap(torch.vmap(lambda key: rng.uniform(key, (3,))))(keys)
    assert torch.equal(nested, torch.stack([torch.stack([rng.uniform(k, (3,)) for k in row]) for row in keys]))
    across = torch.vmap(lambda key: rng.uniform(key, (3,)), in_dims=1)(keys[0].T.contiguous())
    assert torch.equal(across, nested[0])


def test_without_a_compiler_or_a_working_one_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = rng.key(3, "env")
    expected = rng.bits(key, (4,))
    monkeypatch.setattr(philox, "cache_directory", lambda: tmp_path)
    for compiler in (None, "false"):
        monkeypatch.setattr(philox, "cpp_compiler", lambda compiler=compiler: compiler)
        philox._loop.cache_clear()
        assert not philox.operator_available(key)
        assert torch.equal(rng.bits(key, (4,)), expected)
    monkeypatch.undo()
    philox._loop.cache_clear()
    assert philox.operator_available(key)


def test_library_is_built_once_in_the_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(philox, "cache_directory", lambda: tmp_path)
    philox._loop.cache_clear()
    assert philox.operator_available(rng.key(0, "init"))
    (library,) = tmp_path.iterdir()
    built = library.stat().st_mtime_ns
    philox._loop.cache_clear()
    assert philox.operator_available(rng.key(0, "init"))
    assert library.stat().st_mtime_ns == built
    monkeypatch.undo()
    philox._loop.cache_clear()
