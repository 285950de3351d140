"""Conservative Q-learning (CQL) and its calibrated form (Cal-QL), offline, for a population of agents.

Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning", arXiv 2006.04779.
Nakamoto et al. 2023, "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning", arXiv 2303.05479.

    gap_i = T log sum_k exp((Q_i(s, a_k) - log mu(a_k)) / T) - Q_i(s, a)                           CQL(H), Eq. 4, App. F
            a_k: n uniform in [-1, 1]^A, where mu = 2^-A; n of pi(. | s) and n of pi(. | s'), mu their own densities
    critic loss = sum_i [mean (Q_i(s, a) - td_target)^2 + alpha' * cql_alpha * mean gap_i]
    td_target = reward + discount * min_i Q'_i(s', a'),  a' ~ pi(. | s')
    alpha' = 1; or where lagrange >= 0 learned, by the loss -alpha' * cql_alpha * mean_i (gap_i - lagrange)
    actor loss = mean(alpha log pi(a | s) - min_i Q_i(s, a)); for bc_steps log pi(data's action | s) in place of Q
    temperature loss = -log alpha * mean(log pi(a | s) + target_entropy)
    Cal-QL: max(Q_i(s, a_k), G(s)) in place of Q_i(s, a_k) for the policy's a_k, not for uniform ones; G is the data's
            own return from s on (`data.offline.returns_to_go`)

All gradients are taken at the same parameters, those of a_k stopped; then everything moves, the targets Q' last. The
policy is SAC's: a Gaussian squashed by tanh, evaluated at its mode. alpha learns at actor_lr, alpha' at critic_lr.

Differences from the authors' code (aviralkumar2907/CQL, d4rl/), whose README has the command that is the default here:
- They step alpha before its use in the policy's loss, whose gradient they take while the critics move; here both are
  the old ones, as in young-geng/CQL, CORL and nakamotoo/Cal-QL.
- Their multiplier holds cql_alpha * gap at the threshold, here and in those three it is gap: divide by cql_alpha.
  It is cut at 1e6 in the losses alone, so that it can come back.
- Their densities have 1e-6 inside the logarithm of tanh's slope; for bc_steps, one less, means are cut to [-9, 9].
- Their target critics start from weights of their own, here from those of the critics. They train 3M steps, not 1M.
- First layers start from 1/sqrt(units) there, 1/sqrt(inputs) here; the policy's head from 1e-3 there, 3e-3 here.

Metrics: td_loss (summed over critics), gap (mean over critics), q (of the data's actions), cql_factor (alpha'),
actor_loss, entropy, alpha, norms of both gradients; Cal-QL: below_return, the share of policy values raised to G.

    python -m deeprl.offline.cql --dataset hopper-medium.hdf5 --recipe corl-mujoco --seeds 0-3
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import PerAgent, PerAgentOrAuto, added, layers, per_agent, positive
from deeprl.core import rng
from deeprl.core.optim import Moments, adam, descend, init_moments, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.data.offline import Facts, OfflineConfig, no_facts
from deeprl.errors import DeeprlError
from deeprl.nets import sample_tanh_normal
from deeprl.replay import Stored
from deeprl.replay.samplers import transitions
from deeprl.run import learning
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, build_networks


@dataclass(frozen=True)
class Config(OfflineConfig):
    """CQL. Defaults: aviralkumar2907/CQL, README and d4rl/examples/cql_mujoco_new.py."""

    # --- conservatism ---
    cql_alpha: PerAgent = per_agent(5.0, 0.0, 1e6)
    """Weight of the conservative term, alpha of the paper (README: 5 or 10)."""
    lagrange: PerAgent = per_agent(-1.0, -1e9, 1e9)
    """The gap, tau of the paper, at which a learned factor of that weight holds the critics; negative: no factor."""
    init_lagrange: PerAgent = per_agent(1.0, 1e-6, 1e6, at_start=True)
    """The learned factor at first (e in CORL and Cal-QL)."""
    cql_temp: PerAgent = per_agent(1.0, 1e-6, 1e6)
    """T: the larger, the more actions count in the sum beside the best one."""
    gap_floor: PerAgent = per_agent(-1e9, -1e9, 1e9)
    """Rows with a smaller gap count as this and push no further (CORL on AntMaze: -200)."""
    sampled_actions: int = positive(10)
    """Actions from each of the three sources, and those of a maximum backup."""
    importance_sampling: bool = True
    """Otherwise no densities are subtracted, and the data's action joins the sum (their `min_q_version=2`)."""
    calibrated: bool = False
    """Cal-QL."""
    sparse_rewards: bool = False
    """For Cal-QL: episodes that never get more than the dataset's lowest reward r return r / (1 - discount)."""
    # --- learning ---
    actor_lr: PerAgent = per_agent(1e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critics in each soft target update."""
    target_entropy: PerAgentOrAuto = per_agent("auto", -1e6, 1e6)
    """In nats of the normalised action; `auto` is -A."""
    bc_steps: int = 40_000
    """First steps in which the policy learns the data's actions."""
    backup: Literal["sample", "max-then-min", "min-then-max"] = "sample"
    """Next value: of one action of the policy; or the maximum over several of each critic, then the minimum over
    critics (the authors'); or the minimum first (JaxCQL, CORL, Cal-QL, WSRL)."""
    backup_entropy: bool = False  # targets count entropy, as SAC's do
    # --- networks ---
    actor_hidden: tuple[int, ...] = layers(256, 256, 256)  # units of each hidden layer of the policy
    critic_hidden: tuple[int, ...] = layers(256, 256, 256)  # units of each hidden layer of each critic
    critics: int = positive(2)  # targets and the policy take their minimum
    target_critics: int = added(0)
    """Targets, and the conservative term, are of so many critics, drawn anew for each update; 0: of all."""
    critic_layer_norm: bool = added(False)  # hidden layers of critics are normalised before their activation
    actor_layer_norm: bool = added(False)  # those of the policy
    start: nets.Start = "small-head"  # how layers start (`nets.start_layers`)
    log_std_range: tuple[float, ...] = (-5.0, 2.0)  # log sigma of the policy is cut to it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparse_rewards:
            self.require_within("discount", 0.0, 1.0 - 1e-6)
        if not 0 <= self.bc_steps < self.steps:
            raise DeeprlError(f"bc_steps: {self.bc_steps} steps of cloning leave none of {self.steps} for the critics")
        if self.sparse_rewards and not self.calibrated:
            raise DeeprlError("sparse_rewards: only Cal-QL looks at returns; add --calibrated")
        if not 0 <= self.target_critics <= self.critics:
            raise DeeprlError(f"target_critics: {self.target_critics} of {self.critics} critics cannot be drawn")
        if self.backup_entropy and self.backup == "max-then-min":
            raise DeeprlError("backup_entropy: max-then-min has no single next action whose entropy it could be")
        self.require_range("log_std_range")

    def prepared_with(self) -> set[str]:
        """As there: the returns of Cal-QL."""
        return {"discount"} if self.calibrated else set()


Returns = Float[Tensor, " B"] | None
Which = Int[Tensor, " part"] | None


Net = nets.ActorCritic


def make_net(spec: EnvSpec, config: Any) -> tuple[nn.Module, nn.Module]:
    """The networks of the authors' code: three ReLU layers of 256 each. config: `Config`, or WSRL's.

    actor(obs [B, O]) -> (mean, log_std) [B, A] before the tanh. critic(obs, action) -> qs [E, B].
    """
    sizes, start, (low, high) = (spec.obs_dim, spec.action_dim), config.start, config.log_std_range
    of_actor, of_critic = (nets.normed(on) for on in (config.actor_layer_norm, config.critic_layer_norm))
    actor = nets.TanhGaussianActor(*sizes, config.actor_hidden, "clamp", (low, high), start, of_actor)
    return actor, nets.CriticEnsemble(*sizes, config.critic_hidden, config.critics, start, of_critic)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    (actor, critic), remake = build_networks(
        "cql", make_net, spec, config, custom, device, actor="tanh_normal", critic=0
    )
    return Net(actor, critic, spec, remake)


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    target_critic: Params
    log_alpha: Scalar
    log_lagrange: Scalar
    actor_moments: Moments
    critic_moments: Moments
    alpha_moments: Moments
    lagrange_moments: Moments
    facts: Facts
    hparams: dict[str, Scalar]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key, facts: Facts | None = None) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`); facts: those of its dataset."""
    own = {"log_alpha": 1.0, "log_lagrange": config.scalars("init_lagrange")["init_lagrange"]}
    logs = {name: torch.tensor(math.log(value)) for name, value in own.items()}
    moments = {name: init_moments({"x": logs["log_alpha"]}) for name in ("alpha_moments", "lagrange_moments")}
    hparams, seen = config.hparams(target_entropy=-float(net.spec.action_dim)), facts or no_facts(net.spec)
    return learning.new_state(State, net, key, hparams, facts=seen, **logs, **moments)


def act(
    net: Net, config: Config, state: State, carry: Carry, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Carry]:
    """Actions in [-1, 1]: a sample of the policy, or its mode tanh(mean) without `explore`."""
    net, seen = nets.bound(net, state.fixed), state.facts.see(obs)
    return nets.act_tanh_normal(net.actor, state.actor, seen, key, explore), carry


def q_values(
    net: Net,
    critic: Params,
    obs: Float[Tensor, "B O"],
    action: Float[Tensor, "B K A"],
    which: Which = None,
) -> Float[Tensor, "E B K"]:
    """Q values of K actions for each observation, as one batch. which: only of the critics of these numbers."""
    obs_of_each = obs.unsqueeze(1).expand(-1, action.shape[1], -1).flatten(0, 1)
    qs = nets.some_qs(net.critic, critic, obs_of_each, action.flatten(0, 1), which)
    return qs.unflatten(1, action.shape[:2])


def td_targets(
    net: Net, config: Config, state: State, batch: Batch, key: rng.Key, which: Which = None
) -> Float[Tensor, " B"]:
    """Rewards and discounted values of the policy's next action, or of the best of several. which: see `q_values`."""
    count = 1 if config.backup == "sample" else config.sampled_actions
    action, log_prob = sample_tanh_normal(net.actor, state.actor, batch.next_obs, key, count)
    qs = q_values(net, state.target_critic, batch.next_obs, action, which)
    if config.backup == "max-then-min":
        return batch.reward + batch.discount * qs.amax(-1).amin(0)
    next_q, best = qs.amin(0).max(-1)
    if config.backup_entropy:
        next_q = next_q - state.log_alpha.exp() * log_prob.gather(1, best.unsqueeze(1)).squeeze(1)
    return batch.reward + batch.discount * next_q


def other_actions(
    net: Net, config: Config, actor: Params, batch: Batch, key: rng.Key
) -> tuple[Float[Tensor, "B K A"], Float[Tensor, "B K"]]:
    """The actions a_k, uniform ones first, then the policy's at s and at s'; and the logarithms of their densities."""
    random_key, obs_key, next_key = rng.split(key, 3)
    action, log_prob = sample_tanh_normal(net.actor, actor, batch.obs, obs_key, config.sampled_actions)
    next_action, next_log_prob = sample_tanh_normal(net.actor, actor, batch.next_obs, next_key, config.sampled_actions)
    random = rng.uniform(random_key, action.shape, -1.0, 1.0, action.dtype)
    density = torch.full_like(log_prob, -math.log(2.0) * net.spec.action_dim)
    return torch.cat([random, action, next_action], 1), torch.cat([density, log_prob, next_log_prob], 1)


def conservative_gap(
    qs: Float[Tensor, "E B K"], q_data: Float[Tensor, "E B"], log_density: Tensor | None, temp: Scalar
) -> Float[Tensor, "E B"]:
    """How far a soft maximum over other actions lies above the data's action (Eq. 4). log_density: [B, K] or None."""
    qs = torch.cat([qs, q_data.unsqueeze(-1)], -1) if log_density is None else qs - log_density
    return temp * torch.logsumexp(qs / temp, -1) - q_data


def critic_loss(
    critic: Params, net: Net, config: Config, state: State, batch: Batch, returns: Returns, key: rng.Key
) -> tuple[Scalar, Metrics]:
    """Squared error to the target and conservative term, summed over the critics; and their parts."""
    target_key, others_key = rng.split(key, 2)
    drawn = functools.partial(nets.drawn_critics, critics=config.critics, count=config.target_critics)
    in_target, which = drawn(rng.fold_in(key, 2)), drawn(rng.fold_in(key, 3))
    td_target = td_targets(net, config, state, batch, target_key, in_target)
    action, log_density = other_actions(net, config, state.actor, batch, others_key)
    data = batch.action.unsqueeze(1)
    if which is None:
        qs = q_values(net, critic, batch.obs, torch.cat([action, data], 1))
        qs, q_data, counted = qs[..., :-1], qs[..., -1], qs[..., -1]
    else:
        qs, q_data = q_values(net, critic, batch.obs, action, which), q_values(net, critic, batch.obs, data)[..., 0]
        counted = q_data[which]
    parts = {}
    if returns is not None:
        random, own = qs.tensor_split((config.sampled_actions,), -1)
        parts["below_return"] = (own < returns.unsqueeze(-1)).to(own.dtype).mean()
        qs = torch.cat([random, torch.maximum(own, returns.unsqueeze(-1))], -1)
    h, density = state.hparams, log_density if config.importance_sampling else None
    gaps = torch.maximum(conservative_gap(qs, counted, density, h["cql_temp"]), h["gap_floor"]).mean(-1)
    td_loss = (q_data - td_target).square().mean(-1).sum()
    factor = torch.where(h["lagrange"] >= 0.0, state.log_lagrange.exp().clamp(max=1e6), 1.0)
    parts |= {"td_loss": td_loss, "gap": gaps.mean(), "q": q_data.mean(), "cql_factor": factor}
    return td_loss + factor * h["cql_alpha"] * len(q_data) / len(gaps) * gaps.sum(), parts


def actor_loss(
    actor: Params, net: Net, config: Config, state: State, batch: Batch, key: rng.Key
) -> tuple[Scalar, Scalar]:
    """Entropy-regularised value, or at first likelihood of the data, negated; and the mean log probability."""
    action, log_prob = sample_tanh_normal(net.actor, actor, batch.obs, key, 1)
    wanted = q_values(net, state.critic, batch.obs, action).amin(0)
    if config.bc_steps > 0:
        mean, log_std = nets.tanh_normal(net.actor, actor, batch.obs)
        pre_tanh = torch.atanh(batch.action.clamp(-1.0 + 1e-6, 1.0 - 1e-6))
        likelihood = nets.tanh_normal_log_prob((pre_tanh - mean) * torch.exp(-log_std), log_std, pre_tanh)
        wanted = torch.where(state.step < config.bc_steps, likelihood.unsqueeze(1), wanted)
    return (state.log_alpha.exp() * log_prob - wanted).mean(), log_prob.mean()


def update(
    net: Net, config: Config, state: State, batch: Batch, key: rng.Key, returns: Returns = None
) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of critics, policy, temperature and multiplier, and one soft update of the targets.

    returns: G of the rows, in the units of the critics; Cal-QL alone has them.
    """
    net, h, batch, keys = nets.bound(net, state.fixed), state.hparams, state.facts.batch(batch), rng.split(key, 2)
    values_of, policy_of = (net, config, state, batch, returns, keys[0]), (net, config, state, batch, keys[1])
    critic = descend(critic_loss, state.critic, state.critic_moments, h["critic_lr"], *values_of)
    actor = descend(actor_loss, state.actor, state.actor_moments, h["actor_lr"], *policy_of)

    surplus = -(actor.aux + h["target_entropy"])
    log_alpha, alpha_moments = adam({"x": state.log_alpha}, {"x": surplus}, state.alpha_moments, h["actor_lr"])
    slope = critic.aux["cql_factor"] * h["cql_alpha"] * (h["lagrange"] - critic.aux["gap"])
    multiplier = {"x": state.log_lagrange}, {"x": torch.where(h["lagrange"] >= 0.0, slope, 0.0)}
    log_lagrange, lagrange_moments = adam(*multiplier, state.lagrange_moments, h["critic_lr"])

    new = state._replace(
        actor=actor.params,
        critic=critic.params,
        target_critic=polyak(state.target_critic, critic.params, h["tau"]),
        log_alpha=log_alpha["x"],
        log_lagrange=log_lagrange["x"],
        actor_moments=actor.moments,
        critic_moments=critic.moments,
        alpha_moments=alpha_moments,
        lagrange_moments=lagrange_moments,
        step=state.step + 1,
    )
    metrics = critic.aux | {"critic_grad_norm": critic.grad_norm, "actor_loss": actor.loss}
    metrics |= {"actor_grad_norm": actor.grad_norm, "entropy": -actor.aux, "alpha": state.log_alpha.exp()}
    return new, metrics, ()


def learner(net: Net, config: Config) -> Callable[..., tuple[State, Metrics, tuple[()]]]:
    """Sampling and update of one agent as one function, with the returns of the rows that Cal-QL needs."""

    def learn(
        state: State, data: Stored, returns: Tensor, rows: tuple[Tensor, ...], sample_key: rng.Key, update_key: rng.Key
    ) -> tuple[State, Metrics, tuple[()]]:
        first, size, first_return = rows
        row = rng.randint(sample_key, (config.batch_size,), size)
        batch = transitions(data, first + row, state.hparams["discount"])
        return update(net, config, state, batch, update_key, returns[first_return + row] if config.calibrated else None)

    return learn


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("cql", config, net, callback) as run:
        agents = learning.FromDataset(run, build_net, init, act)
        discounts = [config.member(i).scalars("discount")["discount"] for i in range(len(config.seeds))]
        returns, start = agents.data.returns_to_go(discounts if config.calibrated else [], config.sparse_rewards)
        rows = agents.data.first, agents.data.size, start
        learn = agents.lift(learner(agents.net, config), shared=(1, 2))
        while run.running():
            for i in agents.updates_due():
                agents.metrics, _ = learn(agents.agents, agents.data.arrays, returns, rows, *agents.keys(i))
            agents.end_step()
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("cql")
