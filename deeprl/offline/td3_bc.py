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

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import grad_and_value

from deeprl import nets, rng
from deeprl.config import PerAgent, per_agent
from deeprl.custom import check_critic, make_modules, output_shape
from deeprl.data.offline import Facts, Normalize, OfflineConfig, no_facts, open_data
from deeprl.errors import DeeprlError
from deeprl.evaluate import greedy_policy
from deeprl.nets import functional_call
from deeprl.optim import Moments, adam, global_norm, init_moments, polyak
from deeprl.population import freezing, new_agents, over_agents
from deeprl.replay import Stored
from deeprl.run import Callback, Run
from deeprl.samplers import sample
from deeprl.spaces import require
from deeprl.spec import Batch, EnvSpec, Metrics, Params


@dataclass(frozen=True)
class Config(OfflineConfig):
    """TD3+BC. Defaults: arXiv 2106.06860, Table 3; sfujim/TD3_BC, main.py."""

    normalize_obs: Normalize = "obs"
    # --- learning ---
    alpha: PerAgent = per_agent(2.5)
    """Weight of the critic against imitation: 0 is behaviour cloning."""
    policy_delay: int = 2
    """Critic updates for each update of the policy and the targets."""
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online networks in each soft target update."""
    target_noise: PerAgent = per_agent(0.2)
    """Standard deviation of the noise on the target policy's actions."""
    target_noise_clip: PerAgent = per_agent(0.5)  # c, the largest target noise, in normalised actions
    # --- networks ---
    hidden: tuple[int, ...] = (256, 256)  # units of each hidden layer, in all networks
    critics: int = 2  # targets take their minimum

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("policy_delay", "critics")
        for name in ("actor_lr", "critic_lr", "discount", "tau"):
            self.require_within(name, 0.0, 1.0)
        for name in ("target_noise", "target_noise_clip"):
            self.require_within(name, 0.0, 10.0)
        self.require_within("alpha", 0.0, 1e6)
        self.require_layers("hidden")


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O]) -> action [B, A], which the network itself must keep in [-1, 1]. critic(obs, action) -> qs [E, B].
    """

    actor: nn.Module
    critic: nn.Module
    spec: EnvSpec
    remake: nets.Remake = None


MakeNet = Callable[[EnvSpec, Config], tuple[nn.Module, nn.Module]]


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The actor and the critics of the authors' code: two ReLU layers of 256 each."""
    actor = nets.TanhActor(spec.obs_dim, spec.action_dim, config.hidden)
    return actor, nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    require("td3_bc", spec, "continuous")
    (actor, critic), remake = make_modules(make_net, spec, config, custom, "actor, critic")
    found = output_shape(actor, torch.zeros(3, *spec.obs_shape))
    if found != (3, spec.action_dim):
        raise DeeprlError(f"net: the actor must return actions {(3, spec.action_dim)}, not {found}")
    check_critic(critic, spec)
    return Net(actor.to(device), critic.to(device), spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_moments: Moments
    critic_moments: Moments
    facts: Facts
    hparams: dict[str, Float[Tensor, ""]]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key, facts: Facts | None = None) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`); facts: those of its dataset."""
    (actor, critic), fixed = nets.init_networks(net, ("actor", "critic"), rng.bits(key, (2,)).tolist())
    learning = config.scalars("alpha", "actor_lr", "critic_lr", "discount", "tau")
    noise = config.scalars("target_noise", "target_noise_clip")
    return State(
        actor=actor,
        critic=critic,
        target_actor={k: p.clone() for k, p in actor.items()},
        target_critic={k: p.clone() for k, p in critic.items()},
        actor_moments=init_moments(actor),
        critic_moments=init_moments(critic),
        facts=facts or no_facts(net.spec),
        hparams={k: torch.tensor(v) for k, v in (learning | noise).items()},
        step=torch.zeros((), dtype=torch.int64),
        fixed=fixed,
    )


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
    """The policy's actions in [-1, 1], whether exploring or not."""
    net = nets.bound(net, state.fixed)
    return functional_call(net.actor, state.actor, (state.facts.see(obs),)).to(obs.dtype), carry


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


def actor_loss(
    actor: Params, net: Net, critic: Params, batch: Batch, alpha: Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The first critic's value of the policy's actions, scaled to `alpha` and negated, plus imitation (Eq. 5)."""
    action = functional_call(net.actor, actor, (batch.obs,)).to(batch.obs.dtype)
    alone = {"first": 1} if type(net.critic) is nets.CriticEnsemble else {}  # spares the products of the others
    q = functional_call(net.critic, critic, (batch.obs, action), alone).to(batch.obs.dtype)[0]
    imitation = (action - batch.action).square().mean()
    return imitation - alpha * q.mean() / q.detach().abs().mean(), imitation


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
    found = grad_and_value(actor_loss, has_aux=True)(state.actor, net, state.critic, batch, h["alpha"])
    grads, (loss, imitation) = found
    actor, moments = adam(state.actor, grads, state.actor_moments, h["actor_lr"])
    new = state._replace(
        actor=actor,
        actor_moments=moments,
        target_actor=polyak(state.target_actor, actor, h["tau"]),
        target_critic=polyak(state.target_critic, state.critic, h["tau"]),
    )
    return new, {"actor_loss": loss, "imitation_loss": imitation, "actor_grad_norm": global_norm(grads)}


def update(
    net: Net, config: Config, state: State, batch: Batch, key: rng.Key, *, policy: bool
) -> tuple[State, Metrics, tuple[()]]:
    """One update of the critics; with `policy`, then one of the actor and the targets on the same batch."""
    net = nets.bound(net, state.fixed)
    batch = state.facts.batch(batch)
    state, metrics = update_critic(net, state, batch, key)
    if policy:
        state, actor_metrics = update_actor(net, state, batch)
        metrics |= actor_metrics
    return state._replace(step=state.step + 1), metrics, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks (`MakeNet`). callback(run) after every step; True stops the run."""
    with Run("td3_bc", config, config.steps * len(config.seeds), net, callback) as run:
        data = open_data(run)
        device = run.execution.device
        modules = build_net(data.spec, config, net, device)
        keys = [rng.key(seed, "init") for seed in config.seeds]
        states = [init(modules, config.member(i), key, data.facts[i]) for i, key in enumerate(keys)]
        agents = new_agents(states, device)
        run.restore(net=modules, agents=agents, data=data)

        learn_critic, learn_both = (
            over_agents(freezing(learner(modules, config, policy)), run.execution, shared=(1,), donate=True)
            for policy in (False, True)
        )
        greedy = greedy_policy(functools.partial(act, modules, config, explore=False), agents.state, run.execution)
        metrics: Metrics = {}

        run.evaluate(greedy)  # if the session before was stopped in it
        while run.running():
            run.advance()
            for i in run.updates_due(1.0, after=0):
                learn = learn_both if (i + 1) % config.policy_delay == 0 else learn_critic
                sample_key, update_key = run.keys("sample", i), run.keys("update", i)
                new, _ = learn(agents, data.arrays, data.first, data.size, sample_key, update_key)
                metrics = metrics | new
            run.end_step(
                metrics if run.updates >= config.policy_delay else {}, greedy
            )  # a row has the policy's metrics too
    return run


def learner(net: Net, config: Config, policy: bool) -> Callable[..., tuple[State, Metrics, tuple[()]]]:
    """Sampling and update of one agent as one function, compiled together."""

    def learn(
        state: State, data: Stored, first: Tensor, size: Tensor, sample_key: rng.Key, update_key: rng.Key
    ) -> tuple[State, Metrics, tuple[()]]:
        batch = sample(data, size, sample_key, config.batch_size, state.hparams["discount"], first)
        return update(net, config, state, batch, update_key, policy=policy)

    return learn


if __name__ == "__main__":
    from deeprl.cli import train_from_shell

    train_from_shell("td3_bc")
