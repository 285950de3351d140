"""TorchInductor without what it does for the sake of others: for graphs that are traced and functional already.

On a CPU `compile_graph` makes the code that `torch._inductor.compile_fx` would, without the second trace of
AOTAutograd and with shortcuts (`_shortcuts`). Several threads may be at it: they take turns (`turn`) but for the C++
compiler, which runs beside. What has been compiled is kept as a library by the name that the caller gives it, and found
again by that name without TorchInductor, whose own cache takes a second to look into.

All this knows TorchInductor from within, as it is in torch 2.13. With an older one, and on GPUs, `compile_fx` does it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx

from deeprl.core.process import cache_directory

Call = Callable[..., Sequence[Tensor]]  # of a compiled graph: of its inputs

_KNOWN = tuple(int(word) for word in torch.__version__.split(".")[:2]) >= (2, 13)

turn = threading.Lock()  # held by the thread that traces or compiles: both change what belongs to the process
_own = threading.local()  # ours: whether this thread compiles for us; turn: whether it has it; library: what it built


def once(function: Callable[[], None]) -> Callable[[], None]:
    """`function`, done by whoever calls it first; all others wait until it has been done."""
    lock, done = threading.Lock(), threading.Event()

    @functools.wraps(function)
    def do() -> None:
        with lock:
            if not done.is_set():
                function()
                done.set()

    return do


def surroundings() -> list[str]:
    """All that shapes compiled code beside the graph: torch, the processor, what can be switched, and this file."""
    from torch._inductor import config

    switches = torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.enabled, torch.get_num_threads()
    words = [torch.__version__, str(torch.version.git_version), platform.python_version(), _processor()]
    words += [os.environ.get("ATEN_CPU_CAPABILITY", ""), torch.get_float32_matmul_precision(), str(switches)]
    return [*words, config.get_hash().hex(), Path(__file__).read_text(encoding="utf-8")]


@functools.cache
def _processor() -> str:
    """What tells this processor's instructions: a home directory may be shared with older ones."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "".join(next((line for line in lines if line.startswith(kind)), "") for kind in ("flags", "Features"))
    return f"{platform.machine()} {platform.processor()}"


def compile_graph(graph: fx.GraphModule, outlines: Sequence[Any], options: dict[str, Any], name: str) -> Call:
    """A function of the graph's inputs.

    outlines: fake tensors like these, all of one mode; options: of TorchInductor; name: the same for all that is equal
    in these and in the `surroundings`.
    """
    if not (_KNOWN and options.get("cpp_wrapper")):
        from torch._inductor import compile_fx

        with turn, torch.no_grad(), no_autocast():
            made: Any = compile_fx.compile_fx(graph, outlines, config_patches=options)
        return cast(Call, made)
    kept = cache_directory() / "graphs" / f"{name}.so"
    with contextlib.suppress(ImportError, OSError):  # a place from which nothing may be executed
        if _is_whole(kept):
            return _loaded(kept)
    begin_headers()
    _shortcuts()
    _spare_trials()
    with _turn_of_ours(), torch.no_grad(), no_autocast():
        made = _quickly(graph, outlines, options)
        library = _own.library
    if library is not None and not made.constants:
        with contextlib.suppress(ImportError, OSError):  # the same, or a full disk
            _keep(Path(library), kept)
            return _loaded(kept)
    return lambda *tensors: made(list(tensors))


def _quickly(graph: fx.GraphModule, outlines: Sequence[Any], options: dict[str, Any]) -> Any:
    """What `compile_fx` comes to for a graph without gradients, in C++."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile_fx, config
    from torch._inductor.virtualized import V

    mode, inputs = outlines[0].fake_mode, list(outlines)
    with contextlib.ExitStack() as stack:
        stack.enter_context(config.patch(options))
        stack.enter_context(config.patch(compile_fx.get_cpp_wrapper_config()))
        # The former knows one graph at a time; for the latter a graph is pickled, and its library is kept anyway.
        stack.enter_context(config.patch(bundle_triton_into_fx_graph_cache=False, fx_graph_cache=False))
        stack.enter_context(V.set_real_inputs(inputs))
        stack.enter_context(V.set_fake_mode(mode))
        stack.enter_context(tracing(TracingContext(mode)))
        return compile_fx.compile_fx_forward(
            graph,
            inputs,
            num_orig_model_outputs=compile_fx.get_num_model_outputs(graph),
            num_example_inputs=len(inputs),
            compiler_config_extra=compile_fx.create_compiler_config_extra(graph),
            inner_compile=functools.partial(compile_fx.compile_fx_inner, cpp_wrapper=True),
            is_inference=True,
        )


def _loaded(library: Path) -> Call:
    """What TorchInductor writes in Python around a library with a `cpp_wrapper`, less what it asks at every call."""
    guards: Any = torch._C._dynamo.guards
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(guards._torchinductor_pyobject_tensor_data_ptr)
    loader = importlib.machinery.ExtensionFileLoader(f"deeprl_{library.stem}.inductor_entry_cpp", str(library))
    spec = importlib.util.spec_from_file_location(loader.name, library, loader=loader)
    assert spec is not None
    entry = importlib.util.module_from_spec(spec).inductor_entry_cpp
    handles: Any = torch._C._aoti
    enter, leave = handles.unsafe_alloc_void_ptrs_from_tensors, handles.alloc_tensors_by_stealing_from_void_ptrs
    return lambda *tensors: leave(entry(enter(list(tensors))))


def _keep(library: Path, kept: Path) -> None:
    """Copy a library, with a checksum at its end: to load half of one ends the process."""
    content = library.read_bytes()
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        copy = Path(folder) / kept.name
        copy.write_bytes(content + hashlib.sha256(content).digest())
        os.replace(copy, kept)


def _is_whole(kept: Path) -> bool:
    with contextlib.suppress(OSError):
        content = kept.read_bytes()
        return hashlib.sha256(content[:-32]).digest() == content[-32:]
    return False


@once
def begin_headers() -> None:
    """Have the C++ compiler read torch's headers in the background, once a process: 6 s, kept on disk.

    It is the first that code needs, and knows nothing of it.
    """
    from torch._inductor import codecache

    def read() -> None:
        _own.ours = True
        with contextlib.suppress(Exception):  # whoever needs them next will tell
            _shortcuts()
            _spare_trials()
            codecache.CppWrapperCodeCache.load_async("", "cpu")

    in_background(read)


def in_background(work: Callable[[], Any]) -> None:
    """Do it in a thread that sees this one's settings of torch."""
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="deeprl-compile").start()


# --- what is done otherwise than TorchInductor does, in threads that are within `compile_graph` ---


@contextlib.contextmanager
def _turn_of_ours() -> Iterator[None]:
    with turn:
        _own.ours, _own.turn, _own.library = True, True, None
        try:
            yield
        finally:
            _own.ours = _own.turn = False


@once
def _shortcuts() -> None:
    """Put shortcuts in the place of what half of the time goes to.

    Whether an index grows by one with a loop's variable is asked of `sympy.simplify`, which tries trigonometry as well;
    indices are sums, and equal if they are equal when multiplied out. The table of the types of operations, of which
    there is one, is filled anew for each kernel. -O3 finds nothing to do in loops of vector instructions that -O2 has
    not done (updates of SAC and DQN: 1-2 % faster), and takes a third longer. While the C++ compiler works, others may
    have their turn.
    """
    import sympy
    from torch._inductor import codecache, cpp_builder, dtype_propagation

    sizevars: Any = importlib.import_module("torch._inductor.sizevars")
    table: Any = dtype_propagation.DtypePropagationOpsHandler
    fill, build, flags = table.__init__, codecache._worker_compile_cpp, cpp_builder._get_optimization_cflags

    def ours() -> bool:
        return getattr(_own, "ours", False)

    class Sums:
        def __getattr__(self, name: str) -> Any:
            return sympy.expand if name == "simplify" and ours() else getattr(sympy, name)

    def fill_once(self: Any) -> None:
        if not (ours() and vars(self)):
            fill(self)

    def build_beside(lock_path: str, cpp_builders: Sequence[Any]) -> None:
        if not getattr(_own, "turn", False):
            return build(lock_path, cpp_builders)
        _own.library = cpp_builders[-1].get_target_file_path()
        turn.release()
        try:
            return build(lock_path, cpp_builders)
        finally:
            turn.acquire()

    def flags_of_o2(*args: Any, **named: Any) -> tuple[list[str], list[str]]:
        compiler, linker = flags(*args, **named)
        return ["O2" if flag == "O3" and ours() else flag for flag in compiler], linker

    sizevars.sympy, table.__init__, codecache._worker_compile_cpp = Sums(), fill_once, build_beside
    cpp_builder._get_optimization_cflags = flags_of_o2


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Within: no autocast, whose casts are in the graph already."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@once
def _spare_trials() -> None:
    """Spare TorchInductor its trials of the processor's vector instructions, where the compiler knows all of them.

    It builds and loads a library for each set of them, which includes much of torch: 12 s. The processor's own word is
    asked in any case; what is left to find out is whether the C++ compiler takes the flags, which an empty file tells.
    """
    from torch._inductor import config, cpu_vec_isa
    from torch._inductor.cpp_builder import get_cpp_compiler

    if config.cpp.vec_isa_ok is not None:
        return
    has = cpu_vec_isa.x86_isa_checker()  # nothing on other processors, where no trials are made
    sets = [isa for isa in cpu_vec_isa.supported_vec_isa_list if set(str(isa).split()) <= set(has)]
    flags = sorted({flag for isa in sets for flag in isa.build_arch_flags().split()})
    command = [get_cpp_compiler(), *flags, "-fsyntax-only", "-x", "c++", os.devnull]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if flags and subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0:
            with config.patch("cpp.vec_isa_ok", True):
                cpu_vec_isa.valid_vec_isa_list()  # remembers what it has found
