"""A function of tensors as one compiled graph, made as fast as can be: traced by PyTorch's dispatcher, not by Dynamo.

Functions of a population are pure: trees of tensors in, trees of tensors out, or in place. One run of them with tensors
that have shapes but no numbers, under `make_fx`, writes down every operation, with all that `vmap`, `grad` and autocast
make of it. Dynamo, which interprets Python bytecode to come to such a graph, takes ten times as long, needs checks at
each call of all that it has looked at, and knows functions by their code, which the closures of all runs share.

What a graph computes is told by its text and by the layout of its inputs. Graphs of equal text share one compiled
function within the process, and those of earlier processes are found on disk (`core/inductor.py`). Tensors that a
function has from its surroundings are inputs of its graph as well, and read where they lie at every call.
"""

from __future__ import annotations

import functools
import hashlib
import textwrap
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from deeprl.core.inductor import Call, compile_graph, in_background, surroundings, turn
from deeprl.errors import DeeprlError, first_line

_built: dict[str, Future[Call]] = {}  # compiled graphs of this process by `_digest`


class Traced(NamedTuple):
    """A graph of tensors alone: those of the arguments, then `held`, which the function had from its surroundings.

    used: which of the arguments' tensors the graph looks at, or writes; the others are not among its inputs. result:
    what the function returned, with the number of an output in the place of each tensor.
    """

    graph: fx.GraphModule
    used: list[int]
    held: list[Tensor]
    result: Any

    @property
    def outlines(self) -> list[Any]:
        """Its inputs without their numbers."""
        return [node.meta["val"] for node in self.graph.graph.nodes if node.op == "placeholder"]


class _Output(int):
    """The number of an output of a graph."""


@dataclass
class _Ready:
    """A compiled graph, or one that is being compiled, and what it was made for."""

    layout: list[Any]
    building: Future[Call]
    used: list[int]
    held: list[Tensor]
    result: Any
    call: Call | None = None


def _at_once(work: Callable[[], None]) -> None:
    work()


class Compiled:
    """`function` compiled: at its first call, and again for arguments of another layout.

    The layout of arguments is their structure, whatever in them is no tensor, and the shapes, strides, types and
    devices of their tensors. Raises DeeprlError for a function that depends on the numbers in them.

    An argument that is the very same object as in the call before (a population's state, its replay) is taken to hold
    the same tensors, as `cuda_graphs.Recorded` does: looking for them again would cost small networks a tenth.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]):
        self._function, self._options = function, options
        self._ready: list[_Ready] = []
        self._before: tuple[tuple[Any, list[Tensor], list[Any]], ...] = ()

    def __call__(self, *args: Any) -> Any:
        before = self._before if len(self._before) == len(args) else ((None, [], []),) * len(args)
        self._before = tuple(
            known if known[0] is arg and isinstance(arg, tuple) else (arg, *_laid_out(arg))
            for arg, known in zip(args, before, strict=True)
        )
        tensors = [x for _, own, _ in self._before for x in own]
        layout = [own for _, _, own in self._before]
        for ready in self._ready:
            if ready.layout == layout:
                break
        else:
            ready = self._build(args, layout)
        if ready.call is None:
            ready.call = self._done(ready.building)
        outputs = ready.call(*[tensors[i] for i in ready.used], *ready.held)
        return _fill(ready.result, outputs)

    def prepare(self, *args: Any) -> None:
        """Begin to compile for arguments of this layout, beside what the caller does next. Errors come with a call."""
        layout = [_laid_out(arg)[1] for arg in args]
        if all(ready.layout != layout for ready in self._ready):
            self._build(args, layout, in_background)

    def _build(self, args: tuple[Any, ...], layout: list[Any], do: Callable[..., None] = _at_once) -> _Ready:
        try:
            traced = trace(self._function, args)
        except Exception as error:  # of many kinds, and a function's own
            raise self._refused(error) from error
        digest = _digest(traced, self._options)
        own: Future[Call] = Future()
        building = _built.setdefault(digest, own)
        if building is own:
            do(functools.partial(_compile, own, digest, traced, self._options))
        ready = _Ready(layout, building, traced.used, traced.held, traced.result)
        self._ready = [ready, *self._ready]
        return ready

    def _done(self, building: Future[Call]) -> Call:
        try:
            return building.result()
        except Exception as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> DeeprlError:
        reason = textwrap.shorten(first_line(error), 200, placeholder=" ...")
        name = getattr(self._function, "__qualname__", str(self._function))
        return DeeprlError(f"{name} cannot be compiled ({reason}); --compile off runs it as it is")


def _compile(into: Future[Call], digest: str, traced: Traced, options: dict[str, Any]) -> None:
    try:
        into.set_result(compile_graph(traced.graph, traced.outlines, options, digest))
    except BaseException as error:
        del _built[digest]  # another try may fare better
        into.set_exception(error)


def trace(function: Callable[..., Any], args: tuple[Any, ...]) -> Traced:
    """The graph of what `function` does with arguments like these, without doing it: nothing is written in place.

    Raises what PyTorch raises, of many kinds, where it does other things for other numbers.
    """
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx._lazy_graph_module import _use_lazy_graph_module
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    tensors: list[Tensor] = []
    _flatten(args, tensors, [])
    result: Any = None

    def flat(*given: Tensor) -> tuple[Tensor, ...]:
        nonlocal result
        outputs: list[Tensor] = []
        result = _number(function(*_fill(_number(args, []), given)), outputs)
        return tuple(outputs)

    # The mode that `make_fx` makes by itself puts a symbol in the place of `item()` and of a size that depends on
    # numbers; that it cannot be compiled would come to light in TorchInductor only, after a run has begun.
    sizes = ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    mode = FakeTensorMode(allow_fallback_kernels=True, allow_non_fake_inputs=True, shape_env=sizes, static_shapes=True)
    functional = torch.func.functionalize(flat)
    with turn, torch.no_grad(), _use_lazy_graph_module(True):
        outlines = [mode.from_tensor(x, static_shapes=True) for x in tensors]
        made = make_fx(functional, select_decomp_table(), tracing_mode="fake", _allow_non_fake_inputs=True)
        graph = made(*outlines)
        graph.graph.eliminate_dead_code()
        held = _lift(graph)
        used = _without_idle(graph, len(tensors))
        graph.recompile()
    return Traced(graph, used, held, result)


# --- trees ---


def _flatten(tree: Any, tensors: list[Tensor], layout: list[Any]) -> None:
    """Append the tensors of a tree, and all else that it consists of."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
    elif isinstance(tree, tuple | list):
        layout.append((type(tree), len(tree)))
        for value in tree:
            _flatten(value, tensors, layout)
    elif isinstance(tree, dict):
        layout.append(tuple(tree))
        for value in tree.values():
            _flatten(value, tensors, layout)
    else:
        layout.append((type(tree), tree))  # 1, 1.0 and True are equal, but a product with them is of another type


def _number(tree: Any, tensors: list[Tensor]) -> Any:
    """The tree with numbers in the place of its tensors, which are appended."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return _Output(len(tensors) - 1)
    return _each(tree, lambda value: _number(value, tensors))


def _fill(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """The opposite of `_number`."""
    if type(tree) is _Output:
        return tensors[tree]
    return _each(tree, lambda value: _fill(value, tensors))


def _each(tree: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: function(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [function(value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return tree


def _laid_out(tree: Any) -> tuple[list[Tensor], list[Any]]:
    """The tensors of a tree, and its layout."""
    tensors: list[Tensor] = []
    layout: list[Any] = []
    _flatten(tree, tensors, layout)
    return tensors, layout + [(x.shape, x.stride(), x.dtype, x.device) for x in tensors]


# --- graphs ---


def _lift(graph: fx.GraphModule) -> list[Tensor]:
    """Make the tensors that a graph holds its last inputs, and return them."""
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1:]
    held: dict[int, tuple[Tensor, fx.Node]] = {}
    outlines = [node.meta.get("val") for node in graph.graph.nodes]
    modes = [outline.fake_mode for outline in outlines if hasattr(outline, "fake_mode")]
    for node in list(graph.graph.nodes):
        value = getattr(graph, node.target, None) if node.op == "get_attr" else None
        if isinstance(value, Tensor):
            if id(value) not in held:
                where = graph.graph.inserting_after(last[0]) if last else graph.graph.inserting_before()
                with where:
                    last = [graph.graph.placeholder(f"held_{len(held)}")]
                last[0].meta["val"] = modes[0].from_tensor(value, static_shapes=True)
                held[id(value)] = value, last[0]
            node.replace_all_uses_with(held[id(value)][1])
            graph.graph.erase_node(node)
    return [value for value, _ in held.values()]


def _without_idle(graph: fx.GraphModule, count: int) -> list[int]:
    """Take the inputs that nothing comes of from a graph, of the first `count`, and return which are left.

    Each costs a call some time, and a policy looks at few tensors of its agent's state.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"][:count]
    used = [i for i, node in enumerate(inputs) if node.users] or list(range(count))[:1]
    for i in set(range(count)) - set(used):
        graph.graph.erase_node(inputs[i])
    return used


def _digest(traced: Traced, options: dict[str, Any]) -> str:
    """What tells a compiled graph from all others: its text, the layout of its inputs, and all that shapes its code."""
    parts = [part.graph.python_code("self").src for part in traced.graph.modules() if isinstance(part, fx.GraphModule)]
    parts += [str((x.shape, x.stride(), x.dtype, x.device)) for x in traced.outlines]
    parts += [str(sorted(options.items())), *surroundings()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
