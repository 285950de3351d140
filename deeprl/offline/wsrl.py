"""Warm-start RL (WSRL): from a policy that was trained offline to fast online learning, for a population of agents.

Zhou et al. 2025, "Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline Data", arXiv 2412.07762.

    1. take over a saved run (`init`): policy, critics, their targets, temperature, optimizers
    2. warm up: `learning_starts` steps of that policy fill the replay, and nothing is learned
    3. go on with SAC, `utd` updates of the critics for each step, on the replay alone

    td_target = reward + discount * min_{i in M} Q'_i(s', a'),  a' ~ pi(. | s'),  M: `target_critics` drawn anew
                `backup_entropy` subtracts alpha log pi(a' | s')
    critic loss = sum_i mean (Q_i(s, a) - td_target)^2; then the targets move
    after every `policy_delay` of these, on the rows of the last `policy_batches` of them together:
    actor loss = mean(alpha log pi(a | s) - min_i Q_i(s, a)), or the mean over i (`policy_value`)
    temperature loss = -alpha (mean log pi(a | s) + target_entropy)

What a run gives, and what begins anew:

    cql (Cal-QL), edac    all
    iql, riql             critics, policy: its mean as before, a Gaussian's sigma as that before the tanh
                          anew: temperature, the policy's optimizer
    td3_bc, rebrac        critics, policy; anew: temperature, the policy's optimizer, its sigma (`init_std`), as of a
                          deterministic policy of iql, riql and bc
    bc                    policy; anew: all else (`--new-critics`)

Statistics of observations and the scale of rewards are those of that run. Baselines are settings: `--keep-data 0.5`
draws half of each batch from the dataset that the agent was trained on, `--learning-starts 1` leaves the warm-up out,
`--loss own` lets the algorithm of that run go on with its own losses (`run.own_losses`), no `init` learns from scratch;
`rlpd` is this loop with the settings of RLPD.

Differences from the authors' code (zhouzypaul/wsrl, JAX), measured by `benchmarks/authors_wsrl.py`:
- Their critics share one last layer, and their Adam makes a step of gradient zero for the networks whose loss is left
  out: each gradient of the policy moves it in five steps, so that it goes about twice as far as `actor_lr` says.
- Their temperature is softplus of what is learned, here exp; its loss has the entropy at the next observations of the
  policy before the step, here that of the actor loss. The alpha of a run of CQL is taken over as it is.
- Their critic loss is the mean over the critics, here the sum: Adam makes next to nothing of it.
- On AntMaze they take the largest target of ten actions, and a free sigma; neither is offered for agents that begin
  from CQL.

Metrics: critic_loss, q (mean over batch and critics), td_target (mean), critic_grad_norm; from the last update of the
policy: actor_loss, entropy, alpha, actor_grad_norm.

    deeprl train wsrl --from runs/cql/hopper-medium/0123456789ab --seeds 0-3 --steps 100_000
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import (
    Json,
    OffPolicyConfig,
    PerAgent,
    PerAgentOrAuto,
    PerAgentText,
    layers,
    per_agent,
    positive,
    within,
)
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.spec import Actions, Batch, Carry, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.data.offline import DatasetConfig, Facts, OfflineData, no_facts
from deeprl.errors import DeeprlError
from deeprl.nets import functional_call, sample_tanh_normal
from deeprl.offline import cql
from deeprl.online.sac import alpha_loss
from deeprl.replay.samplers import joined, mixed
from deeprl.run import learning, own_losses, pretrained
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, build_networks, output_shape

TANH_NORMAL = ("cql", "edac")  # algorithms whose policies are tanh-Gaussian
_OF_SAC = (  # settings that `own` losses do not look at
    *("actor_lr", "critic_lr", "alpha_lr", "discount", "tau", "target_entropy", "policy_delay", "policy_batches"),
    *("policy_value", "target_critics", "drawn_twice", "backup_entropy", "new_critics", "init_std", "init_alpha"),
)
SOURCES = ("bc", "cql", "edac", "iql", "rebrac", "riql", "td3_bc")


@dataclass(frozen=True)
class Config(OffPolicyConfig, DatasetConfig):
    """WSRL. Defaults: zhouzypaul/wsrl, experiments/configs, locomotion."""

    # --- where agents begin ---
    init: PerAgentText = per_agent("")
    """RUN_DIR, or RUN_DIR@STEP for a snapshot: one for all agents, or one for each entry of `seeds`. An agent begins
    from the one there with its seed, or from the only one."""
    source: Json = field(default_factory=dict)
    """What is known of `init`; filled in by itself."""
    loss: Literal["sac", "own"] = "sac"
    """`own`: the algorithm of `init` goes on with its own losses and settings."""
    new_critics: bool = False
    """Critics begin anew, as WSRL needs after `bc`."""
    init_std: PerAgent = per_agent(0.1, 1e-6, 10.0, at_start=True)
    """Sigma before the tanh of a policy that was deterministic."""
    init_alpha: PerAgent = per_agent(1.0, 1e-30, 1e30, at_start=True)  # temperature, where `init` has none
    env: str = ""
    """Where agents act; default: where the run of `init` was evaluated."""
    # --- what they learn from ---
    keep_data: float = within(0.0, 0.0, 1.0)
    """Share of each batch that is drawn from `dataset`; at 0 nothing offline is kept."""
    penalty_end: float = within(1.0, 1e-6, 1.0)
    """Of `own` losses, what imitation (TD3+BC, ReBRAC) or conservatism (CQL) still counts at the last step, after
    falling in a line from 1 (0.5 for the policy in ReBRAC)."""
    exploration_noise: float = within(0.1, 0.0, 10.0)
    """Of `own` losses, the deviation of the noise on the actions of a deterministic policy."""
    dataset: PerAgentText = per_agent("")
    """File (.hdf5, .h5, .npz) or Minari id: one for all agents, or one for each entry of `seeds`."""
    learning_starts: int = positive(5_000)
    """Steps before the first update: the warm-up, by the policy of `init`; without one, uniformly random."""
    utd: float = positive(4.0)
    """Updates of the critics for each step of one agent; may be fractional."""
    buffer_size: int = positive(2_000_000)
    """Transitions that the replay of an agent holds."""
    # --- learning ---
    actor_lr: PerAgent = per_agent(1e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    alpha_lr: PerAgent = per_agent(1e-4)  # learning rate of the temperature
    discount: PerAgent = per_agent(0.99)  # gamma, of one decision
    tau: PerAgent = per_agent(0.005)
    """Share of the online critics in each soft target update."""
    target_entropy: PerAgentOrAuto = per_agent("auto", -1e6, 1e6)
    """In nats of the normalised action; `auto` is -A, of RLPD -A / 2."""
    policy_delay: int = positive(4)
    """Critic updates for each update of the policy."""
    policy_batches: int = positive(4)
    """Batches of the last critic updates that an update of the policy learns from together."""
    policy_value: Literal["min", "mean"] = "min"
    """The policy climbs the minimum of the critics, or their mean (RLPD)."""
    target_critics: int = positive(2)
    """Targets take the minimum of so many critics, drawn anew for each update."""
    drawn_twice: bool = True
    """Whether one critic may be drawn more than once for a target (not in REDQ and RLPD)."""
    backup_entropy: bool = False  # targets count entropy, as SAC's do
    # --- networks of agents that begin from scratch, and new critics ---
    actor_hidden: tuple[int, ...] = layers(256, 256)  # units of each hidden layer of the policy
    critic_hidden: tuple[int, ...] = layers(256, 256)  # units of each hidden layer of each critic
    critics: int = positive(10)  # how many there are
    critic_layer_norm: bool = True  # hidden layers of critics are normalised before their activation
    actor_layer_norm: bool = True  # those of the policy
    start: nets.Start = "orthogonal-small-last"  # how layers start (`nets.start_layers`)
    log_std_range: tuple[float, ...] = (math.log(1e-5), math.log(10.0))  # log sigma of the policy is cut to it

    auto_entropy: ClassVar[float] = 1.0  # `auto` of target_entropy is -A times this

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range("log_std_range")
        if self.policy_batches > self.policy_delay:
            raise DeeprlError(f"policy_batches: {self.policy_batches} are more than policy_delay, {self.policy_delay}")
        if self.target_critics > self.critics and not self.drawn_twice:
            raise DeeprlError(f"target_critics: {self.target_critics} of {self.critics} critics cannot be drawn")
        begun = bool(self.source) or any(self.inits())
        if begun:
            self.refuse_idle("init", "normalize_obs", "rewards", "actor_hidden", "actor_layer_norm", "net")
        if begun and not self.new_critics:
            self.refuse_idle("the critics of init", "critic_hidden", "critics", "critic_layer_norm", "start")
        if not begun and (self.new_critics or self.loss == "own"):
            raise DeeprlError(f"{'new_critics' if self.new_critics else 'loss'}: without init there is nothing before")
        if self.loss == "sac":
            self.refuse_idle("loss sac", "penalty_end", "exploration_noise")
        else:
            self.refuse_idle("loss own", *_OF_SAC)

    def prepared_with(self) -> set[str]:
        """As there: the returns of Cal-QL."""
        return {"discount"} if own_losses.returns_of(self) else set()

    def over_all_steps(self) -> list[str]:
        """As there."""
        return ["penalty_end"] if self.penalty_end < 1.0 else []

    def inits(self) -> list[str]:
        """The runs that agents begin from, each named once."""
        return list(dict.fromkeys(self.init if isinstance(self.init, tuple) else (self.init,)))


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O]) -> (mean, log_std) [B, A] before the tanh. critic(obs, action) -> qs [E, B]. critics: E.
    """

    actor: nn.Module
    critic: nn.Module
    spec: EnvSpec
    remake: nets.Remake
    critics: int


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module]:
    """The networks of the authors' code: two ReLU layers of 256 each, normalised before the activation."""
    return cql.make_net(spec, config)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Any:
    """The networks of a run: those of the run that it begins from, or `custom`, or `config.net`, or `make_net`."""
    if config.loss == "own" and config.source:
        return pretrained.source_net(spec, config, custom, device)
    if not config.source:
        (actor, critic), remake = build_networks(
            "wsrl", make_net, spec, config, custom, device, actor="tanh_normal", critic=0
        )
    else:
        actor, critic, remake = _nets_before(spec, config, custom, device)
    inputs = torch.zeros(3, *spec.obs_shape, device=device), torch.zeros(3, spec.action_dim, device=device)
    return Net(actor, critic, spec, remake, output_shape(critic, *inputs)[0])


def _nets_before(
    spec: EnvSpec, config: Config, custom: MakeNet | None, device: str
) -> tuple[nn.Module, nn.Module, nets.Remake]:
    """Policy and critics of the run that this one begins from, as this one uses them."""
    before, algorithm = pretrained.source_net(spec, config, custom, device), config.source["algorithm"]
    actor, critic = before.actor, make_net(spec, config)[1].to(device) if config.new_critics else None
    if algorithm not in TANH_NORMAL:
        if before.remake is not None:
            raise DeeprlError(f"init: own networks of {algorithm} cannot become a tanh-Gaussian policy")
        low, high = config.log_std_range
        actor = nets.FreeStdActor(actor.trunk, spec.action_dim, log_std_range=(low, high)).to(device)
    if critic is None and not hasattr(before, "critic"):
        raise DeeprlError(f"init: a run of {algorithm} has no critic; --new-critics begins with others")
    if critic is not None and before.remake is not None:
        raise DeeprlError("new_critics: own networks are taken over as a whole")
    return actor, critic or before.critic, before.remake


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    target_critic: Params
    log_alpha: Scalar
    actor_moments: Moments
    critic_moments: Moments
    alpha_moments: Moments
    facts: Facts
    hparams: dict[str, Scalar]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Any, config: Config, key: rng.Key, before: Any = None, facts: Facts | None = None) -> Any:
    """A new agent. config: settings of this agent alone (`config.member(i)`).

    before: the `State` that it begins from, of the algorithm of `config.source`; facts: those of its dataset, where it
    begins from none. Of `own` losses, states are those of that algorithm.
    """
    if config.loss == "own":
        return own_losses.own_init(net, config, key, before)
    own = config.scalars("init_alpha", "init_std")
    hparams = config.hparams(target_entropy=-config.auto_entropy * net.spec.action_dim)
    log_alpha = torch.tensor(math.log(own["init_alpha"]))
    new = learning.new_state(State, net, key, hparams, log_alpha=log_alpha, facts=facts or no_facts(net.spec))
    return new if before is None else pretrained.taken_over(new, before, own["init_std"], config.new_critics)


def act(
    net: Any, config: Config, state: Any, carry: Carry, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Carry]:
    """Actions in [-1, 1]: a sample of the policy, or its mode tanh(mean) without `explore`."""
    if config.loss == "own":
        return own_losses.own_act(net, config, state, carry, obs, is_first, key, explore=explore)
    net, seen = nets.bound(net, state.fixed), state.facts.see(obs)
    return nets.act_tanh_normal(net.actor, state.actor, seen, key, explore), carry


def critic_loss(critic: Params, net: Net, batch: Batch, td_target: Float[Tensor, " B"]) -> tuple[Scalar, Scalar]:
    """Squared error to the target, summed over the critics; and their mean."""
    qs = functional_call(net.critic, critic, (batch.obs, batch.action)).to(td_target.dtype)
    return (qs - td_target).square().mean(-1).sum(), qs.mean()


def update(net: Net, config: Config, state: State, batch: Batch, key: rng.Key) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of the critics, and one soft update of their targets."""
    net, h, batch = nets.bound(net, state.fixed), state.hparams, state.facts.batch(batch)
    action_key, critics_key = rng.split(key, 2)
    next_action, next_log_prob = sample_tanh_normal(net.actor, state.actor, batch.next_obs, action_key)
    which = nets.drawn_critics(critics_key, net.critics, config.target_critics, config.drawn_twice)
    next_q = nets.some_qs(net.critic, state.target_critic, batch.next_obs, next_action, which).amin(0)
    if config.backup_entropy:
        next_q = next_q - state.log_alpha.exp() * next_log_prob
    td_target = batch.reward + batch.discount * next_q
    critic = descend(critic_loss, state.critic, state.critic_moments, h["critic_lr"], net, batch, td_target)
    new = state._replace(
        critic=critic.params,
        target_critic=polyak(state.target_critic, critic.params, h["tau"]),
        critic_moments=critic.moments,
        step=state.step + 1,
    )
    metrics = {"critic_loss": critic.loss, "q": critic.aux, "td_target": td_target.mean()}
    return new, metrics | {"critic_grad_norm": critic.grad_norm}, ()


def actor_loss(
    actor: Params, net: Net, config: Config, state: State, obs: Float[Tensor, "B O"], key: rng.Key
) -> tuple[Scalar, Scalar]:
    """Entropy-regularised value of the policy's own actions, negated; and the mean log probability."""
    action, log_prob = sample_tanh_normal(net.actor, actor, obs, key)
    qs = functional_call(net.critic, state.critic, (obs, action)).to(obs.dtype)
    q = qs.amin(0) if config.policy_value == "min" else qs.mean(0)
    return (state.log_alpha.exp() * log_prob - q).mean(), log_prob.mean()


def update_policy(
    net: Net, config: Config, state: State, batch: Batch, key: rng.Key
) -> tuple[State, Metrics, tuple[()]]:
    """One gradient step of policy and temperature."""
    net, h, obs = nets.bound(net, state.fixed), state.hparams, state.facts.see(batch.obs)
    policy = (net, config, state, obs, rng.fold_in(key, 2))
    actor = descend(actor_loss, state.actor, state.actor_moments, h["actor_lr"], *policy)
    entropy = (actor.aux, h["target_entropy"])
    alpha = descend(alpha_loss, state.log_alpha, state.alpha_moments, h["alpha_lr"], *entropy)
    new = state._replace(
        actor=actor.params, actor_moments=actor.moments, log_alpha=alpha.params, alpha_moments=alpha.moments
    )
    metrics = {"actor_loss": actor.loss, "entropy": -actor.aux, "alpha": state.log_alpha.exp()}
    return new, metrics | {"actor_grad_norm": actor.grad_norm}, ()


def learner(net: Any, config: Config, update: Callable[..., Any]) -> Callable[..., tuple[Any, Metrics, tuple[()]]]:
    """Sampling and `update` of one agent as one function, from its replay and the data that it keeps.

    data, kept: arrays of rows and, for Cal-QL, their returns, or (); part: the agent's first row in `kept`, how many it
    has, and its first return, or (). sample_keys: one for each batch [K, 4]; together they are what is learned from.
    """

    def learn(
        state: Any, data: Any, size: Tensor, kept: Any, part: Any, sample_keys: Int[Tensor, "K 4"], update_key: rng.Key
    ) -> tuple[Any, Metrics, tuple[()]]:
        offline = (kept[0], *part[:2]) if part else None
        how = config.batch_size, state.hparams.get("discount", 1.0)
        drawn = [mixed((data[0], size), offline, config.keep_data, key, *how) for key in sample_keys.unbind()]
        batch = joined([batch for batch, _ in drawn])
        if config.loss == "sac":
            return update(net, config, state, batch, update_key)
        old, new = drawn[0][1]
        returns = [kept[1][part[2] + old - part[0]]] if part and len(kept) > 1 else []
        returns += [data[1][new]] if len(data) > 1 else []
        return update(state, batch, update_key, torch.cat(returns) if returns else None)

    return learn


def beginnings(run: Run, kept: OfflineData | None) -> list[tuple[Any, ...]]:
    """What `init` takes of each agent: the state that it begins from, or the facts of its dataset."""
    config: Any = run.config
    if config.source and not run.has_checkpoint():
        run.pretraining, run.origins = pretrained.records(config), pretrained.origins(config)
        return [(state,) for state in pretrained.starts(config, run.custom_net)]
    return [(None, kept.facts[i] if kept else None) for i in range(len(config.seeds))]


def turns_of(net: Any, config: Config) -> list[list[tuple[Callable[..., Any], int]]]:
    """What is done in each update of a cycle: functions, and of how many of the last batches each learns."""
    if config.loss == "own":
        return [[(own, 1)] for own in own_losses.updates(net, config)]
    turns: list[list[tuple[Callable[..., Any], int]]] = [[(update, 1)] for _ in range(config.policy_delay)]
    turns[-1].append((update_policy, config.policy_batches))
    return turns


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None, name: str = "wsrl") -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run.

    name: the algorithm's, as `rlpd` is this one.
    """
    config = pretrained.with_source(config, SOURCES)
    if not config.env:
        raise DeeprlError("env: name an environment, or with --from a run that learned offline")
    if any(config.datasets()) != (config.keep_data > 0.0):
        raise DeeprlError("keep_data: a share above 0 needs a dataset, and a dataset such a share")
    with Run(name, config, net, callback) as run:
        keep, returns = config.keep_data > 0.0, own_losses.returns_of(config)
        agents = learning.OffPolicy(run, build_net, init, act, starts=beginnings, keep=keep, returns=returns)
        turns, rows = turns_of(agents.net, config), own_losses.rows_of(agents, config)
        learners = {u: agents.lift(learner(agents.net, config, u), shared=(2, 3)) for turn in turns for u, _ in turn}
        while run.running():
            agents.act(random=not config.source and run.step < config.learning_starts)
            for i in run.updates_due(config.utd, config.learning_starts):
                for step, batches in turns[i % len(turns)]:
                    keys = torch.stack([run.keys("sample", i - back) for back in reversed(range(batches))], 1)
                    found, _ = learners[step](agents.agents, *rows, keys, run.keys("update", i))
                    agents.metrics = agents.metrics | found
            agents.end_step(complete=run.updates >= len(turns))  # a row has the policy's metrics too
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("wsrl")
