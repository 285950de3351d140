"""Sequence reinforcement learning (SRL): SAC whose policy plans several actions from one observation, for a population.

Patel & Siegelmann 2025, "Overcoming Slow Decision Frequencies in Continuous Control: Model-Based Sequence Reinforcement
Learning for Model-Free Control", arXiv 2410.08979. Critics and model work at the environment's own steps, the policy
at slower ones: J actions, `sequence_length`, are carried out without looking again.

    a_0 .. a_{J-1} ~ pi(. | s, previous action), a GRU that sees s once and each action after it
    td_target = reward + discount * (min_i Q'_i(s', a') - alpha * log pi(a' | s', a)),  a' the first of a plan
    critic loss = sum_i mean 1/2 (Q_i(s, a) - td_target)^2
    model loss = mean (f(s, a) - s')^2                                            on a batch of its own, as all below
    temporal recall: s_0 = s, s_{k+1} = f'(s_k, a_k) without gradient
    actor loss = sum_k mean(alpha * log pi(a_k | ...) - min_i Q_i(s_k, a_k))
    temperature loss = -alpha * (mean_k log pi(a_k | ...) + target_entropy)
    order of one update: critic, model, actor, temperature, the targets of critics and model

With `--no-recall` there is no model: critics judge whole plans, Q(s, a_0 .. a_{J-1}), and learn from stretches of J
steps, sum_k discount^k reward_k + discount^J (min_i Q'_i(s_J, plan') - alpha * sum_k log pi). Actions are in [-1, 1].

Differences from the authors' code (dee0512/Sequence-Reinforcement-Learning), which has the agent and no training loop
(`benchmarks/authors_srl.py` has both on the same numbers):
- While it learns, the agent carries its plans out to their end (or to the episode's), with an update after each step;
  `--replan-every 1` is the other reading: it looks at each step, and only evaluations are open loop.
- Actions, and so entropies and what the GRU is fed, are in [-1, 1], theirs in the environment's units.
- alpha is exp(log alpha) from the first update on, with 1 at first; theirs is 0.2 until the temperature's first step.
  Its loss has log alpha in their code, alpha here.
- log(1 - tanh^2) is exact, theirs has 1e-6 added. The critic loss has the half of SAC's; Adam makes nothing of it.
- Time limits bootstrap; in Reacher theirs are taken for terminations.

Metrics: those of SAC, entropy as the mean over the plan; model_loss (mean over batch and observation) and
model_grad_norm.

    deeprl train srl --env Pendulum-v1 --sequence-length 8 --learning-starts 1_000 --steps 30_000 --seeds 0-4
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import OffPolicyConfig, PerAgent, PerAgentOrAuto, layers, per_agent, positive
from deeprl.core import rng
from deeprl.core.optim import Moments, descend, polyak
from deeprl.core.plans import Playing, no_plan, play
from deeprl.core.spec import Actions, Batch, EnvSpec, First, Metrics, Obs, Params, Scalar
from deeprl.envs.spaces import require
from deeprl.errors import DeeprlError
from deeprl.nets import functional_call
from deeprl.online.sac import alpha_loss, critic_loss
from deeprl.replay import Extent
from deeprl.replay.samplers import Window, actions_before, actions_from, n_step, uniform_rows
from deeprl.run import learning
from deeprl.run.fused import Rows
from deeprl.run.loop import Callback, Run
from deeprl.run.own_networks import MakeNet, make_modules, require_shapes


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """SRL. Defaults: dee0512/Sequence-Reinforcement-Learning, scripts/hyperparameters.py."""

    # --- plans ---
    sequence_length: int = positive(4)
    """J: actions of a plan, in learning and as it acts."""
    replan_every: int = 0
    """Steps after which a new plan is made while it learns; 0: the whole plan is carried out."""
    recall: bool = True
    """A learned model tells the critics the states in between; otherwise critics judge whole plans."""
    plan_loss: Literal["sum", "mean"] = "sum"
    """The actor's loss over the steps of a plan."""
    policy_delay: int = positive(1)
    """Critic updates for each update of the policy."""
    learning_starts: int = positive(10_000)
    """Uniformly random steps; updates begin before, with the first batch."""
    # --- learning ---
    actor_lr: PerAgent = per_agent(3e-4)  # learning rate of the policy
    critic_lr: PerAgent = per_agent(3e-4)  # learning rate of the critics
    model_lr: PerAgent = per_agent(3e-4)  # learning rate of the model
    alpha_lr: PerAgent = per_agent(3e-4)  # learning rate of the temperature
    discount: PerAgent = per_agent(0.99)  # gamma, of one step
    tau: PerAgent = per_agent(0.005)  # share of the online critics and model in each soft target update
    init_alpha: PerAgent = per_agent(1.0, 1e-30, 1e30, at_start=True)  # initial temperature
    target_entropy: PerAgentOrAuto = per_agent("auto", -1e6, 1e6)
    """In nats of one normalised action; `auto` is -A."""
    # --- networks ---
    hidden: tuple[int, ...] = layers(256)  # units of each layer between observation and GRU
    units: int = positive(256)  # of the GRU
    critic_hidden: tuple[int, ...] = layers(256, 256)  # units of each hidden layer of the critics
    critics: int = positive(2)  # targets and the policy take their minimum
    model_hidden: tuple[int, ...] = layers(400, 300)  # units of each hidden layer of the model

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.replan_every <= self.sequence_length:
            bounds = f"at least 0 and at most sequence_length, {self.sequence_length}"
            raise DeeprlError(f"replan_every: must be {bounds}, not {self.replan_every}")
        if not self.recall:
            self.refuse_idle("no recall", "model_lr", "model_hidden")
        needed = max(self.window.steps, 2) * self.envs_per_agent
        if min(self.buffer_size, self.steps) < 2 * needed:
            raise DeeprlError(f"sequence_length: these plans need a buffer_size and steps of {2 * needed} and more")

    @property
    def window(self) -> Window:
        """What one transition of a batch spans."""
        return Window(1 if self.recall else self.sequence_length, self.envs_per_agent)

    @property
    def single(self) -> Window:
        """A step, of which is known what was done before it."""
        return Window(envs=self.envs_per_agent, before=1)


class Net(NamedTuple):
    """The modules of one agent; their parameters live in `State`.

    actor(obs [B, O], previous [B, A], noise [B, J, A]) -> (mean, log_std) [B, J, A] before the tanh (`SequenceActor`).
    critic(obs, action) -> qs [E, B], of plans [B, J A] without recall; model(obs, action) -> next obs [B, O].
    length: J; judged: the actions that critics take together.
    """

    actor: nn.Module
    critic: nn.Module
    model: nn.Module
    spec: EnvSpec
    remake: nets.Remake
    length: int
    judged: int

    def trial(self, name: str, obs: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """What these networks take, made of observations and actions."""
        plans = action.unsqueeze(1).expand(-1, self.length, -1)
        return {"actor": (obs, action, plans), "critic": (obs, action.repeat(1, self.judged))}.get(name, (obs, action))


def make_net(spec: EnvSpec, config: Config) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The networks of the authors' code: Glorot-uniform layers, and torch's GRU cell."""
    dims = spec.obs_dim, spec.action_dim
    judged = dims[1] * config.window.steps
    critic = nets.CriticEnsemble(dims[0], judged, config.critic_hidden, config.critics, start="xavier")
    return nets.SequenceActor(*dims, config.hidden, config.units), critic, nets.Dynamics(*dims, config.model_hidden)


def build_net(spec: EnvSpec, config: Config, custom: MakeNet | None = None, device: str = "cpu") -> Net:
    """The networks of a run: `custom`, or the function that `config.net` names, or `make_net`."""
    require("srl", spec, "continuous")
    (actor, critic, model), remake = make_modules(make_net, spec, config, custom, "actor, critic, model")
    net = Net(actor, critic, model, spec, remake, config.sequence_length, config.window.steps)
    plans = (3, config.sequence_length, spec.action_dim)
    require_shapes(net, {"actor": [plans, plans], "critic": (config.critics, 3), "model": (3, spec.obs_dim)})
    return net._replace(**{name: getattr(net, name).to(device) for name in ("actor", "critic", "model")})


class State(NamedTuple):
    """One agent: everything that affects its next update."""

    actor: Params
    critic: Params
    model: Params
    target_critic: Params
    target_model: Params
    log_alpha: Scalar
    actor_moments: Moments
    critic_moments: Moments
    model_moments: Moments
    alpha_moments: Moments
    hparams: dict[str, Scalar]
    step: Int[Tensor, ""]
    fixed: nets.Fixed


def init(net: Net, config: Config, key: rng.Key) -> State:
    """A new agent. config: settings of this agent alone (`config.member(i)`)."""
    log_alpha = torch.tensor(math.log(config.scalars("init_alpha")["init_alpha"]))
    hparams = config.hparams(target_entropy=-float(net.spec.action_dim))
    return learning.new_state(State, net, key, hparams, log_alpha=log_alpha)


def planned(
    net: Net, actor: Params, obs: Float[Tensor, "B O"], previous: Float[Tensor, "B A"], length: int, key: rng.Key | None
) -> tuple[Float[Tensor, "B J A"], Float[Tensor, "B J"]]:
    """Plans of `length` actions in [-1, 1], and the log probability of each action. key: None takes its mode."""
    shape = len(obs), length, net.spec.action_dim
    noise = torch.zeros(shape, dtype=obs.dtype, device=obs.device) if key is None else rng.normal(key, shape, obs.dtype)
    mean, log_std = (x.to(obs.dtype) for x in functional_call(net.actor, actor, (obs, previous, noise)))
    pre_tanh = mean + log_std.exp() * noise
    return torch.tanh(pre_tanh), nets.tanh_normal_log_prob(noise, log_std, pre_tanh)


def plan(
    net: Net, config: Config, state: State, obs: Obs, previous: Actions, length: int, key: rng.Key | None = None
) -> Float[Tensor, "N L A"]:
    """What an agent would do next, after the action `previous`; of any length. key: None takes the likeliest."""
    return planned(nets.bound(net, state.fixed), state.actor, obs, previous, length, key)[0]


def init_carry(net: Net, config: Config, n: int) -> Playing:
    """What an agent remembers as n episodes begin."""
    return no_plan(n, config.sequence_length, net.spec.action_dim)


def act(
    net: Net, config: Config, state: State, carry: Playing, obs: Obs, is_first: First, key: rng.Key, *, explore: bool
) -> tuple[Actions, Playing]:
    """The next action of the plan in [-1, 1], or the first of a new one: sampled, or without `explore` the mode."""
    longest, drawn = config.sequence_length, key if explore else None
    length = config.replan_every if explore and config.replan_every else longest
    return play(carry, lambda previous: plan(net, config, state, obs, previous, longest, drawn), length)


class Recalled(NamedTuple):
    """Transitions, and the action before each: of the critics before its next observation, else before its own."""

    batch: Batch
    previous: Float[Tensor, "B A"]


def update_critic(net: Net, config: Config, state: State, first: Recalled, key: rng.Key) -> tuple[State, Metrics]:
    """One gradient step of the critics. action of a batch without recall: plans [B, J A]."""
    batch, length = first.batch, config.window.steps
    next_action, log_prob = planned(net, state.actor, batch.next_obs, first.previous, length, key)
    next_q = functional_call(net.critic, state.target_critic, (batch.next_obs, next_action.flatten(1)))
    soft = next_q.to(batch.reward.dtype).amin(0) - state.log_alpha.exp() * log_prob.sum(-1)
    td_target = batch.reward + batch.discount * soft
    lr = state.hparams["critic_lr"]
    critic = descend(critic_loss, state.critic, state.critic_moments, lr, net, batch, td_target)
    metrics = {"critic_loss": critic.loss, "critic_grad_norm": critic.grad_norm, "q": critic.aux}
    return state._replace(critic=critic.params, critic_moments=critic.moments), metrics


def model_loss(model: Params, net: Net, batch: Batch) -> Scalar:
    """Squared error of the next observation, also of terminal ones, mean over its numbers."""
    found = functional_call(net.model, model, (batch.obs, batch.action))
    return (found.to(batch.obs.dtype) - batch.next_obs).square().mean()


def update_model(net: Net, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One gradient step of the model."""
    model = descend(model_loss, state.model, state.model_moments, state.hparams["model_lr"], net, batch)
    metrics = {"model_loss": model.loss, "model_grad_norm": model.grad_norm}
    return state._replace(model=model.params, model_moments=model.moments), metrics


def recalled_states(
    net: Net, model: Params, obs: Float[Tensor, "B O"], action: Float[Tensor, "B J A"]
) -> Float[Tensor, "B J O"]:
    """The observations at which each action of a plan will be done, as the model has them; no gradient goes through."""
    states = [obs]
    for done in action.detach().unbind(1)[:-1]:
        states.append(functional_call(net.model, model, (states[-1], done)).to(obs.dtype))
    return torch.stack(states, 1).detach()


def actor_loss(
    actor: Params, net: Net, config: Config, state: State, second: Recalled, key: rng.Key
) -> tuple[Scalar, Scalar]:
    """Entropy-regularised value of the policy's own plans, negated; and the mean log probability of an action."""
    obs = second.batch.obs
    action, log_prob = planned(net, actor, obs, second.previous, config.sequence_length, key)
    if config.recall:
        states = recalled_states(net, state.target_model, obs, action)
        q = functional_call(net.critic, state.critic, (states, action)).to(obs.dtype).amin(0)
    else:
        q = functional_call(net.critic, state.critic, (obs, action.flatten(1))).to(obs.dtype).amin(0).unsqueeze(-1)
    loss = (state.log_alpha.exp() * log_prob).sum(-1) - q.sum(-1)
    steps = config.sequence_length if config.plan_loss == "mean" else 1
    return loss.mean() / steps, log_prob.mean()


def update_actor(net: Net, config: Config, state: State, second: Recalled, key: rng.Key) -> tuple[State, Metrics]:
    """One gradient step of policy and temperature."""
    h = state.hparams
    policy = (net, config, state, second, key)
    actor = descend(actor_loss, state.actor, state.actor_moments, h["actor_lr"], *policy)
    entropy = (actor.aux, h["target_entropy"])
    alpha = descend(alpha_loss, state.log_alpha, state.alpha_moments, h["alpha_lr"], *entropy)
    new = state._replace(actor=actor.params, actor_moments=actor.moments)
    metrics = {"actor_loss": actor.loss, "actor_grad_norm": actor.grad_norm, "entropy": -actor.aux}
    metrics |= {"alpha": state.log_alpha.exp(), "alpha_loss": alpha.loss}
    return new._replace(log_alpha=alpha.params, alpha_moments=alpha.moments), metrics


def update(
    net: Net, config: Config, state: State, first: Recalled, second: Recalled, key: rng.Key, *, policy: bool
) -> tuple[State, Metrics, tuple[()]]:
    """One update of critics and model, with `policy` of the policy and temperature too, and then of all targets.

    first: what the critics learn from; second: what the others do.
    """
    net, h = nets.bound(net, state.fixed), state.hparams
    critic_key, actor_key = rng.split(key, 2)
    state, metrics = update_critic(net, config, state, first, critic_key)
    if config.recall:
        state, found = update_model(net, state, second.batch)
        metrics |= found
    if policy:
        state, found = update_actor(net, config, state, second, actor_key)
        metrics |= found
    new = state._replace(
        target_critic=polyak(state.target_critic, state.critic, h["tau"]),
        target_model=polyak(state.target_model, state.model, h["tau"]),
        step=state.step + 1,
    )
    return new, metrics, ()


def learner(net: Net, config: Config, policy: bool) -> Callable[..., tuple[State, Metrics, tuple[()]]]:
    """Sampling and `update` of one agent as one function, compiled together: see `fused.Learner`."""

    def learn(
        state: State, rows: Rows, sample_key: rng.Key, update_key: rng.Key, extent: Extent, env_step: Tensor
    ) -> tuple[State, Metrics, tuple[()]]:
        data: Any = rows.data
        keys, discount = rng.split(sample_key, 2), state.hparams["discount"]
        row = uniform_rows(data, extent, keys[0], config.batch_size, config.window)
        action, last = actions_from(data, row, config.window)
        first = Recalled(n_step(data, row, config.window, discount)._replace(action=action.flatten(1)), last)
        row = uniform_rows(data, extent, keys[1], config.batch_size, config.single)
        before = actions_before(data, extent, row, config.single)
        second = Recalled(n_step(data, row, config.single, discount), before)
        return update(net, config, state, first, second, update_key, policy=policy)

    return learn


def train(config: Config, net: MakeNet | None = None, callback: Callback | None = None) -> Run:
    """Train a population. net: own networks, as `make_net`. callback(run) after every step; True stops the run."""
    with Run("srl", config, net, callback) as run:
        agents = learning.OffPolicy(run, build_net, init, act, init_carry=init_carry)
        learners = [agents.own_learner(learner(agents.net, config, policy)) for policy in (False, True)]
        first = max(config.batch_size, config.window.steps * config.envs_per_agent)
        while run.running():
            agents.act(random=run.step < config.learning_starts)
            for i in run.updates_due(config.utd, first):
                agents.learn(learners[(i + 1) % config.policy_delay == 0], i)
            agents.end_step(complete=run.updates >= config.policy_delay)  # a row has the policy's metrics too
    return run


if __name__ == "__main__":
    from deeprl.commands.main import train_from_shell

    train_from_shell("srl")
