"""Robust IQL (RIQL), offline, for a population of agents: implicit Q-learning for datasets with corrupted rows.

Yang et al. 2024, "Towards Robust Offline Reinforcement Learning under Diverse Data Corruption", arXiv 2310.12955.

    q(s, a) = the alpha-quantile over K target critics Q'_k(s, a), linear between two of them              (Eq. 11)
    value loss = mean |tau - 1(u < 0)| u^2,  u = q(s, a) - V(s)                                             (Eq. 10)
    td_target = clip(r + discount * V(s'), -100, 1000)
    critic loss = mean_k mean l(Q_k(s, a) - td_target),  l(d) = d^2 / (2 h) if |d| < h else |d| - h / 2       (Eq. 9)
    actor loss = mean min(exp(beta (q(s, a) - V(s))), 100) |pi(s) - a|^2                                   (Eq. 12)

with observations normalised by the corrupted data's own mean and deviation, and Huber's threshold h = 1 / sigma^2. The
targets and the policy see V as it was before this step. The paper's three changes to IQL are normalisation, Huber's
loss and a quantile of K critics in place of the minimum of two. `--normalize-obs off`, `--huber-threshold 1000` and
`--quantile 0 --critics 2` take them back: the IQL that the paper compares with, but for the clip of targets and the
critics' initial weights (there torch's). (A threshold beyond some thousands divides gradients down to Adam's epsilon,
and nothing is learned.) `iql.py` is IQL as its own authors have it: targets and policy see the new V, and layers start
orthogonal but for a deterministic policy's.

Differences from the authors' code (YangRui2015/RIQL): none in losses, order, layers, initial weights, optimizers or the
cosine decay of the policy's learning rate. Their settings of each attack are recipes, such as `hopper-random-dynamics`.
Left out is their option of a Gaussian policy, which they report to be slightly worse.

Metrics: value_loss, actor_loss, critic_loss (mean over critics), q, v, advantage, spread (standard deviation over the
target critics), means over the batch; gradients' norms of the three networks.

    python -m deeprl.offline.riql --dataset hopper-medium-replay-dynamics.hdf5 --recipe hopper-random-dynamics
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
    """RIQL. Defaults: YangRui2015/RIQL, RIQL.py and RIQL_config.py (clean data), which trains 3M steps."""

    normalize_obs: Normalize = "both"

    # --- learning ---
    expectile: PerAgent = per_agent(0.7)
    """tau of the paper: 0.5 is the mean over the data's actions, 1 the best of them."""
    temperature: PerAgent = per_agent(3.0)
    """beta of the paper, the inverse temperature: 0 is behaviour cloning."""
    quantile: PerAgent = per_agent(0.25)
    """alpha of the paper: which quantile of the target critics; 0 is their minimum."""
    huber_threshold: PerAgent = per_agent(1.0)
    """h, the error from which on the critics' loss is linear; 1 / sigma^2 in the paper's terms."""
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    value_lr: PerAgent = per_agent(3e-4)  # learning rate of the value V
    actor_lr_decay: bool = True
    """Cosine decay of the policy's learning rate to 0 at the last step."""
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critics in each soft target update."""
    # --- networks ---
    hidden: tuple[int, ...] = (256, 256)  # units of each hidden layer, in all networks
    critics: int = 5  # K

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("critics")
        for name in ("expectile", "actor_lr", "critic_lr", "value_lr", "discount", "tau"):
            self.require_within(name, 0.0, 1.0)
        self.require_within("temperature", 0.0, 1000.0)
        self.require_within("quantile", 0.0, 1.0)
        self.require_within("huber_threshold", 1e-6, 1e6)
        self.require_layers("hidden")


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O]) -> action [B, A] in [-1, 1]. critic(obs, action) -> qs [E, B]. value(obs) -> [B, 1].
    """

    actor: nn.Module
    critic: nn.Module
    value: nn.Module
    spec: EnvSpec
    remake: nets.Remake = None


MakeNet = Callable[[EnvSpec, Config], tuple[nn.Module, nn.Module, nn.Module]]


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Policy, critics and value of the authors' code: two ReLU layers of 256 each."""
    critic = nets.CriticEnsemble(spec.obs_dim, spec.action_dim, config.hidden, config.critics, "corl-ensemble")
    value = nets.MLP(spec.obs_dim, config.hidden, 1)
    return nets.TanhActor(spec.obs_dim, spec.action_dim, config.hidden), critic, value


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    require("riql", spec, "continuous")
    (actor, critic, value), remake = make_modules(make_net, spec, config, custom, "actor, critic, value")
    obs = torch.zeros(3, *spec.obs_shape)
    for name, module, shape in (("actor", actor, (3, spec.action_dim)), ("value", value, (3, 1))):
        if (found := output_shape(module, obs)) != shape:
            raise DeeprlError(f"net: the {name} must return {shape}, not {found}")
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
    losses = config.scalars("expectile", "temperature", "quantile", "huber_threshold", "discount")
    rates = config.scalars("actor_lr", "critic_lr", "value_lr", "tau")
    return State(
        actor=actor,
        critic=critic,
        value=value,
        target_critic={k: p.clone() for k, p in critic.items()},
        actor_moments=init_moments(actor),
        critic_moments=init_moments(critic),
        value_moments=init_moments(value),
        facts=facts or no_facts(net.spec),
        hparams={k: torch.tensor(v) for k, v in (losses | rates).items()},
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


def quantile_of(qs: Float[Tensor, "E B"], share: Float[Tensor, ""]) -> Float[Tensor, " B"]:
    """The quantile over the first axis, linear between the two values next to it, as `torch.quantile`'s."""
    place = share * (len(qs) - 1)
    weight = (1.0 - (torch.arange(len(qs), device=qs.device) - place).abs()).clamp(min=0.0)
    return (weight.to(qs.dtype).unsqueeze(-1) * qs.sort(0).values).sum(0)  # a matrix product would round under bf16


def value_loss(
    value: Params, net: Net, obs: Float[Tensor, "B O"], q: Float[Tensor, " B"], expectile: Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, " B"]]:
    """Expectile regression onto the critics (Eq. 10); and the values [B]."""
    v = functional_call(net.value, value, (obs,)).squeeze(-1).to(q.dtype)
    error = q - v
    weight = torch.where(error > 0.0, expectile, 1.0 - expectile)
    return (weight * error.square()).mean(), v


def critic_loss(
    critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"], threshold: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Huber's loss to the target, divided by its threshold, averaged over the critics (Eq. 9)."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    error = (qs - td_target).abs()
    return torch.where(error < threshold, 0.5 * error.square() / threshold, error - 0.5 * threshold).mean()


def actor_loss(actor: Params, net: Net, batch: Batch, weight: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Advantage-weighted regression onto the data's actions, summed over their entries (Eq. 12)."""
    action = functional_call(net.actor, actor, (batch.obs,)).to(weight.dtype)
    return (weight * (action - batch.action).square().sum(-1)).mean()


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of the value, the critics and the policy, and one soft update of the targets."""
    net, h, batch = nets.bound(net, state.fixed), state.hparams, state.facts.batch(batch)
    obs, next_obs = batch.obs, batch.next_obs
    qs = functional_call(net.critic, state.target_critic, (obs, batch.action)).to(batch.reward.dtype)
    q = quantile_of(qs, h["quantile"])
    next_v = functional_call(net.value, state.value, (next_obs,)).squeeze(-1).to(q.dtype)

    v_grads, (v_loss, v) = grad_and_value(value_loss, has_aux=True)(state.value, net, obs, q, h["expectile"])
    value, value_moments = adam(state.value, v_grads, state.value_moments, h["value_lr"])

    td_target = (batch.reward + batch.discount * next_v).clamp(-100.0, 1000.0)
    c_grads, c_loss = grad_and_value(critic_loss)(state.critic, net, batch, td_target, h["huber_threshold"])
    critic, critic_moments = adam(state.critic, c_grads, state.critic_moments, h["critic_lr"])

    advantage = q - v
    weight = torch.exp(h["temperature"] * advantage).clamp(max=100.0)
    a_grads, a_loss = grad_and_value(actor_loss)(state.actor, net, batch, weight)
    decay = 0.5 * (1.0 + torch.cos(math.pi * state.step / config.steps)) if config.actor_lr_decay else 1.0
    actor, actor_moments = adam(state.actor, a_grads, state.actor_moments, h["actor_lr"] * decay)

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
    metrics = {"value_loss": v_loss, "actor_loss": a_loss, "critic_loss": c_loss, "q": q.mean(), "v": v.mean()}
    metrics |= {"advantage": advantage.mean(), "spread": qs.std(0, correction=0).mean()}
    norms = {"value": v_grads, "actor": a_grads, "critic": c_grads}
    return new, metrics | {f"{name}_grad_norm": global_norm(g) for name, g in norms.items()}, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks (`MakeNet`). callback(run) after every step; True stops the run."""
    with Run("riql", config, config.steps * len(config.seeds), net, callback) as run:
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

    train_from_shell("riql")
