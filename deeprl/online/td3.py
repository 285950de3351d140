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
from deeprl.config import OnlineConfig, PerAgent, per_agent
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
    """TD3. Defaults: sfujim/TD3 main.py."""

    # --- schedule ---
    learning_starts: int = 25_000
    """Uniformly random steps before the first update (paper: 10 000, or 1 000 on easy tasks)."""
    utd: float = 1.0
    """Updates per environment step of one agent; may be fractional."""
    batch_size: int = 256  # transitions in each update
    buffer_size: int = 1_000_000  # transitions that the replay of an agent holds
    policy_delay: int = 2
    """Critic updates for each update of the policy and the targets."""
    # --- learning ---
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online networks in each soft target update."""
    exploration_noise: PerAgent = per_agent(0.1)
    """Standard deviation, in normalised actions."""
    target_noise: PerAgent = per_agent(0.2)
    """Standard deviation of the noise on the target policy's actions."""
    target_noise_clip: PerAgent = per_agent(0.5)  # c, the largest target noise, in normalised actions
    # --- networks ---
    body: Literal["mlp", "simba"] = "mlp"
    """`simba`: residual networks (arXiv 2410.09754; actor 128 x 1 block, critics 512 x 2) in place of `hidden`."""
    hidden: tuple[int, ...] = (256, 256)  # units of each hidden layer, in all networks
    critics: int = 2  # targets take their minimum
    normalize_obs: bool = False
    """Centre and scale observations by running statistics (RSNorm); SimBa's bodies want it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("learning_starts", "utd", "batch_size", "buffer_size", "policy_delay", "critics")
        limits = dict.fromkeys(("actor_lr", "critic_lr", "discount", "tau"), (0.0, 1.0))
        limits |= dict.fromkeys(("exploration_noise", "target_noise", "target_noise_clip"), (0.0, 10.0))
        for name, (low, high) in limits.items():
            self.require_within(name, low, high)
        self.require_learning(self.learning_starts)
        self.require_layers("hidden")
        if self.body == "simba" and self.hidden != Config.hidden:
            raise DeeprlError(f"hidden: {self.hidden} has no meaning with body simba, whose sizes are the paper's")


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O]) -> action [B, A], which the network itself must keep in [-1, 1]. critic(obs, action) -> qs [E, B].
    """

    actor: nn.Module
    critic: nn.Module
    obs_norm: nets.RSNorm
    spec: EnvSpec
    remake: nets.Remake = None


MakeNet = Callable[[EnvSpec, Config], tuple[nn.Module, nn.Module]]


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The actor and the critics of the authors' code, two ReLU layers of 256 each; or those of SimBa."""
    if config.body == "simba":
        critic = nets.SimbaCritic(spec.obs_dim, spec.action_dim, critics=config.critics)
        return nets.SimbaTanhActor(spec.obs_dim, spec.action_dim), critic
    actor = nets.TanhActor(spec.obs_dim, spec.action_dim, config.hidden)
    return actor, nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    require("td3", spec, "continuous")
    (actor, critic), remake = make_modules(make_net, spec, config, custom, "actor, critic")
    found = output_shape(actor, torch.zeros(3, *spec.obs_shape))
    if found != (3, spec.action_dim):
        raise DeeprlError(f"net: the actor must return actions {(3, spec.action_dim)}, not {found}")
    check_critic(critic, spec)
    return Net(actor.to(device), critic.to(device), nets.RSNorm(spec.obs_shape).to(device), spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_moments: Moments
    critic_moments: Moments
    obs_stats: dict[str, Tensor]
    hparams: dict[str, Float[Tensor, ""]]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`)."""
    (actor, critic), fixed = nets.init_networks(net, ("actor", "critic"), rng.bits(key, (2,)).tolist())
    learning = config.scalars("actor_lr", "critic_lr", "discount", "tau")
    noise = config.scalars("exploration_noise", "target_noise", "target_noise_clip")
    return State(
        actor=actor,
        critic=critic,
        target_actor={k: p.clone() for k, p in actor.items()},
        target_critic={k: p.clone() for k, p in critic.items()},
        actor_moments=init_moments(actor),
        critic_moments=init_moments(critic),
        obs_stats={k: b.clone() for k, b in net.obs_norm.named_buffers()},
        hparams={k: torch.tensor(v) for k, v in (learning | noise).items()},
        step=torch.zeros((), dtype=torch.int64),
        fixed=fixed,
    )


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
    """Actions in [-1, 1]: the policy's, with Gaussian noise if `explore`."""
    net = nets.bound(net, state.fixed)
    obs = normalized(net, config, state, obs)
    action = functional_call(net.actor, state.actor, (obs,)).to(obs.dtype)  # bf16 under autocast
    if explore:
        noise = rng.normal(key, action.shape, action.dtype)
        action = (action + state.hparams["exploration_noise"] * noise).clamp(-1.0, 1.0)
    return action, carry


def observe(net: Net, config: Config, state: State, obs: Float[Tensor, "N O"]) -> tuple[State, Metrics, tuple[()]]:
    """Take new observations into the normaliser; called once per step of the environments, if it is on."""
    stats = net.obs_norm.updated(state.obs_stats, obs)
    return state._replace(obs_stats=stats), stats, ()


def smoothed_target_action(
    net: Net, state: State, next_obs: Float[Tensor, "B O"], key: rng.Key
) -> Float[Tensor, "B A"]:
    """The target policy's action with clipped noise, so that the value is learned over a region (Eq. 14-15)."""
    h = state.hparams
    action = functional_call(net.actor, state.target_actor, (next_obs,)).to(next_obs.dtype)
    noise = h["target_noise"] * rng.normal(key, action.shape, action.dtype)
    clip = h["target_noise_clip"]
    return (action + noise.clamp(-clip, clip)).clamp(-1.0, 1.0)


def critic_loss(
    critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Squared error to the target, summed over the critics; and the mean of the first critic."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    return (qs - td_target).square().mean(-1).sum(), qs[0].mean()


def actor_loss(actor: Params, net: Net, critic: Params, obs: Float[Tensor, "B O"]) -> Float[Tensor, ""]:
    """The first critic's value of the policy's own actions, negated."""
    action = functional_call(net.actor, actor, (obs,))
    alone = {"first": 1} if type(net.critic) is nets.CriticEnsemble else {}  # spares the products of the others
    return -functional_call(net.critic, critic, (obs, action), alone).to(obs.dtype)[0].mean()


def update_critic(net: Net, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics]:
    """One gradient step of the critics."""
    next_action = smoothed_target_action(net, state, batch.next_obs, key)
    next_q = functional_call(net.critic, state.target_critic, (batch.next_obs, next_action))
    td_target = batch.reward + batch.discount * next_q.to(batch.reward.dtype).amin(0)
    grads, (loss, q) = grad_and_value(critic_loss, has_aux=True)(state.critic, net, batch, td_target)
    critic, moments = adam(state.critic, grads, state.critic_moments, state.hparams["critic_lr"])
    metrics = {"critic_loss": loss, "critic_grad_norm": global_norm(grads), "q": q}
    return state._replace(critic=critic, critic_moments=moments), metrics


def update_actor(net: Net, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One gradient step of the policy, and one soft update of all targets."""
    h = state.hparams
    grads, loss = grad_and_value(actor_loss)(state.actor, net, state.critic, batch.obs)
    actor, moments = adam(state.actor, grads, state.actor_moments, h["actor_lr"])
    new = state._replace(
        actor=actor,
        actor_moments=moments,
        target_actor=polyak(state.target_actor, actor, h["tau"]),
        target_critic=polyak(state.target_critic, state.critic, h["tau"]),
    )
    return new, {"actor_loss": loss, "actor_grad_norm": global_norm(grads)}


def update(
    net: Net, config: Config, state: State, batch: Batch, key: rng.Key, *, policy: bool
) -> tuple[State, Metrics, tuple[()]]:
    """One update of the critics; with `policy`, then one of the actor and the targets on the same batch."""
    net = nets.bound(net, state.fixed)
    obs, next_obs = (normalized(net, config, state, x) for x in (batch.obs, batch.next_obs))
    batch = batch._replace(obs=obs, next_obs=next_obs)
    state, metrics = update_critic(net, state, batch, key)
    if policy:
        state, actor_metrics = update_actor(net, state, batch)
        metrics |= actor_metrics
    return state._replace(step=state.step + 1), metrics, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks (`MakeNet`). callback(run) after every step; True stops the run."""
    updates = math.ceil(config.steps * config.utd) * len(config.seeds)
    with Run("td3", config, updates, net, callback) as run:
        envs = run.make_envs()
        device, width = run.execution.device, config.envs_per_agent
        modules = build_net(envs.spec, config, net, device)
        keys = [rng.key(seed, "init") for seed in config.seeds]
        agents = new_agents([init(modules, config.member(i), key) for i, key in enumerate(keys)], device)
        replay = Replay(len(keys), min(config.buffer_size, config.steps), envs.spec, width, device)
        run.restore(net=modules, agents=agents, replay=replay, envs=envs)

        explore = over_agents(functools.partial(act, modules, config, explore=True), run.execution)
        uniform = torch.vmap(lambda key: rng.uniform(key, (width, envs.spec.action_dim), -1.0, 1.0))
        track = over_agents(
            freezing(functools.partial(observe, modules, config), cause="observation"), run.execution, donate=True
        )
        learn_critic, learn_both = (
            over_agents(freezing(learner(modules, config, policy)), run.execution, shared=(2,), donate=True)
            for policy in (False, True)
        )
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
                learn = learn_both if (i + 1) % config.policy_delay == 0 else learn_critic
                new, _ = learn(agents, replay.data, replay.size, run.keys("sample", i), run.keys("update", i))
                metrics = metrics | new
            run.end_step(
                metrics if run.updates >= config.policy_delay else {}, greedy
            )  # a row has the policy's metrics too
    return run


def learner(net: Net, config: Config, policy: bool) -> Callable[..., tuple[State, Metrics, tuple[()]]]:
    """Sampling and update of one agent as one function, compiled together."""

    def learn(
        state: State, data: Stored, size: Tensor, sample_key: rng.Key, update_key: rng.Key
    ) -> tuple[State, Metrics, tuple[()]]:
        batch = sample(data, size, sample_key, config.batch_size, state.hparams["discount"])
        return update(net, config, state, batch, update_key, policy=policy)

    return learn


if __name__ == "__main__":
    from deeprl.cli import train_from_shell

    train_from_shell("td3")
