"""What tests of several actor-critic algorithms share: small batches, a critic worked out by hand, a plain critic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeprl.core import rng
from deeprl.core.compiled import Compiled
from deeprl.core.spec import Batch, EnvSpec, Params, Seen
from deeprl.core.tree import flatten, tree_map

ONE = EnvSpec((1,), 1, (-1.0,), (1.0,))
SPEC = EnvSpec((3,), 2, (-1.0,) * 2, (1.0,) * 2)

# Q_1 = 1 o + 2 a and Q_2 = 0 o + 1 a + 1, as linear "networks".
CRITIC = {
    "layers.0.weight": torch.tensor([[[1.0], [2.0]], [[0.0], [1.0]]]),
    "layers.0.bias": torch.tensor([[0.0], [1.0]]),
}
# Q_1 = 2, 1 and Q_2 = 1.5, 0.5 on these rows; at a = 0 Q_1 = 1, 2 and Q_2 = 1, 1: the minimum is 1.
BATCH = Batch(
    obs=torch.tensor([[1.0], [2.0]]),
    action=torch.tensor([[0.5], [-0.5]]),
    reward=torch.tensor([1.0, 1.0]),
    discount=torch.tensor([0.9, 0.0]),
    next_obs=torch.tensor([[1.0], [2.0]]),
)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """A copy with floating-point leaves of another type."""
    return tree_map(lambda x: x.to(dtype, copy=True) if x.is_floating_point() else x.clone(), tree)


def batch_of(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, rows, 3, generator=generator)
    action = torch.rand(rows, 2, generator=generator) * 2 - 1
    discount = 0.95 * (torch.rand(rows, generator=generator) > 0.2)
    return cast(Batch(obs, action, obs.sum(-1), discount, next_obs), dtype)


def seen(obs: Tensor) -> Seen:
    """Observations alone, in the midst of an episode."""
    return Seen(obs, torch.zeros(len(obs), dtype=torch.bool), torch.zeros(len(obs)))


def keys(number: int, seeds: tuple[int, ...] = (0,)) -> Tensor:
    return rng.Streams(seeds)("update", number)


def assert_equal(a: Any, b: Any) -> None:
    """Every leaf of two trees is bit-equal."""
    ours, theirs = flatten(a), flatten(b)
    assert list(ours) == list(theirs)
    unequal = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not unequal, unequal


@contextlib.contextmanager
def compiling_nothing(strict: bool = True) -> Iterator[None]:
    """Within, an AssertionError where a function would have to be compiled for other arguments than before."""

    def refuse(*args: Any) -> Any:
        raise AssertionError("compiled again")

    with pytest.MonkeyPatch.context() as patch:
        if strict:
            patch.setattr(Compiled, "_build", refuse)
        yield


# --- for independent implementations ---


class PlainCritic(nn.Module):
    """One critic for `SPEC`, two layers of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs, action], 1)).squeeze(1)

    def linears(self) -> list[nn.Linear]:
        return [m for m in self.net if isinstance(m, nn.Linear)]


def plain_critics(params: Params, dtype: torch.dtype) -> list[PlainCritic]:
    """The critics of an ensemble of two as modules of their own."""
    critics = [PlainCritic().to(dtype) for _ in range(2)]
    with torch.no_grad():
        for e, critic in enumerate(critics):
            for layer, linear in enumerate(critic.linears()):
                linear.weight.copy_(params[f"layers.{layer}.weight"][e].T)
                linear.bias.copy_(params[f"layers.{layer}.bias"][e])
    return critics


def assert_close_critics(params: Params, critics: Sequence[PlainCritic], bar: float) -> None:
    for e, critic in enumerate(critics):
        for layer, linear in enumerate(critic.linears()):
            for ours, theirs in (("weight", linear.weight.T), ("bias", linear.bias)):
                value = params[f"layers.{layer}.{ours}"][e]
                torch.testing.assert_close(value, theirs.detach(), rtol=bar, atol=bar)
