"""How fast do environments step alone? Those of the device and of MuJoCo in threads beside Gymnasium's and EnvPool's.

    python benchmarks/stepping.py --tasks CartPole-v1 Pendulum-v1 MinAtar/Breakout-v1 \
        --backends gymnasium envpool device
    python benchmarks/stepping.py --tasks HalfCheetah-v5 Hopper-v5 --envs 64 \
        --backends gymnasium sync async envpool threads

Steps of environments per second with actions drawn beforehand, episodes begun anew where they end; one process, two
threads where a backend has threads. `gymnasium` is Gymnasium's SyncVectorEnv as `gym.make_vec` gives it; the others
are what `--env-backend` names, stepped as a run steps them. The backends take turns: medians and ranges of the rounds.
Rows replace those of the same task, number, backend and device. Left out where a backend has no such task; an
EnvPool of one environment has one thread.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from speed_rows import device_name, save, span, version_text
from stopwatch import versions

from deeprl.core.population import Execution
from deeprl.core.spec import EnvSpec
from deeprl.envs.device.population import DeviceEnvs
from deeprl.envs.device.registry import device_env
from deeprl.envs.make import EnvFactory, make_env
from deeprl.envs.spaces import to_env_action
from deeprl.envs.vector import PopulationEnvs
from deeprl.errors import DeeprlError
from deeprl.run import provenance

COLUMNS = (
    *("task", "envs", "backend", "steps_per_s", "range", "rounds"),
    *("threads", "device", "versions", "commit", "command"),
)
PACKAGES = ("deeprl", "torch", "gymnasium", "mujoco", "envpool", "minatar", "numpy")
DRAWN = 16  # steps whose actions are drawn


@dataclass(frozen=True)
class Options:
    tasks: tuple[str, ...]
    backends: tuple[Literal["gymnasium", "sync", "async", "envpool", "threads", "device"], ...]
    envs: tuple[int, ...] = (1, 64, 4096)
    seconds: float = 2.0
    rounds: int = 3
    threads: int = 2
    csv: Path = Path("benchmarks/results/stepping.csv")


def drawn_actions(spec: EnvSpec, n: int) -> np.ndarray:
    """Actions of some steps [DRAWN, n, 1, ...], in the agents' own terms."""
    draw = np.random.default_rng(0)
    if spec.discrete:
        return draw.integers(0, spec.actions, (DRAWN, n, 1))
    return draw.uniform(-1, 1, (DRAWN, n, 1, spec.action_dim)).astype(np.float32)


def stepping(task: str, backend: Any, n: int, threads: int) -> tuple[Callable[[int], Any], Callable[[], Any]]:
    """A function that does step number i of n environments, and one that ends them."""
    factory = EnvFactory(task, {}, ())
    if backend == "gymnasium":
        make_env(task).close()  # registers it
        made = gym.make_vec(task, num_envs=n, vectorization_mode="sync")
        made.reset(seed=0)
        spec = PopulationEnvs(factory, [0]).spec
        theirs = [to_env_action(spec, action[:, 0]) for action in drawn_actions(spec, n)]
        return lambda i: made.step(theirs[i % DRAWN]), made.close
    if backend == "device":
        execution = Execution(compile=True, threads=threads)
        on_device = DeviceEnvs(*device_env(task), list(range(n)), 1, execution)
        actions = torch.from_numpy(drawn_actions(on_device.spec, n))
        return lambda i: on_device.step(actions[i % DRAWN]), on_device.close
    envs = PopulationEnvs(factory, list(range(n)), 1, backend)
    own = drawn_actions(envs.spec, n)
    return lambda i: envs.step(own[i % DRAWN]), envs.close


def rate(step: Callable[[int], Any], n: int, seconds: float) -> float:
    """Steps of environments per second, after some that are not counted."""
    for i in range(3):
        step(i)
    begun, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        step(count)
        count += 1
    return count * n / passed


def main(options: Options) -> None:
    """Measure, and write a row for each backend once its last round is over."""
    torch.set_num_threads(options.threads)
    where = {"device": device_name("cpu"), "commit": provenance.commit(), "command": provenance.command()}
    where |= {"versions": version_text(versions(PACKAGES))}
    for task, n in itertools.product(options.tasks, options.envs):
        found: dict[str, list[float]] = {}
        for _, backend in itertools.product(range(options.rounds), options.backends):
            try:
                step, close = stepping(task, backend, n, options.threads)
            except DeeprlError as error:
                print(f"{task}, {backend}: {error}")
                continue
            found.setdefault(backend, []).append(rate(step, n, options.seconds))
            close()
        for name, rates in found.items():
            row = {"task": task, "envs": str(n), "backend": name, "steps_per_s": f"{statistics.median(rates):.0f}"}
            row |= {"range": span(rates), "rounds": str(len(rates)), "threads": str(options.threads)}
            save(options.csv, [row | where], COLUMNS, ("task", "envs", "backend", "device"))
            print(f"{task:24}{n:6} {name:10}{statistics.median(rates):12,.0f}  {span(rates)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
