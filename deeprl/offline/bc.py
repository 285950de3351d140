"""Behaviour cloning (BC), offline, for a population of agents; of all episodes or of the best ones alone (%BC).

    actor loss = mean over the batch and the action's entries of (pi(s) - a)^2        (`--actor deterministic`)
                 -mean log pi(a | s)                                                  (`--actor gaussian`)

`--best 0.1` is 10%BC (Chen et al. 2021, arXiv 2106.01345, Sec. 5.1): only the tenth of the episodes with the highest
undiscounted returns is imitated, as in CORL; Chen et al. take the best episodes until they have a tenth of the steps.
The deterministic policy is tanh(MLP(s)) on normalised observations; the Gaussian has tanh on its mean alone and a free
sigma per action, as that of IQL, and is evaluated at its mean.

The reference for settings is CORL's any_percent_bc.py. Differences from it: episodes are those of the dataset, where
CORL counts 1,000 rows without a terminal as one, and leaves out what the file ends with if it is neither.

Metrics: actor_loss, actor_grad_norm; mse, the squared error of the (mean) action.

    python -m deeprl.offline.bc --dataset hopper-medium.hdf5 --seeds 0-3
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import grad_and_value

from deeprl import nets, rng
from deeprl.config import PerAgent, per_agent
from deeprl.custom import make_modules, output_shape
from deeprl.data.offline import Facts, Normalize, OfflineConfig, no_facts, open_data
from deeprl.errors import DeeprlError
from deeprl.evaluate import greedy_policy
from deeprl.nets import functional_call
from deeprl.optim import Moments, adam, global_norm, init_moments
from deeprl.population import freezing, new_agents, over_agents
from deeprl.replay import Stored
from deeprl.run import Callback, Run
from deeprl.samplers import sample
from deeprl.spaces import require
from deeprl.spec import Batch, EnvSpec, Metrics, Params


@dataclass(frozen=True)
class Config(OfflineConfig):
    """BC. Defaults: corl-team/CORL, algorithms/offline/any_percent_bc.py."""

    normalize_obs: Normalize = "obs"
    best: float = 1.0
    """Share of the episodes, those with the highest returns, that are imitated."""
    # --- learning ---
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    weight_decay: PerAgent = per_agent(0.0)  # of AdamW
    # --- networks ---
    actor: Literal["deterministic", "gaussian"] = "deterministic"
    """`deterministic`: squared error; `gaussian`: likelihood."""
    hidden: tuple[int, ...] = (256, 256)  # units of each hidden layer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_within("actor_lr", 0.0, 1.0)
        self.require_within("weight_decay", 0.0, 1.0)
        self.require_within("best", 0.0, 1.0)
        self.require_layers("hidden")


class Net(NamedTuple):
    """The module of one agent; its parameters live in `State`.

    actor(obs [B, O]) -> action [B, A] in [-1, 1], or (mean [B, A] in [-1, 1], log_std [A]) of a gaussian one.
    """

    actor: nn.Module
    spec: EnvSpec
    remake: nets.Remake = None


MakeNet = Callable[[EnvSpec, Config], nn.Module]


def make_net(spec: EnvSpec, config: Config) -> nn.Module:
    """Two ReLU layers of 256."""
    kind = nets.TanhActor if config.actor == "deterministic" else nets.GaussianActor
    return kind(spec.obs_dim, spec.action_dim, config.hidden)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The network of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    require("bc", spec, "continuous")
    (actor,), remake = make_modules(make_net, spec, config, custom, "actor")
    rows = (3, spec.action_dim)
    found = output_shape(actor, torch.zeros(3, *spec.obs_shape))
    if found != (rows if config.actor == "deterministic" else [rows, (spec.action_dim,)]):
        raise DeeprlError(f"net: the {config.actor} actor returns {found}, not actions {rows} (and log_std)")
    return Net(actor.to(device), spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    actor_moments: Moments
    facts: Facts
    hparams: dict[str, Float[Tensor, ""]]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key, facts: Facts | None = None) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`); facts: those of its dataset."""
    (actor,), fixed = nets.init_networks(net, ("actor",), rng.bits(key, (1,)).tolist())
    return State(
        actor=actor,
        actor_moments=init_moments(actor),
        facts=facts or no_facts(net.spec),
        hparams={k: torch.tensor(v) for k, v in config.scalars("actor_lr", "weight_decay").items()},
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


def actor_loss(actor: Params, net: Net, config: Config, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Squared error of the action, or minus its log likelihood; and the squared error of the mean."""
    if config.actor == "deterministic":
        error = (functional_call(net.actor, actor, (batch.obs,)).to(batch.obs.dtype) - batch.action).square().mean()
        return error, error
    mean, log_std = functional_call(net.actor, actor, (batch.obs,))
    mean = mean.to(batch.obs.dtype)
    return -nets.normal_log_prob(batch.action, mean, log_std).mean(), (mean - batch.action).square().mean()


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of the policy."""
    net, h = nets.bound(net, state.fixed), state.hparams
    batch = batch._replace(obs=state.facts.see(batch.obs))
    grads, (loss, mse) = grad_and_value(actor_loss, has_aux=True)(state.actor, net, config, batch)
    actor, moments = adam(state.actor, grads, state.actor_moments, h["actor_lr"], weight_decay=h["weight_decay"])
    new = state._replace(actor=actor, actor_moments=moments, step=state.step + 1)
    return new, {"actor_loss": loss, "mse": mse, "actor_grad_norm": global_norm(grads)}, ()


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks (`MakeNet`). callback(run) after every step; True stops the run."""
    with Run("bc", config, config.steps * len(config.seeds), net, callback) as run:
        data = open_data(run, best=config.best)
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
        batch = sample(data, size, sample_key, config.batch_size, 1.0, first)
        return update(net, config, state, batch, update_key)

    return learn


if __name__ == "__main__":
    from deeprl.cli import train_from_shell

    train_from_shell("bc")
