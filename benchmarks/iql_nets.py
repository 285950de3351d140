"""IQL's networks with one thing as in d3rlpy, to find out what differs between the two on hopper-medium.

    PYTHONPATH=benchmarks deeprl train iql --recipe mujoco --dataset runs/data/hopper-medium.hdf5 --seeds 0-3 \
        --steps 50000 --eval-every 10000 --eval-episodes 20 --net iql_nets:torch_start

torch_start   all layers start as torch's instead of orthogonal
narrow        log sigma = -5 + 7 sigmoid(w) with w = 0 at first: it starts at -1.5 instead of 0

Rows: `results/offline_iql_nets.csv`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deeprl import nets
from deeprl.core.spec import EnvSpec
from deeprl.offline import iql

Modules = tuple[nn.Module, nn.Module, nn.Module]


def torch_start(spec: EnvSpec, config: iql.Config) -> Modules:
    """Policy, critics, value."""
    actor = nets.GaussianActor(spec.obs_dim, spec.action_dim, config.hidden, start="torch")
    critic = nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics)
    return actor, critic, nets.MLP(spec.obs_dim, config.hidden, 1)


def narrow(spec: EnvSpec, config: iql.Config) -> Modules:
    """Policy, critics, value."""
    _, critic, value = iql.make_net(spec, config)
    return NarrowActor(spec, config), critic, value


class NarrowActor(nn.Module):
    """obs [B, O] -> (mean [B, A] in [-1, 1], log sigma [A] in [-5, 2])."""

    def __init__(self, spec: EnvSpec, config: iql.Config):
        super().__init__()
        self.mean = nets.MLP(spec.obs_dim, config.hidden, spec.action_dim, start="orthogonal")
        self.raw = nn.Parameter(torch.zeros(spec.action_dim))

    def reset_parameters(self) -> None:
        """Back to a log sigma of -1.5."""
        nn.init.zeros_(self.raw)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.mean(obs)), -5.0 + 7.0 * torch.sigmoid(self.raw)
