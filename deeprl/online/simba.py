"""SimBa: soft actor-critic (or DDPG) on normalised observations and residual networks, for a population of agents.

Lee et al. 2025, "SimBa: Simplicity Bias for Scaling Up Parameters in Deep Reinforcement Learning", arXiv 2410.09754
(ICLR 2025).

    observations: centred and scaled by running statistics (RSNorm); networks: pre-norm residual blocks (nets/simba.py)
    actor loss = mean(alpha log pi(a | s) - min_i Q_i(s, a))
    temperature loss = alpha (entropy - target_entropy), gradient to log alpha only, target_entropy = -A / 2
    td_target = reward + discount (min_i Q'_i(s', a') - alpha log pi(a' | s')),  a' ~ pi(. | s')
    critic loss = sum_i mean (Q_i(s, a) - td_target)^2
    order of one update: actor (against the old critic), temperature, critic (new actor and temperature), target
    AdamW with decay on all parameters of actor and critics, Adam for the temperature

`policy="ddpg"`: pi(s) = clip(tanh(mean(s)) + noise, -1, 1) with noise ~ N(0, exploration_noise^2), the same in acting,
in the actor loss and in the target; no entropy, no temperature, no target actor.

Differences from the authors' code (SonyResearch/simba, JAX):
- Statistics take in an observation before the update that follows the step, as float32; theirs before the next action.
- The first update follows the first action of the policy; theirs follows the last random one, one step earlier.
- `steps` counts decisions, theirs simulator steps (decisions x action repeat). On the control suite, observations are
  in dm_control's order; theirs are sorted by name.
- Exploration of DDPG is white noise of one size; theirs can be coloured and scheduled, and is not in their experiments.
- `utd` counts updates per decision whatever the environment; theirs is the action repeat, 1 in Gymnasium's tasks.
None in the layers, initial weights, losses, order or optimizers. (The copy of SimBa in DAVIAN-Robotics/SimbaV2, which
ran on Gymnasium and gave the settings of recipe `mujoco`, also decays the temperature's logarithm by 0.01.)

Metrics: critic_loss (summed over critics), q (mean of the first critic), actor_loss, critic_grad_norm and
actor_grad_norm (Euclidean, all parameters); of `sac` also entropy (mean -log pi in the normalised space), alpha and
alpha_loss.

    deeprl train simba --recipe dmc --env dmc/walker-run --seeds 0-2 --steps 50_000
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import OffPolicyConfig, PerAgent, PerAgentOrAuto, per_agent, positive
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.nets import functional_call
from deeprl.online.sac import alpha_loss
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, Policies, build_networks


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """SimBa. Defaults: configs/agent/sac_simba.yaml of the authors; discount and critics are those of SimbaV2's
    comparison on Gymnasium's MuJoCo tasks (recipe `mujoco`)."""

    # --- schedule ---
    learning_starts: int = 5_000
    """Uniformly random steps before the first update."""
    utd: float = 2.0
    """Updates per environment step of one agent; may be fractional."""
    # --- learning ---
    policy: Literal["sac", "ddpg"] = "sac"
    """`sac`: a stochastic policy with a learned temperature; `ddpg`: a deterministic one with constant noise."""
    actor_lr: PerAgent = per_agent(1e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(1e-4)  # learning rate of the critics
    alpha_lr: PerAgent = per_agent(1e-4)
    """Of the temperature of `sac`."""
    weight_decay: PerAgent = per_agent(1e-2)
    """Of AdamW, on all parameters of actor and critics."""
    discount: PerAgent = per_agent(0.995)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critic in each soft target update."""
    init_alpha: PerAgent = per_agent(0.01, 1e-30, 1e30, at_start=True)
    """Initial temperature of `sac`."""
    target_entropy: PerAgentOrAuto = per_agent("auto", -1e6, 1e6)
    """Of `sac`, in nats of the normalised action; `auto` is -A/2."""
    exploration_noise: PerAgent = per_agent(0.1, 0.0, 10.0)
    """Of `ddpg`: standard deviation, in normalised actions."""
    # --- networks ---
    actor_width: int = positive(128)  # units of the policy
    actor_blocks: int = positive(1)  # residual blocks of the policy
    critic_width: int = positive(512)  # units of each critic
    critic_blocks: int = positive(2)  # residual blocks of each critic
    critics: int = positive(2)
    """1 where episodes never terminate."""
    normalize_obs: bool = True
    """Centre and scale observations by running statistics; switched off for ablations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        idle = ("exploration_noise",) if self.policy == "sac" else ("alpha_lr", "init_alpha", "target_entropy")
        self.refuse_idle(f"policy {self.policy}", *idle)


Net = nets.ActorCritic


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The networks of the paper.

    actor(obs [B, O]) -> (mean, log_std) [B, A] before the tanh, or of `ddpg` action [B, A] in [-1, 1].
    critic(obs, action) -> qs [E, B].
    """
    kind = nets.SimbaActor if config.policy == "sac" else nets.SimbaTanhActor
    actor = kind(spec.obs_dim, spec.action_dim, config.actor_width, config.actor_blocks)
    sizes = (config.critic_width, config.critic_blocks, config.critics)
    return actor, nets.SimbaCritic(spec.obs_dim, spec.action_dim, *sizes)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    kind: Policies = "tanh_normal" if config.policy == "sac" else "deterministic"
    (actor, critic), remake = build_networks("simba", make_net, spec, config, custom, device, actor=kind, critic=0)
    return Net(actor, critic, spec, remake, nets.RSNorm(spec.obs_shape).to(device))


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
    hparams = config.hparams(target_entropy=-0.5 * net.spec.action_dim)
    return learning.new_state(State, net, key, hparams, log_alpha=log_alpha)


def sample_action(
    net: Net, config: Config, params: Params, noise_std: Scalar, obs: Float[Tensor, "B O"], key: rng.Key
) -> tuple[Float[Tensor, "B A"], Float[Tensor, " B"]]:
    """A sampled action in [-1, 1] and its log probability, which is 0 for `ddpg`."""
    if config.policy == "sac":
        return nets.sample_tanh_normal(net.actor, params, obs, key)
    action = nets.act_deterministic(net.actor, params, obs)
    noise = noise_std * rng.normal(key, action.shape, action.dtype)
    return (action + noise).clamp(-1.0, 1.0), torch.zeros_like(action[:, 0])


def act(
    net: Net, config: Config, state: State, carry: Carry, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Carry]:
    """Actions in [-1, 1]: a sample of the policy, or without `explore` its mode."""
    net, obs = nets.bound(net, state.fixed), learning.normalized(net, config, state, obs)
    if explore:
        return sample_action(net, config, state.actor, state.hparams["exploration_noise"], obs, key)[0], carry
    mode = nets.mode_tanh_normal if config.policy == "sac" else nets.act_deterministic
    return mode(net.actor, state.actor, obs), carry


def actor_loss(
    actor: Params, net: Net, config: Config, state: State, alpha: Scalar, obs: Float[Tensor, "B O"], key: rng.Key
) -> tuple[Scalar, Scalar]:
    """Entropy-regularised value of the policy's own actions, negated; and the mean log probability."""
    action, log_prob = sample_action(net, config, actor, state.hparams["exploration_noise"], obs, key)
    q = functional_call(net.critic, state.critic, (obs, action)).to(obs.dtype).amin(0)
    return (alpha * log_prob - q).mean(), log_prob.mean()


def critic_target(
    net: Net, config: Config, state: State, actor: Params, alpha: Scalar, batch: Batch, key: rng.Key
) -> Float[Tensor, " B"]:
    """reward + discount (min_i Q'_i(s', a') - alpha log pi(a' | s'))."""
    action, log_prob = sample_action(net, config, actor, state.hparams["exploration_noise"], batch.next_obs, key)
    q = functional_call(net.critic, state.target_critic, (batch.next_obs, action)).to(batch.reward.dtype).amin(0)
    return batch.reward + batch.discount * (q - alpha * log_prob)


def critic_loss(critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"]) -> tuple[Scalar, Scalar]:
    """Squared error to the target, summed over the critics; and the mean of the first critic."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    return (qs - td_target).square().mean(-1).sum(), qs[0].mean()


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of actor, temperature and critic, and one soft target update."""
    net, h, decay = nets.bound(net, state.fixed), state.hparams, state.hparams["weight_decay"]
    batch, alpha = learning.normalized_batch(net, config, state, batch), state.log_alpha.exp()
    actor_key, next_key = rng.split(key, 2)

    policy = (net, config, state, alpha, batch.obs, actor_key)
    actor = descend(actor_loss, state.actor, state.actor_moments, h["actor_lr"], *policy, weight_decay=decay)
    metrics = {"actor_loss": actor.loss, "actor_grad_norm": actor.grad_norm}

    log_alpha, alpha_moments = state.log_alpha, state.alpha_moments
    if config.policy == "sac":
        entropy = (actor.aux, h["target_entropy"])
        temperature = descend(alpha_loss, log_alpha, alpha_moments, h["alpha_lr"], *entropy)
        log_alpha, alpha_moments = temperature.params, temperature.moments
        metrics |= {"entropy": -actor.aux, "alpha": alpha, "alpha_loss": temperature.loss}

    td_target = critic_target(net, config, state, actor.params, log_alpha.exp(), batch, next_key)
    values = (net, batch, td_target)
    critic = descend(critic_loss, state.critic, state.critic_moments, h["critic_lr"], *values, weight_decay=decay)
    metrics |= {"critic_loss": critic.loss, "critic_grad_norm": critic.grad_norm, "q": critic.aux}

    new = state._replace(
        actor=actor.params,
        critic=critic.params,
        target_critic=polyak(state.target_critic, critic.params, h["tau"]),
        log_alpha=log_alpha,
        actor_moments=actor.moments,
        critic_moments=critic.moments,
        alpha_moments=alpha_moments,
        step=state.step + 1,
    )
    return new, metrics, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("simba", config, net, callback) as run:
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

    train_from_shell("simba")
