"""What belongs to the whole process: torch's defaults and switches, and what the C library does with freed memory.

A program may have chosen float64 or a GPU for new tensors, or call deeprl in inference mode or under autocast. None of
it reaches deeprl, and what deeprl sets is set back when it has done its work or failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch


class _Switches(NamedTuple):
    """What all threads of the process share. precision: None where torch cannot tell it."""

    dtype: torch.dtype
    threads: int
    precision: str | None


_lock = threading.Lock()
_inside: list[_Switches] = []  # for each that is within `torch_defaults` now, in all threads: what it was at first


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Within: new tensors are float32, on the CPU and may be changed later, and there is no autocast; also a decorator.

    At the end all that is as it was, and so are the number of threads, the precision of products and the GPU in use,
    which may be set within. Threads that are within at the same time share these switches: the last to leave sets them
    back.
    """
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    with contextlib.ExitStack() as own:
        own.enter_context(_shared_switches())
        if torch.is_inference_mode_enabled():
            own.enter_context(torch.inference_mode(False))
        if torch.empty(0).device.type != "cpu":  # a mode that costs time in every call of torch
            own.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                own.enter_context(torch.autocast(kind, enabled=False))
        try:
            yield
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.set_device(gpu)


@contextlib.contextmanager
def _shared_switches() -> Iterator[None]:
    with _lock:
        _inside.append(_inside[0] if _inside else _switches())
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with _lock:
            before = _inside.pop()
            if not _inside:
                _set_back(before)


def _switches() -> _Switches:
    precision = None
    with contextlib.suppress(RuntimeError):  # the program has used the old and the new interface of torch
        precision = torch.get_float32_matmul_precision()
    return _Switches(torch.get_default_dtype(), torch.get_num_threads(), precision)


def _set_back(before: _Switches) -> None:
    torch.set_default_dtype(before.dtype)
    if torch.get_num_threads() != before.threads:
        torch.set_num_threads(before.threads)
    if before.precision is not None and torch.get_float32_matmul_precision() != before.precision:
        torch.set_float32_matmul_precision(before.precision)


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep freed memory in the process; DEEPRL_MALLOC=0 leaves its settings alone.

    By default it hands activations of 1-16 MB back to the kernel after every update and faults them in again, which
    costs a third of the speed of an in-place update.
    """
    if not sys.platform.startswith("linux") or os.environ.get("DEEPRL_MALLOC") == "0":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in other C libraries
    if mallopt is not None:
        for parameter, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
            mallopt(parameter, value)


def cpp_compiler() -> str | None:
    """The C++ compiler that CXX or the path names, None where there is none."""
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


@functools.cache
def cache_directory() -> Path:
    """Where what has been compiled is kept: DEEPRL_CACHE, else `deeprl` in the user's cache directory."""
    named = os.environ.get("DEEPRL_CACHE")
    place = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deeprl"
    try:
        place.mkdir(parents=True, exist_ok=True)
        usable = os.access(place, os.W_OK)
    except OSError:
        usable = False
    return place if usable else Path(tempfile.mkdtemp(prefix="deeprl"))
