"""SimBa: a pre-norm residual network, as an encoder, actors and a critic.

Lee et al. 2025, "SimBa: Simplicity Bias for Scaling Up Parameters in Deep Reinforcement Learning", arXiv 2410.09754
(ICLR 2025), Sec. 4. Observations should have been normalised (`RSNorm`).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deeprl.nets.heads import bound_log_std
from deeprl.nets.mlp import Linear

_TRUNCATED = 0.87962566103423978  # standard deviation of a standard normal variable cut at -2 and 2
_EPS = 1e-6  # of the layer norms, as in flax


class SimbaBlock(nn.Module):
    """x + W2 relu(W1 LayerNorm(x)), four times as wide inside (Eq. 5). He-normal weights (cut at 2 sigma), no bias."""

    def __init__(self, width: int, expansion: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.expand = nn.Linear(width, expansion * width)
        self.contract = nn.Linear(expansion * width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.expand, self.contract):
            std = math.sqrt(2.0 / layer.in_features) / _TRUNCATED
            nn.init.trunc_normal_(layer.weight, std=std, a=-2.0 * std, b=2.0 * std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "*B W"]) -> Float[Tensor, "*B W"]:
        return x + self.contract(torch.relu(self.expand(self.norm(x))))


class SimbaLinear(Linear):
    """A linear layer that starts orthogonal, without bias: the first and the last of a SimBa network."""

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)


class SimbaEncoder(nn.Sequential):
    """Features from a vector: a linear layer, residual blocks and a layer norm. [*B, in_dim] -> [*B, width]."""

    def __init__(self, in_dim: int, width: int = 128, blocks: int = 1):
        layers = [SimbaBlock(width) for _ in range(blocks)]
        super().__init__(SimbaLinear(in_dim, width), *layers, nn.LayerNorm(width, eps=_EPS))
        self.features = width

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B W"]:
        return super().forward(x)


class SimbaActor(nn.Module):
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
        self.encoder = SimbaEncoder(obs_dim, width, blocks)
        self.mean, self.log_std = SimbaLinear(width, action_dim), SimbaLinear(width, action_dim)
        self.log_std_range = log_std_range

    def forward(self, obs: Float[Tensor, "*B O"]) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B A"]]:
        x = self.encoder(obs)
        return self.mean(x), bound_log_std(self.log_std(x), "tanh", *self.log_std_range)


class SimbaTanhActor(nn.Module):
    """A deterministic policy, [*B, A] in [-1, 1]. width, blocks: units and residual blocks of the encoder."""

    def __init__(self, obs_dim: int, action_dim: int, width: int = 128, blocks: int = 1):
        super().__init__()
        self.encoder = SimbaEncoder(obs_dim, width, blocks)
        self.mean = SimbaLinear(width, action_dim)

    def forward(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B A"]:
        return torch.tanh(self.mean(self.encoder(obs)))


class SimbaCritic(nn.Module):
    """E state-action values: (obs [*B, O], action [*B, A]) -> [E, *B].

    width, blocks: units and residual blocks of each encoder; critics: E.
    """

    def __init__(self, obs_dim: int, action_dim: int, width: int = 512, blocks: int = 2, critics: int = 1):
        super().__init__()

        def one() -> nn.Module:
            return nn.Sequential(SimbaEncoder(obs_dim + action_dim, width, blocks), SimbaLinear(width, 1))

        self.critics = nn.ModuleList(one() for _ in range(critics))

    def forward(self, obs: Float[Tensor, "*B O"], action: Float[Tensor, "*B A"]) -> Float[Tensor, "E *B"]:
        x = torch.cat([obs, action], dim=-1)
        return torch.stack([critic(x).squeeze(-1) for critic in self.critics])
