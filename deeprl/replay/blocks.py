"""Rows that come one after another, as in a replay memory, so that checkpoints write each of them once.

A checkpoint stores a `History` in blocks of rows. The next checkpoint takes over the blocks that still hold a row that
is needed, and writes only the rows that have come since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Block(NamedTuple):
    """Rows [first, last) in a file of a checkpoint."""

    path: Path
    first: int
    last: int
    bytes: int
    sha256: str


class History:
    """Rows counted from 0 in the order in which they came, of which [first, last) are needed.

    read(first, last): those rows as a dict of tensors. blocks: where they are stored, in order; of a row that is in
    two of them the later one counts. stored: the rows before this one need not be stored again.
    """

    def __init__(self, read: Callable[[int, int], dict[str, Any]]):
        self.read = read
        self.first = self.last = self.stored = 0
        self.blocks: list[Block] = []

    def changed(self, first: int) -> None:
        """The rows from `first` on have been changed since they were stored."""
        self.stored = min(self.stored, first)

    def adopt(self, other: History) -> None:
        """Take over what another history, whose rows these are from now on, knows of its blocks."""
        self.first, self.last, self.stored, self.blocks = other.first, other.last, other.stored, list(other.blocks)

    def parts(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """All rows, those not stored yet too, as (number of the first one, rows), in order."""
        for block in self.blocks:
            # Mapped, not read at once: a block may be as large as the free memory.
            yield block.first, torch.load(block.path, weights_only=True, map_location="cpu", mmap=True)
        begin = max(self.first, self.stored)
        if begin < self.last:
            yield begin, self.read(begin, self.last)
