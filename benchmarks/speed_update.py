"""A population's update alone: the function that `train` calls, on random transitions, without its loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from speed_tasks import OFFLINE
from stopwatch import Stopwatch

from deeprl.api import algorithm_module
from deeprl.core import rng
from deeprl.core.population import Agents, Execution, freezing, new_agents, over_agents, resolve_execution
from deeprl.core.spec import EnvSpec
from deeprl.data.datasets import load_dataset
from deeprl.data.offline import OfflineData
from deeprl.envs.make import EnvFactory
from deeprl.envs.vector import PopulationEnvs
from deeprl.replay import Replay, make_replay
from deeprl.replay.samplers import Priorities
from deeprl.run.fused import Rows
from deeprl.run.learning import sampled

STEPS = 1_000  # random ones, whose transitions fill the replay data


def update_until(algorithm: str, config: Any, watch: Stopwatch) -> None:
    """Calls the update until the watch's window is over."""
    if algorithm not in LEARNERS:
        raise SystemExit(f"the update of {algorithm} alone is not measured: known are {', '.join(LEARNERS)}")
    execution = resolve_execution(config, config.steps)
    execution.apply()
    module = algorithm_module(algorithm)
    source: Replay | OfflineData
    if algorithm in OFFLINE:
        source = OfflineData([(config.dataset, load_dataset(config.dataset))], 0, config, execution.device)
        spec, close = source.spec, lambda: None
    else:
        source, spec, close = replay_of(config, execution)
    net = module.build_net(spec, config, None, execution.device)
    keys = [rng.key(seed, "init") for seed in config.seeds]
    agents = new_agents([module.init(net, config.member(i), key) for i, key in enumerate(keys)], execution.device)
    execution.fit(agents.state, config.batch_size)
    learn = LEARNERS[algorithm](module, net, config, execution, source)
    streams = rng.Streams(config.seeds, execution.device)
    done = 0
    watch.begin()
    while not watch.tick(done, done):
        learn(agents, streams("sample", done), streams("update", done), done)
        done += 1
    close()


def replay_of(config: Any, execution: Execution) -> tuple[Replay, EnvSpec, Callable[[], None]]:
    """Replay data of random steps, what they were taken in, and how to close that."""
    envs = PopulationEnvs(EnvFactory(config.env, {}, ()), config.seeds, 1, config.env_backend)
    replay = make_replay(len(config.seeds), config.buffer_size, envs.spec, 1, execution.device)
    fill(replay, envs)
    return replay, envs.spec, envs.close


def fill(replay: Replay, envs: PopulationEnvs) -> None:
    """Random steps of all agents."""
    draw, spec = np.random.default_rng(0), envs.spec
    for _ in range(STEPS):
        shape = (replay.agents, 1)
        action = (
            draw.integers(spec.actions, size=shape) if spec.discrete else draw.uniform(-1, 1, (*shape, spec.action_dim))
        )
        replay.add(envs.step(action if spec.discrete else action.astype(np.float32)))


# Each as `train` of its algorithm has it: a function of the agents, their keys for sampling and for updating, and the
# number of the update.
Learn = Callable[[Agents, rng.Key, rng.Key, int], object]


def sac(module: Any, net: Any, config: Any, execution: Any, replay: Replay) -> Learn:
    learn = over_agents(freezing(sampled(module.update, net, config)), execution, shared=(2,), donate=True)
    return lambda agents, sample, update, _: learn(agents, replay.data, replay.size, sample, update)


def td3(module: Any, net: Any, config: Any, execution: Any, replay: Replay) -> Learn:
    both = [
        over_agents(freezing(sampled(module.update, net, config, policy=policy)), execution, shared=(2,), donate=True)
        for policy in (False, True)
    ]

    def learn(agents: Agents, sample: rng.Key, update: rng.Key, number: int) -> object:
        function = both[(number + 1) % config.policy_delay == 0]
        return function(agents, replay.data, replay.size, sample, update)

    return learn


def dqn(module: Any, net: Any, config: Any, execution: Any, replay: Replay) -> Learn:
    learn = over_agents(freezing(module.learner(net, config)), execution, shared=(4, 5), donate=True)
    priorities = Priorities(replay.agents, 0, execution.device)
    step = torch.zeros((), dtype=torch.int64, device=execution.device)
    rows = Rows(replay.data, priorities.values)
    return lambda agents, sample, update, _: learn(agents, rows, sample, update, replay.extent, step)


def iql(module: Any, net: Any, config: Any, execution: Any, data: OfflineData) -> Learn:
    learn = over_agents(freezing(sampled(module.update, net, config)), execution, shared=(1,), donate=True)
    return lambda agents, sample, update, _: learn(agents, data.arrays, data.size, sample, update, data.first)


LEARNERS: dict[str, Callable[..., Learn]] = {"sac": sac, "simba_v2": sac, "td3": td3, "dqn": dqn, "iql": iql}
