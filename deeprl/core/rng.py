"""Counter-based random numbers: a draw is a pure function of a key, so nothing has to be stored to repeat it.

Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in plain integer operations: works
eagerly, under `torch.vmap`, in `torch.compile` and on any device, with the same bits everywhere. Normals agree across
devices up to the rounding of log, sin and cos.

A key is an int64 tensor [4] of 32-bit words (seed, stream, counter, path). `key` makes one, `Streams` makes those of a
population, `split` and `fold_in` derive independent ones. The same key always draws the same numbers: derive a new
key for each draw.

Two faults of today's compilers shape the code. Products of 32-bit words overflow a signed 64-bit integer, which
the C++ compiler may assume away: the multipliers are taken minus 2^32 instead and the operand is added to the high
half afterwards. And `arange(n) * constant` is computed in 32 bits: the lane number sits in counter word 1, which Philox
xors before it multiplies.

A draw depends on its key and on how many numbers it has: a short draw is not the beginning of a longer one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deeprl.core import philox as native

Key = Int[Tensor, "4"]

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_DRAW, _DERIVE = 0, 1  # last counter word: keeps drawn numbers apart from derived keys

STREAMS = ("init", "explore", "sample", "update", "env", "eval", "corrupt", "pbt")


def philox(counter: Sequence[Tensor], key: Sequence[Tensor], rounds: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32. counter: 4, key: 2 int64 tensors of 32-bit words that broadcast together. Returns 4 words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * _M0, c2 * _M1
        high0, high1 = ((p0 >> 32) + c0) & _MASK, ((p1 >> 32) + c2) & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _MASK, high0 ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def key(seed: int, stream: str, counter: int = 0, device: torch.device | str = "cpu") -> Key:
    """The key number `counter` of a named stream (one of `STREAMS`) of an agent's seed (0 <= seed < 2^32)."""
    if not 0 <= seed <= _MASK:
        raise ValueError(f"seed must be in 0 .. 2^32 - 1, not {seed}")
    return torch.tensor([seed, STREAMS.index(stream), counter, 0], dtype=torch.int64, device=device)


class Streams:
    """The keys of a population: `streams("update", t)` is int64 [S, 4], one key for each agent's seed."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self._base = {s: torch.stack([key(seed, s) for seed in seeds]).to(device) for s in STREAMS}

    def base(self, stream: str) -> Int[Tensor, "S 4"]:
        """The keys of a stream without their numbers, for `key_number`: always the same tensor."""
        return self._base[stream]

    def __call__(self, stream: str, counter: int) -> Int[Tensor, "S 4"]:
        base = self._base[stream]
        # NumPy takes half of torch's time. Made on the device: a copy to it would wait for all that is queued there.
        keys: Any = base.numpy().copy() if base.device.type == "cpu" else base.clone()
        keys[:, 2] = counter
        return torch.as_tensor(keys)


def key_number(base: Key, counter: Int[Tensor, ""]) -> Key:
    """The key of that number in the stream of a key with number 0: as `Streams` gives them, on the device."""
    seed, stream, _, path = base.unbind()
    return torch.stack([seed, stream, counter, path])


def fold_in(key: Key, data: int | Tensor) -> Key:
    """A new key from `key` and a number below 2^32 (an int or a 0-d integer tensor)."""
    if not isinstance(data, Tensor):
        return _words(key, 1, _DERIVE, first=data).squeeze(-1)
    seed, stream, counter, path = key.unbind()
    return torch.stack(philox((counter, data.to(torch.int64), path, torch.full_like(path, _DERIVE)), (seed, stream)))


def split(key: Key, n: int) -> tuple[Key, ...]:
    """`n` independent keys."""
    return _words(key, n, _DERIVE).unbind(-1)


def _words(key: Key, lanes: int, last: int = _DRAW, first: int = 0) -> Int[Tensor, "4 lanes"]:
    """The words of the lanes first .. first + lanes - 1."""
    if not torch.compiler.is_compiling() and native.operator_available(key):  # a user's own graph has the operations
        return native.operator(key, first, lanes, last)
    seed, stream, counter, path = key.unbind()
    lane = torch.arange(first, first + lanes, device=key.device)
    return torch.stack(philox((counter, lane, path, torch.full_like(path, last)), (seed, stream)))


def _take(numbers: Tensor, shape: Sequence[int]) -> Tensor:
    """The first of some numbers, in the given shape."""
    return torch.cat(numbers.unbind())[: math.prod(shape)].reshape(tuple(shape))


def bits(key: Key, shape: Sequence[int]) -> Int[Tensor, "..."]:
    """Random 32-bit words as int64 of the given shape."""
    return _take(_words(key, -(-math.prod(shape) // 4)), shape)


def uniform(
    key: Key, shape: Sequence[int], low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """Uniform numbers in [low, high), 24 random bits each.

    Rounding may give `high` itself where high - low is small against the bounds.
    """
    unit = (bits(key, shape) >> 8).to(dtype) * 2.0**-24
    return unit * (high - low) + low


def normal(key: Key, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
    """Standard normal numbers (Box-Muller on 24-bit uniforms, so |z| <= 5.77)."""
    words = _words(key, -(-math.prod(shape) // 4)) >> 8
    u = (words[::2] + 1).to(dtype) * 2.0**-24  # in (0, 1]: its logarithm is finite
    angle = words[1::2].to(dtype) * (2.0**-24 * 2.0 * math.pi)
    radius = torch.sqrt(-2.0 * torch.log(u))
    return _take(torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1).flatten(0, 1), shape)


def randint(key: Key, shape: Sequence[int], n: int | Tensor) -> Int[Tensor, "..."]:
    """Integers in [0, n) for n < 2^31, from 64 random bits by multiply-shift (bias below n / 2^64)."""
    words = _words(key, -(-math.prod(shape) // 2))
    return _take((words[::2] * n + ((words[1::2] * n) >> 32)) >> 32, shape)


def permutation(key: Key, n: int) -> Int[Tensor, " n"]:
    """A random order of 0 .. n - 1 (a stable sort of 62 random bits each)."""
    w0, w1, _, _ = _words(key, n).unbind()
    return torch.argsort((w0 << 30) | (w1 >> 2), stable=True)
