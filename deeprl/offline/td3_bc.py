"""TD3+BC, offline, for a population of agents: TD3 whose policy also imitates the data.

Fujimoto & Gu 2021, "A Minimalist Approach to Offline Reinforcement Learning", arXiv 2106.06860.

    next action = clip(pi'(s') + clip(noise, -c, c), -1, 1),  noise ~ N(0, target_noise^2)
    td_target = reward + discount * min_i Q'_i(s', next action)
    critic loss = sum_i mean (Q_i(s, a) - td_target)^2
    actor loss = -alpha * mean Q_1(s, pi(s)) / mean |Q_1(s, pi(s))| + mean (pi(s) - a)^2                     (Eq. 4-5)
                 every `policy_delay`-th update; the square is averaged over the action's entries too
    targets of actor and critic move with the actor, and only then

with observations normalised by the data's mean and deviation. Actions are in [-1, 1]^A, so the noise is relative to the
bounds of the environment.

Differences from the authors' code (sfujim/TD3_BC): their actor and critics see actions in the environment's own units,
the same where its bounds are -1 and 1. None in losses, cadence, layers, initial weights or optimizers.

Metrics: critic_loss (summed over critics), q (mean of the first critic), critic_grad_norm; from the last update of the
policy: actor_loss, imitation_loss (its second term), actor_grad_norm.

    python -m deeprl.offline.td3_bc --dataset hopper-medium.hdf5 --seeds 0-3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import PerAgent, layers, per_agent, positive
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.data.offline import Facts, Normalize, OfflineConfig, no_facts
from deeprl.online.td3 import update_critic
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, build_networks


@dataclass(frozen=True)
class Config(OfflineConfig):
    """TD3+BC. Defaults: arXiv 2106.06860, Table 3; sfujim/TD3_BC, main.py."""

    normalize_obs: Normalize = "obs"
    # --- learning ---
    alpha: PerAgent = per_agent(2.5, 0.0, 1e6)
    """Weight of the critic against imitation: 0 is behaviour cloning."""
    policy_delay: int = positive(2)
    """Critic updates for each update of the policy and the targets."""
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online networks in each soft target update."""
    target_noise: PerAgent = per_agent(0.2, 0.0, 10.0)
    """Standard deviation of the noise on the target policy's actions."""
    target_noise_clip: PerAgent = per_agent(0.5, 0.0, 10.0)  # c, the largest target noise, in normalised actions
    # --- networks ---
    hidden: tuple[int, ...] = layers(256, 256)  # units of each hidden layer, in all networks
    critics: int = positive(2)  # targets take their minimum


Net = nets.ActorCritic


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The networks of the authors' code: two ReLU layers of 256 each.

    actor(obs [B, O]) -> action [B, A], which the network itself must keep in [-1, 1]. critic(obs, action) -> qs [E, B].
    """
    actor = nets.TanhActor(spec.obs_dim, spec.action_dim, config.hidden)
    return actor, nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    (actor, critic), remake = build_networks(
        "td3_bc", make_net, spec, config, custom, device, actor="deterministic", critic=0
    )
    return Net(actor, critic, spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_moments: Moments
    critic_moments: Moments
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
    """The policy's actions in [-1, 1], whether exploring or not."""
    net = nets.bound(net, state.fixed)
    return nets.act_deterministic(net.actor, state.actor, state.facts.see(obs)), carry


def actor_loss(actor: Params, net: Net, critic: Params, batch: Batch, alpha: Scalar) -> tuple[Scalar, Scalar]:
    """The first critic's value of the policy's actions, scaled to `alpha` and negated, plus imitation (Eq. 5)."""
    action = nets.act_deterministic(net.actor, actor, batch.obs)
    q = nets.first_q(net.critic, critic, batch.obs, action)
    imitation = (action - batch.action).square().mean()
    return imitation - alpha * q.mean() / q.detach().abs().mean(), imitation


def update_actor(net: Net, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One gradient step of the policy, and one soft update of all targets."""
    h, data = state.hparams, (net, state.critic, batch, state.hparams["alpha"])
    actor = descend(actor_loss, state.actor, state.actor_moments, h["actor_lr"], *data)
    new = state._replace(
        actor=actor.params,
        actor_moments=actor.moments,
        target_actor=polyak(state.target_actor, actor.params, h["tau"]),
        target_critic=polyak(state.target_critic, state.critic, h["tau"]),
    )
    return new, {"actor_loss": actor.loss, "imitation_loss": actor.aux, "actor_grad_norm": actor.grad_norm}


def update(
    net: Net, config: Config, state: State, batch: Batch, key: rng.Key, *, policy: bool
) -> tuple[State, Metrics, tuple[()]]:
    """One update of the critics; with `policy`, then one of the actor and the targets on the same batch."""
    net, batch = nets.bound(net, state.fixed), state.facts.batch(batch)
    state, metrics = update_critic(net, state, batch, key)
    if policy:
        state, actor_metrics = update_actor(net, state, batch)
        metrics |= actor_metrics
    return state._replace(step=state.step + 1), metrics, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("td3_bc", config, net, callback) as run:
        agents = learning.FromDataset(run, build_net, init, act)
        learn_critic, learn_both = (agents.learner(update, policy=policy) for policy in (False, True))
        while run.running():
            for i in agents.updates_due():
                agents.learn(learn_both if (i + 1) % config.policy_delay == 0 else learn_critic, i)
            agents.end_step(complete=run.updates >= config.policy_delay)  # a row has the policy's metrics too
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("td3_bc")
