"""Implicit Q-learning (IQL), offline, for a population of agents.

Kostrikov et al. 2022, "Offline Reinforcement Learning with Implicit Q-Learning", arXiv 2110.06169.

    q(s, a) = min_i Q'_i(s, a)                                       over the target critics, at the data's actions
    value loss = mean |tau - 1(u < 0)| u^2,  u = q(s, a) - V(s)                                              (Eq. 5)
    actor loss = -mean min(exp(beta (q(s, a) - V(s))), 100) log pi(a | s)                                    (Eq. 7)
    critic loss = sum_i mean (Q_i(s, a) - r - discount V(s'))^2                                              (Eq. 6)

in this order: the policy and the critics see the new V, the targets Q' move last. No value of an action that is not in
the data is ever asked for. The policy is Gaussian with tanh on its mean alone and a free sigma, evaluated at its mean.

Differences from the authors' code (ikostrikov/implicit_q_learning): none in losses, order, layers, initial weights,
optimizers, the cosine decay of the policy's learning rate, or the data's actions, which are clipped to 1 - 1e-5.
`return-range` sums an episode's rewards with those of rows that are left out at a time limit. Their settings of each
domain are recipes (`--recipe mujoco`, antmaze, kitchen, adroit); the defaults here are those of locomotion except that
rewards are as recorded. `--actor deterministic` is the regression onto weighted actions by which CORL and RIQL replace
the likelihood; there actions are not clipped, and the policy's layers start as torch's.

Metrics: value_loss, actor_loss, critic_loss (summed over critics), q, v, advantage (means over the batch), gradients'
norms of the three networks.

    python -m deeprl.offline.iql --dataset hopper-medium.hdf5 --recipe mujoco --seeds 0-3
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
from deeprl.config import PerAgent, per_agent
from deeprl.custom import check_critic, make_modules, output_shape
from deeprl.data.offline import Facts, OfflineConfig, no_facts, open_data
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
    """IQL. Defaults: arXiv 2110.06169, App. B; ikostrikov/implicit_q_learning, configs/mujoco_config.py."""

    # --- learning ---
    expectile: PerAgent = per_agent(0.7)
    """tau of the paper: 0.5 is the mean over the data's actions, 1 the best of them."""
    temperature: PerAgent = per_agent(3.0)
    """beta of the paper, the inverse temperature: 0 is behaviour cloning."""
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    value_lr: PerAgent = per_agent(3e-4)  # learning rate of the value V
    actor_lr_decay: bool = True
    """Cosine decay of the policy's learning rate to 0 at the last step."""
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critics in each soft target update."""
    # --- networks ---
    actor: Literal["gaussian", "deterministic"] = "gaussian"
    """`deterministic`: tanh policy, weighted squared error summed over the action's entries in place of -log pi."""
    hidden: tuple[int, ...] = (256, 256)  # units of each hidden layer, in all networks
    critics: int = 2  # their minimum counts
    dropout: float = 0.0
    """Share of the policy's hidden units that each row of a batch leaves out (0.1 on Kitchen and Adroit)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("critics")
        for name in ("expectile", "actor_lr", "critic_lr", "value_lr", "discount", "tau"):
            self.require_within(name, 0.0, 1.0)
        self.require_within("temperature", 0.0, 1000.0)
        self.require_within("dropout", 0.0, 0.99)
        self.require_layers("hidden")
        if self.dropout > 0.0 and self.actor == "deterministic":
            raise DeeprlError("dropout: only the gaussian actor has it")


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O]) -> (mean [B, A] in [-1, 1], log_std [A]), or action [B, A] in [-1, 1] of a deterministic one; with
    dropout also actor(obs, factors of each hidden layer [B, H]). critic(obs, action) -> qs [E, B].
    value(obs) -> [B, 1].
    """

    actor: nn.Module
    critic: nn.Module
    value: nn.Module
    spec: EnvSpec
    remake: nets.Remake = None


MakeNet = Callable[[EnvSpec, Config], tuple[nn.Module, nn.Module, nn.Module]]


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Policy, critics and value of the authors' code: two ReLU layers of 256 each, orthogonal weights.

    A deterministic policy starts from torch's.
    """
    kind = nets.GaussianActor if config.actor == "gaussian" else nets.TanhActor
    critic = nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics, start="orthogonal")
    value = nets.MLP(spec.obs_dim, config.hidden, 1, start="orthogonal")
    return kind(spec.obs_dim, spec.action_dim, config.hidden), critic, value


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    require("iql", spec, "continuous")
    (actor, critic, value), remake = make_modules(make_net, spec, config, custom, "actor, critic, value")
    obs, rows = torch.zeros(3, *spec.obs_shape), (3, spec.action_dim)
    found = output_shape(actor, obs)
    if found != ([rows, (spec.action_dim,)] if config.actor == "gaussian" else rows):
        raise DeeprlError(f"net: the {config.actor} actor returns {found}, not actions {rows} (and log_std)")
    if config.dropout > 0.0:
        output_shape(actor, obs, dropout_factors(rng.key(0, "update"), len(obs), config))
    if (found := output_shape(value, obs)) != (3, 1):
        raise DeeprlError(f"net: the value must return {(3, 1)}, not {found}")
    check_critic(critic, spec)
    return Net(actor.to(device), critic.to(device), value.to(device), spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    value: Params
    target_critic: Params
    actor_moments: Moments
    critic_moments: Moments
    value_moments: Moments
    facts: Facts
    hparams: dict[str, Float[Tensor, ""]]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key, facts: Facts | None = None) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`); facts: those of its dataset."""
    (actor, critic, value), fixed = nets.init_networks(net, ("actor", "critic", "value"), rng.bits(key, (3,)).tolist())
    names = ("expectile", "temperature", "actor_lr", "critic_lr", "value_lr", "discount", "tau")
    return State(
        actor=actor,
        critic=critic,
        value=value,
        target_critic={k: p.clone() for k, p in critic.items()},
        actor_moments=init_moments(actor),
        critic_moments=init_moments(critic),
        value_moments=init_moments(value),
        facts=facts or no_facts(net.spec),
        hparams={k: torch.tensor(v) for k, v in config.scalars(*names).items()},
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
    """Actions in [-1, 1]: the policy's mean, or a sample of it, clipped, if `explore`."""
    net = nets.bound(net, state.fixed)
    seen = state.facts.see(obs)
    if config.actor == "deterministic":
        return functional_call(net.actor, state.actor, (seen,)).to(obs.dtype), carry
    mean, log_std = functional_call(net.actor, state.actor, (seen,))
    action = mean.to(obs.dtype)  # bf16 under autocast
    if explore:
        action = (action + log_std.exp() * rng.normal(key, action.shape, action.dtype)).clamp(-1.0, 1.0)
    return action, carry


def value_loss(
    value: Params, net: Net, obs: Float[Tensor, "B O"], q: Float[Tensor, " B"], expectile: Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Expectile regression onto the critics (Eq. 5); and the mean value."""
    v = functional_call(net.value, value, (obs,)).squeeze(-1).to(q.dtype)
    error = q - v
    weight = torch.where(error > 0.0, expectile, 1.0 - expectile)
    return (weight * error.square()).mean(), v.mean()


def critic_loss(critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Squared error to the target, summed over the critics (Eq. 6)."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    return (qs - td_target).square().mean(-1).sum()


def actor_loss(
    actor: Params, net: Net, config: Config, batch: Batch, weight: Float[Tensor, " B"], key: rng.Key
) -> Float[Tensor, ""]:
    """Advantage-weighted regression onto the data's actions (Eq. 7)."""
    if config.actor == "deterministic":
        action = functional_call(net.actor, actor, (batch.obs,)).to(weight.dtype)
        return (weight * (action - batch.action).square().sum(-1)).mean()
    kept = (dropout_factors(key, len(batch.obs), config),) if config.dropout > 0.0 else ()
    mean, log_std = functional_call(net.actor, actor, (batch.obs, *kept))
    return -(weight * nets.normal_log_prob(batch.action, mean.to(weight.dtype), log_std)).mean()


def dropout_factors(key: rng.Key, rows: int, config: Config) -> list[Float[Tensor, "B _"]]:
    """For each hidden layer, 0 where a row leaves a unit out and 1 / (1 - dropout) elsewhere."""
    keys, share = rng.split(key, len(config.hidden)), config.dropout
    drawn = [rng.uniform(k, (rows, units)) for k, units in zip(keys, config.hidden, strict=True)]
    return [(u >= share).to(u.dtype) / (1.0 - share) for u in drawn]


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of the value, the policy and the critics, and one soft update of the targets."""
    net, h, batch = nets.bound(net, state.fixed), state.hparams, state.facts.batch(batch)
    if config.actor == "gaussian":
        batch = batch._replace(action=batch.action.clamp(-1.0 + 1e-5, 1.0 - 1e-5))
    q = functional_call(net.critic, state.target_critic, (batch.obs, batch.action)).to(batch.reward.dtype).amin(0)

    grads, (v_loss, v_mean) = grad_and_value(value_loss, has_aux=True)(state.value, net, batch.obs, q, h["expectile"])
    value, value_moments = adam(state.value, grads, state.value_moments, h["value_lr"])
    v, next_v = (functional_call(net.value, value, (x,)).squeeze(-1).to(q.dtype) for x in (batch.obs, batch.next_obs))

    advantage = q - v
    weight = torch.exp(h["temperature"] * advantage).clamp(max=100.0)
    a_grads, a_loss = grad_and_value(actor_loss)(state.actor, net, config, batch, weight, key)
    decay = 0.5 * (1.0 + torch.cos(math.pi * state.step / config.steps)) if config.actor_lr_decay else 1.0
    actor, actor_moments = adam(state.actor, a_grads, state.actor_moments, h["actor_lr"] * decay)

    td_target = batch.reward + batch.discount * next_v
    c_grads, c_loss = grad_and_value(critic_loss)(state.critic, net, batch, td_target)
    critic, critic_moments = adam(state.critic, c_grads, state.critic_moments, h["critic_lr"])

    new = state._replace(
        actor=actor,
        critic=critic,
        value=value,
        target_critic=polyak(state.target_critic, critic, h["tau"]),
        actor_moments=actor_moments,
        critic_moments=critic_moments,
        value_moments=value_moments,
        step=state.step + 1,
    )
    norms = {"value": grads, "actor": a_grads, "critic": c_grads}
    metrics = {"value_loss": v_loss, "actor_loss": a_loss, "critic_loss": c_loss}
    metrics |= {"q": q.mean(), "v": v_mean, "advantage": advantage.mean()}
    return new, metrics | {f"{name}_grad_norm": global_norm(g) for name, g in norms.items()}, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks (`MakeNet`). callback(run) after every step; True stops the run."""
    with Run("iql", config, config.steps * len(config.seeds), net, callback) as run:
        data = open_data(run)
        device = run.execution.device
        modules = build_net(data.spec, config, net, device)
        keys = [rng.key(seed, "init") for seed in config.seeds]
        states = [init(modules, config.member(i), key, data.facts[i]) for i, key in enumerate(keys)]
        agents = new_agents(states, device)
        run.restore(net=modules, agents=agents, data=data)

        learn = over_agents(freezing(learner(modules, config)), run.execution, shared=(1,), donate=True)
        greedy = greedy_policy(functools.partial(act, modules, config, explore=False), agents.state, run.execution)
        metrics: Metrics = {}

        run.evaluate(greedy)  # if the session before was stopped in it
        while run.running():
            run.advance()
            for i in run.updates_due(1.0, after=0):
                sample_key, update_key = run.keys("sample", i), run.keys("update", i)
                metrics, _ = learn(agents, data.arrays, data.first, data.size, sample_key, update_key)
            run.end_step(metrics, greedy)
    return run


def learner(net: Net, config: Config) -> Callable[..., tuple[State, Metrics, tuple[()]]]:
    """Sampling and update of one agent as one function, compiled together."""

    def learn(
        state: State, data: Stored, first: Tensor, size: Tensor, sample_key: rng.Key, update_key: rng.Key
    ) -> tuple[State, Metrics, tuple[()]]:
        batch = sample(data, size, sample_key, config.batch_size, state.hparams["discount"], first)
        return update(net, config, state, batch, update_key)

    return learn


if __name__ == "__main__":
    from deeprl.cli import train_from_shell

    train_from_shell("iql")
