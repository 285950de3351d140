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

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import grad_and_value

from deeprl import nets, rng
from deeprl.config import OnlineConfig, PerAgent, PerAgentOrAuto, per_agent
from deeprl.custom import check_critic, make_modules, output_shape
from deeprl.errors import DeeprlError
from deeprl.evaluate import greedy_policy
from deeprl.nets import categorical, functional_call
from deeprl.optim import Moments, adam, global_norm, init_moments, polyak
from deeprl.population import freezing, new_agents, over_agents
from deeprl.replay import Replay, Stored
from deeprl.run import Callback, Run
from deeprl.samplers import sample
from deeprl.spaces import require
from deeprl.spec import Batch, EnvSpec, Metrics, Params


@dataclass(frozen=True)
class Config(OnlineConfig):
    """SimbaV2. Defaults: configs/agent/simbaV2.yaml of the authors, for Gymnasium's MuJoCo tasks."""

    # --- schedule ---
    learning_starts: int = 5_000
    """Uniformly random steps before the first update."""
    utd: float = 2.0
    """Updates per environment step of one agent; may be fractional."""
    batch_size: int = 256  # transitions in each update
    buffer_size: int = 1_000_000  # transitions that the replay of an agent holds
    # --- learning ---
    actor_lr: PerAgent = per_agent(1e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(1e-4)  # learning rate of the critics
    alpha_lr: PerAgent = per_agent(1e-4)  # learning rate of the temperature
    final_lr_share: PerAgent = per_agent(0.5)
    """Share of all learning rates that is left at `lr_horizon`; they fall linearly, and stay there."""
    lr_horizon: int = 1_000_000
    """Decisions of one agent over which learning rates fall, whatever `steps` is."""
    discount: PerAgent = per_agent(0.995)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critic in each soft target update."""
    init_alpha: PerAgent = per_agent(0.01)
    """Initial temperature."""
    target_entropy: PerAgentOrAuto = per_agent("auto")
    """In nats of the normalised action; `auto` is -A/2."""
    # --- networks ---
    actor_width: int = 128  # units of the policy
    actor_blocks: int = 1  # residual blocks of the policy
    critic_width: int = 512  # units of each critic
    critic_blocks: int = 2  # residual blocks of each critic
    critics: int = 2
    """1 where episodes never terminate."""
    bins: int = 101  # of the distribution of values
    value_bound: float = 5.0
    """The bins reach from -value_bound to value_bound, in scaled rewards."""
    # --- ablations ---
    normalize_obs: bool = True
    """Centre and scale observations by running statistics."""
    scale_rewards: bool = True
    """Divide rewards by the scale of the running return; without it `value_bound` bounds values of plain rewards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("learning_starts", "utd", "batch_size", "buffer_size", "lr_horizon", "value_bound")
        self.require_positive("actor_width", "actor_blocks", "critic_width", "critic_blocks", "critics")
        limits = {"init_alpha": (1e-30, 1e30), "bins": (2.0, 1e4)}
        limits |= dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr", "final_lr_share", "discount", "tau"), (0.0, 1.0))
        limits["target_entropy"] = (-1e6, 1e6)
        for name, (low, high) in limits.items():
            self.require_within(name, low, high)
        self.require_learning(self.learning_starts)


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


MakeNet = Callable[[EnvSpec, Config], tuple[nn.Module, nn.Module]]


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The actor and the critics of the paper."""
    actor = nets.SimbaV2Actor(spec.obs_dim, spec.action_dim, config.actor_width, config.actor_blocks)
    sizes = (config.critic_width, config.critic_blocks, config.bins, config.critics)
    return actor, nets.SimbaV2Critic(spec.obs_dim, spec.action_dim, *sizes)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    require("simba_v2", spec, "continuous")
    (actor, critic), remake = make_modules(make_net, spec, config, custom, "actor, critic")
    shapes = output_shape(actor, torch.zeros(3, *spec.obs_shape))
    if shapes != [(3, spec.action_dim)] * 2:
        raise DeeprlError(f"net: the actor must return mean and log_std of {(3, spec.action_dim)} each, not {shapes}")
    check_critic(critic, spec, config.bins)
    obs_norm, scale = nets.RSNorm(spec.obs_shape), nets.ReturnScale(config.envs_per_agent, config.value_bound)
    return Net(actor.to(device), critic.to(device), obs_norm.to(device), scale.to(device), spec, remake)


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
    return_stats: dict[str, Tensor]
    hparams: dict[str, Float[Tensor, ""]]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`)."""
    (actor, critic), fixed = nets.init_networks(net, ("actor", "critic"), rng.bits(key, (2,)).tolist())
    hparams = config.scalars("actor_lr", "critic_lr", "alpha_lr", "final_lr_share", "discount", "tau")
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
        return_stats={k: b.clone() for k, b in net.return_scale.named_buffers()},
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


def observe(
    net: Net,
    config: Config,
    state: State,
    obs: Float[Tensor, "N O"],
    reward: Float[Tensor, " N"],
    ended: Bool[Tensor, " N"],
) -> tuple[State, Metrics, tuple[()]]:
    """Take the outcome of one step of every environment into the statistics of observations and returns.

    obs: what the agent sees now, so that first observations of later episodes count and final ones do not.
    """
    obs_stats = net.obs_norm.updated(state.obs_stats, obs)
    return_stats = net.return_scale.updated(state.return_stats, reward, ended, state.hparams["discount"])
    sources = {"observation": obs_stats, "reward": return_stats}
    found = {source: torch.stack([v.sum() for v in stats.values()]) for source, stats in sources.items()}
    return state._replace(obs_stats=obs_stats, return_stats=return_stats), found, ()


def support(config: Config, like: Tensor) -> Float[Tensor, " K"]:
    """The values that the bins of the critics stand for."""
    return categorical.atoms(-config.value_bound, config.value_bound, config.bins, like.device)


def actor_loss(
    actor: Params,
    net: Net,
    config: Config,
    critic: Params,
    alpha: Float[Tensor, ""],
    obs: Float[Tensor, "B O"],
    key: rng.Key,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Entropy-regularised value of the policy's own actions, negated; and the mean log probability."""
    action, log_prob = policy(net, actor, obs, key)
    logits = functional_call(net.critic, critic, (obs, action)).to(obs.dtype)
    q = categorical.mean(logits, support(config, obs)).amin(0)
    return (alpha * log_prob - q).mean(), log_prob.mean()


def alpha_loss(
    log_alpha: Float[Tensor, ""], log_prob: Float[Tensor, ""], target_entropy: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Raises the temperature where the entropy is below its target. log_prob: mean over the batch."""
    return -log_alpha.exp() * (log_prob + target_entropy)


def critic_target(
    net: Net, config: Config, state: State, actor: Params, alpha: Float[Tensor, ""], batch: Batch, key: rng.Key
) -> Float[Tensor, "B K"]:
    """The distribution of r + discount (z - alpha log pi(a' | s')), z of the target critic with the smaller mean."""
    action, log_prob = policy(net, actor, batch.next_obs, key)
    logits = functional_call(net.critic, state.target_critic, (batch.next_obs, action)).to(batch.reward.dtype)
    atoms = support(config, batch.reward)
    smallest = categorical.mean(logits, atoms).argmin(0)
    probs = torch.softmax(logits, -1).gather(0, smallest[None, :, None].expand(1, *logits.shape[1:])).squeeze(0)
    values = batch.reward[:, None] + batch.discount[:, None] * (atoms - alpha * log_prob[:, None])
    return categorical.project(probs, values, atoms)


def critic_loss(
    critic: Params, net: Net, config: Config, batch: Batch, target: Float[Tensor, "B K"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross entropy to the target, summed over the critics; and the mean of the first critic."""
    logits = functional_call(net.critic, critic, (batch.obs, batch.action)).to(target.dtype)
    q = categorical.mean(logits[0], support(config, target)).mean()
    return categorical.cross_entropy(logits, target.expand_as(logits)).mean(-1).sum(), q


def prepared(net: Net, config: Config, state: State, batch: Batch) -> Batch:
    """A batch as the networks see it: observations normalised, rewards scaled."""
    reward = functional_call(net.return_scale, state.return_stats, (batch.reward,))
    obs, next_obs = (normalized(net, config, state, x) for x in (batch.obs, batch.next_obs))
    return batch._replace(obs=obs, next_obs=next_obs, reward=reward if config.scale_rewards else batch.reward)


def lr_share(config: Config, state: State) -> Float[Tensor, ""]:
    """What is left of the learning rates at the next update."""
    final = state.hparams["final_lr_share"]
    return 1.0 + (final - 1.0) * torch.clamp(state.step / (config.lr_horizon * config.utd), max=1.0).to(final.dtype)


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of actor, temperature and critic, each back on its sphere, and one soft target update."""
    net, h, share = nets.bound(net, state.fixed), state.hparams, lr_share(config, state)
    actor_key, next_key = rng.split(key, 2)
    batch = prepared(net, config, state, batch)
    alpha = state.log_alpha.exp()

    # --- actor ---
    actor_slopes = grad_and_value(actor_loss, has_aux=True)
    actor_grads, (actor_value, log_prob) = actor_slopes(
        state.actor, net, config, state.critic, alpha, batch.obs, actor_key
    )
    actor, actor_moments = adam(state.actor, actor_grads, state.actor_moments, share * h["actor_lr"])
    actor = nets.projected(actor, nets.hyper_weights(net.actor))

    # --- temperature ---
    slope, alpha_value = grad_and_value(alpha_loss)(state.log_alpha, log_prob, h["target_entropy"])
    old, slope_of = {"log_alpha": state.log_alpha}, {"log_alpha": slope}
    temperature, alpha_moments = adam(old, slope_of, state.alpha_moments, share * h["alpha_lr"])

    # --- critic ---
    target = critic_target(net, config, state, actor, temperature["log_alpha"].exp(), batch, next_key)
    critic_slopes = grad_and_value(critic_loss, has_aux=True)
    critic_grads, (critic_value, q) = critic_slopes(state.critic, net, config, batch, target)
    critic, critic_moments = adam(state.critic, critic_grads, state.critic_moments, share * h["critic_lr"])
    critic = nets.projected(critic, nets.hyper_weights(net.critic))

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
    metrics = {"critic_loss": critic_value, "critic_grad_norm": global_norm(critic_grads), "q": q}
    metrics |= {"actor_loss": actor_value, "actor_grad_norm": global_norm(actor_grads)}
    return new, metrics | {"entropy": -log_prob, "alpha": alpha, "alpha_loss": alpha_value}, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks (`MakeNet`). callback(run) after every step; True stops the run."""
    updates = math.ceil(config.steps * config.utd) * len(config.seeds)
    with Run("simba_v2", config, updates, net, callback) as run:
        envs = run.make_envs()
        device, width = run.execution.device, config.envs_per_agent
        modules = build_net(envs.spec, config, net, device)
        keys = [rng.key(seed, "init") for seed in config.seeds]
        agents = new_agents([init(modules, config.member(i), key) for i, key in enumerate(keys)], device)
        replay = Replay(len(keys), min(config.buffer_size, config.steps), envs.spec, width, device)
        run.restore(net=modules, agents=agents, replay=replay, envs=envs)

        explore = over_agents(functools.partial(act, modules, config, explore=True), run.execution)
        uniform = torch.vmap(lambda key: rng.uniform(key, (width, envs.spec.action_dim), -1.0, 1.0))
        track = over_agents(freezing(functools.partial(observe, modules, config)), run.execution, donate=True)
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
            outcome = (envs.obs, transition.reward, envs.is_first)
            track(agents, *(torch.from_numpy(x).to(device) for x in outcome))
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

    train_from_shell("simba_v2")
