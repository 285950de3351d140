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
    """SAC. Defaults: arXiv 1812.05905 Table 1 where it has the entry."""

    # --- schedule ---
    learning_starts: int = 10_000
    """Uniformly random steps before the first update (softlearning: ten episodes)."""
    utd: float = 1.0
    """Updates per environment step of one agent; may be fractional."""
    batch_size: int = 256  # transitions in each update
    buffer_size: int = 1_000_000  # transitions that the replay of an agent holds
    # --- learning ---
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    alpha_lr: PerAgent = per_agent(3e-4)  # learning rate of the temperature
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critic in each soft target update."""
    init_alpha: PerAgent = per_agent(1.0)
    """Initial temperature; log alpha starts at 0 in softlearning."""
    target_entropy: PerAgentOrAuto = per_agent("auto")
    """In nats of the normalised action; `auto` is -A."""
    # --- networks ---
    hidden: tuple[int, ...] = (256, 256)  # units of each hidden layer, in all networks
    critics: int = 2  # targets and the policy take their minimum
    log_std: Literal["clamp", "tanh"] = "clamp"
    """`clamp` cuts log sigma to its range; `tanh` maps it smoothly into it."""
    log_std_range: tuple[float, ...] = ()
    """Default (-20, 2) for clamp, (-5, 2) for tanh."""
    normalize_obs: bool = False
    """Centre and scale observations by running statistics in float32, cut at 10 deviations (`nets.RunningNorm`; TD3 and
    SimBa have `nets.RSNorm`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("learning_starts", "utd", "batch_size", "buffer_size", "critics")
        limits = {"init_alpha": (1e-30, 1e30), "discount": (0.0, 1.0), "tau": (0.0, 1.0)}
        limits |= dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr"), (0.0, 1.0))
        limits["target_entropy"] = (-1e6, 1e6)
        for name, (low, high) in limits.items():
            self.require_within(name, low, high)
        self.require_learning(self.learning_starts)
        self.require_layers("hidden")
        if self.log_std_range:
            self.require_range("log_std_range")


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O]) -> (mean, log_std) [B, A] before the tanh. critic(obs, action) -> qs [E, B].
    """

    actor: nn.Module
    critic: nn.Module
    obs_norm: nets.RunningNorm
    spec: EnvSpec
    remake: nets.Remake = None


MakeNet = Callable[[EnvSpec, Config], tuple[nn.Module, nn.Module]]


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The actor and the critic of the paper: two ReLU layers of 256 each."""
    low, high = config.log_std_range or ((-20.0, 2.0) if config.log_std == "clamp" else (-5.0, 2.0))
    actor = nets.TanhGaussianActor(spec.obs_dim, spec.action_dim, config.hidden, config.log_std, (low, high))
    return actor, nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    require("sac", spec, "continuous")
    (actor, critic), remake = make_modules(make_net, spec, config, custom, "actor, critic")
    shapes = output_shape(actor, torch.zeros(3, *spec.obs_shape))
    if shapes != [(3, spec.action_dim)] * 2:
        raise DeeprlError(f"net: the actor must return mean and log_std of {(3, spec.action_dim)} each, not {shapes}")
    check_critic(critic, spec)
    return Net(actor.to(device), critic.to(device), nets.RunningNorm(spec.obs_shape).to(device), spec, remake)


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
    hparams = config.scalars("actor_lr", "critic_lr", "alpha_lr", "discount", "tau")
    automatic = config.target_entropy == "auto"
    hparams |= {"target_entropy": -float(net.spec.action_dim)} if automatic else config.scalars("target_entropy")
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


def policy(
    net: Net, params: Params, obs: Float[Tensor, "B O"], key: rng.Key
) -> tuple[Float[Tensor, "B A"], Float[Tensor, " B"]]:
    """A sampled action in [-1, 1] and its log probability."""
    mean, log_std = (x.to(obs.dtype) for x in functional_call(net.actor, params, (obs,)))  # bf16 under autocast
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
    """Actions in [-1, 1]: a sample of the policy, or its mode tanh(mean) without `explore`."""
    net = nets.bound(net, state.fixed)
    obs = normalized(net, config, state, obs)
    if explore:
        return policy(net, state.actor, obs, key)[0], carry
    return torch.tanh(functional_call(net.actor, state.actor, (obs,))[0].to(obs.dtype)), carry


def observe(net: Net, config: Config, state: State, obs: Float[Tensor, "N O"]) -> tuple[State, Metrics, tuple[()]]:
    """Take new observations into the normaliser; called once per step of the environments, if it is on."""
    stats = net.obs_norm.updated(state.obs_stats, obs)
    return state._replace(obs_stats=stats), stats, ()


def critic_loss(
    critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Half the squared error to the target, summed over the critics (Eq. 5); and the mean of the first critic."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    return 0.5 * (qs - td_target).square().mean(-1).sum(), qs[0].mean()


def actor_loss(
    actor: Params, net: Net, critic: Params, alpha: Float[Tensor, ""], obs: Float[Tensor, "B O"], key: rng.Key
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Entropy-regularised value of the policy's own actions, negated (Eq. 9); and the mean log probability."""
    action, log_prob = policy(net, actor, obs, key)
    q = functional_call(net.critic, critic, (obs, action)).to(obs.dtype).amin(0)
    return (alpha * log_prob - q).mean(), log_prob.mean()


def alpha_loss(
    log_alpha: Float[Tensor, ""], log_prob: Float[Tensor, ""], target_entropy: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Raises the temperature where the entropy is below its target (Eq. 18). log_prob: mean over the batch."""
    return -log_alpha.exp() * (log_prob + target_entropy)


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of critic, actor and temperature, and one soft target update."""
    net, h = nets.bound(net, state.fixed), state.hparams
    next_key, actor_key = rng.split(key, 2)
    batch = batch._replace(
        obs=normalized(net, config, state, batch.obs), next_obs=normalized(net, config, state, batch.next_obs)
    )
    alpha = state.log_alpha.exp()

    # --- critic ---
    next_action, next_log_prob = policy(net, state.actor, batch.next_obs, next_key)
    next_q = functional_call(net.critic, state.target_critic, (batch.next_obs, next_action))
    next_q = next_q.to(batch.reward.dtype).amin(0)
    td_target = batch.reward + batch.discount * (next_q - alpha * next_log_prob)
    critic_grads, (critic_value, q) = grad_and_value(critic_loss, has_aux=True)(state.critic, net, batch, td_target)
    critic, critic_moments = adam(state.critic, critic_grads, state.critic_moments, h["critic_lr"])

    # --- actor ---
    actor_grad = grad_and_value(actor_loss, has_aux=True)
    actor_grads, (actor_value, log_prob) = actor_grad(state.actor, net, critic, alpha, batch.obs, actor_key)
    actor, actor_moments = adam(state.actor, actor_grads, state.actor_moments, h["actor_lr"])

    # --- temperature ---
    slope, alpha_value = grad_and_value(alpha_loss)(state.log_alpha, log_prob, h["target_entropy"])
    temperature, alpha_moments = adam(
        {"log_alpha": state.log_alpha}, {"log_alpha": slope}, state.alpha_moments, h["alpha_lr"]
    )

    new = state._replace(
        actor=actor,
        critic=critic,
        target_critic=polyak(state.target_critic, critic, h["tau"]),
        log_alpha=temperature["log_alpha"],
        actor_moments=actor_moments,
        critic_moments=critic_moments,
        alpha_moments=alpha_moments,
        step=state.step + 1,
    )
    metrics = {
        "critic_loss": critic_value,
        "critic_grad_norm": global_norm(critic_grads),
        "q": q,
        "actor_loss": actor_value,
        "actor_grad_norm": global_norm(actor_grads),
        "entropy": -log_prob,
        "alpha": alpha,
        "alpha_loss": alpha_value,
    }
    return new, metrics, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks (`MakeNet`). callback(run) after every step; True stops the run."""
    updates = math.ceil(config.steps * config.utd) * len(config.seeds)
    with Run("sac", config, updates, net, callback) as run:
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
                track(agents, torch.from_numpy(transition.obs).to(device))
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

    train_from_shell("sac")
