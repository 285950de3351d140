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

    Raises DeeprlError, and copies nothing, if a leaf is missing, left over, or of another shape.
    """
    own = flatten(tree)
    given = {name.removeprefix(prefix): leaf for name, leaf in saved.items() if name.startswith(prefix)}
    found = {
        "missing there": [name for name in own if name not in given],
        "left over": [name for name in given if name not in own],
        "of another shape": [name for name, leaf in own.items() if name in given and given[name].shape != leaf.shape],
    }
    if misfits := [f"{what}: {_first(names)}" for what, names in found.items() if names]:
        raise DeeprlError(
            f"net: these networks do not fit the checkpoint ({'; '.join(misfits)}); pass the run's own net="
        )
    for name, leaf in own.items():
        leaf.copy_(given[name])


def _first(names: list[str]) -> str:
    return ", ".join(name.removeprefix("state.") for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


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
