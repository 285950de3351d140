"""One algorithm, written for one agent, run for a population: stacking, vectorising, compiling, freezing.

A population's state is the state of one agent with a leading axis S on every tensor. `over_agents` lifts a function of
one agent to the population:

- backend `vmap`: one call computes all agents (`torch.vmap`), compiled as one graph;
- backend `loop`: the same function, compiled for one agent, runs over the members in turn: bit-equal to a run alone.

States are updated in place: the compiled function writes the new state into the memory of the old one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from deeprl.config import RunConfig
from deeprl.core.compiled import Compiled
from deeprl.core.cuda_graphs import Recorded
from deeprl.core.process import cpp_compiler, keep_freed_memory, torch_defaults
from deeprl.core.spec import Metrics
from deeprl.core.tree import tree_leaves, tree_map, write_into
from deeprl.errors import DeeprlError

T = TypeVar("T")
Backend = Literal["vmap", "loop"]
Precision = Literal["strict", "fast", "bf16"]

_ONEDNN_PAYS = 2**23  # multiplications of a product of all agents, such as 4 of 128 rows by 128 x 128


class Agents(NamedTuple):
    """A population in training.

    frozen_at: -1 for a healthy agent, else the number of the first update that it did not take. cause: -1 for a healthy
    agent, else what was not finite (`cause_code`).
    """

    state: Any
    frozen_at: Int[Tensor, " S"]
    cause: Int[Tensor, " S"]


_CAUSES: dict[int, str] = {}


def cause_code(name: str) -> int:
    """The number that stands for a cause in `Agents.cause`, a checksum of its name: the same in every session."""
    code = zlib.crc32(name.encode())
    _CAUSES[code] = name
    return code


def cause_name(code: int) -> str:
    """The name behind a number of `cause_code`, of those that this process has asked for."""
    return _CAUSES.get(code, "a metric")


def stack(states: Sequence[T]) -> T:
    """The state of a population from the states of its members."""
    return tree_map(lambda *leaves: torch.stack(leaves), states[0], *states[1:])


def member(state: T, index: int) -> T:
    """A copy of one member's state."""
    return tree_map(lambda leaf: leaf[index].clone(), state)


def new_agents(states: Sequence[Any], device: torch.device | str = "cpu") -> Agents:
    """A healthy population from the states of its members."""
    state = tree_map(lambda leaf: leaf.to(device), stack(states))
    healthy = torch.full((2, len(states)), -1, dtype=torch.int64, device=device)
    return Agents(state, *healthy.clone().unbind())


@dataclass(frozen=True)
class Execution:
    """How the functions of a population run; resolved once per run and stored with it.

    precision: `strict` f32 products in f32; `fast` f32 through the library's fastest path (TF32 on CUDA; for large
    products oneDNN on a CPU, which may round to bf16 on processors with bf16 matrix units); `bf16`
    products under autocast, f32 weights.
    """

    backend: Backend = "vmap"
    compile: bool = False
    precision: Precision = "fast"
    threads: int = 1
    device: str = "cpu"
    cuda_graphs: bool = True

    def apply(self) -> None:
        """Set the process-wide switches: threads, precision of products, what malloc does with freed memory.

        On the device `meta`, where nothing is computed, there is nothing to set.
        """
        if self.device == "meta":
            return
        if self.device.startswith("cuda"):
            torch.cuda.set_device(self.device)  # graphs are recorded on the current one
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision("highest" if self.precision == "strict" else "medium")
        keep_freed_memory()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within: torch's own defaults, and the switches of `apply`; at the end all is as it was."""
        with torch_defaults():
            self.apply()
            yield

    def fit(self, state: Any, rows: int) -> None:
        """Choose the library of `fast` products for the networks of a population's state and batches of `rows`.

        On a CPU a call of oneDNN costs 15 us more than one of the default library, and is then up to a fifth faster for
        a large product of several agents or critics.
        """
        if self.precision == "fast" and self.device == "cpu":
            weights = [leaf for leaf in tree_leaves(state) if leaf.dim() >= 3]
            agents = len(weights[0]) if weights and self.backend == "vmap" else 1
            widest = max((leaf[0].shape[-2:].numel() for leaf in weights), default=0)
            torch.set_float32_matmul_precision("medium" if agents * rows * widest >= _ONEDNN_PAYS else "highest")


class Lifted:
    """A function of a population, of `over_agents`."""

    def __init__(self, call: Callable[..., Any], prepare: Callable[..., None]):
        self._call, self._prepare = call, prepare

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def prepare(self, *args: Any) -> None:
        """If it is compiled, begin to, for arguments like these, beside what the caller does next."""
        self._prepare(*args)


def over_agents(
    function: Callable[..., Any], execution: Execution, *, shared: Sequence[int] = (), donate: bool = False
) -> Lifted:
    """Lift `function` of one agent to a population: every tensor argument and result gets a leading axis S.

    shared: positions of arguments that are the same for all agents and have no such axis.
    donate: the first argument is a state that the function returns, renewed, as the first of its results; it is
    overwritten in place, and the lifted function returns the other results alone. As a CUDA graph, it returns them in
    memory that its next call overwrites.

    Whatever is no tensor (arguments, settings and attributes of modules that `function` reads) is compiled as it is at
    the first call: a compiled function does not see it change.
    """

    @functools.wraps(function)
    def cast(*args: Any) -> Any:
        if execution.precision != "bf16":  # also autocast that is switched off keeps torch from storing what it traced
            return function(*args)
        with torch.autocast(execution.device.split(":")[0], torch.bfloat16):
            return function(*args)

    def vectorized(*args: Any) -> Any:
        result = torch.vmap(cast, in_dims=tuple(None if i in shared else 0 for i in range(len(args))))(*args)
        return _write_back(args[0], result) if donate else result

    def single(*args: Any) -> Any:
        result = cast(*args)
        return _write_back(args[0], result) if donate else result

    run = _compiled(vectorized if execution.backend == "vmap" else single, execution)

    def of_member(i: int, args: Sequence[Any]) -> list[Any]:
        return [a if j in shared else _view(a, i) for j, a in enumerate(args)]

    def looped(*args: Any) -> Any:
        return stack([run(*of_member(i, args)) for i in range(len(tree_leaves(args[0])[0]))])

    def prepare(*args: Any) -> None:
        if isinstance(run, Compiled):
            run.prepare(*(args if execution.backend == "vmap" else of_member(0, args)))

    lifted = torch.no_grad()(run if execution.backend == "vmap" else looped)
    if execution.compile and execution.cuda_graphs and execution.device.startswith("cuda"):
        lifted = Recorded(lifted, keep=not donate)
    return Lifted(lifted, torch.no_grad()(prepare))


def freezing(
    update: Callable[..., tuple[Any, Metrics, Any]], cause: str = ""
) -> Callable[..., tuple[Agents, Metrics, Any]]:
    """An update of one agent that stops changing it for good once one of its metrics is not finite.

    The agent keeps the state before that update; `frozen_at` gets its number (`state.step`), `cause` the first metric
    that was not finite, or the name given here. Metrics should hold the gradients' norms beside the losses: the square
    overflows before an optimizer's moments do. Looking at all of the new state instead would cost 15 % of the speed
    of SAC; `health.look` does so now and then.
    """

    def guarded(agents: Agents, *args: Any) -> tuple[Agents, Metrics, Any]:
        old, frozen_at, known = agents
        new, metrics, aux = update(old, *args)
        # In halves of 16 bits, which are exact in f32: for AVX2, TorchInductor (torch 2.13) makes wrong code of such a
        # chain of int64, by which healthy agents were frozen.
        high, low = torch.full_like(known, -1, dtype=torch.float32), torch.full_like(known, 65535, dtype=torch.float32)
        for name, value in list(metrics.items())[::-1]:
            fine, code = value.isfinite().all(), cause_code(cause or name)
            high, low = torch.where(fine, high, float(code >> 16)), torch.where(fine, low, float(code & 65535))
        found = high.to(torch.int64) * 65536 + low.to(torch.int64)
        finite, healthy = high < 0, frozen_at < 0
        learned = healthy & finite
        state = tree_map(lambda n, o: o if n is o else torch.where(learned, n, o), new, old)
        frozen_at = torch.where(healthy & ~finite, old.step, frozen_at)
        return Agents(state, frozen_at, torch.where(healthy, found, known)), metrics, aux

    return guarded


def resolve_execution(config: RunConfig, updates: int) -> Execution:
    """How a run executes on this machine. updates: those it will do, all agents together."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return Execution(
        backend=config.backend,
        compile=resolve_compile(config.compile, updates if config.backend == "loop" else updates // len(config.seeds)),
        precision=config.precision,
        threads=config.threads or (int(asked) if asked.isdigit() and int(asked) > 0 else cores),
        device=resolve_device(config.device),
        cuda_graphs=config.cuda_graphs,
    )


def resolve_compile(choice: Literal["auto", "on", "off"], calls: int) -> bool:
    """Whether to compile: `auto` does if there is a C++ compiler and the run calls the update 500 times or more.

    From about then on compiling saves more time than it takes. Measured with one thread, as seconds of a processor:

                              a call of the update     acting, a step     compiling        earned back after
                              eager     compiled       eager compiled     new    stored    calls, if new
        SAC 256 x 256, 1      0.0289    0.0089         0.0028  0.0002      14.6      1.1     650
        SAC 256 x 256, 8      0.1124    0.0632         0.0029  0.0003      18.1      1.6     350
        DQN 120, 84, 1        0.0061    0.0008         0.0016  0.0001       9.1      0.6     450
        DQN 120, 84, 8        0.0093    0.0027         0.0017  0.0002      12.5      0.6     550

    with a step for each update of SAC and ten for one of DQN, which are their defaults. Calls count, not updates of
    agents: eight agents in one call cost eight times the arithmetic, but not the time in Python that compiling saves.
    """
    if choice != "auto":
        return choice == "on"
    if calls < 500:
        return False
    if cpp_compiler() is None:
        warnings.warn("no C++ compiler found: running eagerly, several times slower (install g++)", stacklevel=2)
        return False
    return True


def resolve_device(device: str) -> str:
    """The device by its full name: cpu or cuda:N; `cuda` is the GPU in use, `auto` the same where there is one.

    Raises DeeprlError for a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = None
    with contextlib.suppress(RuntimeError):
        asked = torch.device(device)
    if asked is None or asked.type not in ("cpu", "cuda", "meta"):
        raise DeeprlError(f"device: expected cpu, cuda, cuda:N or auto, not {device!r}")
    if asked.type != "cuda":
        return asked.type
    in_use = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    index, found = in_use if asked.index is None else asked.index, torch.cuda.device_count()
    if index >= found:
        raise DeeprlError(f"device {device}: this torch ({torch.__version__}) sees {found} CUDA GPUs")
    return f"cuda:{index}"


def _write_back(state: Any, result: Any) -> Any:
    write_into(state, result[0])
    return result[1:]


def _view(tree: Any, index: int) -> Any:
    return tree_map(lambda leaf: leaf[index], tree)


def _compiled(function: Callable[..., Any], execution: Execution) -> Callable[..., Any]:
    """`function` as one graph. Sizes need no check in it; in C++ the calls of its kernels cost half of Python's."""
    if not execution.compile:
        return function
    return Compiled(function, {"size_asserts": False, "cpp_wrapper": execution.device == "cpu"})
