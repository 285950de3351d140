"""What every algorithm does alike around its update: data, networks, population, checkpoint, acting, evaluation.

An algorithm's `train` makes one `OffPolicy` (it acts, and learns from a replay) or one `FromDataset` (it learns from
logged data) out of its own pure functions, and writes down its schedule: when it acts at random, which update is due.
Nothing here asks which algorithm it is.

    build_net(spec, config, custom, device) -> Net      init(net, config, key) -> State       of one agent
    act(net, config, state, carry, obs, is_first, key, *, explore) -> (action, carry)
    init_carry(net, config, n) -> carry       as n episodes begin, where agents remember (`core.carry`)
    observe(net, config, state, seen) -> (State, found, ())     after a step of the environments; found: see `freezing`
    update(net, config, state, batch, key) -> (State, metrics, aux)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from deeprl import nets
from deeprl.core import carry as memory
from deeprl.core import rng
from deeprl.core.optim import init_moments
from deeprl.core.population import Agents, Lifted, freezing, new_agents, over_agents
from deeprl.core.spec import Batch, EnvSpec, Metrics, Seen, Transition
from deeprl.core.tree import TreeState, write_into
from deeprl.data.offline import OfflineData
from deeprl.envs.device.population import DeviceEnvs
from deeprl.replay import Extent, Stored, make_replay
from deeprl.replay.returns import ReturnsToGo
from deeprl.replay.samplers import Priorities, sample
from deeprl.run.evaluate import GreedyPolicy
from deeprl.run.fused import Fused, Parts, Rows
from deeprl.run.loop import Run
from deeprl.run.open_data import open_data

# --- observations that running statistics normalise: `Net.obs_norm`, `State.obs_stats`, `Config.normalize_obs` ---


def normalized(net: Any, config: Any, state: Any, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B O"]:
    """Observations as the networks see them."""
    return nets.functional_call(net.obs_norm, state.obs_stats, (obs,)) if config.normalize_obs else obs


def normalized_batch(net: Any, config: Any, state: Any, batch: Batch) -> Batch:
    """A batch as the networks see it."""
    obs, next_obs = (normalized(net, config, state, x) for x in (batch.obs, batch.next_obs))
    return batch._replace(obs=obs, next_obs=next_obs)


def observe(net: Any, config: Any, state: Any, seen: Seen) -> tuple[Any, Metrics, tuple[()]]:
    """Take new observations into the statistics.

    What an agent acts on is in them when it acts, as in the authors' code of SimBa and in Gymnasium's wrapper.
    """
    stats = net.obs_norm.updated(state.obs_stats, seen.obs)
    return state._replace(obs_stats=stats), {"observation": summed(stats)}, ()


def summed(stats: dict[str, Tensor]) -> Float[Tensor, " K"]:
    """The sums of some tensors, which are finite if these are: for `freezing`."""
    return torch.stack([tensor.sum() for tensor in stats.values()])


# --- one agent's sampling and update as one function, compiled together ---


def sampled(update: Callable[..., Any], net: Any, config: Any, **choice: Any) -> Callable[..., Any]:
    """`update` of one agent on a batch that it draws uniformly from its rows: `size` rows of `data` from `first` on.

    choice: keyword arguments of `update`.
    """

    def learn(
        state: Any, data: Stored, size: Tensor, sample_key: rng.Key, update_key: rng.Key, first: int | Tensor = 0
    ) -> Any:
        batch = sample(data, size, sample_key, config.batch_size, state.hparams.get("discount", 1.0), first)
        return update(net, config, state, batch, update_key, **choice)

    return learn


# --- a new agent ---


def new_state(kind: Any, net: Any, key: rng.Key, hparams: Mapping[str, float], **own: Any) -> Any:
    """The first `State` of an agent: its networks drawn from `key`, all that follows from them, and `own`.

    By their names in `State`: actor, critic, value, model, those of the networks of `Net`; target_X, a copy of X;
    X_moments, the optimizer's of X, or of log_X; obs_stats and return_stats, where normalisers begin; hparams, step,
    fixed.
    """
    names = [name for name in ("actor", "critic", "value", "model") if name in kind._fields]
    networks, fixed = nets.init_networks(net, names, key)
    found = dict(zip(names, networks, strict=True)) | own
    for field in kind._fields:
        if field in found:
            continue
        what = field.removesuffix("_moments")
        if field.startswith("target_"):
            found[field] = {name: p.clone() for name, p in found[field.removeprefix("target_")].items()}
        elif what != field and f"log_{what}" in found:
            found[field] = init_moments({f"log_{what}": found[f"log_{what}"]})
        elif what != field:
            found[field] = init_moments(found[what])
    stats = {name: getattr(net, module) for name, module in _STATS.items() if name in kind._fields}
    found |= {name: nets.buffers(module) for name, module in stats.items()}
    numbers = {name: torch.tensor(value) for name, value in hparams.items()}
    return kind(**found, hparams=numbers, step=torch.zeros((), dtype=torch.int64), fixed=fixed)


_STATS = {"obs_stats": "obs_norm", "return_stats": "return_scale"}


class _Learning:
    """What acting in environments and learning from datasets have in common.

    net: `Net`; agents: `Agents`; metrics: the newest value of each name.
    """

    net: Any
    agents: Agents

    def __init__(self, run: Run):
        self.run, self.device = run, run.execution.device
        self.config: Any = run.config
        self.metrics: Metrics = {}

    def _begin(
        self,
        build_net: Callable[..., Any],
        init: Callable[..., Any],
        spec: EnvSpec,
        facts: Callable[[], Sequence[tuple[Any, ...]]],
    ) -> None:
        """Make networks and agents. facts: what else `init` takes, for each agent."""
        self.net = build_net(spec, self.config, self.run.custom_net, self.device)
        keys = [rng.key(seed, "init") for seed in self.config.seeds]
        more = facts()
        members = [init(self.net, self.config.member(i), key, *more[i]) for i, key in enumerate(keys)]
        self.agents = new_agents(members, self.device)

    def _evaluate_with(self, act: Callable[..., Any], init_carry: memory.InitCarry = memory.no_carry) -> None:
        """Set up evaluations, and do the one in which the session before was stopped."""
        greedy = functools.partial(memory.remembering(act, init_carry), self.net, self.config, explore=False)
        begin = functools.partial(init_carry, self.net, self.config)
        self._greedy = GreedyPolicy(greedy, self.agents.state, self.run.execution, begin)
        self.run.evaluate(self._greedy)

    def lift(self, function: Callable[..., Any], shared: Sequence[int]) -> Lifted:
        """An update of one agent for all, in place: (agents, ...) -> (metrics, aux). shared: see `over_agents`."""
        return over_agents(freezing(function), self.run.execution, shared=shared, donate=True)

    def keys(self, number: int) -> tuple[Tensor, Tensor]:
        """The agents' keys for the draws of an update: of its batch, and its own."""
        return self.run.keys("sample", number), self.run.keys("update", number)

    def end_step(self, complete: bool = True) -> None:
        """Log, evaluate, save, each if it is time to. complete: whether there are metrics of all kinds of updates."""
        self.run.end_step(self.metrics if complete else {}, self._greedy)


class OffPolicy(_Learning):
    """A population that acts in environments and learns from a replay of what it has done.

    Where the run was interrupted, all is as it was then. replay: `Replay`; priorities: of its rows, where they are
    `prioritized`; schedule(config, state, steps) -> State: what follows the number of an agent's steps before it acts;
    observe: called after each step of the environments; init_carry: of agents that remember; reward_clip: rewards are
    stored cut to [-x, x], 0: as they are; starts(run, kept): what else `init` takes, for each agent; keep: whether
    there are datasets to learn from too, which are `kept`; returns: keep the returns of the replay's rows as well, of
    agents with `facts` and a discount (`ReturnsToGo`).

    In environments on the device, acting waits for the update that follows it, with which it is one call (`Fused`).
    """

    def __init__(
        self,
        run: Run,
        build_net: Callable[..., Any],
        init: Callable[..., Any],
        act: Callable[..., Any],
        observe: Callable[..., Any] | None = None,
        init_carry: memory.InitCarry = memory.no_carry,
        prioritized: bool = False,
        schedule: Callable[..., Any] | None = None,
        reward_clip: float = 0.0,
        starts: Callable[[Run, OfflineData | None], Sequence[tuple[Any, ...]]] | None = None,
        keep: bool = False,
        returns: Literal["", "dense", "sparse"] = "",
    ):
        super().__init__(run)
        config = self.config
        self.envs: Any = run.make_envs()
        spec, size, self.width = self.envs.spec, len(config.seeds), config.envs_per_agent
        on_device = isinstance(self.envs, DeviceEnvs)
        self.kept = open_data(run, evaluate=False) if keep else None
        self._begin(build_net, init, spec, lambda: starts(run, self.kept) if starts else [()] * size)
        rows = min(config.buffer_size, config.steps)
        self.replay = make_replay(size, rows, spec, self.width, self.device, whole=on_device)
        self.priorities = Priorities(size, self.replay.capacity if prioritized else 0, self.device)
        self._rows, self._clip = Rows(self.replay.data, self.priorities.values), reward_clip
        self.returns = self._returns(returns) if returns else None
        begin = functools.partial(init_carry, self.net, config)
        self._carry = TreeState(memory.fresh_of_all(begin, size, self.width, self.device))
        self._restore(prioritized)
        acting = functools.partial(memory.remembering(act, init_carry), self.net, config, explore=True)
        self._act = functools.partial(_scheduled, acting, config, schedule)
        self._explore = over_agents(self._act, run.execution, shared=(5,))
        self._uniform = torch.vmap(lambda key: rng.uniform(key, (self.width, spec.action_dim), -1.0, 1.0))
        self._steps = torch.zeros((), dtype=torch.int64, device=self.device)  # the agents' own number, for `_act`
        observed = None if observe is None else freezing(functools.partial(observe, self.net, config))
        self._observe = None if observed is None else over_agents(observed, run.execution, donate=True)
        self._fused = self._fuse(self.envs, observed) if isinstance(self.envs, DeviceEnvs) else None
        self._evaluate_with(act, init_carry)

    def _returns(self, kind: Literal["dense", "sparse"]) -> ReturnsToGo:
        facts, discount = self.agents.state.facts, self.agents.state.hparams["discount"]
        scaled = facts.reward_scale, facts.reward_shift, discount
        return ReturnsToGo(self.replay, *scaled, sparse=kind == "sparse")

    def _restore(self, prioritized: bool) -> None:
        """Begin, or go on where the run was interrupted."""
        parts: dict[str, Any] = {"replay": self.replay} | ({"priorities": self.priorities} if prioritized else {})
        parts |= {} if self.returns is None else {"returns": self.returns}
        parts |= {"carry": self._carry} if memory.width(self._carry.tree) else {}
        self.run.restore(net=self.net, agents=self.agents, envs=self.envs, data=self.kept, **parts)
        begins = torch.as_tensor(self.envs.is_first).cpu().numpy()
        self.replay.cut(begins)
        if self.returns is not None:
            self.returns.cut(begins)

    def _fuse(self, envs: DeviceEnvs, observe: Callable[..., Any] | None) -> Fused:
        sizes = self.width, self.replay.capacity, envs.spec.action_dim, self._clip
        parts = Parts(self._act, observe, envs.one, *sizes)
        own = self.agents, envs, self.replay, self.priorities, self._carry.tree
        return Fused(parts, self.run.execution, *own, self.run.keys)

    def seen(self) -> tuple[Tensor, Tensor]:
        """What the agents see now: observations [S, N, *O], and whether they are the first of an episode [S, N]."""
        obs, is_first = self.envs.obs, self.envs.is_first
        return torch.as_tensor(obs, device=self.device), torch.as_tensor(is_first, device=self.device)

    def act(self, random: bool = False) -> None:
        """One step of all environments, by the agents with exploration, or uniformly at random in [-1, 1]^A."""
        if self._fused is not None:
            self._fused.move(random, self.run.step)
            if not self._fused.learners:  # nothing that it may wait for
                self._settle()
        else:
            action = self._action(random)
            self._store(self.envs.step(action if isinstance(self.envs.obs, Tensor) else action.cpu().numpy()))
        if self.returns is not None:
            self.returns.add(slice(self.replay.newest, self.replay.newest + self.width))
        self.run.advance()

    def _action(self, random: bool) -> Tensor:
        key = self.run.keys("explore", self.run.step)
        if random:
            action = self._uniform(key)
            self._carry.tree = memory.with_action(self._carry.tree, action)
        else:
            now = self._carry.tree, *self.seen(), key, self._steps.fill_(self.run.step)
            action, self._carry.tree = self._explore(self.agents.state, *now)
        return action

    def _store(self, transition: Transition) -> None:
        if self._clip:
            transition = transition._replace(reward=transition.reward.clip(-self._clip, self._clip))
        self.priorities.add(self.replay.add(transition))
        if self._observe is not None:
            self._observe(self.agents, Seen(*self.seen(), torch.as_tensor(transition.reward, device=self.device)))

    def learner(self, update: Callable[..., Any], **choice: Any) -> Callable[..., Any]:
        """`update` of all agents, for `learn`, each on a batch that it draws uniformly. choice: its keyword arguments.

        It begins to be compiled, and before it what acts.
        """
        learn = sampled(update, self.net, self.config, **choice)

        def drawing(state: Any, rows: Rows, sample_key: rng.Key, update_key: rng.Key, extent: Extent, _: Tensor) -> Any:
            return learn(state, rows.data, extent.size, sample_key, update_key)

        return self.own_learner(drawing)

    def own_learner(self, learn: Callable[..., Any]) -> Callable[..., Any]:
        """`learn` of one agent for all, for `learn`: it draws its batch by itself (`fused.Learner`, of a `State`)."""
        one = freezing(learn)
        if self._fused is not None:
            self._fused.add(one, getattr(self.config, "train_every", 1))
            return one
        lifted = over_agents(one, self.run.execution, shared=(4, 5), donate=True)
        now = self._carry.tree, *self.seen(), self.run.keys("explore", 0), self._steps
        self._explore.prepare(self.agents.state, *now)
        lifted.prepare(self.agents, self._rows, *self.keys(0), self.replay.extent, self._steps)
        return lifted

    def learn(self, learner: Callable[..., Any], number: int) -> None:
        """Update number `number` of all agents."""
        if self._fused is not None:
            self._fused.learn(learner, number, self.run.step)
            return
        drawn = *self.keys(number), self.replay.extent, self._steps.fill_(self.run.step)
        metrics, aux = learner(self.agents, self._rows, *drawn)
        if aux:
            self.priorities.update(*aux)
        self.metrics = self.metrics | metrics

    def renew(self, function: Callable[[Any], Any]) -> None:
        """Change the agents' states outside of updates, by a function of one agent's state, or of a population's."""
        self._settle()
        write_into(self.agents.state, function(self.agents.state))

    def end_step(self, complete: bool = True) -> None:
        """As there, but what was done may wait for the next steps, where nothing is due."""
        learning = self.run.step > self.config.learning_starts  # before, there is no update to be one call with
        if self._fused is not None and self._fused.may_wait() and learning and self.run.wait():
            return
        self._settle()
        super().end_step(complete)

    def _settle(self) -> None:
        if self._fused is not None:
            self.metrics = self.metrics | self._fused.done()


def _scheduled(
    act: Callable[..., Any], config: Any, schedule: Callable[..., Any] | None, state: Any, *rest: Any
) -> tuple[Tensor, Any]:
    """Acting as it is after a number of steps, the last of the arguments."""
    state = state if schedule is None else schedule(config, state, rest[-1])
    return act(state, *rest[:-1])


class FromDataset(_Learning):
    """A population that learns from datasets, and acts only to be evaluated.

    data: `OfflineData`. best: the share of the episodes to learn from, by their returns.
    """

    def __init__(
        self,
        run: Run,
        build_net: Callable[..., Any],
        init: Callable[..., Any],
        act: Callable[..., Any],
        best: float = 1.0,
    ):
        super().__init__(run)
        self.data = open_data(run, best)
        self._begin(build_net, init, self.data.spec, lambda: [(facts,) for facts in self.data.facts])
        run.restore(net=self.net, agents=self.agents, data=self.data)
        self._evaluate_with(act)

    def updates_due(self) -> range:
        """Count a step of the gradient, and give the number of the update that it is."""
        self.run.advance()
        return self.run.updates_due(1.0, after=0)

    def learner(self, update: Callable[..., Any], **choice: Any) -> Callable[..., Any]:
        """`sampled` for the population, for `learn`."""
        return self.lift(sampled(update, self.net, self.config, **choice), shared=(1,))

    def learn(self, learner: Callable[..., Any], number: int) -> None:
        """Update number `number` of all agents."""
        rows = self.data.arrays, self.data.size, *self.keys(number), self.data.first
        self.metrics = self.metrics | learner(self.agents, *rows)[0]
