"""A GPU for machines without one: tensors made on `cuda:N` hold their numbers on the CPU, but are as strict as there.

`.numpy()` is refused, as are operations with tensors of the CPU (but copies, indices, and numbers of no dimension), and
`torch.cuda.set_device` wants an index. Below Python, and within vmap, their device is `meta`, as torch without CUDA has
no other for them; where it is handed on there, it means the GPU. What it cannot tell: whether kernels compile, and what
a recording of them does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ATEN = torch.ops.aten
MIXING = {ATEN.copy_.default, ATEN._to_copy.default, ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default}
WAITING = {ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.equal.default}


class GpuTensor(Tensor):
    """A tensor of a GPU that is not there. held: its numbers; gpu: the index."""

    held: Tensor
    gpu: int
    is_meta = False  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: Any, held: Tensor, index: int) -> GpuTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.size(), device=torch.device("meta"), **layout)
        made.held, made.gpu = held, index
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.held!r} on cuda:{self.gpu}"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self.gpu)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Gpu(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


waited: list[str] = []  # operations for which the CPU has waited, or that go to it


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = {x.gpu for x in flat if isinstance(x, GpuTensor)}
    here = [x for x in flat if not isinstance(x, GpuTensor) and (x.dim() or torch.Tag.pointwise not in func.tags)]
    if there and func not in MIXING and (here or len(there) > 1):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:{there} and cpu")
    target = next(iter(there), None)
    if func is ATEN.copy_.default:
        target = getattr(args[0], "gpu", None)
    if (asked := kwargs.get("device")) is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
        waited.extend([str(func)] * (target is not None and asked.type == "cpu"))
        index = _index(asked) if asked.type == "cuda" else target if target is not None else torch.cuda.current_device()
        target = None if asked.type == "cpu" else index
    if func in WAITING and target is not None:
        waited.append(str(func))
    known = {id(x.held): x for x in flat if isinstance(x, GpuTensor)}
    inner = tree_map(lambda x: x.held if isinstance(x, GpuTensor) else x, (args, kwargs))
    out = func(*inner[0], **inner[1])

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or target is None:
            return x
        return known[id(x)] if id(x) in known else GpuTensor(x, target)

    return tree_map(wrap, out)


def _index(device: Any = None, optional: bool = True) -> int:
    """As `torch.cuda._utils._get_device_index`."""
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    if index is None and not optional:
        raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
    return torch.cuda.current_device() if index is None else index


@contextmanager
def pretended_gpus(monkeypatch: pytest.MonkeyPatch, count: int = 2) -> Iterator[list[int]]:
    """Within: so many GPUs. Yields the indices that have been made the one in use, the first at first."""
    used = [0]
    fakes: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: used[-1],
        "set_device": lambda device: used.append(_index(device, optional=False)),
        "get_device_name": lambda device=None: f"pretended {_index(device)}",
        "mem_get_info": lambda device=None: (10**9 * (1 + _index(device)), 10**10),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    waited.clear()
    # Torch would put the memory of a pretended tensor into a parameter that is none.
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    lifting = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) moves what it has made where modes see it
    try:
        with _Gpu():
            yield used
    finally:
        torch._C._set_only_lift_cpu_tensors(lifting)
