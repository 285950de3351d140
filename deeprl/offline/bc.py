"""Behaviour cloning (BC), offline, for a population of agents; of all episodes or of the best ones alone (%BC).

    actor loss = mean over the batch and the action's entries of (pi(s) - a)^2        (`--actor deterministic`)
                 -mean log pi(a | s)                                                  (`--actor gaussian`)

`--best 0.1` is 10%BC (Chen et al. 2021, arXiv 2106.01345, Sec. 5.1): only the tenth of the episodes with the highest
undiscounted returns is imitated, as in CORL; Chen et al. take the best episodes until they have a tenth of the steps.
The deterministic policy is tanh(MLP(s)) on normalised observations; the Gaussian has tanh on its mean alone and a free
sigma per action, as that of IQL, and is evaluated at its mean.

The reference for settings is CORL's any_percent_bc.py. Differences from it: episodes are those of the dataset, where
CORL counts 1,000 rows without a terminal as one, and leaves out what the file ends with if it is neither.

Metrics: actor_loss, actor_grad_norm; mse, the squared error of the (mean) action.

    python -m deeprl.offline.bc --dataset hopper-medium.hdf5 --seeds 0-3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import PerAgent, layers, per_agent, within
from deeprl.core import rng
from deeprl.core.optim import Moments, descend
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.data.offline import Facts, Normalize, OfflineConfig, no_facts
from deeprl.nets import functional_call
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, Policies, build_networks


@dataclass(frozen=True)
class Config(OfflineConfig):
    """BC. Defaults: corl-team/CORL, algorithms/offline/any_percent_bc.py."""

    normalize_obs: Normalize = "obs"
    best: float = within(1.0, 0.0, 1.0)
    """Share of the episodes, those with the highest returns, that are imitated."""
    # --- learning ---
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    weight_decay: PerAgent = per_agent(0.0)  # of AdamW
    # --- networks ---
    actor: Literal["deterministic", "gaussian"] = "deterministic"
    """`deterministic`: squared error; `gaussian`: likelihood."""
    hidden: tuple[int, ...] = layers(256, 256)  # units of each hidden layer


class Net(NamedTuple):
    """The module of one agent; its parameters live in `State`.

    actor(obs [B, O]) -> action [B, A] in [-1, 1], or (mean [B, A] in [-1, 1], log_std [A]) of a gaussian one.
    """

    actor: nn.Module
    spec: EnvSpec
    remake: nets.Remake = None


def make_net(spec: EnvSpec, config: Config) -> nn.Module:
    """Two ReLU layers of 256."""
    kind = nets.TanhActor if config.actor == "deterministic" else nets.GaussianActor
    return kind(spec.obs_dim, spec.action_dim, config.hidden)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The network of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    kind: Policies = "deterministic" if config.actor == "deterministic" else "normal"
    (actor,), remake = build_networks("bc", make_net, spec, config, custom, device, actor=kind)
    return Net(actor, spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    actor_moments: Moments
    facts: Facts
    hparams: dict[str, Scalar]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key, facts: Facts | None = None) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`); facts: those of its dataset."""
    return learning.new_state(State, net, key, config.hparams(), facts=facts or no_facts(net.spec))


def act(
    net: Net, config: Config, state: State, carry: Carry, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Carry]:
    """Actions in [-1, 1]: the policy's mean, or a sample of it, clipped, if `explore`."""
    net, seen = nets.bound(net, state.fixed), state.facts.see(obs)
    if config.actor == "deterministic":
        return nets.act_deterministic(net.actor, state.actor, seen), carry
    return nets.act_normal(net.actor, state.actor, seen, key, explore), carry


def actor_loss(actor: Params, net: Net, config: Config, batch: Batch) -> tuple[Scalar, Scalar]:
    """Squared error of the action, or minus its log likelihood; and the squared error of the mean."""
    if config.actor == "deterministic":
        error = (functional_call(net.actor, actor, (batch.obs,)).to(batch.obs.dtype) - batch.action).square().mean()
        return error, error
    mean, log_std = functional_call(net.actor, actor, (batch.obs,))
    mean = mean.to(batch.obs.dtype)
    return -nets.normal_log_prob(batch.action, mean, log_std).mean(), (mean - batch.action).square().mean()


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of the policy."""
    net, h = nets.bound(net, state.fixed), state.hparams
    batch, decay = batch._replace(obs=state.facts.see(batch.obs)), h["weight_decay"]
    examples = (net, config, batch)
    actor = descend(actor_loss, state.actor, state.actor_moments, h["actor_lr"], *examples, weight_decay=decay)
    new = state._replace(actor=actor.params, actor_moments=actor.moments, step=state.step + 1)
    return new, {"actor_loss": actor.loss, "mse": actor.aux, "actor_grad_norm": actor.grad_norm}, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("bc", config, net, callback) as run:
        agents = learning.FromDataset(run, build_net, init, act, config.best)
        learner = agents.learner(update)
        while run.running():
            for i in agents.updates_due():
                agents.learn(learner, i)
            agents.end_step()
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("bc")
