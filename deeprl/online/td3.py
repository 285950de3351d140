"""Twin Delayed Deep Deterministic policy gradient (TD3), for a population of agents.

Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods", arXiv 1802.09477.

    next action = clip(pi'(s') + clip(noise, -c, c), -1, 1),  noise ~ N(0, target_noise^2)               (Eq. 14-15)
    td_target = reward + discount * min_i Q'_i(s', next action)                                        (Eq. 10)
    critic loss = sum_i mean (Q_i(s, a) - td_target)^2                                                 (Algorithm 1)
    actor loss = -mean Q_1(s, pi(s)), every `policy_delay`-th update, against the new critic           (Algorithm 1)
    targets of actor and critic move with the actor, and only then

Actions are in the normalised space [-1, 1]^A, so every noise here is relative to the bounds of the environment (the
paper's factor max_action).

Differences from the authors' code (sfujim/TD3, whose settings are newer than the paper's):
- Failing in the very step of a time limit is a termination; their code takes it for the limit.
- Actions are stored, noised and valued in [-1, 1] and rescaled at the environment. Their critics see the environment's
  units: the same where the bounds are -1 and 1 (HalfCheetah, Hopper, Walker2d, Ant), otherwise another scale of that
  input; and where bounds are not symmetric around 0 their code does not reach all actions.
- The random steps at the start may be counted over several environments per agent.
None in the layers, losses, cadence, optimizers or initial weights.
Optional, off by default: SimBa's networks (`body`), normalised observations.

Metrics: critic_loss (summed over critics), q (mean of the first critic), critic_grad_norm; from the last update of
the policy: actor_loss, actor_grad_norm (Euclidean, all parameters).

    python -m deeprl.online.td3 --env HalfCheetah-v5 --seeds 0-3 --steps 100_000
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import OffPolicyConfig, PerAgent, layers, per_agent, positive
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.errors import DeeprlError
from deeprl.nets import functional_call
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, build_networks


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """TD3. Defaults: sfujim/TD3 main.py."""

    # --- schedule ---
    learning_starts: int = 25_000
    """Uniformly random steps before the first update (paper: 10 000, or 1 000 on easy tasks)."""
    policy_delay: int = positive(2)
    """Critic updates for each update of the policy and the targets."""
    # --- learning ---
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)  # share of the online networks in each soft target update
    exploration_noise: PerAgent = per_agent(0.1, 0.0, 10.0)  # standard deviation, in normalised actions
    target_noise: PerAgent = per_agent(0.2, 0.0, 10.0)  # standard deviation of the noise on the target policy's actions
    target_noise_clip: PerAgent = per_agent(0.5, 0.0, 10.0)  # c, the largest target noise, in normalised actions
    # --- networks ---
    body: Literal["mlp", "simba"] = "mlp"
    """`simba`: residual networks (arXiv 2410.09754; actor 128 x 1 block, critics 512 x 2) in place of `hidden`."""
    hidden: tuple[int, ...] = layers(256, 256)  # units of each hidden layer, in all networks
    critics: int = positive(2)  # targets take their minimum
    normalize_obs: bool = False
    """Centre and scale observations by running statistics (RSNorm); SimBa's bodies want it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.body == "simba" and self.hidden != Config.hidden:
            raise DeeprlError(f"hidden: {self.hidden} has no meaning with body simba, whose sizes are the paper's")


Net = nets.ActorCritic


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The networks of the authors' code, two ReLU layers of 256 each; or those of SimBa.

    actor(obs [B, O]) -> action [B, A], which the network itself must keep in [-1, 1]. critic(obs, action) -> qs [E, B].
    """
    if config.body == "simba":
        critic = nets.SimbaCritic(spec.obs_dim, spec.action_dim, critics=config.critics)
        return nets.SimbaTanhActor(spec.obs_dim, spec.action_dim), critic
    actor = nets.TanhActor(spec.obs_dim, spec.action_dim, config.hidden)
    return actor, nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    (actor, critic), remake = build_networks(
        "td3", make_net, spec, config, custom, device, actor="deterministic", critic=0
    )
    return Net(actor, critic, spec, remake, nets.RSNorm(spec.obs_shape).to(device))


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_moments: Moments
    critic_moments: Moments
    obs_stats: dict[str, Tensor]
    hparams: dict[str, Scalar]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`)."""
    return learning.new_state(State, net, key, config.hparams())


def act(
    net: Net, config: Config, state: State, carry: Carry, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Carry]:
    """Actions in [-1, 1]: the policy's, with Gaussian noise if `explore`."""
    net, obs = nets.bound(net, state.fixed), learning.normalized(net, config, state, obs)
    action = nets.act_deterministic(net.actor, state.actor, obs)
    if explore:
        noise = rng.normal(key, action.shape, action.dtype)
        action = (action + state.hparams["exploration_noise"] * noise).clamp(-1.0, 1.0)
    return action, carry


def smoothed_target_action(net: Net, state: Any, next_obs: Float[Tensor, "B O"], key: rng.Key) -> Float[Tensor, "B A"]:
    """The target policy's action with clipped noise, so that the value is learned over a region (Eq. 14-15)."""
    h = state.hparams
    action = functional_call(net.actor, state.target_actor, (next_obs,)).to(next_obs.dtype)
    noise = h["target_noise"] * rng.normal(key, action.shape, action.dtype)
    clip = h["target_noise_clip"]
    return (action + noise.clamp(-clip, clip)).clamp(-1.0, 1.0)


def critic_loss(critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"]) -> tuple[Scalar, Scalar]:
    """Squared error to the target, summed over the critics; and the mean of the first critic."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    return (qs - td_target).square().mean(-1).sum(), qs[0].mean()


def actor_loss(actor: Params, net: Net, critic: Params, obs: Float[Tensor, "B O"]) -> Scalar:
    """The first critic's value of the policy's own actions, negated."""
    action = functional_call(net.actor, actor, (obs,))
    return -nets.first_q(net.critic, critic, obs, action).mean()


def update_critic(net: Net, state: Any, batch: Batch, key: rng.Key) -> tuple[Any, Metrics]:
    """One gradient step of the critics, of a `State` here or of TD3+BC."""
    next_action = smoothed_target_action(net, state, batch.next_obs, key)
    next_q = functional_call(net.critic, state.target_critic, (batch.next_obs, next_action))
    td_target = batch.reward + batch.discount * next_q.to(batch.reward.dtype).amin(0)
    lr = state.hparams["critic_lr"]
    critic = descend(critic_loss, state.critic, state.critic_moments, lr, net, batch, td_target)
    metrics = {"critic_loss": critic.loss, "critic_grad_norm": critic.grad_norm, "q": critic.aux}
    return state._replace(critic=critic.params, critic_moments=critic.moments), metrics


def update_actor(net: Net, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One gradient step of the policy, and one soft update of all targets."""
    h = state.hparams
    actor = descend(actor_loss, state.actor, state.actor_moments, h["actor_lr"], net, state.critic, batch.obs)
    new = state._replace(
        actor=actor.params,
        actor_moments=actor.moments,
        target_actor=polyak(state.target_actor, actor.params, h["tau"]),
        target_critic=polyak(state.target_critic, state.critic, h["tau"]),
    )
    return new, {"actor_loss": actor.loss, "actor_grad_norm": actor.grad_norm}


def update(
    net: Net, config: Config, state: State, batch: Batch, key: rng.Key, *, policy: bool
) -> tuple[State, Metrics, tuple[()]]:
    """One update of the critics; with `policy`, then one of the actor and the targets on the same batch."""
    net, batch = nets.bound(net, state.fixed), learning.normalized_batch(net, config, state, batch)
    state, metrics = update_critic(net, state, batch, key)
    if policy:
        state, actor_metrics = update_actor(net, state, batch)
        metrics |= actor_metrics
    return state._replace(step=state.step + 1), metrics, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("td3", config, net, callback) as run:
        observe = learning.observe if config.normalize_obs else None
        agents = learning.OffPolicy(run, build_net, init, act, observe)
        learn_critic, learn_both = (agents.learner(update, policy=policy) for policy in (False, True))
        while run.running():
            agents.act(random=run.step < config.learning_starts)
            for i in run.updates_due(config.utd, config.learning_starts):
                agents.learn(learn_both if (i + 1) % config.policy_delay == 0 else learn_critic, i)
            agents.end_step(complete=run.updates >= config.policy_delay)  # a row has the policy's metrics too
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("td3")
