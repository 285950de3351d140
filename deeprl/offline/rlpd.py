"""RLPD: online learning from scratch with offline data in every batch, for a population of agents.

Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline Data", arXiv 2302.02948.

Its loop and losses are those of `deeprl.offline.wsrl` under other settings: SAC with ten critics whose layers are
normalised, targets of two that are drawn without repetition, `utd` 20, half of each batch from the dataset and half
from the replay, a policy that climbs the mean of the critics on the last batch alone, and uniformly random steps first.

Differences from the authors' code (ikostrikov/rlpd, JAX):
- Their critic loss is the mean over the critics, here the sum: Adam makes next to nothing of it.
- Their policy's log sigma comes from a layer of its own; the two are one layer here, of the same starting weights.
- 5,000 random steps, as in the paper's experiments; their script has 10,000 as its default.
Their settings of the suites are recipes.

Metrics: those of WSRL.

    deeprl train rlpd --dataset hopper-medium.hdf5 --env Hopper-v5 --seeds 0-3 --steps 250_000
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from deeprl import nets
from deeprl.config import PerAgent, per_agent, positive, within
from deeprl.errors import DeeprlError
from deeprl.offline import wsrl
from deeprl.offline.wsrl import State, act, build_net, init, make_net, update
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet

__all__ = ["Config", "State", "act", "build_net", "init", "make_net", "train", "update"]


@dataclass(frozen=True)
class Config(wsrl.Config):
    """RLPD. Defaults: arXiv 2302.02948, Table 1 and App. B, locomotion; ikostrikov/rlpd, configs/rlpd_config.py."""

    keep_data: float = within(0.5, 0.0, 1.0)
    """Share of each batch that is drawn from `dataset`."""
    utd: float = positive(20.0)
    """Updates of the critics for each step of one agent; may be fractional."""
    buffer_size: int = positive(1_000_000)
    """Transitions that the replay of an agent holds."""
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    alpha_lr: PerAgent = per_agent(3e-4)  # learning rate of the temperature
    policy_delay: int = positive(20)
    """Critic updates for each update of the policy."""
    policy_batches: int = positive(1)
    """Batches of the last critic updates that an update of the policy learns from together."""
    policy_value: Literal["min", "mean"] = "mean"
    """The policy climbs the minimum of the critics, or their mean."""
    drawn_twice: bool = False
    """Whether one critic may be drawn more than once for a target."""
    backup_entropy: bool = True  # targets count entropy, as SAC's do; not on AntMaze and Adroit
    actor_layer_norm: bool = False  # hidden layers of the policy are normalised
    start: nets.Start = "xavier"  # how layers start (`nets.start_layers`)
    log_std_range: tuple[float, ...] = (-20.0, 2.0)  # log sigma of the policy is cut to it

    auto_entropy: ClassVar[float] = 0.5  # `auto` of target_entropy is -A times this

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(self.inits()):
            raise DeeprlError("init: RLPD begins from scratch; wsrl with --keep-data 0.5 goes on from a run")


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    return wsrl.train(config, net, callback, "rlpd")


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("rlpd")
