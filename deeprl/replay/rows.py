"""Rows of images out of a buffer, by an operator that the compiler does not look through.

TorchInductor computes where it is read what is cheap by its count of operations. Of an image that was looked up in a
buffer and read nine times over, as patches, the places were computed for each of its pixels: half of a whole update.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

torch.library.define("deeprl::rows", "(Tensor data, Tensor index) -> Tensor")
torch.library.define("deeprl::rows_of_each", "(Tensor data, Tensor index) -> Tensor")
_rows: Any = torch.ops.deeprl.rows
_rows_of_each: Any = torch.ops.deeprl.rows_of_each


def image_rows(data: Shaped[Tensor, "R *O"], index: Int[Tensor, "*B"]) -> Shaped[Tensor, "*B *O"]:
    """`data[index]`, copied row by row. No gradient goes through; every index must be within."""
    return _rows(data, index)


def _copied(data: Tensor, index: Tensor) -> Tensor:
    return data.index_select(0, index.flatten()).unflatten(0, index.shape)


def _copied_of_each(data: Tensor, index: Tensor) -> Tensor:
    size = data.shape[1]
    first = torch.arange(0, len(data) * size, size, device=index.device)
    return _copied(data.flatten(0, 1), index + first.view(-1, *[1] * (index.ndim - 1)))


torch.library.impl("deeprl::rows", "CompositeExplicitAutograd", _copied)
torch.library.impl("deeprl::rows_of_each", "CompositeExplicitAutograd", _copied_of_each)


@torch.library.register_fake("deeprl::rows")  # type: ignore[untyped-decorator]
def _outlined(data: Tensor, index: Tensor) -> Tensor:
    return data.new_empty((*index.shape, *data.shape[1:]))


@torch.library.register_fake("deeprl::rows_of_each")  # type: ignore[untyped-decorator]
def _outlined_of_each(data: Tensor, index: Tensor) -> Tensor:
    return data.new_empty((*index.shape, *data.shape[2:]))


@torch.library.register_vmap("deeprl::rows")  # type: ignore[untyped-decorator]
def _batched(info: Any, in_dims: Any, data: Tensor, index: Tensor) -> tuple[Tensor, int]:
    of_data, of_index = in_dims
    if of_data is None:
        return _rows(data, index.movedim(of_index, 0)), 0
    index = index.expand(info.batch_size, *index.shape) if of_index is None else index.movedim(of_index, 0)
    return _rows_of_each(data.movedim(of_data, 0), index), 0
