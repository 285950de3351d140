"""Running normalisation of observations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """Centre and scale by the mean and variance of everything `update` has seen (Chan et al. 1979, parallel form).

    Buffers (no parameters): mean, var of the feature's shape, count 0-d. The statistics change only in `update`, which
    an algorithm calls while it collects data, never between acting and learning from that data. Before the first
    update the input passes unchanged but for clipping.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: int | Sequence[int], clip: float = 10.0, eps: float = 1e-8):
        super().__init__()
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.clip, self.eps = clip, eps
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        return ((x - self.mean) * torch.rsqrt(self.var + self.eps)).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "N O"]) -> None:
        """Take in a batch of observations."""
        for name, value in self.updated(dict(self.named_buffers()), x).items():
            getattr(self, name).copy_(value)

    @staticmethod
    def updated(stats: dict[str, Tensor], x: Float[Tensor, "N O"]) -> dict[str, Tensor]:
        """The pure form of `update`: statistics (mean, var, count) in, new ones out."""
        n = x.shape[0]
        count = stats["count"] + n
        delta = x.mean(0) - stats["mean"]
        weight = n / count
        var = (1.0 - weight) * stats["var"] + weight * x.var(0, unbiased=False)
        return {
            "mean": stats["mean"] + weight * delta,
            "var": var + weight * (1.0 - weight) * delta.square(),
            "count": count,
        }
