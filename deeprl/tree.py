"""States as trees: nested NamedTuples, tuples and dicts with tensors at the leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from deeprl.errors import DeeprlError


def tree_map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `function` to the leaves at the same place of one or more trees of one structure."""
    if isinstance(tree, Tensor):
        return function(tree, *rest)
    if isinstance(tree, dict):
        return {k: tree_map(function, v, *(r[k] for r in rest)) for k, v in tree.items()}
    mapped = [tree_map(function, v, *(r[i] for r in rest)) for i, v in enumerate(tree)]
    return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)


def tree_leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in a fixed order."""
    return list(flatten(tree).values())


def flatten(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """Leaves by name, such as `"state.actor.trunk.0.weight"`: the form in which states are saved."""
    if isinstance(tree, Tensor):
        return {prefix: tree}
    if isinstance(tree, dict):
        items = tree.items()
    elif hasattr(tree, "_fields"):
        items = tree._asdict().items()
    else:
        items = {str(i): v for i, v in enumerate(tree)}.items()
    flat: dict[str, Tensor] = {}
    for name, value in items:
        flat |= flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat


def load_flat(tree: Any, saved: Mapping[str, Tensor], prefix: str = "") -> None:
    """Copy saved leaves (`flatten`, names beginning with `prefix`) into the memory of `tree`.

    Raises DeeprlError, and copies nothing, if a leaf is missing or has another shape.
    """
    own = flatten(tree)
    for name, leaf in own.items():
        if prefix + name not in saved or saved[prefix + name].shape != leaf.shape:
            raise DeeprlError(f"these networks do not fit the checkpoint at {name}; pass the run's own net=")
    for name, leaf in own.items():
        leaf.copy_(saved[prefix + name])


def write_into(tree: Any, new: Any) -> None:
    """Copy every leaf of `new` into the memory of `tree`'s leaf at the same place."""
    tree_map(lambda old, value: old.copy_(value), tree, new)


class TreeState:
    """A tree as a part of a checkpoint: its leaves by name, restored in place."""

    def __init__(self, tree: Any):
        self.tree = tree

    def state_dict(self) -> dict[str, Tensor]:
        return flatten(self.tree)

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        load_flat(self.tree, saved)
