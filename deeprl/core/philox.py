"""Philox-4x32-10 as one operator on the CPU: `torch.ops.deeprl.philox`, a loop in C, built once and kept.

In torch's own operations a draw is about 60 calls of a few microseconds each where it runs eagerly, and 200 nodes where
it is compiled, a third of the graph of an update. The operator gives the same bits. Where there is no C++ compiler, and
on GPUs, where the operations of a draw are fused into the kernels that use it, there is no operator.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from deeprl.core.process import cache_directory, cpp_compiler

_SOURCE = r"""
#include <cstdint>

// Salmon et al. 2011, section 3.3. key: [keys, 4] words (seed, stream, counter, path); out: [keys, 4, lanes] words.
extern "C" void deeprl_philox(const int64_t* key, int64_t keys, int64_t first, int64_t lanes, int64_t last,
                              int64_t* out) {
  for (int64_t k = 0; k < keys; ++k, key += 4, out += 4 * lanes) {
    const uint32_t seed = key[0], stream = key[1], counter = key[2], path = key[3];
    for (int64_t lane = 0; lane < lanes; ++lane) {
      uint32_t c0 = counter, c1 = first + lane, c2 = path, c3 = last, k0 = seed, k1 = stream;
      for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
      }
      out[lane] = c0;
      out[lanes + lane] = c1;
      out[2 * lanes + lane] = c2;
      out[3 * lanes + lane] = c3;
    }
  }
}
"""
_building = threading.Lock()


@functools.cache
def _loop() -> Any:
    """The function in C, None where it cannot be built."""
    compiler = cpp_compiler()
    if compiler is None:
        return None
    name = hashlib.sha256(f"{_SOURCE}{platform.machine()}{platform.system()}".encode()).hexdigest()[:16]
    library = cache_directory() / f"philox_{name}.so"
    try:
        if not library.exists():
            _build(compiler, library)
        function = ctypes.CDLL(str(library)).deeprl_philox
    except (OSError, subprocess.SubprocessError):
        return None
    function.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_void_p]
    function.restype = None
    return function


def _build(compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / "philox.so"
        source = Path(folder) / "philox.cpp"
        source.write_text(_SOURCE, encoding="utf-8")
        command = [compiler, "-O3", "-shared", "-fPIC", str(source), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        os.replace(made, library)  # complete or not at all, also where two processes build it


torch.library.define("deeprl::philox", "(Tensor key, int first, int lanes, int last) -> Tensor")
operator: Any = torch.ops.deeprl.philox


@torch.library.impl("deeprl::philox", "cpu")
def _drawn(key: Tensor, first: int, lanes: int, last: int) -> Tensor:
    """The four words of each of the lanes first .. first + lanes - 1, [*, 4, lanes] for keys [*, 4], all int64."""
    key = key.contiguous()
    out = key.new_empty((*key.shape[:-1], 4, lanes))
    _loop()(key.data_ptr(), key.numel() // 4, first, lanes, last, out.data_ptr())
    return out


@torch.library.register_fake("deeprl::philox")  # type: ignore[untyped-decorator]
def _outlined(key: Tensor, first: int, lanes: int, last: int) -> Tensor:
    return key.new_empty((*key.shape[:-1], 4, lanes))


@torch.library.register_vmap("deeprl::philox")  # type: ignore[untyped-decorator]
def _of_each(info: Any, in_dims: Any, key: Tensor, first: int, lanes: int, last: int) -> tuple[Tensor, int]:
    return operator(key.movedim(in_dims[0], 0), first, lanes, last), 0


def operator_available(key: Int[Tensor, "4"]) -> bool:
    """Whether the operator can draw for this key."""
    return key.device.type == "cpu" and _loop() is not None
