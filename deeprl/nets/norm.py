"""Normalisation: running statistics of observations and returns, and the parts of hyperspherical networks.

A network whose features and weight vectors stay on the unit sphere (Lee et al. 2025, "Hyperspherical Normalization for
Scalable Deep Reinforcement Learning", arXiv 2502.15280) is made of `HyperLinear`, `Scaler`, `Lerp` and `l2_normalize`;
after every step of its optimizer, `project_` or `projected` takes the weights back to the sphere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deeprl.core.spec import Params
from deeprl.nets.agent import Bound
from deeprl.nets.shapes import as_rows


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
    def update(self, x: Float[Tensor, "*N O"]) -> None:
        """Take in a batch of observations, or a single one."""
        for name, value in self.updated(dict(self.named_buffers()), x).items():
            getattr(self, name).copy_(value)

    @staticmethod
    def updated(stats: dict[str, Tensor], x: Float[Tensor, "..."]) -> dict[str, Tensor]:
        """The pure form of `update`: statistics (mean, var, count) in, new ones out. x: [*N, *O]."""
        x = as_rows(x, stats["mean"].dim())
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


class FixedNorm(nn.Module):
    """(x - mean) / std by statistics that stay as they are, such as a dataset's: buffers mean, std of x's last axes."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Float[Tensor, "*O"], std: Float[Tensor, "*O"]):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        return (x - self.mean) / self.std


class _Float64Statistics(nn.Module):
    """Statistics that stay float64 when the networks around them change their type, as by `.to(torch.bfloat16)`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep(buffer: Tensor) -> Tensor:
            moved = fn(buffer)
            return moved if moved.dtype in (buffer.dtype, torch.float64) else buffer.to(moved.device)

        return super()._apply(keep, recurse)


class RSNorm(_Float64Statistics, RunningNorm):
    """SimBa's running statistics normalisation (Lee et al. 2025, arXiv 2410.09754; the authors' code): no clipping.

    The statistics are float64, and begin as mean 0, variance 1 with the weight of 1e-4 observations; only the result is
    rounded to the input's type. (A user of the authors' code reports that float32 statistics of observations fall short
    of the published results: DAVIAN-Robotics/SimbaV2, issue 8.)
    """

    def __init__(self, shape: int | Sequence[int], eps: float = 1e-8):
        super().__init__(shape, float("inf"), eps)
        self.to(torch.float64).count.fill_(1e-4)

    def forward(self, x: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        return ((x.to(torch.float64) - self.mean) * torch.rsqrt(self.var + self.eps)).to(x.dtype)

    @staticmethod
    def updated(stats: dict[str, Tensor], x: Float[Tensor, "..."]) -> dict[str, Tensor]:
        return RunningNorm.updated(stats, x.to(torch.float64))


class ReturnScale(_Float64Statistics):
    """SimbaV2's scale of rewards (arXiv 2502.15280, Sec. 4.4): rewards are divided by max(std of G, max |G| / bound).

    G is the running discounted return of each environment, G <- discount (1 - ended) G + reward, with the end of that
    reward's own step: the last step of an episode leaves G at its reward alone. Its variance is kept as by `RSNorm`,
    its mean is not subtracted. Buffers, all float64: returns [N], peak 0-d (max |G|), and mean, var, count 0-d of G.
    bound: largest value that the critic can express. The recursion is that of the authors' code, from which formulas of
    the paper differ (their issue 3).
    """

    returns: Tensor
    peak: Tensor
    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, envs: int = 1, bound: float = 5.0, eps: float = 1e-8):
        super().__init__()
        self.bound, self.eps = bound, eps
        start = {"returns": torch.zeros(envs), "peak": torch.tensor(0.0), "mean": torch.tensor(0.0)}
        for name, value in (start | {"var": torch.tensor(1.0), "count": torch.tensor(1e-4)}).items():
            self.register_buffer(name, value.to(torch.float64))

    def forward(self, reward: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Scaled rewards."""
        scale = torch.maximum(torch.sqrt(self.var + self.eps), self.peak / self.bound)
        return (reward / scale).to(reward.dtype)

    @staticmethod
    def updated(
        stats: dict[str, Tensor], reward: Float[Tensor, " N"], ended: Bool[Tensor, " N"], discount: float | Tensor
    ) -> dict[str, Tensor]:
        """New statistics after one step of every environment. ended: terminated or truncated."""
        returns = discount * torch.where(ended, 0.0, stats["returns"]) + reward
        moments = RSNorm.updated({k: stats[k] for k in ("mean", "var", "count")}, returns)
        return moments | {"returns": returns, "peak": torch.maximum(stats["peak"], returns.abs().amax())}


def l2_normalize(x: Float[Tensor, "*B D"], dim: int = -1, eps: float = 1e-8) -> Float[Tensor, "*B D"]:
    """x / max(|x|, eps), computed and returned in float32 or wider."""
    x = x.to(torch.float32) if x.dtype in (torch.bfloat16, torch.float16) else x
    return x / torch.clamp(torch.linalg.vector_norm(x, dim=dim, keepdim=True), min=eps)


class HyperLinear(nn.Module):
    """A linear layer without bias whose units have weight vectors of length 1 (arXiv 2502.15280, Sec. 4.1).

    weight: [out, in], rows of length 1; orthogonal at the start. An optimizer's step takes them off the sphere:
    `project_` or `projected` must follow it.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        project_(self)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B J"]:
        return nn.functional.linear(x, self.weight)


class Scaler(nn.Module):
    """Multiplies each feature by a learned factor that begins as `init` (arXiv 2502.15280, Sec. 4.1).

    weight: [dim], begins as `scale` and is multiplied by init / scale in use: `scale` alone sets how much a step of
    the optimizer changes the factor.
    """

    def __init__(self, dim: int, init: float = 1.0, scale: float = 1.0):
        super().__init__()
        self.scale, self.factor = scale, init / scale
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.scale)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return x * (self.weight * self.factor)


class Lerp(nn.Module):
    """A residual connection on the sphere: normalise(x + alpha (y - x)), alpha a `Scaler` (arXiv 2502.15280, Eq. 12).

    init, scale: those of the scaler.
    """

    def __init__(self, dim: int, init: float, scale: float):
        super().__init__()
        self.alpha = Scaler(dim, init, scale)

    def forward(self, x: Float[Tensor, "*B D"], y: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return l2_normalize(x + self.alpha(y - x)).to(self.alpha.weight.dtype)


def hyper_weights(module: nn.Module | Bound) -> set[str]:
    """Names of the parameters of `module` that live on the sphere."""
    found = ((name, child) for name, child in module.named_modules() if isinstance(child, HyperLinear))
    return {f"{name}.weight" if name else "weight" for name, _ in found}


def projected(params: Params, names: set[str]) -> Params:
    """`params` with every weight vector of the layers `names` (from `hyper_weights`) at length 1 again."""
    return {k: l2_normalize(p).to(p.dtype) if k in names else p for k, p in params.items()}


@torch.no_grad()
def project_(module: nn.Module) -> None:
    """Take all `HyperLinear` layers of a module back to the sphere, in place: call it after `optimizer.step()`."""
    for child in module.modules():
        if isinstance(child, HyperLinear):
            child.weight.copy_(l2_normalize(child.weight))
