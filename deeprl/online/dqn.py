"""Deep Q-learning (DQN) and its extensions, each a setting of its own, for a population of agents.

Mnih et al. 2015, "Human-level control through deep reinforcement learning". A greedy action has the largest Q(s, a).

    td_target = R + gamma^m (1 - terminated) Q'(s_m, a*),  R = sum_{k<m} gamma^k r_k over m <= `n_step` steps
    a* = argmax_a Q'(s_m, a), or argmax_a Q(s_m, a) with `double` (van Hasselt et al. 2016, arXiv 1509.06461)
    loss = mean of the Huber loss or of the squared error of Q(s, a) - td_target, weighted in prioritised replay
    target network Q': a copy of Q, taken every `target_every` steps

`value`, the form that values have (`nets.categorical`), trained by cross entropy instead of `loss`:
    c51       Q' as a distribution over atoms, moved and projected (Bellemare et al. 2017, arXiv 1707.06887)
    hl_gauss  a Gaussian around td_target over bins; two_hot: its two neighbours (Farebrother et al. 2024, 2403.03950)
`dueling`: Q = V + A - mean A (Wang et al. 2016, 1511.06581). `prioritized`: rows drawn in proportion to
(|td error| + eps)^alpha, weighted by (N P)^-beta with beta annealed to 1 over the run (Schaul et al. 2016, 1511.05952);
for distributions the Kullback-Leibler divergence takes the place of the error, as in Rainbow (Hessel et al. 2018).

Differences from the authors' code:
- Adam instead of centred RMSProp, as in later code; `adam_eps` is a setting, since large values stabilise.
- Gradients are clipped by their global norm (the dueling paper's 10; 0: not at all), not at the TD error alone.
- Actions are random before `learning_starts`; epsilon then falls linearly over `epsilon_steps` decisions, not frames.
- A time limit bootstraps from its true last observation; a lost life terminates only where the environment says so.
- The Huber loss has its factor 1/2, the squared error has none.
- Weights are divided by the largest of the batch; every action has a bias of its own in the last layer.
- HL-Gauss takes m bins between v_min and v_max, C51 and two-hot m atoms from v_min to v_max: each as in its paper.

Metrics: loss, q (mean Q of the batch's actions), td_error (mean |error| of mean values), unclipped grad_norm, epsilon.

    deeprl train dqn --recipe classic --env CartPole-v1 --seeds 0-7
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import OffPolicyConfig, PerAgent, layers, per_agent, positive, within
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, init_moments
from deeprl.core.spec import Batch, Carry, EnvSpec, First, Metrics, Params, Scalar
from deeprl.envs.spaces import require
from deeprl.errors import DeeprlError
from deeprl.nets import categorical, functional_call
from deeprl.replay import Extent
from deeprl.replay.samplers import Window, n_step, prioritized, uniform_rows
from deeprl.run import learning
from deeprl.run.fused import Rows
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, make_modules, output_shape


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """DQN. Defaults: those of CleanRL's dqn.py for classic control, which explores for 260k steps; see the recipes."""

    env: str = "CartPole-v1"
    steps: int = 500_000
    # --- schedule ---
    utd: float = 0.1  # updates per environment step of one agent
    train_every: int = positive(10)  # steps between bursts of updates
    target_every: int = positive(500)  # steps between copies of the network into the target
    batch_size: int = 128  # transitions in each update
    buffer_size: int = 10_000  # transitions that the replay of an agent holds
    # --- learning ---
    lr: PerAgent = per_agent(2.5e-4)  # Adam's learning rate
    adam_eps: PerAgent = per_agent(1e-8, 1e-30)  # Adam's epsilon
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    loss: Literal["mse", "huber"] = "mse"  # of the TD error, for `value` scalar
    max_grad_norm: float = within(0.0, 0.0, 1e12)  # limit of the gradient's norm; 0 sets none
    reward_clip: float = within(0.0, 0.0, 1e12)  # rewards are cut to [-x, x] for the learner (Atari: 1); 0 leaves them
    # --- exploration ---
    epsilon_end: PerAgent = per_agent(0.05)  # probability of a random action at the end of its schedule; it begins at 1
    epsilon_steps: PerAgent = per_agent(250_000.0, 1.0, 1e12)  # steps of the linear schedule, after `learning_starts`
    eval_epsilon: float = within(0.0, 0.0, 1.0)  # probability of a random action in evaluation (Atari: 0.001 to 0.05)
    # --- extensions ---
    double: bool = False  # the online network chooses the action whose target value counts
    dueling: bool = False  # state value and advantages have layers of their own (arXiv 1511.06581)
    n_step: int = positive(1)  # rewards of so many steps before the bootstrap
    value: Literal["scalar", "c51", "hl_gauss", "two_hot"] = "scalar"  # expected returns, or distributions of them
    bins: int = 51  # of a distribution
    v_min: float = within(-10.0, -1e12, 1e12)  # lowest value of a distribution
    v_max: float = within(10.0, -1e12, 1e12)  # highest value: of the discounted return that the learner sees
    prioritized: bool = False  # rows of larger errors are drawn more often (arXiv 1511.05952)
    priority_alpha: PerAgent = per_agent(0.5)  # 0 is uniform
    priority_beta: PerAgent = per_agent(0.4)  # at the start; 1 at the end of the run
    # --- network ---
    body: Literal["plain", "simba"] = "plain"  # `simba`: a residual encoder (arXiv 2410.09754; 512 x 2) above the torso
    hidden: tuple[int, ...] = layers()
    """Layers above that; default 120 84 for vectors, 128 for small images, 512 for others, none for `simba`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        window = self.n_step * self.envs_per_agent
        if self.learning_starts < window or min(self.buffer_size, self.steps) < 4 * window:
            needs = f"need at least {window} learning_starts, and a buffer_size and steps of {4 * window}"
            raise DeeprlError(f"n_step: {self.n_step} steps of {self.envs_per_agent} environments {needs}")
        if not self.prioritized and (idle := {"priority_alpha", "priority_beta"} & set(self.varied())):
            raise DeeprlError(f"{min(idle)}: has no effect without prioritized, so these agents would be the same")
        if self.v_min >= self.v_max or self.bins < 2:
            raise DeeprlError(f"v_min, v_max, bins: {self.bins} bins cannot fill {self.v_min} .. {self.v_max}")

    def over_all_steps(self) -> list[str]:
        """As there."""
        betas = self.priority_beta if isinstance(self.priority_beta, tuple) else (self.priority_beta,)
        return ["priority_beta"] if self.prioritized and set(betas) != {1.0} else []


class Net(NamedTuple):
    """The module of one agent; its parameters live in `State`.

    q(obs [B, *O]) -> values [B, A], or logits [B, A, K] for a `value` other than scalar.
    """

    q: nn.Module
    spec: EnvSpec
    remake: nets.Remake = None


def make_net(spec: EnvSpec, config: Config) -> nn.Module:
    """The network of the paper for images, MinAtar's for small ones, an MLP for vectors; SimBa's above it."""
    bins = 1 if config.value == "scalar" else config.bins
    torso: nn.Module = nets.image_torso(spec)
    hidden: tuple[int, ...] = {nets.MinAtarCNN: (128,), nets.NatureCNN: (512,)}.get(type(torso), (120, 84))
    features = int(getattr(torso, "features", spec.obs_dim))
    if config.body == "simba":
        torso, features, hidden = nn.Sequential(torso, nets.SimbaEncoder(features, 512, 2)), 512, ()
    return nets.QNetwork(torso, features, spec.actions, config.hidden or hidden, bins, config.dueling)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The network of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    require("dqn", spec, "discrete", images=True)
    (q,), remake = make_modules(make_net, spec, config, custom, "Q network")
    shape = output_shape(q, torch.zeros(3, *spec.obs_shape, dtype=getattr(torch, spec.obs_dtype)))
    expected = (3, spec.actions) if config.value == "scalar" else (3, spec.actions, config.bins)
    if shape != expected:
        raise DeeprlError(f"net: the network must return {expected} for {config.value} values, not {shape}")
    return Net(q.to(device), spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update and its next action."""

    params: Params
    target: Params
    moments: Moments
    epsilon: Scalar
    hparams: dict[str, Scalar]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`)."""
    (params,), fixed = nets.init_networks(net, ("q",), key)
    return State(
        params=params,
        target={k: p.clone() for k, p in params.items()},
        moments=init_moments(params),
        epsilon=torch.ones(()),
        hparams={k: torch.tensor(v) for k, v in config.hparams().items()},
        step=torch.zeros((), dtype=torch.int64),
        fixed=fixed,
    )


def act(
    net: Net,
    config: Config,
    state: State,
    carry: Carry,
    obs: Shaped[Tensor, "N *O"],
    is_first: First,
    key: rng.Key,
    *,
    explore: bool,
) -> tuple[Int[Tensor, " N"], Carry]:
    """Greedy actions, but random ones with probability `state.epsilon`, or `eval_epsilon` without `explore`."""
    greedy = values(config, outputs(nets.bound(net, state.fixed), state.params, obs)).argmax(-1)
    if not explore and config.eval_epsilon == 0.0:
        return greedy, carry
    coin, choice = rng.uniform(key, (2, len(obs)))
    random = (choice * net.spec.actions).to(torch.int64)
    return torch.where(coin < (state.epsilon if explore else config.eval_epsilon), random, greedy), carry


def with_epsilon(config: Config, state: State, env_step: int | Int[Tensor, ""]) -> State:
    """Epsilon for the step after `env_step` steps. Elementwise: takes one agent's state or a population's."""
    h = state.hparams
    part = ((env_step - config.learning_starts) / h["epsilon_steps"]).clamp(0.0, 1.0)
    return state._replace(epsilon=1.0 + part * (h["epsilon_end"] - 1.0))


def outputs(net: Net, params: Params, obs: Shaped[Tensor, "B *O"]) -> Float[Tensor, "B A *K"]:
    """What the network says of each action: values, or logits over the bins; at least in f32, also under autocast."""
    q = functional_call(net.q, params, (obs,))
    return q.to(torch.promote_types(q.dtype, torch.float32))


def centres(config: Config, device: torch.device) -> Float[Tensor, " K"]:
    """The values that the bins stand for."""
    if config.value == "hl_gauss":
        return categorical.bin_centres(categorical.bin_edges(config.v_min, config.v_max, config.bins, device))
    return categorical.atoms(config.v_min, config.v_max, config.bins, device)


def values(config: Config, outputs: Float[Tensor, "B A *K"]) -> Float[Tensor, "B A"]:
    """Q(s, a) of each action."""
    return outputs if config.value == "scalar" else categorical.mean(outputs, centres(config, outputs.device))


def of_action(outputs: Float[Tensor, "B A *K"], action: Int[Tensor, " B"]) -> Float[Tensor, "B *K"]:
    """The outputs of one action each: a masked sum, whose gradient needs no scatter, and which rounds nothing."""
    chosen = action[:, None] == torch.arange(outputs.shape[1], device=action.device)
    return torch.where(chosen if outputs.dim() == 2 else chosen[..., None], outputs, 0.0).sum(1)


def td_target(net: Net, config: Config, state: State, batch: Batch) -> Float[Tensor, "B *K"]:
    """What Q(s, a) should be: a value, or its distribution over the bins."""
    after = outputs(net, state.target, batch.next_obs)
    chooser = outputs(net, state.params, batch.next_obs) if config.double else after
    after = of_action(after, values(config, chooser).argmax(-1))
    if config.value == "scalar":
        return batch.reward + batch.discount * after
    support = centres(config, after.device)
    if config.value == "c51":
        moved = batch.reward[:, None] + batch.discount[:, None] * support
        return categorical.project(torch.softmax(after, -1), moved, support)
    target = batch.reward + batch.discount * categorical.mean(after, support)
    if config.value == "two_hot":
        return categorical.two_hot(target, support)
    return categorical.hl_gauss(target, categorical.bin_edges(config.v_min, config.v_max, config.bins, after.device))


class Errors(NamedTuple):
    """What the loss says of a batch: the chosen actions' values, their distance from the target, and its priority."""

    q: Float[Tensor, " B"]
    td: Float[Tensor, " B"]
    priority_error: Float[Tensor, " B"]


def q_loss(
    params: Params, net: Net, config: Config, batch: Batch, target: Float[Tensor, "B *K"], weight: Tensor | None
) -> tuple[Scalar, Errors]:
    """Mean loss, weighted if weights are given, and the errors of each transition."""
    chosen = of_action(outputs(net, params, batch.obs), batch.action)
    if config.value == "scalar":
        error = chosen - target
        each = nn.functional.huber_loss(chosen, target, reduction="none") if config.loss == "huber" else error.square()
        errors = Errors(chosen, error.abs(), error.abs())
    else:
        support = centres(config, target.device)
        each, q = categorical.cross_entropy(chosen, target), categorical.mean(chosen, support)
        divergence = (each - categorical.entropy(target)).clamp(min=0.0)
        errors = Errors(q, (q - (target * support).sum(-1)).abs(), divergence)
    return (each if weight is None else weight * each).mean(), errors


def update(
    net: Net, config: Config, state: State, batch: Batch, weight: Float[Tensor, " B"] | None = None
) -> tuple[State, Metrics, Float[Tensor, " B"]]:
    """One gradient step. weight: importance weights. Returns the new priorities of the batch as well."""
    net, h = nets.bound(net, state.fixed), state.hparams
    data = (net, config, batch, td_target(net, config, state, batch), weight)
    q = descend(q_loss, state.params, state.moments, h["lr"], *data, max_norm=config.max_grad_norm, eps=h["adam_eps"])
    metrics = {"loss": q.loss, "q": q.aux.q.mean(), "td_error": q.aux.td.mean(), "grad_norm": q.grad_norm}
    metrics |= {"epsilon": state.epsilon.clone()}  # the state's own is overwritten in place
    priority = (q.aux.priority_error + 1e-6) ** h["priority_alpha"]
    return state._replace(params=q.params, moments=q.moments, step=state.step + 1), metrics, priority


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own network, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("dqn", config, net, callback) as run:
        how: dict[str, Any] = {"prioritized": config.prioritized, "reward_clip": config.reward_clip}
        agents = learning.OffPolicy(run, build_net, init, act, schedule=with_epsilon, **how)
        learn = agents.own_learner(learner(agents.net, config))
        while run.running():
            agents.act()
            for i in run.updates_due(config.utd, config.learning_starts, config.train_every):
                agents.learn(learn, i)
            if run.due(config.target_every):
                agents.renew(lambda state: state._replace(target=state.params))
            agents.end_step()
    return run


def learner(net: Net, config: Config) -> Callable[..., tuple[State, Metrics, tuple[Tensor, Tensor]]]:
    """Sampling and update of one agent as one function, compiled together: see `fused.Learner`."""
    window = Window(config.n_step, config.envs_per_agent, net.spec.frame_stack)

    def learn(
        state: State, rows: Rows, key: rng.Key, update_key: rng.Key, extent: Extent, env_step: Int[Tensor, ""]
    ) -> tuple[State, Metrics, tuple[Tensor, Tensor]]:
        (data, priority), h, weight = rows, state.hparams, None
        state = with_epsilon(config, state, env_step - config.envs_per_agent)  # as in the step before
        if config.prioritized:
            beta = h["priority_beta"] + (1.0 - h["priority_beta"]) * (env_step / config.steps).clamp(max=1.0)
            row, weight = prioritized(data, extent, priority, key, config.batch_size, window, beta)
        else:
            row = uniform_rows(data, extent, key, config.batch_size, window)
        new, metrics, new_priority = update(net, config, state, n_step(data, row, window, h["discount"]), weight)
        return new, metrics, (row, new_priority)

    return learn


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("dqn")
