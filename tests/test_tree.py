"""Trees: structure is kept, leaves are visited in one order, names are stable."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from deeprl.core.tree import TreeState, flatten, load_flat, tree_leaves, tree_map, write_into
from deeprl.errors import DeeprlError


class Inner(NamedTuple):
    weights: dict[str, Tensor]
    pair: tuple[Tensor, Tensor]


class Outer(NamedTuple):
    inner: Inner
    step: Tensor


def tree(start: float = 0.0) -> Outer:
    a, b, c, d, e = torch.arange(5.0) + start
    return Outer(Inner({"0.weight": a.clone(), "0.bias": b.clone()}, (c.clone(), d.clone())), e.clone())


def test_tree_map_keeps_structure_and_pairs_leaves_by_place() -> None:
    # 0..4 plus 10 * (100..104): leaf i becomes i + 1000 + 10 i.
    mapped = tree_map(lambda x, y: x + 10 * y, tree(), tree(100.0))
    assert type(mapped) is Outer
    assert type(mapped.inner) is Inner
    assert type(mapped.inner.pair) is tuple
    assert list(mapped.inner.weights) == ["0.weight", "0.bias"]
    assert [float(x) for x in tree_leaves(mapped)] == [1000.0 + 11.0 * i for i in range(5)]


def test_tree_map_matches_dicts_by_key_not_by_order() -> None:
    first = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    second = {"b": torch.tensor(20.0), "a": torch.tensor(10.0)}
    assert {k: float(v) for k, v in tree_map(torch.add, first, second).items()} == {"a": 11.0, "b": 22.0}


def test_tree_map_of_a_leaf_or_an_empty_tuple_works() -> None:
    assert float(tree_map(lambda x: x + 1, torch.tensor(1.0))) == 2.0
    assert tree_map(lambda x: x + 1, ()) == ()
    assert tree_leaves(()) == []


def test_flatten_names_leaves_by_path_in_order() -> None:
    flat = flatten(tree())
    names = ["inner.weights.0.weight", "inner.weights.0.bias", "inner.pair.0", "inner.pair.1", "step"]
    assert list(flat) == names
    assert [float(v) for v in flat.values()] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_flatten_gives_the_leaves_themselves() -> None:
    original = tree()
    assert flatten(original)["inner.pair.1"] is original.inner.pair[1]


def test_write_into_keeps_memory_and_changes_numbers() -> None:
    old, new = tree(), tree(50.0)
    places = [x.data_ptr() for x in tree_leaves(old)]
    write_into(old, new)
    assert [x.data_ptr() for x in tree_leaves(old)] == places
    assert [float(x) for x in tree_leaves(old)] == [50.0, 51.0, 52.0, 53.0, 54.0]
    # A copy: the new tree can change without changing the old one.
    new.step.fill_(-1.0)
    assert float(old.step) == 54.0


@pytest.mark.parametrize("prefix", ["", "state."])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": None}, "missing there: step"),
        ({"inner.other": torch.zeros(2)}, "left over: inner.other"),
        ({"step": torch.zeros(2)}, "of another shape: step"),
        (
            {"step": None, "a": torch.ones(()), "b": torch.ones(()), "c": torch.ones(()), "d": torch.ones(())},
            "missing there: step; left over: a, b, c and 1 more",
        ),
    ],
)
def test_saved_leaves_must_be_those_of_the_tree(prefix: str, change: dict[str, Tensor | None], said: str) -> None:
    """And nothing is copied where they are not."""
    own = tree(100.0)
    changed = {k: v for k, v in (flatten(tree()) | change).items() if v is not None}
    saved = {prefix + k: v for k, v in changed.items()} | ({"frozen_at": torch.zeros(1)} if prefix else {})
    with pytest.raises(DeeprlError) as error:
        load_flat(own, saved, prefix)
    expected = f"net: these networks do not fit the checkpoint ({said}); pass the run's own net="
    assert str(error.value) == expected
    assert [float(x) for x in tree_leaves(own)] == [100.0, 101.0, 102.0, 103.0, 104.0]


def test_saved_leaves_are_copied_by_name() -> None:
    own = tree(100.0)
    TreeState(own).load_state_dict(dict(reversed(flatten(tree()).items())))
    assert [float(x) for x in tree_leaves(own)] == [0.0, 1.0, 2.0, 3.0, 4.0]
