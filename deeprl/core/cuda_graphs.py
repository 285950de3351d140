"""CUDA graphs: a function of a population is recorded once and from then on replayed with a single launch.

On a GPU an update of small networks is dozens of kernels of a few microseconds each, and launching them one by one
costs more than they do. A recording reads its arguments from fixed memory and leaves its results in fixed memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from deeprl.core.tree import tree_leaves, tree_map, write_into

Record = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]

_WARM = 2  # calls before a recording: they compile, choose kernels and take workspaces


def shapes(tree: Any) -> list[tuple[torch.Size, torch.dtype]]:
    """The shapes and types of a tree's tensors, in a fixed order."""
    return [(leaf.shape, leaf.dtype) for leaf in tree_leaves(tree)]


def record_cuda(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record what `function` does on the GPU, without doing it. Returns how to do it, and where its results will be."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # On a stream of its own: torch's usual one is of the GPU where the process has recorded first, and what is done
        # on another one would not be recorded, but done.
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
            results = function()
    finally:
        torch.cuda.set_stream(stream)  # a recording that fails leaves its own
    return graph.replay, results


class Recorded:
    """`function`, replayed from its third call on.

    An argument that was the very same object in the call before the recording (a population's state, its replay data)
    is read where it lies. All other arguments (observations, keys) are copied into the recording's own memory at every
    call. With another object in the place of the former, or other shapes of the latter, everything begins anew.

    keep: return copies of the results. Without it they are overwritten by the next call, and the first argument is a
    state that the function writes into: it is recorded only where that is the same object from call to call.
    record: `record_cuda`; a stand-in in tests.
    """

    def __init__(self, function: Callable[..., Any], keep: bool, record: Record = record_cuda):
        self._function, self._keep, self._record = function, keep, record
        self._calls = 0
        self._before: tuple[Any, ...] = ()
        self._args: tuple[Any, ...] = ()
        self._stays: list[bool] = []
        self._replay: Any = None
        self._results: Any = None

    def __call__(self, *args: Any) -> Any:
        if self._replay is not None and not self._fits(args):
            self._replay, self._calls = None, 0
        if self._replay is None:
            before, self._before = self._before, args
            self._calls += 1
            if self._calls <= _WARM or not self._recorded(args, before):
                return self._function(*args)
        for own, arg, stays in zip(self._args, args, self._stays, strict=True):
            if not stays:
                write_into(own, arg)
        self._replay()
        return tree_map(torch.clone, self._results) if self._keep else self._results

    def _fits(self, args: tuple[Any, ...]) -> bool:
        """Whether the recording can take these arguments."""
        known = zip(args, self._args, self._stays, strict=True)
        return all(arg is own if stays else shapes(arg) == shapes(own) for arg, own, stays in known)

    def _recorded(self, args: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
        """Record with these arguments, if it can be done: a function that cannot is called as it is, with a warning."""
        self._stays = [a is b for a, b in zip(args, before, strict=True)]
        if not (self._keep or self._stays[0]):
            return False
        self._args = tuple(a if s else tree_map(torch.clone, a) for a, s in zip(args, self._stays, strict=True))
        try:
            self._replay, self._results = self._record(lambda: self._function(*self._args))
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            warnings.warn(f"no CUDA graph, which is slower: {first}", stacklevel=3)
            self._calls = -(10**18)  # never again
        return self._replay is not None
