"""What benchmarks/gpu.py checks and measures on a GPU: each case is a function of a `Bench` that gives its findings."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import eager
import numpy as np
import torch
from speed_data import synthetic
from speed_tasks import MUJOCO, VECTOR
from speed_update import LEARNERS
from stopwatch import Stopwatch

import deeprl
from deeprl.api import algorithm_module
from deeprl.config import build
from deeprl.core import rng
from deeprl.core.population import Execution, new_agents
from deeprl.core.spec import EnvSpec
from deeprl.core.tree import flatten
from deeprl.replay import Replay
from deeprl.run import checkpoint
from deeprl.run.trained import load_population

UPDATES = 100  # after which compiled agents are compared with eager ones
TINY: dict[str, dict[str, Any]] = {
    "sac": {"hidden": (32, 32)},
    "dqn": {"hidden": (32, 32), "utd": 1.0, "train_every": 1, "target_every": 20},
    "simba_v2": {"actor_width": 32, "critic_width": 32, "actor_blocks": 1, "critic_blocks": 1, "bins": 21},
    "td3": {"hidden": (32, 32)},
    "iql": {"hidden": (32, 32)},
    "srl": {"hidden": (32, 32), "units": 32, "critic_hidden": (32, 32), "model_hidden": (32, 32)},
    "simba": {"actor_width": 32, "critic_width": 32, "actor_blocks": 1, "critic_blocks": 1},
    "cql": {"actor_hidden": (32, 32), "critic_hidden": (32, 32), "bc_steps": 0},
    "rlpd": {"actor_hidden": (32, 32), "critic_hidden": (32, 32), "critics": 4, "keep_data": 0.5},
    "rebrac": {"hidden": (32, 32)},
    "td3_bc": {"hidden": (32, 32)},
    "edac": {"hidden": (32, 32)},
    "riql": {"hidden": (32, 32)},
    "bc": {"hidden": (32, 32)},
}
OFFLINE = ("iql", "cql", "rebrac", "td3_bc", "edac", "riql", "bc")
SPEC = EnvSpec((17,), 6, (-1.0,) * 6, (1.0,) * 6)  # as HalfCheetah
CARTPOLE = EnvSpec((4,), 0, (), (), actions=2)


@dataclass(frozen=True)
class Finding:
    """What a case found. bar: what the value must not exceed, or None for a measurement; agents: how many."""

    value: float
    unit: str
    bar: float | None = None
    detail: str = ""
    agents: int = 2
    name: str = ""

    @property
    def passed(self) -> bool:
        return self.bar is None or self.value <= self.bar


@dataclass
class Bench:
    """device: cuda or cpu; small: numbers with which the kit itself is tried; folder: for runs and datasets."""

    device: str
    small: bool
    folder: Path
    seconds: float = 3.0
    _names: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    def sync(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def train(self, algorithm: str, **settings: Any) -> Path:
        """A run in a directory of its own, unless `out` is among the settings."""
        out = settings.pop("out", None) or str(self.folder / f"{next(self._names)}_{algorithm}")
        return deeprl.train(algorithm, out=out, **settings).directory

    def dataset(self) -> str:
        """A file of random transitions, shaped as Pendulum's."""
        path = self.folder / "random.npz"
        if not path.exists():
            arrays = synthetic(2_000, 0)
            arrays["observations"] = arrays["observations"][:, :3]
            np.savez(path, **arrays | {"actions": arrays["actions"][:, :1]})
        return str(path)


def tiny(bench: Bench, algorithm: str, updates: int, **settings: Any) -> dict[str, Any]:
    """Settings of a run of two small agents with so many updates, products in plain f32."""
    own: dict[str, Any] = {"seeds": (3, 4), "batch_size": 16, "precision": "strict", "tensorboard": False}
    own |= {"eval_every": 0, "eval_episodes": 0, "checkpoint_minutes": 0, "threads": 1, "device": bench.device}
    if algorithm in OFFLINE:
        own |= {"dataset": bench.dataset(), "steps": updates}
    else:
        env = "CartPole-v1" if algorithm == "dqn" else "Pendulum-v1"
        own |= {"env": env, "env_backend": "device", "learning_starts": 40, "steps": 40 + updates}
        own |= {"dataset": bench.dataset()} if algorithm == "rlpd" else {}
    return own | TINY[algorithm] | settings


def numbers(directory: Path, member: int | None = None) -> dict[str, torch.Tensor]:
    """All numbers of the agents of a run, or of one of them, by name."""
    state = flatten(load_population(directory, device="cpu").state)
    return {name: x if member is None else x[member] for name, x in state.items() if x.is_floating_point()}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of numbers, of the largest number of their tensor or 1e-3."""
    return max(
        float((x - other[name]).abs().max() / x.abs().max().clamp(min=1e-3)) for name, x in one.items() if x.numel()
    )


# --- (a) random bits, (b) eager updates, (c) compiled ones, (d) resume ---


def random_bits(bench: Bench) -> Iterator[Finding]:
    """The same bits on both devices, normal numbers to rounding."""
    keys = [rng.key(seed, stream, 7) for seed in (0, 2**32 - 1) for stream in rng.STREAMS]
    unequal, furthest = 0, 0.0
    for key in keys:
        there = key.to(bench.device)
        for draw in (rng.bits, rng.uniform, functools.partial(rng.randint, n=1_000_003)):
            unequal += int((draw(there, (1_001,)).cpu() != draw(key, (1_001,))).sum())
        unequal += int((rng.permutation(there, 257).cpu() != rng.permutation(key, 257)).sum())
        furthest = max(furthest, float((rng.normal(there, (1_001,)).cpu() - rng.normal(key, (1_001,))).abs().max()))
    yield Finding(unequal, "unequal numbers", 0, f"of {len(keys)} keys")
    yield Finding(furthest, "largest difference", 2e-6, "of standard normal numbers", name="normal")


def eager_update(bench: Bench, algorithm: str) -> Iterator[Finding]:
    """Some eager updates as on the CPU; a population as its members alone."""
    updates = 5 if bench.small else 20
    there = bench.train(algorithm, **tiny(bench, algorithm, updates, compile="off"))
    here = bench.train(algorithm, **tiny(bench, algorithm, updates, compile="off", device="cpu"))
    alone = bench.train(algorithm, **tiny(bench, algorithm, updates, compile="off", seeds=(4,)))
    yield Finding(apart(numbers(here), numbers(there)), "largest difference", 1e-2, f"from the CPU, {updates} updates")
    single = apart(numbers(alone, 0), numbers(there, 1))
    yield Finding(single, "largest difference", 1e-2, f"from an agent alone, {updates} updates", name="alone")


def compiled_update(bench: Bench, algorithm: str) -> Iterator[Finding]:
    """Compiled as eager, and recorded as a graph of CUDA exactly as compiled."""
    updates = 5 if bench.small else UPDATES
    first = tiny(bench, algorithm, updates)
    plain = numbers(bench.train(algorithm, **first, compile="off"))
    compiled = numbers(bench.train(algorithm, **first, compile="on", cuda_graphs=False))
    graphs = numbers(bench.train(algorithm, **first, compile="on"))
    yield Finding(apart(plain, compiled), "largest difference", 5e-2, f"from eager, {updates} updates")
    unequal = sum(int((x != compiled[name]).sum()) for name, x in graphs.items())
    yield Finding(unequal, "unequal numbers", 0, "graph of CUDA and compiled", name="graph")


KILLED = "import json, sys, deeprl; a = json.loads(sys.argv[1]); deeprl.train(a.pop('algorithm'), **a)"


def killed(bench: Bench, algorithm: str) -> Iterator[Finding]:
    """A process is killed at some step; the run that goes on from its checkpoint is one that was not killed."""
    steps, first = (30, 50) if bench.small else (4_000, 500)
    settings = tiny(bench, algorithm, steps, compile="off" if bench.small else "on", checkpoint_minutes=1e-4)
    seldom = settings | {"checkpoint_minutes": 0}
    whole = bench.train(algorithm, **seldom)
    out = bench.folder / f"killed_{algorithm}"
    words = [sys.executable, "-c", KILLED, json.dumps(settings | {"algorithm": algorithm, "out": str(out)})]
    root = str(Path(deeprl.__file__).parent.parent)
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": root}, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None and max(checkpoint.steps(out / "checkpoints"), default=0) < first:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    at = max(checkpoint.steps(out / "checkpoints"))
    other = numbers(bench.train(algorithm, out=str(out), **seldom))
    unequal = sum(int((x != other[name]).sum()) for name, x in numbers(whole).items())
    yield Finding(unequal, "unequal numbers", 0, f"killed after the checkpoint of step {at:,}")


# --- (e) the update alone, (f) the whole step on the device, (g) learning ---


def timed(bench: Bench, do: Callable[[int], object], warm: int = 20) -> float:
    """Calls a second."""
    watch, done = Stopwatch(warm, bench.seconds, sync=bench.sync), 0
    watch.begin()
    while not watch.tick(done, done):
        do(done)
        done += 1
        if done % 50 == 0:
            bench.sync()  # a queue without end would be measured otherwise
    return float(watch.result()["steps_per_s"])


def update_alone(bench: Bench, algorithm: str, agents: int, **settings: Any) -> Iterator[Finding]:
    """Updates a second of all agents: sampling and the update, on random rows."""
    kind, spec = (VECTOR, CARTPOLE) if algorithm == "dqn" else (MUJOCO, SPEC)
    own: dict[str, Any] = {
        "env": kind.env,
        "seeds": tuple(range(agents)),
        "batch_size": kind.batch,
        "device": bench.device,
    }
    own |= {"buffer_size": 10_000, "compile": "off" if bench.small else "on", "threads": 1, "out": str(bench.folder)}
    own |= {} if algorithm == "simba_v2" else {"hidden": (16, 16) if bench.small else kind.hidden}
    own |= TINY["simba_v2"] if algorithm == "simba_v2" and bench.small else {}
    if bench.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    module = algorithm_module(algorithm)
    config = build(module.Config, own | settings)
    run = Execution(
        compile=config.compile == "on", precision=config.precision, device=bench.device, cuda_graphs=config.cuda_graphs
    )
    with run.applied():
        replay = random_rows(agents, spec, bench.device)
        net = module.build_net(spec, config, None, bench.device)
        keys = [rng.key(seed, "init") for seed in config.seeds]
        state = new_agents([module.init(net, config.member(i), key) for i, key in enumerate(keys)], bench.device)
        learn = LEARNERS[algorithm](module, net, config, run, replay)
        streams = rng.Streams(config.seeds, bench.device)
        rate = timed(bench, lambda t: learn(state, streams("sample", t), streams("update", t), t))
    told = f"batch {config.batch_size}, {run.precision}, {'graphs' if run.cuda_graphs else 'compiled'}"
    peak = f", {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB" if bench.device.startswith("cuda") else ""
    yield Finding(rate * agents, "updates/s of all agents", None, told + peak, agents)


def random_rows(agents: int, spec: EnvSpec, device: str) -> Replay:
    """A full replay of random transitions."""
    replay = Replay(agents, 10_000, spec, 1, device)
    for name in ("obs", "next_obs", "reward"):
        getattr(replay.data, name).normal_()
    if spec.discrete:
        replay.data.action.random_(0, spec.actions)
    else:
        replay.data.action.uniform_(-1.0, 1.0)
    replay.added(replay.capacity)
    return replay


def script_style(bench: Bench, algorithm: str) -> Iterator[Finding]:
    """Updates a second of one eager agent with a buffer on the host, as scripts have it."""
    kinds: dict[str, Any] = {"sac script": eager.SAC, "dqn script": eager.DQN}
    kind, spec = (VECTOR, CARTPOLE) if algorithm == "dqn script" else (MUJOCO, SPEC)
    shapes = SimpleNamespace(shape=(spec.action_dim,) if spec.action_dim else (), dtype=np.float32, n=spec.actions)
    env: Any = SimpleNamespace(
        observation_space=SimpleNamespace(shape=spec.obs_shape, dtype=np.float32), action_space=shapes
    )
    agent = kinds[algorithm](env, kind, bench.device)
    buffer = eager.Buffer(env, 10_000, bench.device)
    draw = np.random.default_rng(0)
    for array in (buffer.obs, buffer.next_obs, buffer.action, buffer.reward):
        array[...] = (
            draw.integers(2, size=array.shape) if array.dtype == np.int64 else draw.standard_normal(array.shape)
        )
    buffer.added = 10_000
    rate = timed(bench, lambda _: agent.update(buffer.sample(kind.batch)))
    yield Finding(rate, "updates/s of all agents", None, f"batch {kind.batch}, eager, torch.optim", 1)


def whole_loop(bench: Bench, algorithm: str, agents: int) -> Iterator[Finding]:
    """Steps a second of all agents in environments on the device: the whole `train`, an update a step."""
    env = "CartPole-v1" if algorithm == "dqn" else "Pendulum-v1"
    settings = tiny(bench, algorithm, 10**7, env=env, seeds=tuple(range(agents)), precision="fast")
    settings |= {"hidden": (64, 64), "batch_size": 64, "buffer_size": 10_000, "log_every": 10_000}
    settings |= {"compile": "off" if bench.small else "on"} | ({"target_every": 500} if algorithm == "dqn" else {})
    watch = Stopwatch(60 if bench.small else 140, bench.seconds, sync=bench.sync)
    bench.train(algorithm, **settings, callback=lambda run: watch.tick(run.step, run.updates))
    rate = float(watch.result()["steps_per_s"]) * agents
    yield Finding(rate, "steps/s of all agents", None, f"{env}, 64 x 64, batch 64, an update a step", agents)


def learning(bench: Bench, algorithm: str, agents: int, steps: int) -> Iterator[Finding]:
    """What agents have learned on the device at the end, and how long it took."""
    env = "CartPole-v1" if algorithm == "dqn" else "Pendulum-v1"
    own: dict[str, Any] = {"env": env, "env_backend": "device", "device": bench.device, "tensorboard": False}
    own |= {"seeds": tuple(range(agents)), "steps": steps, "eval_every": steps, "eval_episodes": 10, "threads": 1}
    if algorithm == "dqn":
        own |= {"epsilon_steps": 0.5 * steps, "learning_starts": 1_000, "lr": 1e-3, "target_every": 250}
    else:
        own |= {"learning_starts": 1_000, "hidden": (64, 64), "batch_size": 64, "actor_lr": 1e-3, "critic_lr": 1e-3}
    own |= {"learning_starts": steps - 20, "eval_episodes": 2, "compile": "off"} if bench.small else {}
    begun = time.monotonic()
    rows = deeprl.results(bench.train(algorithm, **own))
    returns = [row["return"] for row in rows if row["step"] == steps]
    assert len(returns) == agents
    error = float(np.std(returns, ddof=1)) / agents**0.5
    told = f"{env}, {steps:,} steps, standard error {error:.1f}, {time.monotonic() - begun:.0f} s"
    yield Finding(float(np.mean(returns)), "mean final return", None, told, agents)


@dataclass(frozen=True)
class Case:
    """stage: a letter; name: what it is of; box_s: seconds that it may take."""

    stage: str
    name: str
    box_s: float
    find: Callable[[Bench], Iterator[Finding]]


def _each(stage: str, names: Sequence[str], box_s: float, find: Callable[..., Iterator[Finding]]) -> list[Case]:
    return [Case(stage, name, box_s, functools.partial(find, algorithm=name)) for name in names]


def _sizes(
    stage: str, name: str, sizes: Sequence[int], find: Callable[..., Iterator[Finding]], **settings: Any
) -> list[Case]:
    told = "".join(f" {k} {v}" for k, v in settings.items())
    return [
        Case(stage, f"{name} x{n}{told}", 40.0, functools.partial(find, algorithm=name, agents=n, **settings))
        for n in sizes
    ]


def cases(small: bool = False) -> list[Case]:
    """All, in order of importance."""
    first = ["sac", "dqn"] if small else ["sac", "dqn", "simba_v2"]
    rest = [name for name in TINY if name not in first]
    few, many, some = ((1, 2), (2,), (2,)) if small else ((1, 16, 256), (1, 16, 256, 4_096), (4, 64))
    agents, steps = (2, (120, 120)) if small else (64, (50_000, 20_000))
    learned = [
        Case("g", name, 60.0, functools.partial(learning, algorithm=name, agents=agents, steps=n))
        for name, n in zip(("dqn", "sac"), steps, strict=True)
    ]
    other: list[dict[str, Any]] = [{"cuda_graphs": False}, {"precision": "strict"}, {"precision": "bf16"}]
    return [
        Case("a", "random bits", 20.0, random_bits),
        *_each("b", first, 30.0, eager_update),
        *_each("c", first[:1] if small else first, 90.0, compiled_update),
        *_each("e", ["sac script", "dqn script"], 20.0, script_style),
        *[case for name in first for case in _sizes("e", name, few, update_alone)],
        Case("d", "sac", 60.0, functools.partial(killed, algorithm="sac")),
        *_sizes("f", "dqn", many, whole_loop),
        *_sizes("f", "sac", few, whole_loop),
        *_each("b", rest, 30.0, eager_update),
        *learned,
        *_each("c", [] if small else rest, 60.0, compiled_update),
        *_sizes("e", "td3", few[:2], update_alone),
        *_sizes("e", "sac", some if not small else (), update_alone),
        *[case for how in other for case in _sizes("e", "sac", few[:2], update_alone, **how)],
    ]
