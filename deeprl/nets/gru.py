"""Gated recurrent units, and policies that emit a sequence of actions from one observation with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deeprl.nets.heads import bound_log_std
from deeprl.nets.init import Start
from deeprl.nets.mlp import MLP


class GRUCell(nn.Module):
    """One step of a gated recurrent unit (Cho et al. 2014), equal to `torch.nn.GRUCell`, whose state it loads.

        r, z = sigmoid(W_r x + U_r h + b_r), sigmoid(W_z x + U_z h + b_z)
        h' = (1 - z) tanh(W_n x + b_n + r (U_n h + c_n)) + z h

    Written as matrix products, which vmap over the parameters of a population and compile into one graph.
    """

    def __init__(self, in_dim: int, units: int):
        super().__init__()
        self.units = units
        self.weight_ih = nn.Parameter(torch.empty(3 * units, in_dim))
        self.weight_hh = nn.Parameter(torch.empty(3 * units, units))
        self.bias_ih = nn.Parameter(torch.empty(3 * units))
        self.bias_hh = nn.Parameter(torch.empty(3 * units))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(-1/sqrt(units), 1/sqrt(units)), as `torch.nn.GRUCell`."""
        bound = 1.0 / math.sqrt(self.units)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Float[Tensor, "*B I"], h: Float[Tensor, "*B H"]) -> Float[Tensor, "*B H"]:
        """The next hidden state."""
        reset_x, update_x, new_x = nn.functional.linear(x, self.weight_ih, self.bias_ih).chunk(3, -1)
        reset_h, update_h, new_h = nn.functional.linear(h, self.weight_hh, self.bias_hh).chunk(3, -1)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return new + update * (h - new)


class Dynamics(nn.Module):
    """The next observation, by an MLP of the observation and the action."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int] = (400, 300), start: Start = "xavier"):
        super().__init__()
        self.trunk = MLP(obs_dim + action_dim, hidden, obs_dim, start=start)

    def forward(self, obs: Float[Tensor, "*B O"], action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B O"]:
        return self.trunk(torch.cat([obs, action], -1))


class SequenceActor(nn.Module):
    """A tanh-Gaussian policy that plans: several actions from one observation, each from those before it (SRL).

    An MLP makes the first hidden state of a GRU from the observation, which it sees no more; each step takes the action
    before. Linear layers start as `start` says, the cell as torch's.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256,),
        units: int = 256,
        log_std_range: tuple[float, float] = (-20.0, 2.0),
        start: Start = "xavier",
    ):
        super().__init__()
        self.encoder = MLP(obs_dim, hidden, units, start=start)
        self.cell = GRUCell(action_dim, units)
        self.head = MLP(units, (), 2 * action_dim, start=start)
        self.log_std_range = log_std_range

    def forward(
        self, obs: Float[Tensor, "*B O"], previous: Float[Tensor, "*B A"], noise: Float[Tensor, "*B J A"]
    ) -> tuple[Float[Tensor, "*B J A"], Float[Tensor, "*B J A"]]:
        """Means and log standard deviations before the tanh, of as many actions as there is noise for.

        previous: the action before, in [-1, 1]. Each action is tanh(mean + exp(log_std) * noise); it goes into the next
        step, and gradients go through it. Noise of zeros gives the most likely actions, tanh(mean).
        """
        h, action, found = self.encoder(obs), previous, []
        for drawn in noise.unbind(-2):
            h = self.cell(action, h)
            mean, raw = self.head(h).chunk(2, -1)
            log_std = bound_log_std(raw, "clamp", *self.log_std_range)
            action = torch.tanh(mean + torch.exp(log_std) * drawn)
            found.append((mean, log_std))
        means, log_stds = zip(*found, strict=True)
        return torch.stack(means, -2), torch.stack(log_stds, -2)
