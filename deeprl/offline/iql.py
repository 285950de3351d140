"""Implicit Q-learning (IQL), offline, for a population of agents.

Kostrikov et al. 2022, "Offline Reinforcement Learning with Implicit Q-Learning", arXiv 2110.06169.

    q(s, a) = min_i Q'_i(s, a)                                       over the target critics, at the data's actions
    value loss = mean |tau - 1(u < 0)| u^2,  u = q(s, a) - V(s)                                              (Eq. 5)
    actor loss = -mean min(exp(beta (q(s, a) - V(s))), 100) log pi(a | s)                                    (Eq. 7)
    critic loss = sum_i mean (Q_i(s, a) - r - discount V(s'))^2                                              (Eq. 6)

in this order: the policy and the critics see the new V, the targets Q' move last. No value of an action that is not in
the data is ever asked for. The policy is Gaussian with tanh on its mean alone and a free sigma, evaluated at its mean.

Differences from the authors' code (ikostrikov/implicit_q_learning): none in losses, order, layers, initial weights,
optimizers, the cosine decay of the policy's learning rate, or the data's actions, which are clipped to 1 - 1e-5.
`return-range` sums an episode's rewards with those of rows that are left out at a time limit. Their settings of each
domain are recipes (`--recipe mujoco`, antmaze, kitchen, adroit); the defaults here are those of locomotion except that
rewards are as recorded. `--actor deterministic` is the regression onto weighted actions by which CORL and RIQL replace
the likelihood; there actions are not clipped, and the policy's layers start as torch's.

Metrics: value_loss, actor_loss, critic_loss (summed over critics), q, v, advantage (means over the batch), gradients'
norms of the three networks.

    python -m deeprl.offline.iql --dataset hopper-medium.hdf5 --recipe mujoco --seeds 0-3
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import PerAgent, added, layers, per_agent, positive, within
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.data.offline import Facts, OfflineConfig, no_facts
from deeprl.errors import DeeprlError
from deeprl.nets import functional_call
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, Policies, build_networks, output_shape


@dataclass(frozen=True)
class Config(OfflineConfig):
    """IQL. Defaults: arXiv 2110.06169, App. B; ikostrikov/implicit_q_learning, configs/mujoco_config.py."""

    # --- learning ---
    expectile: PerAgent = per_agent(0.7)
    """tau of the paper: 0.5 is the mean over the data's actions, 1 the best of them."""
    temperature: PerAgent = per_agent(3.0, 0.0, 1000.0)
    """beta of the paper, the inverse temperature: 0 is behaviour cloning."""
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    value_lr: PerAgent = per_agent(3e-4)  # learning rate of the value V
    actor_lr_decay: bool = True
    """Cosine decay of the policy's learning rate to 0 at the last step."""
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critics in each soft target update."""
    # --- networks ---
    actor: Literal["gaussian", "deterministic"] = "gaussian"
    """`deterministic`: tanh policy, weighted squared error summed over the action's entries in place of -log pi."""
    hidden: tuple[int, ...] = layers(256, 256)  # units of each hidden layer, in all networks
    critics: int = positive(2)  # their minimum counts
    critic_layer_norm: bool = added(False)  # hidden layers of critics are normalised before their activation
    dropout: float = within(0.0, 0.0, 0.99)
    """Share of the policy's hidden units that each row of a batch leaves out (0.1 on Kitchen and Adroit)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout > 0.0 and self.actor == "deterministic":
            raise DeeprlError("dropout: only the gaussian actor has it")

    def over_all_steps(self) -> list[str]:
        """As there."""
        return ["actor_lr_decay"] if self.actor_lr_decay else []


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O]) -> (mean [B, A] in [-1, 1], log_std [A]), or action [B, A] in [-1, 1] of a deterministic one; with
    dropout also actor(obs, factors of each hidden layer [B, H]). critic(obs, action) -> qs [E, B].
    value(obs) -> [B, 1].
    """

    actor: nn.Module
    critic: nn.Module
    value: nn.Module
    spec: EnvSpec
    remake: nets.Remake = None


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Policy, critics and value of the authors' code: two ReLU layers of 256 each, orthogonal weights.

    A deterministic policy starts from torch's.
    """
    kind = nets.GaussianActor if config.actor == "gaussian" else nets.TanhActor
    norm = nets.normed(config.critic_layer_norm)
    critic = nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics, "orthogonal", norm)
    value = nets.MLP(spec.obs_dim, config.hidden, 1, start="orthogonal")
    return kind(spec.obs_dim, spec.action_dim, config.hidden), critic, value


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    kind: Policies = "deterministic" if config.actor == "deterministic" else "normal"
    (actor, critic, value), remake = build_networks(
        "iql", make_net, spec, config, custom, device, actor=kind, critic=0, value=True
    )
    if config.dropout > 0.0:
        obs, factors = torch.zeros(3, *spec.obs_shape), dropout_factors(rng.key(0, "update"), 3, config)
        output_shape(actor, obs.to(device), [x.to(device) for x in factors])
    return Net(actor, critic, value, spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    value: Params
    target_critic: Params
    actor_moments: Moments
    critic_moments: Moments
    value_moments: Moments
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


def value_loss(
    value: Params, net: Net, obs: Float[Tensor, "B O"], q: Float[Tensor, " B"], expectile: Scalar
) -> tuple[Scalar, Float[Tensor, " B"]]:
    """Expectile regression onto the critics (Eq. 5); and the values [B]."""
    v = functional_call(net.value, value, (obs,)).squeeze(-1).to(q.dtype)
    error = q - v
    weight = torch.where(error > 0.0, expectile, 1.0 - expectile)
    return (weight * error.square()).mean(), v


def critic_loss(critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"]) -> Scalar:
    """Squared error to the target, summed over the critics (Eq. 6)."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    return (qs - td_target).square().mean(-1).sum()


def actor_loss(
    actor: Params, net: Net, config: Config, batch: Batch, weight: Float[Tensor, " B"], key: rng.Key
) -> Scalar:
    """Advantage-weighted regression onto the data's actions (Eq. 7)."""
    if config.actor == "deterministic":
        action = functional_call(net.actor, actor, (batch.obs,)).to(weight.dtype)
        return (weight * (action - batch.action).square().sum(-1)).mean()
    kept = (dropout_factors(key, len(batch.obs), config),) if config.dropout > 0.0 else ()
    mean, log_std = functional_call(net.actor, actor, (batch.obs, *kept))
    return -(weight * nets.normal_log_prob(batch.action, mean.to(weight.dtype), log_std)).mean()


def dropout_factors(key: rng.Key, rows: int, config: Config) -> list[Float[Tensor, "B _"]]:
    """For each hidden layer, 0 where a row leaves a unit out and 1 / (1 - dropout) elsewhere."""
    keys, share = rng.split(key, len(config.hidden)), config.dropout
    drawn = [rng.uniform(k, (rows, units)) for k, units in zip(keys, config.hidden, strict=True)]
    return [(u >= share).to(u.dtype) / (1.0 - share) for u in drawn]


def lr_share(config: Any, state: Any) -> Scalar | float:
    """What is left of the policy's learning rate at the next update, here and in RIQL."""
    return 0.5 * (1.0 + torch.cos(math.pi * state.step / config.steps)) if config.actor_lr_decay else 1.0


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of the value, the policy and the critics, and one soft update of the targets."""
    net, h, batch = nets.bound(net, state.fixed), state.hparams, state.facts.batch(batch)
    if config.actor == "gaussian":
        batch = batch._replace(action=batch.action.clamp(-1.0 + 1e-5, 1.0 - 1e-5))
    q = functional_call(net.critic, state.target_critic, (batch.obs, batch.action)).to(batch.reward.dtype).amin(0)

    value = descend(value_loss, state.value, state.value_moments, h["value_lr"], net, batch.obs, q, h["expectile"])
    v, next_v = (
        functional_call(net.value, value.params, (x,)).squeeze(-1).to(q.dtype) for x in (batch.obs, batch.next_obs)
    )

    advantage, actor_lr = q - v, h["actor_lr"] * lr_share(config, state)
    weight = torch.exp(h["temperature"] * advantage).clamp(max=100.0)
    actor = descend(actor_loss, state.actor, state.actor_moments, actor_lr, net, config, batch, weight, key)

    td_target = batch.reward + batch.discount * next_v
    critic = descend(critic_loss, state.critic, state.critic_moments, h["critic_lr"], net, batch, td_target)

    new = state._replace(
        actor=actor.params,
        critic=critic.params,
        value=value.params,
        target_critic=polyak(state.target_critic, critic.params, h["tau"]),
        actor_moments=actor.moments,
        critic_moments=critic.moments,
        value_moments=value.moments,
        step=state.step + 1,
    )
    metrics = {"value_loss": value.loss, "actor_loss": actor.loss, "critic_loss": critic.loss}
    metrics |= {"q": q.mean(), "v": value.aux.mean(), "advantage": advantage.mean()}
    norms = {"value": value, "actor": actor, "critic": critic}
    return new, metrics | {f"{name}_grad_norm": step.grad_norm for name, step in norms.items()}, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("iql", config, net, callback) as run:
        agents = learning.FromDataset(run, build_net, init, act)
        learner = agents.learner(update)
        while run.running():
            for i in agents.updates_due():
                agents.learn(learner, i)
            agents.end_step()
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("iql")
