"""SimbaV2: soft actor-critic on hyperspherical networks with a categorical critic, for a population of agents.

Lee et al. 2025, "Hyperspherical Normalization for Scalable Deep Reinforcement Learning", arXiv 2502.15280 (ICML 2025).

    features and weight vectors stay on the unit sphere: networks of nets/simba_v2.py, weights projected after each step
    observations: centred and scaled by running statistics (RSNorm)
    rewards: r / max(std of the running discounted return, its largest absolute value / 5)              (Sec. 4.4)
    actor loss = mean(alpha log pi(a | s) - min_i Q_i(s, a)),  Q = mean of 101 bins on [-5, 5]
    temperature loss = alpha (entropy - target_entropy), gradient to log alpha only, target_entropy = -A / 2
    target = C51 projection of r + discount (z - alpha log pi(a' | s')) under the target critic with the smaller mean
    critic loss = cross entropy to that target, summed over the critics
    order of one update: actor (against the old critic), temperature, critic (new actor and temperature), target

Differences from the authors' code (DAVIAN-Robotics/SimbaV2, JAX):
- Statistics take in an observation and a reward before the update that follows the step; theirs before the next action.
- The first update follows the first action of the policy; theirs follows the last random one, one step earlier.
- Observations and rewards enter the statistics as float32. Those of returns are float64; theirs are float32 in fact.
- `steps` and `lr_horizon` count decisions, theirs simulator steps; `utd` is 2, theirs is the action repeat. On the
  control suite, observations are in dm_control's order; theirs are sorted by name.
None in the layers, initial weights, losses, order, projection, optimizers or schedule, which keeps its horizon when a
run is shorter. benchmarks/authors.py measures how far the two are apart after updates from the same weights.

Metrics: critic_loss (summed over critics), q (mean of the first critic, in scaled rewards), actor_loss,
critic_grad_norm and actor_grad_norm (Euclidean, all parameters), entropy (mean -log pi in the normalised space), alpha,
alpha_loss.

    deeprl train simba_v2 --recipe dmc --env dmc/walker-run --seeds 0-2 --steps 50_000
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import OffPolicyConfig, PerAgent, PerAgentOrAuto, per_agent, positive, within
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar, Seen
from deeprl.nets import categorical, functional_call, sample_tanh_normal
from deeprl.online.sac import alpha_loss
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, build_networks


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """SimbaV2. Defaults: configs/agent/simbaV2.yaml of the authors, for Gymnasium's MuJoCo tasks."""

    # --- schedule ---
    learning_starts: int = 5_000
    """Uniformly random steps before the first update."""
    utd: float = 2.0
    """Updates per environment step of one agent; may be fractional."""
    # --- learning ---
    actor_lr: PerAgent = per_agent(1e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(1e-4)  # learning rate of the critics
    alpha_lr: PerAgent = per_agent(1e-4)  # learning rate of the temperature
    final_lr_share: PerAgent = per_agent(0.5)
    """Share of all learning rates that is left at `lr_horizon`; they fall linearly, and stay there."""
    lr_horizon: int = positive(1_000_000)
    """Decisions of one agent over which learning rates fall, whatever `steps` is."""
    discount: PerAgent = per_agent(0.995)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)  # share of the online critics in each soft target update
    init_alpha: PerAgent = per_agent(0.01, 1e-30, 1e30, at_start=True)  # initial temperature
    target_entropy: PerAgentOrAuto = per_agent("auto", -1e6, 1e6)
    """In nats of the normalised action; `auto` is -A/2."""
    # --- networks ---
    actor_width: int = positive(128)  # units of the policy
    actor_blocks: int = positive(1)  # residual blocks of the policy
    critic_width: int = positive(512)  # units of each critic
    critic_blocks: int = positive(2)  # residual blocks of each critic
    critics: int = positive(2)
    """1 where episodes never terminate."""
    bins: int = within(101, 2.0, 1e4)  # of the distribution of values
    value_bound: float = positive(5.0)
    """The bins reach from -value_bound to value_bound, in scaled rewards."""
    # --- ablations ---
    normalize_obs: bool = True
    """Centre and scale observations by running statistics."""
    scale_rewards: bool = True
    """Divide rewards by the scale of the running return; without it `value_bound` bounds values of plain rewards."""


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O]) -> (mean, log_std) [B, A] before the tanh. critic(obs, action) -> logits [E, B, K].
    """

    actor: nn.Module
    critic: nn.Module
    obs_norm: nets.RSNorm
    return_scale: nets.ReturnScale
    spec: EnvSpec
    remake: nets.Remake = None


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The actor and the critics of the paper; what they return, `Net` tells."""
    actor = nets.SimbaV2Actor(spec.obs_dim, spec.action_dim, config.actor_width, config.actor_blocks)
    sizes = (config.critic_width, config.critic_blocks, config.bins, config.critics)
    return actor, nets.SimbaV2Critic(spec.obs_dim, spec.action_dim, *sizes)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    kinds: dict[str, Any] = {"actor": "tanh_normal", "critic": config.bins}
    (actor, critic), remake = build_networks("simba_v2", make_net, spec, config, custom, device, **kinds)
    scale = nets.ReturnScale(config.envs_per_agent, config.value_bound)
    return Net(actor, critic, nets.RSNorm(spec.obs_shape).to(device), scale.to(device), spec, remake)


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
    return_stats: dict[str, Tensor]
    hparams: dict[str, Scalar]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`)."""
    log_alpha = torch.tensor(math.log(config.scalars("init_alpha")["init_alpha"]))
    hparams = config.hparams(target_entropy=-0.5 * net.spec.action_dim)
    return learning.new_state(State, net, key, hparams, log_alpha=log_alpha)


def act(
    net: Net, config: Config, state: State, carry: Carry, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Carry]:
    """Actions in [-1, 1]: a sample of the policy, or its mode tanh(mean) without `explore`."""
    net, obs = nets.bound(net, state.fixed), learning.normalized(net, config, state, obs)
    return nets.act_tanh_normal(net.actor, state.actor, obs, key, explore), carry


def observe(net: Net, config: Config, state: State, seen: Seen) -> tuple[State, Metrics, tuple[()]]:
    """Take the outcome of one step of every environment into the statistics of observations and returns."""
    discount, is_first = state.hparams["discount"], seen.is_first
    return_stats = net.return_scale.updated(state.return_stats, seen.reward, is_first, discount)
    state, found, _ = learning.observe(net, config, state._replace(return_stats=return_stats), seen)
    return state, found | {"reward": learning.summed(return_stats)}, ()


def support(config: Config, like: Tensor) -> Float[Tensor, " K"]:
    """The values that the bins of the critics stand for."""
    return categorical.atoms(-config.value_bound, config.value_bound, config.bins, like.device)


def actor_loss(
    actor: Params, net: Net, config: Config, critic: Params, alpha: Scalar, obs: Float[Tensor, "B O"], key: rng.Key
) -> tuple[Scalar, Scalar]:
    """Entropy-regularised value of the policy's own actions, negated; and the mean log probability."""
    action, log_prob = sample_tanh_normal(net.actor, actor, obs, key)
    logits = functional_call(net.critic, critic, (obs, action)).to(obs.dtype)
    q = categorical.mean(logits, support(config, obs)).amin(0)
    return (alpha * log_prob - q).mean(), log_prob.mean()


def critic_target(
    net: Net, config: Config, state: State, actor: Params, alpha: Scalar, batch: Batch, key: rng.Key
) -> Float[Tensor, "B K"]:
    """The distribution of r + discount (z - alpha log pi(a' | s')), z of the target critic with the smaller mean."""
    action, log_prob = sample_tanh_normal(net.actor, actor, batch.next_obs, key)
    logits = functional_call(net.critic, state.target_critic, (batch.next_obs, action)).to(batch.reward.dtype)
    atoms = support(config, batch.reward)
    smallest = categorical.mean(logits, atoms).argmin(0)
    probs = torch.softmax(logits, -1).gather(0, smallest[None, :, None].expand(1, *logits.shape[1:])).squeeze(0)
    values = batch.reward[:, None] + batch.discount[:, None] * (atoms - alpha * log_prob[:, None])
    return categorical.project(probs, values, atoms)


def critic_loss(
    critic: Params, net: Net, config: Config, batch: Batch, target: Float[Tensor, "B K"]
) -> tuple[Scalar, Scalar]:
    """Cross entropy to the target, summed over the critics; and the mean of the first critic."""
    logits = functional_call(net.critic, critic, (batch.obs, batch.action)).to(target.dtype)
    q = categorical.mean(logits[0], support(config, target)).mean()
    return categorical.cross_entropy(logits, target.expand_as(logits)).mean(-1).sum(), q


def prepared(net: Net, config: Config, state: State, batch: Batch) -> Batch:
    """A batch as the networks see it: observations normalised, rewards scaled."""
    reward = functional_call(net.return_scale, state.return_stats, (batch.reward,))
    batch = learning.normalized_batch(net, config, state, batch)
    return batch._replace(reward=reward) if config.scale_rewards else batch


def lr_share(config: Config, state: State) -> Scalar:
    """What is left of the learning rates at the next update."""
    final = state.hparams["final_lr_share"]
    return 1.0 + (final - 1.0) * torch.clamp(state.step / (config.lr_horizon * config.utd), max=1.0).to(final.dtype)


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of actor, temperature and critic, each back on its sphere, and one soft target update."""
    net, h, share = nets.bound(net, state.fixed), state.hparams, lr_share(config, state)
    batch, alpha = prepared(net, config, state, batch), state.log_alpha.exp()
    actor_key, next_key = rng.split(key, 2)

    policy = (net, config, state.critic, alpha, batch.obs, actor_key)
    actor = descend(actor_loss, state.actor, state.actor_moments, share * h["actor_lr"], *policy)
    on_sphere = nets.projected(actor.params, nets.hyper_weights(net.actor))

    entropy = (actor.aux, h["target_entropy"])
    temperature = descend(alpha_loss, state.log_alpha, state.alpha_moments, share * h["alpha_lr"], *entropy)

    target = critic_target(net, config, state, on_sphere, temperature.params.exp(), batch, next_key)
    values = (net, config, batch, target)
    critic = descend(critic_loss, state.critic, state.critic_moments, share * h["critic_lr"], *values)
    critics_on_sphere = nets.projected(critic.params, nets.hyper_weights(net.critic))

    new = state._replace(
        actor=on_sphere,
        critic=critics_on_sphere,
        target_critic=polyak(state.target_critic, critics_on_sphere, h["tau"]),
        log_alpha=temperature.params,
        actor_moments=actor.moments,
        critic_moments=critic.moments,
        alpha_moments=temperature.moments,
        step=state.step + 1,
    )
    metrics = {"critic_loss": critic.loss, "critic_grad_norm": critic.grad_norm, "q": critic.aux}
    metrics |= {"actor_loss": actor.loss, "actor_grad_norm": actor.grad_norm, "entropy": -actor.aux}
    return new, metrics | {"alpha": alpha, "alpha_loss": temperature.loss}, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("simba_v2", config, net, callback) as run:
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

    train_from_shell("simba_v2")
