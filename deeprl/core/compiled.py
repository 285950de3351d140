"""A function of tensors as one compiled graph, made as fast as can be: traced by PyTorch's dispatcher, not by Dynamo.

Functions of a population are pure: trees of tensors in, trees of tensors out, or in place. One run of them with tensors
that have shapes but no numbers, under `make_fx`, writes down every operation, with all that `vmap`, `grad` and autocast
make of it. Dynamo, which interprets Python bytecode to come to such a graph, takes ten times as long, needs checks at
each call of all that it has looked at, and knows functions by their code, which the closures of all runs share.

What a graph computes is told by its text and by the layout of its inputs. Graphs of equal text share one compiled
function within the process; TorchInductor keeps those of earlier processes on disk (`cache_directory`). Tensors that a
function has from its surroundings are inputs of its graph as well, and read where they lie at every call.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from deeprl.core.process import cache_directory
from deeprl.errors import DeeprlError, first_line

Call = Callable[..., Sequence[Tensor]]  # of a compiled graph: of its inputs

_lock = threading.RLock()  # a trace replaces methods of torch.nn.Module for a while
_built: dict[str, Call] = {}  # compiled graphs of this process by `_digest`


class Traced(NamedTuple):
    """A graph of tensors alone: those of the arguments, then `held`, which the function had from its surroundings.

    result: what the function returned, with the number of an output in the place of each tensor.
    """

    graph: fx.GraphModule
    held: list[Tensor]
    result: Any


class _Output(int):
    """The number of an output of a graph."""


class _Ready(NamedTuple):
    """A compiled graph and what it was made for."""

    layout: list[Any]
    call: Call
    held: list[Tensor]
    result: Any


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
        outputs = ready.call(*tensors, *ready.held)
        return _fill(ready.result, outputs)

    def _build(self, args: tuple[Any, ...], layout: list[Any]) -> _Ready:
        with _lock:
            try:
                traced, tensors = trace(self._function, args), list[Tensor]()
            except Exception as error:  # of many kinds, and a function's own
                reason = textwrap.shorten(first_line(error), 200, placeholder=" ...")
                name = getattr(self._function, "__qualname__", str(self._function))
                raise DeeprlError(f"{name} cannot be compiled ({reason}); --compile off runs it as it is") from error
            _flatten(args, tensors, [])
            digest = _digest(traced, tensors, self._options)
            if digest not in _built:
                _built[digest] = _compile(traced, tensors, self._options)
            ready = _Ready(layout, _built[digest], traced.held, traced.result)
            self._ready = [ready, *self._ready]
        return ready


def trace(function: Callable[..., Any], args: tuple[Any, ...]) -> Traced:
    """The graph of what `function` does with arguments like these, without doing it: nothing is written in place.

    Raises what PyTorch raises, of many kinds, where it does other things for other numbers.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
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
    with _lock, torch.no_grad():
        outlines = [mode.from_tensor(x, static_shapes=True) for x in tensors]
        graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*outlines)
    graph.graph.eliminate_dead_code()
    held = _lift(graph)
    graph.recompile()
    return Traced(graph, held, result)


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


def _digest(traced: Traced, tensors: list[Tensor], options: dict[str, Any]) -> str:
    """What tells a compiled graph from all others: its text, the layout of its inputs, and all that shapes its code."""
    parts = [part.code for part in traced.graph.modules() if isinstance(part, fx.GraphModule)]
    parts += [str((x.shape, x.stride(), x.dtype, x.device)) for x in tensors + traced.held]
    parts += [str(sorted(options.items())), str(torch.get_num_threads()), torch.get_float32_matmul_precision()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _compile(traced: Traced, tensors: list[Tensor], options: dict[str, Any]) -> Call:
    """Hand a graph to TorchInductor as Dynamo would."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_directory() / "inductor"))
    from torch._inductor import compile_fx

    with torch.no_grad(), _no_autocast():
        patches = {**options, **_vector_options()}
        made: Any = compile_fx.compile_fx(traced.graph, tensors + traced.held, config_patches=patches)
    return made


@contextlib.contextmanager
def _no_autocast() -> Iterator[None]:
    """Within: no autocast, whose casts are in the graph already."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@functools.cache
def _vector_options() -> dict[str, Any]:
    """Spare TorchInductor its trials of the processor's vector instructions, where the compiler knows all of them.

    It builds and loads up to ten libraries, each of which includes much of torch: 12 s. The processor's own word is
    asked in any case; what is left to find out is whether the C++ compiler takes the flags, which an empty file tells.
    """
    from torch._inductor import config, cpu_vec_isa
    from torch._inductor.cpp_builder import get_cpp_compiler

    if config.cpp.vec_isa_ok is not None or not os.path.exists("/proc/cpuinfo"):
        return {}
    flags = {word for isa in cpu_vec_isa.supported_vec_isa_list for word in isa.build_arch_flags().split()}
    known = [f"-m{flag}" if not flag.startswith("-") else flag for flag in sorted(flags)]
    command = [get_cpp_compiler(), *known, "-fsyntax-only", "-x", "c++", os.devnull]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0:
            return {"cpp.vec_isa_ok": True}
    return {}
