"""SimbaV2: a residual network on the unit sphere, as an encoder, an actor and a categorical critic.

Lee et al. 2025, "Hyperspherical Normalization for Scalable Deep Reinforcement Learning", arXiv 2502.15280, Sec. 4.

After every step of an optimizer the weights must go back to the sphere: `deeprl.nets.project_(module)`. Observations
should have been normalised (`RSNorm`).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deeprl.nets.heads import bound_log_std
from deeprl.nets.norm import HyperLinear, Lerp, Scaler, l2_normalize


class SimbaV2Embedding(nn.Module):
    """From a vector to the sphere: normalise(scaler(W normalise([x, shift]))) (Eq. 8-9).

    The constant coordinate `shift` keeps the length of x, which normalising alone would throw away.
    """

    def __init__(self, in_dim: int, width: int, shift: float = 3.0):
        super().__init__()
        self.shift = shift
        self.linear = HyperLinear(in_dim + 1, width)
        self.scaler = Scaler(width, math.sqrt(2.0 / width), math.sqrt(2.0 / width))

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B W"]:
        constant = torch.full_like(x[..., :1], self.shift)
        dtype = self.linear.weight.dtype  # lengths are taken in float32 or wider
        lifted = l2_normalize(torch.cat([x, constant], -1)).to(dtype)
        return l2_normalize(self.scaler(self.linear(lifted))).to(dtype)


class SimbaV2Block(nn.Module):
    """h <- normalise(h + alpha (m - h)), m = normalise(W2 relu(scaler(W1 h))); four times as wide inside (Eq. 10-12).

    blocks: of the whole encoder; alpha begins as 1 / (blocks + 1).
    """

    def __init__(self, width: int, blocks: int, expansion: int = 4):
        super().__init__()
        inner, start = expansion * width, math.sqrt(2.0 / (expansion * width))
        self.expand = HyperLinear(width, inner)
        self.scaler = Scaler(inner, start, start)
        self.contract = HyperLinear(inner, width)
        self.lerp = Lerp(width, 1.0 / (blocks + 1), 1.0 / math.sqrt(width))

    def forward(self, h: Float[Tensor, "*B W"]) -> Float[Tensor, "*B W"]:
        inner = torch.relu(self.scaler(self.expand(h))) + 1e-8  # never the zero vector, which has no direction
        return self.lerp(h, l2_normalize(self.contract(inner)))


class SimbaV2Encoder(nn.Sequential):
    """Features of length 1 from a vector: an embedding and residual blocks. [*B, in_dim] -> [*B, width]."""

    def __init__(self, in_dim: int, width: int = 128, blocks: int = 1, shift: float = 3.0):
        layers = [SimbaV2Block(width, blocks) for _ in range(blocks)]
        super().__init__(SimbaV2Embedding(in_dim, width, shift), *layers)
        self.features = width

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B W"]:
        return super().forward(x)


class SimbaV2Head(nn.Module):
    """y = W_b scaler(W_a h) + b, without an activation (Eq. 13-14)."""

    def __init__(self, width: int, out_dim: int):
        super().__init__()
        self.hidden = HyperLinear(width, width)
        self.scaler = Scaler(width)
        self.out = HyperLinear(width, out_dim)
        self.bias = nn.Parameter(torch.empty(out_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, h: Float[Tensor, "*B W"]) -> Float[Tensor, "*B Y"]:
        return self.out(self.scaler(self.hidden(h))) + self.bias


class SimbaV2Actor(nn.Module):
    """Mean and log standard deviation of a tanh-Gaussian policy, [*B, A] each, before the tanh.

    width, blocks: units and residual blocks of the encoder; log_std_range: into which tanh maps log sigma.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        width: int = 128,
        blocks: int = 1,
        log_std_range: tuple[float, float] = (-10.0, 2.0),
    ):
        super().__init__()
        self.encoder = SimbaV2Encoder(obs_dim, width, blocks)
        self.mean, self.log_std = SimbaV2Head(width, action_dim), SimbaV2Head(width, action_dim)
        self.log_std_range = log_std_range

    def forward(self, obs: Float[Tensor, "*B O"]) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B A"]]:
        h = self.encoder(obs)
        return self.mean(h), bound_log_std(self.log_std(h), "tanh", *self.log_std_range)


class SimbaV2Critic(nn.Module):
    """E state-action values as logits over K bins: (obs [*B, O], action [*B, A]) -> [E, *B, K].

    width, blocks: units and residual blocks of each encoder; bins: K; critics: E.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, width: int = 512, blocks: int = 2, bins: int = 101, critics: int = 1
    ):
        super().__init__()

        def one() -> nn.Module:
            return nn.Sequential(SimbaV2Encoder(obs_dim + action_dim, width, blocks), SimbaV2Head(width, bins))

        self.critics = nn.ModuleList(one() for _ in range(critics))

    def forward(self, obs: Float[Tensor, "*B O"], action: Float[Tensor, "*B A"]) -> Float[Tensor, "E *B K"]:
        x = torch.cat([obs, action], dim=-1)
        return torch.stack([critic(x) for critic in self.critics])
