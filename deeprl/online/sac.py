"""Soft Actor-Critic with a learned temperature (SAC v2), for a population of agents.

Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905.

    td_target = reward + discount * (min_i Q'_i(s', a') - alpha * log pi(a' | s')),  a' ~ pi(. | s')          (Eq. 5-6)
    critic loss = sum_i mean 1/2 (Q_i(s, a) - td_target)^2                                                  (Eq. 5)
    actor loss = mean(alpha * log pi(a | s) - min_i Q_i(s, a)),  a = tanh(u) reparameterised                 (Eq. 9)
    temperature loss = -mean(alpha * (log pi(a | s) + target_entropy)), gradient to log alpha only           (Eq. 18)
    order of one update: critic, actor (against the new critic), temperature, target

Entropies and actions are in the normalised space [-1, 1]^A, whatever the environment's units: a target entropy of
-A means the same in every environment.

Differences from the authors' code (rail-berkeley/softlearning, TensorFlow):
- The actor minimises against the minimum of the critics, as the paper says; their code takes the mean.
- log sigma is clamped to [-20, 2] as in their first release (`log_std="clamp"`); softlearning uses softplus(x) + 1e-5.
  `log_std="tanh"` maps it smoothly into [-5, 2] (pytorch_sac). Set `log_std_range` for another range.
- Layers start as torch.nn.Linear does, U(-1/sqrt(fan_in), 1/sqrt(fan_in)); theirs start Glorot-uniform.
- Warm-up is a number of steps, not of episodes.
- Time limits bootstrap from the true last observation.
Optional, off by default: normalised observations, more than two critics, other ratios of updates to steps.
Recipe `dmc` takes the settings of SimBa's baseline (SonyResearch/simba), not its order of one update (actor,
temperature, critic), its orthogonal layers or its separate heads of mean and log sigma.

Metrics: critic_loss (summed over critics), q (mean of the first critic), actor_loss, critic_grad_norm and
actor_grad_norm (Euclidean, all parameters), entropy (mean -log pi in the normalised space), alpha, alpha_loss.

    python -m deeprl.online.sac --env HalfCheetah-v5 --seeds 0-3 --steps 100_000
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import OffPolicyConfig, PerAgent, PerAgentOrAuto, layers, per_agent, positive
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.nets import functional_call, sample_tanh_normal
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, build_networks


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """SAC. Defaults: arXiv 1812.05905 Table 1 where it has the entry; softlearning takes ten random episodes."""

    # --- learning ---
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    alpha_lr: PerAgent = per_agent(3e-4)  # learning rate of the temperature
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)  # share of the online critics in each soft target update
    init_alpha: PerAgent = per_agent(1.0, 1e-30, 1e30, at_start=True)
    """Initial temperature; log alpha starts at 0 in softlearning."""
    target_entropy: PerAgentOrAuto = per_agent("auto", -1e6, 1e6)
    """In nats of the normalised action; `auto` is -A."""
    # --- networks ---
    hidden: tuple[int, ...] = layers(256, 256)  # units of each hidden layer, in all networks
    critics: int = positive(2)  # targets and the policy take their minimum
    log_std: Literal["clamp", "tanh"] = "clamp"
    """`clamp` cuts log sigma to its range; `tanh` maps it smoothly into it."""
    log_std_range: tuple[float, ...] = ()
    """Default (-20, 2) for clamp, (-5, 2) for tanh."""
    normalize_obs: bool = False
    """Centre and scale observations by running statistics in float32, cut at 10 deviations (`nets.RunningNorm`; TD3 and
    SimBa have `nets.RSNorm`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_std_range:
            self.require_range("log_std_range")


Net = nets.ActorCritic


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The networks of the paper, two ReLU layers of 256 each.

    actor(obs [B, O]) -> (mean, log_std) [B, A] before the tanh. critic(obs, action) -> qs [E, B].
    """
    low, high = config.log_std_range or ((-20.0, 2.0) if config.log_std == "clamp" else (-5.0, 2.0))
    actor = nets.TanhGaussianActor(spec.obs_dim, spec.action_dim, config.hidden, config.log_std, (low, high))
    return actor, nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    (actor, critic), remake = build_networks(
        "sac", make_net, spec, config, custom, device, actor="tanh_normal", critic=0
    )
    return Net(actor, critic, spec, remake, nets.RunningNorm(spec.obs_shape).to(device))


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    target_critic: Params
    log_alpha: Scalar
    actor_moments: Moments
    critic_moments: Moments
    alpha_moments: Moments
    obs_stats: dict[str, Tensor]
    hparams: dict[str, Scalar]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`)."""
    log_alpha = torch.tensor(math.log(config.scalars("init_alpha")["init_alpha"]))
    hparams = config.hparams(target_entropy=-float(net.spec.action_dim))
    return learning.new_state(State, net, key, hparams, log_alpha=log_alpha)


def act(
    net: Net, config: Config, state: State, carry: Carry, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Carry]:
    """Actions in [-1, 1]: a sample of the policy, or its mode tanh(mean) without `explore`."""
    net, obs = nets.bound(net, state.fixed), learning.normalized(net, config, state, obs)
    return nets.act_tanh_normal(net.actor, state.actor, obs, key, explore), carry


def critic_loss(critic: Params, net: Any, batch: Batch, td_target: Float[Tensor, " B"]) -> tuple[Scalar, Scalar]:
    """Half the squared error to the target, summed over the critics (Eq. 5); and the mean of the first critic."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    return 0.5 * (qs - td_target).square().mean(-1).sum(), qs[0].mean()


def actor_loss(
    actor: Params, net: Net, critic: Params, alpha: Scalar, obs: Float[Tensor, "B O"], key: rng.Key
) -> tuple[Scalar, Scalar]:
    """Entropy-regularised value of the policy's own actions, negated (Eq. 9); and the mean log probability."""
    action, log_prob = sample_tanh_normal(net.actor, actor, obs, key)
    q = functional_call(net.critic, critic, (obs, action)).to(obs.dtype).amin(0)
    return (alpha * log_prob - q).mean(), log_prob.mean()


def alpha_loss(log_alpha: Scalar, log_prob: Scalar, target_entropy: Scalar) -> Scalar:
    """Raises the temperature where the entropy is below its target (Eq. 18). log_prob: mean over the batch."""
    return -log_alpha.exp() * (log_prob + target_entropy)


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of critic, actor and temperature, and one soft target update."""
    net, h = nets.bound(net, state.fixed), state.hparams
    batch, alpha = learning.normalized_batch(net, config, state, batch), state.log_alpha.exp()
    next_key, actor_key = rng.split(key, 2)

    next_action, next_log_prob = sample_tanh_normal(net.actor, state.actor, batch.next_obs, next_key)
    next_q = functional_call(net.critic, state.target_critic, (batch.next_obs, next_action))
    next_q = next_q.to(batch.reward.dtype).amin(0)
    td_target = batch.reward + batch.discount * (next_q - alpha * next_log_prob)
    critic = descend(critic_loss, state.critic, state.critic_moments, h["critic_lr"], net, batch, td_target)

    policy = (net, critic.params, alpha, batch.obs, actor_key)
    actor = descend(actor_loss, state.actor, state.actor_moments, h["actor_lr"], *policy)

    entropy = (actor.aux, h["target_entropy"])
    temperature = descend(alpha_loss, state.log_alpha, state.alpha_moments, h["alpha_lr"], *entropy)

    new = state._replace(
        actor=actor.params,
        critic=critic.params,
        target_critic=polyak(state.target_critic, critic.params, h["tau"]),
        log_alpha=temperature.params,
        actor_moments=actor.moments,
        critic_moments=critic.moments,
        alpha_moments=temperature.moments,
        step=state.step + 1,
    )
    metrics = {
        "critic_loss": critic.loss,
        "critic_grad_norm": critic.grad_norm,
        "q": critic.aux,
        "actor_loss": actor.loss,
        "actor_grad_norm": actor.grad_norm,
        "entropy": -actor.aux,
        "alpha": alpha,
        "alpha_loss": temperature.loss,
    }
    return new, metrics, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("sac", config, net, callback) as run:
        observe = learning.observe if config.normalize_obs else None
        agents = learning.OffPolicy(run, build_net, init, act, observe)
        learner = agents.learner(update)
        while run.running():
            agents.act(random=run.step < config.learning_starts)
            for i in run.updates_due(config.utd, config.learning_starts):
                agents.learn(learner, i)
            agents.end_step()
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("sac")
