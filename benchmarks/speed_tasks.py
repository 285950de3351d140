"""What the speed benchmarks train, the same in every library: settings of an algorithm on a kind of environment.

Whatever is not named here is a default, and each library's defaults are those of the paper. Needs nothing but Python.
"""

from __future__ import annotations

import dataclasses

LEARNING_STARTS = 1_000  # small, so that updates start soon; the speed of an update does not depend on it


@dataclasses.dataclass(frozen=True)
class Task:
    """hidden: units of the layers above the torso, which is a small convolution for `minatar` and nothing otherwise."""

    env: str
    batch: int
    hidden: tuple[int, ...]
    buffer: int
    lr: float
    minatar: bool = False

    @property
    def network(self) -> str:
        layers = f"layers of {'x'.join(map(str, self.hidden))}"
        return f"16 filters of 3x3 and {layers}" if self.minatar else layers


MUJOCO = Task("HalfCheetah-v5", 256, (256, 256), 1_000_000, 3e-4)
VECTOR = Task("CartPole-v1", 128, (120, 84), 10_000, 2.5e-4)
MINATAR = Task("MinAtar/Breakout-v1", 32, (128,), 100_000, 2.5e-4, minatar=True)
DATASET = Task("synthetic-17-6", 256, (256, 256), 100_000, 3e-4)  # observations and actions as in HalfCheetah
TARGET_EVERY = 500  # of DQN, environment steps
POLICY_DELAY = 2  # of TD3
EPSILON = 0.05  # of DQN, from the beginning: all sides compute nearly all of their actions
CLIP = 10.0  # norm of DQN's gradients; the loss is Huber's: stable-baselines3 has no setting for either
OFFLINE = ("iql",)


def task(algorithm: str, env: str = "", size: str = "") -> Task:
    """The task of an algorithm, on another environment of its kind or of another size (`64x64:32`) if one is given."""
    kinds = {"sac": MUJOCO, "td3": MUJOCO, "dqn": VECTOR, "iql": DATASET}
    if algorithm not in kinds:
        raise SystemExit(f"--algorithm {algorithm}: known are {', '.join(kinds)}")
    kind = MINATAR if env.startswith("MinAtar/") else kinds[algorithm]
    kind = dataclasses.replace(kind, env=env or kind.env)
    if not size:
        return kind
    try:
        layers, batch = size.split(":")
        return dataclasses.replace(kind, hidden=tuple(map(int, layers.split("x"))), batch=int(batch))
    except ValueError:
        raise SystemExit(f"--size {size}: hidden layers and batch are expected, such as 64x64:32") from None


def includes(algorithm: str, kind: Task, what: str, every: int, extra: str = "") -> str:
    """What a row's number is made of."""
    update = f"1 update of batch {kind.batch}, {kind.network}"
    update += f" (policy every {POLICY_DELAY})" if algorithm == "td3" else ""
    update += " (target copied in the loop only)" if algorithm == "dqn" and what == "update" else ""
    if algorithm in OFFLINE:
        text = f"gradient steps on a data set: sample and {update}; no evaluation or checkpoints"
    elif what == "update":
        text = f"update alone: sample and {update}; no environment, no acting"
    else:
        often = f"every {every} steps " if every > 1 else ""
        text = f"whole loop: act, env step, replay, {often}{update}; no evaluation or checkpoints"
    return f"{text}, {extra}" if extra else text
