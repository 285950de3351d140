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

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import grad_and_value

from deeprl import nets, rng
from deeprl.config import OnlineConfig, PerAgent, PerAgentOrAuto, per_agent
from deeprl.custom import check_critic, make_modules, output_shape
from deeprl.errors import DeeprlError
from deeprl.evaluate import greedy_policy
from deeprl.nets import functional_call
from deeprl.optim import Moments, adam, global_norm, init_moments, polyak
from deeprl.population import freezing, new_agents, over_agents
from deeprl.replay import Replay, Stored
from deeprl.run import Callback, Run
from deeprl.samplers import sample
from deeprl.spaces import require
from deeprl.spec import Batch, EnvSpec, Metrics, Params


@dataclass(frozen=True)
class Config(OnlineConfig):
    """SimBa. Defaults: configs/agent/sac_simba.yaml of the authors; discount and critics are those of SimbaV2's
    comparison on Gymnasium's MuJoCo tasks (recipe `mujoco`)."""

    # --- schedule ---
    learning_starts: int = 5_000
    """Uniformly random steps before the first update."""
    utd: float = 2.0
    """Updates per environment step of one agent; may be fractional."""
    batch_size: int = 256  # transitions in each update
    buffer_size: int = 1_000_000  # transitions that the replay of an agent holds
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
    init_alpha: PerAgent = per_agent(0.01)
    """Initial temperature of `sac`."""
    target_entropy: PerAgentOrAuto = per_agent("auto")
    """Of `sac`, in nats of the normalised action; `auto` is -A/2."""
    exploration_noise: PerAgent = per_agent(0.1)
    """Of `ddpg`: standard deviation, in normalised actions."""
    # --- networks ---
    actor_width: int = 128  # units of the policy
    actor_blocks: int = 1  # residual blocks of the policy
    critic_width: int = 512  # units of each critic
    critic_blocks: int = 2  # residual blocks of each critic
    critics: int = 2
    """1 where episodes never terminate."""
    normalize_obs: bool = True
    """Centre and scale observations by running statistics; switched off for ablations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("learning_starts", "utd", "batch_size", "buffer_size")
        self.require_positive("actor_width", "actor_blocks", "critic_width", "critic_blocks", "critics")
        limits = {"init_alpha": (1e-30, 1e30), "exploration_noise": (0.0, 10.0)}
        rates = ("actor_lr", "critic_lr", "alpha_lr", "weight_decay", "discount", "tau")
        limits |= dict.fromkeys(rates, (0.0, 1.0))
        limits["target_entropy"] = (-1e6, 1e6)
        for name, (low, high) in limits.items():
            self.require_within(name, low, high)
        self.require_learning(self.learning_starts)
        idle = ("exploration_noise",) if self.policy == "sac" else ("alpha_lr", "init_alpha", "target_entropy")
        self.refuse_idle(f"policy {self.policy}", *idle)


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O]) -> (mean, log_std) [B, A] before the tanh, or of `ddpg` action [B, A] in [-1, 1].
    critic(obs, action) -> qs [E, B].
    """

    actor: nn.Module
    critic: nn.Module
    obs_norm: nets.RSNorm
    spec: EnvSpec
    remake: nets.Remake = None


MakeNet = Callable[[EnvSpec, Config], tuple[nn.Module, nn.Module]]


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The actor and the critics of the paper."""
    kind = nets.SimbaActor if config.policy == "sac" else nets.SimbaTanhActor
    actor = kind(spec.obs_dim, spec.action_dim, config.actor_width, config.actor_blocks)
    sizes = (config.critic_width, config.critic_blocks, config.critics)
    return actor, nets.SimbaCritic(spec.obs_dim, spec.action_dim, *sizes)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    require("simba", spec, "continuous")
    (actor, critic), remake = make_modules(make_net, spec, config, custom, "actor, critic")
    found, action = output_shape(actor, torch.zeros(3, *spec.obs_shape)), (3, spec.action_dim)
    if found != ([action] * 2 if config.policy == "sac" else action):
        what = "mean and log_std" if config.policy == "sac" else "actions"
        raise DeeprlError(f"net: the actor of {config.policy} must return {what} of {action}, not {found}")
    check_critic(critic, spec)
    return Net(actor.to(device), critic.to(device), nets.RSNorm(spec.obs_shape).to(device), spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    target_critic: Params
    log_alpha: Float[Tensor, ""]
    actor_moments: Moments
    critic_moments: Moments
    alpha_moments: Moments
    obs_stats: dict[str, Tensor]
    hparams: dict[str, Float[Tensor, ""]]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`)."""
    (actor, critic), fixed = nets.init_networks(net, ("actor", "critic"), rng.bits(key, (2,)).tolist())
    hparams = config.scalars("actor_lr", "critic_lr", "alpha_lr", "weight_decay", "discount", "tau")
    hparams |= config.scalars("exploration_noise")
    automatic = config.target_entropy == "auto"
    hparams |= {"target_entropy": -0.5 * net.spec.action_dim} if automatic else config.scalars("target_entropy")
    log_alpha = torch.tensor(math.log(config.scalars("init_alpha")["init_alpha"]))
    return State(
        actor=actor,
        critic=critic,
        target_critic={k: p.clone() for k, p in critic.items()},
        log_alpha=log_alpha,
        actor_moments=init_moments(actor),
        critic_moments=init_moments(critic),
        alpha_moments=init_moments({"log_alpha": log_alpha}),
        obs_stats={k: b.clone() for k, b in net.obs_norm.named_buffers()},
        hparams={k: torch.tensor(v) for k, v in hparams.items()},
        step=torch.zeros((), dtype=torch.int64),
        fixed=fixed,
    )


def sample_action(
    net: Net, config: Config, params: Params, noise_std: Float[Tensor, ""], obs: Float[Tensor, "B O"], key: rng.Key
) -> tuple[Float[Tensor, "B A"], Float[Tensor, " B"]]:
    """A sampled action in [-1, 1] and its log probability, which is 0 for `ddpg`."""
    output = functional_call(net.actor, params, (obs,))
    if config.policy == "ddpg":
        action = output.to(obs.dtype)  # bf16 under autocast
        noise = noise_std * rng.normal(key, action.shape, action.dtype)
        return (action + noise).clamp(-1.0, 1.0), torch.zeros_like(action[:, 0])
    mean, log_std = (x.to(obs.dtype) for x in output)
    noise = rng.normal(key, mean.shape, mean.dtype)
    pre_tanh = mean + torch.exp(log_std) * noise
    return torch.tanh(pre_tanh), nets.tanh_normal_log_prob(noise, log_std, pre_tanh)


def normalized(net: Net, config: Config, state: State, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B O"]:
    """Observations as the networks see them."""
    return functional_call(net.obs_norm, state.obs_stats, (obs,)) if config.normalize_obs else obs


def act(
    net: Net,
    config: Config,
    state: State,
    carry: tuple[()],
    obs: Float[Tensor, "N O"],
    is_first: Bool[Tensor, " N"],
    key: rng.Key,
    *,
    explore: bool,
) -> tuple[Float[Tensor, "N A"], tuple[()]]:
    """Actions in [-1, 1]: a sample of the policy, or without `explore` its mode."""
    net = nets.bound(net, state.fixed)
    obs = normalized(net, config, state, obs)
    if explore:
        return sample_action(net, config, state.actor, state.hparams["exploration_noise"], obs, key)[0], carry
    output = functional_call(net.actor, state.actor, (obs,))
    return (torch.tanh(output[0]) if config.policy == "sac" else output).to(obs.dtype), carry


def observe(net: Net, config: Config, state: State, obs: Float[Tensor, "N O"]) -> tuple[State, Metrics, tuple[()]]:
    """Take what the agent sees now into the normaliser: first observations of later episodes, but no final ones."""
    stats = net.obs_norm.updated(state.obs_stats, obs)
    return state._replace(obs_stats=stats), stats, ()


def actor_loss(
    actor: Params,
    net: Net,
    config: Config,
    state: State,
    alpha: Float[Tensor, ""],
    obs: Float[Tensor, "B O"],
    key: rng.Key,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Entropy-regularised value of the policy's own actions, negated; and the mean log probability."""
    action, log_prob = sample_action(net, config, actor, state.hparams["exploration_noise"], obs, key)
    q = functional_call(net.critic, state.critic, (obs, action)).to(obs.dtype).amin(0)
    return (alpha * log_prob - q).mean(), log_prob.mean()


def alpha_loss(
    log_alpha: Float[Tensor, ""], log_prob: Float[Tensor, ""], target_entropy: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Raises the temperature where the entropy is below its target. log_prob: mean over the batch."""
    return -log_alpha.exp() * (log_prob + target_entropy)


def critic_target(
    net: Net, config: Config, state: State, actor: Params, alpha: Float[Tensor, ""], batch: Batch, key: rng.Key
) -> Float[Tensor, " B"]:
    """reward + discount (min_i Q'_i(s', a') - alpha log pi(a' | s'))."""
    action, log_prob = sample_action(net, config, actor, state.hparams["exploration_noise"], batch.next_obs, key)
    q = functional_call(net.critic, state.target_critic, (batch.next_obs, action)).to(batch.reward.dtype).amin(0)
    return batch.reward + batch.discount * (q - alpha * log_prob)


def critic_loss(
    critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Squared error to the target, summed over the critics; and the mean of the first critic."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    return (qs - td_target).square().mean(-1).sum(), qs[0].mean()


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of actor, temperature and critic, and one soft target update."""
    net, h = nets.bound(net, state.fixed), state.hparams
    actor_key, next_key = rng.split(key, 2)
    obs, next_obs = (normalized(net, config, state, x) for x in (batch.obs, batch.next_obs))
    batch = batch._replace(obs=obs, next_obs=next_obs)
    alpha, log_alpha, alpha_moments = state.log_alpha.exp(), state.log_alpha, state.alpha_moments

    # --- actor ---
    actor_grad = grad_and_value(actor_loss, has_aux=True)
    actor_grads, (actor_value, log_prob) = actor_grad(state.actor, net, config, state, alpha, batch.obs, actor_key)
    decay = h["weight_decay"]
    actor, actor_moments = adam(state.actor, actor_grads, state.actor_moments, h["actor_lr"], weight_decay=decay)
    metrics = {"actor_loss": actor_value, "actor_grad_norm": global_norm(actor_grads)}

    # --- temperature ---
    if config.policy == "sac":
        slope, alpha_value = grad_and_value(alpha_loss)(log_alpha, log_prob, h["target_entropy"])
        new, alpha_moments = adam({"log_alpha": log_alpha}, {"log_alpha": slope}, alpha_moments, h["alpha_lr"])
        log_alpha = new["log_alpha"]
        metrics |= {"entropy": -log_prob, "alpha": alpha, "alpha_loss": alpha_value}

    # --- critic ---
    td_target = critic_target(net, config, state, actor, log_alpha.exp(), batch, next_key)
    critic_grads, (critic_value, q) = grad_and_value(critic_loss, has_aux=True)(state.critic, net, batch, td_target)
    critic, critic_moments = adam(state.critic, critic_grads, state.critic_moments, h["critic_lr"], weight_decay=decay)
    metrics |= {"critic_loss": critic_value, "critic_grad_norm": global_norm(critic_grads), "q": q}

    new_state = state._replace(
        actor=actor,
        critic=critic,
        target_critic=polyak(state.target_critic, critic, h["tau"]),
        log_alpha=log_alpha,
        actor_moments=actor_moments,
        critic_moments=critic_moments,
        alpha_moments=alpha_moments,
        step=state.step + 1,
    )
    return new_state, metrics, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks (`MakeNet`). callback(run) after every step; True stops the run."""
    updates = math.ceil(config.steps * config.utd) * len(config.seeds)
    with Run("simba", config, updates, net, callback) as run:
        envs = run.make_envs()
        device, width = run.execution.device, config.envs_per_agent
        modules = build_net(envs.spec, config, net, device)
        keys = [rng.key(seed, "init") for seed in config.seeds]
        agents = new_agents([init(modules, config.member(i), key) for i, key in enumerate(keys)], device)
        replay = Replay(len(keys), min(config.buffer_size, config.steps), envs.spec, width, device)
        run.restore(net=modules, agents=agents, replay=replay, envs=envs)

        explore = over_agents(functools.partial(act, modules, config, explore=True), run.execution)
        uniform = torch.vmap(lambda key: rng.uniform(key, (width, envs.spec.action_dim), -1.0, 1.0))
        observed = freezing(functools.partial(observe, modules, config), cause="observation")
        track = over_agents(observed, run.execution, donate=True)
        learn = over_agents(freezing(learner(modules, config)), run.execution, shared=(2,), donate=True)
        greedy = greedy_policy(functools.partial(act, modules, config, explore=False), agents.state, run.execution)
        metrics: Metrics = {}

        run.evaluate(greedy)  # if the session before was stopped in it
        while run.running():
            key = run.keys("explore", run.step)
            if run.step < config.learning_starts:
                action = uniform(key)
            else:
                obs, first = (torch.from_numpy(x).to(device) for x in (envs.obs, envs.is_first))
                action, _ = explore(agents.state, (), obs, first, key)
            transition = envs.step(action.cpu().numpy())
            replay.add(transition)
            if config.normalize_obs:
                track(agents, torch.from_numpy(envs.obs).to(device))
            run.advance(envs.pop_episodes())
            for i in run.updates_due(config.utd, config.learning_starts):
                metrics, _ = learn(agents, replay.data, replay.size, run.keys("sample", i), run.keys("update", i))
            run.end_step(metrics, greedy)
    return run


def learner(net: Net, config: Config) -> Callable[..., tuple[State, Metrics, tuple[()]]]:
    """Sampling and update of one agent as one function, compiled together."""

    def learn(
        state: State, data: Stored, size: Tensor, sample_key: rng.Key, update_key: rng.Key
    ) -> tuple[State, Metrics, tuple[()]]:
        batch = sample(data, size, sample_key, config.batch_size, state.hparams["discount"])
        return update(net, config, state, batch, update_key)

    return learn


if __name__ == "__main__":
    from deeprl.cli import train_from_shell

    train_from_shell("simba")
