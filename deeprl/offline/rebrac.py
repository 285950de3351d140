"""ReBRAC, offline, for a population of agents: TD3+BC with a penalty for the critic's target too, and larger networks.

Tarasov et al. 2023, "Revisiting the Minimalist Approach to Offline Reinforcement Learning", arXiv 2305.09836.

    next action = clip(pi'(s') + clip(noise, -c, c), -1, 1),  noise ~ N(0, target_noise^2)
    td_target = reward + discount * (min_i Q'_i(s', next action) - critic_penalty * |next action - a'|^2)
                a': the action that the data took at s'
    critic loss = sum_i mean (Q_i(s, a) - td_target)^2
    actor loss = actor_penalty * mean |pi(s) - a|^2 - mean min_i Q_i(s, pi(s)) / mean |min_i Q_i(s, pi(s))|
                 every `policy_delay`-th update, from the first one on
    targets of actor and critic move with the actor, and only then

|x|^2 is the sum over the action's entries. The target policy follows the policy as it was before its step, the target
critics the critics after theirs. Both penalties have to be chosen for each dataset: recipes have the paper's.

Differences from the authors' code (DT6A/ReBRAC at 694385b, and the same in corl-team/CORL; later commits of the first
raise td_target to the data's return):
- The last row of an episode that a time limit cut is learned from if its successor is known, without a penalty, as no
  a' is; their reader leaves it out. Where it is left out here too, the row before it loses its a', which theirs keeps.
- With a `policy_delay` that does not divide 1,000 their count of it begins anew every 1,000 updates.
- Their policy acts in [-1, 1]^A whatever the bounds of the environment.
None in losses, cadence, layers, initial weights or optimizers.

Metrics: critic_loss (summed over critics), q (mean of the first critic), critic_grad_norm; from the last update of the
policy: actor_loss, imitation_loss (|pi(s) - a|^2), actor_grad_norm.

    python -m deeprl.offline.rebrac --dataset hopper-medium.hdf5 --recipe hopper-medium --seeds 0-3
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import PerAgent, layers, per_agent, positive
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.data.offline import Facts, OfflineConfig, next_actions, no_facts
from deeprl.nets import functional_call
from deeprl.online.td3 import critic_loss, smoothed_target_action
from deeprl.replay import Stored
from deeprl.replay.samplers import transitions
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, build_networks


@dataclass(frozen=True)
class Config(OfflineConfig):
    """ReBRAC. Defaults: arXiv 2305.09836, App. B, locomotion; DT6A/ReBRAC."""

    batch_size: int = positive(1_024)
    """Transitions in each update."""
    # --- learning ---
    actor_penalty: PerAgent = per_agent(0.01, 0.0, 1e6)
    """Weight of the policy's squared distance from the data's action: beta_1, chosen for each dataset (`recipes`)."""
    critic_penalty: PerAgent = per_agent(0.01, 0.0, 1e6)
    """Weight of the next action's squared distance from the data's next action in the targets: beta_2, likewise."""
    policy_delay: int = positive(2)
    """Critic updates for each update of the policy and the targets."""
    actor_lr: PerAgent = per_agent(1e-3)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(1e-3)  # learning rate of the critics
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online networks in each soft target update."""
    target_noise: PerAgent = per_agent(0.2, 0.0, 10.0)
    """Standard deviation of the noise on the target policy's actions."""
    target_noise_clip: PerAgent = per_agent(0.5, 0.0, 10.0)  # c, the largest target noise, in normalised actions
    # --- networks ---
    hidden: tuple[int, ...] = layers(256, 256, 256)  # units of each hidden layer, in all networks
    critics: int = positive(2)  # targets and the policy take their minimum


Net = nets.ActorCritic


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The networks of the authors' code: three ReLU layers of 256 each, those of the critics normalised.

    actor(obs [B, O]) -> action [B, A], which the network itself must keep in [-1, 1]. critic(obs, action) -> qs [E, B].
    """
    sizes, hidden = (spec.obs_dim, spec.action_dim), config.hidden
    actor = nets.TanhActor(*sizes, hidden, "smaller-head")
    return actor, nets.CriticEnsemble(*sizes, hidden, config.critics, "small-head", "after")


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    (actor, critic), remake = build_networks(
        "rebrac", make_net, spec, config, custom, device, actor="deterministic", critic=0
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


def critic_target(
    net: Net, state: State, batch: Batch, next_action: Float[Tensor, "B A"], key: rng.Key
) -> Float[Tensor, " B"]:
    """Rewards and discounted, penalised values of the target policy's next action. next_action: see `update`."""
    action = smoothed_target_action(net, state, batch.next_obs, key)
    next_q = functional_call(net.critic, state.target_critic, (batch.next_obs, action)).to(batch.reward.dtype).amin(0)
    distance = (action - next_action).square().sum(-1)
    penalty = state.hparams["critic_penalty"] * torch.where(distance.isnan(), 0.0, distance)
    return batch.reward + batch.discount * (next_q - penalty)


def actor_loss(actor: Params, net: Net, critic: Params, batch: Batch, penalty: Scalar) -> tuple[Scalar, Scalar]:
    """Squared distance from the data's actions, and the smallest value of the policy's, scaled to 1 and negated."""
    action = nets.act_deterministic(net.actor, actor, batch.obs)
    q = functional_call(net.critic, critic, (batch.obs, action)).to(batch.obs.dtype).amin(0)
    distance = (action - batch.action).square().sum(-1).mean()
    return penalty * distance - q.mean() / q.detach().abs().mean(), distance


def update_actor(net: Net, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One gradient step of the policy, and one soft update of all targets, towards the policy before the step."""
    h, data = state.hparams, (net, state.critic, batch, state.hparams["actor_penalty"])
    actor = descend(actor_loss, state.actor, state.actor_moments, h["actor_lr"], *data)
    new = state._replace(
        actor=actor.params,
        actor_moments=actor.moments,
        target_actor=polyak(state.target_actor, state.actor, h["tau"]),
        target_critic=polyak(state.target_critic, state.critic, h["tau"]),
    )
    return new, {"actor_loss": actor.loss, "imitation_loss": actor.aux, "actor_grad_norm": actor.grad_norm}


def update(
    net: Net,
    config: Config,
    state: State,
    batch: Batch,
    key: rng.Key,
    next_action: Float[Tensor, "B A"],
    *,
    policy: bool,
) -> tuple[State, Metrics, tuple[()]]:
    """One update of the critics; with `policy`, then one of the actor and the targets on the same batch.

    next_action: what the data did at next_obs, NaN in rows where that is not known.
    """
    net, batch = nets.bound(net, state.fixed), state.facts.batch(batch)
    data = net, batch, critic_target(net, state, batch, next_action, key)
    critic = descend(critic_loss, state.critic, state.critic_moments, state.hparams["critic_lr"], *data)
    state = state._replace(critic=critic.params, critic_moments=critic.moments, step=state.step + 1)
    metrics = {"critic_loss": critic.loss, "critic_grad_norm": critic.grad_norm, "q": critic.aux}
    if policy:
        state, actor_metrics = update_actor(net, state, batch)
        metrics |= actor_metrics
    return state, metrics, ()


def learner(net: Net, config: Config, policy: bool) -> Callable[..., tuple[State, Metrics, tuple[()]]]:
    """Sampling and update of one agent as one function, as `learning.sampled`, with the data's next actions."""

    def learn(
        state: State, data: Stored, size: Tensor, sample_key: rng.Key, update_key: rng.Key, first: int | Tensor = 0
    ) -> tuple[State, Metrics, tuple[()]]:
        row = first + rng.randint(sample_key, (config.batch_size,), size)
        batch = transitions(data, row, state.hparams["discount"])
        return update(net, config, state, batch, update_key, next_actions(data, row), policy=policy)

    return learn


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("rebrac", config, net, callback) as run:
        agents = learning.FromDataset(run, build_net, init, act)
        learners = (learner(agents.net, config, policy) for policy in (False, True))
        learn_critic, learn_both = (agents.lift(function, shared=(1,)) for function in learners)
        while run.running():
            for i in agents.updates_due():
                agents.learn(learn_both if i % config.policy_delay == 0 else learn_critic, i)
            agents.end_step()
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("rebrac")
