"""The two Atari backends beside each other: how fast they step, and whether they show the same frames.

    python benchmarks/atari.py speed --env ALE/Breakout-v5 --rounds 5 --csv benchmarks/results/atari_speed.csv
    python benchmarks/atari.py frames --csv benchmarks/results/atari_frames.csv

`speed`: `PopulationEnvs.step` with random actions and no learner, 20,000 raw frames (5,000 decisions of 4 frames) a
turn, whatever the number of environments; the backends take turns. `steps_per_s` counts decisions of all environments
together (median of the rounds), `includes` has the raw frames. Needs a quiet machine: `includes` says how quiet it was.

`frames`: one episode with the same actions in both backends, from the same state: one no-op frame after the reset, no
sticky actions, no FIRE on reset. All stacks of four frames are compared, byte by byte, and rewards and ends. A third
player works out what either backend has to show, from bare frames of the game (`Referee`); an explanation is given only
where it foretold every stack of both. The last rows play Breakout with FIRE on reset and with lost lives, where the two
backends do not play by the same frames.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib.metadata
import os
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Literal

import cv2
import gymnasium as gym
import numpy as np
from speed_rows import COLUMNS, device_name, save
from speed_turns import busy_seconds

from deeprl.envs import pool as envpool_backend
from deeprl.envs.atari import GAME_OVER
from deeprl.envs.make import EnvFactory, make_env
from deeprl.envs.pool import EnvPoolVector
from deeprl.envs.vector import EnvBackend, PopulationEnvs
from deeprl.errors import DeeprlError

Kind = Literal["ale-py", "envpool"]
SAME_START: dict[str, Any] = {"repeat_action_probability": 0.0, "noop_max": 1, "fire_reset": False}
FRAME_COLUMNS = ["env", "protocol", "steps", "equal_steps", "share_of_differing_pixels", "max_diff", "rewards_equal"]
FRAME_COLUMNS += ["ends_equal", "foretold", "explanation", "versions", "command"]
NAMES: dict[EnvBackend, str] = {"sync": "ale-py", "async": "ale-py, a process each", "envpool": "envpool"}
DECISIONS = 5_000
PACKAGES = ("ale-py", "envpool", "gymnasium", "opencv-python-headless", "numpy")


def versions() -> str:
    return " ".join(f"{name}={importlib.metadata.version(name)}" for name in PACKAGES)


# --- speed ---


def turn(env: str, backend: EnvBackend, agents: int) -> tuple[float, float]:
    """Decisions per second of one backend, and the cores that anything else kept busy meanwhile."""
    envs = PopulationEnvs(EnvFactory(env, {}, ()), range(agents), 1, backend)
    draw = np.random.default_rng(0)
    steps = DECISIONS // agents
    moves = draw.integers(0, envs.spec.actions, (steps + 100, agents, 1))
    for move in moves[:100]:
        envs.step(move)
    began, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
    for move in moves[100:]:
        envs.step(move)
    seconds = time.perf_counter() - began
    others = (busy_seconds() - busy - own_seconds() + own) / seconds
    envs.close()
    # A child's time is known only when it has ended: no word on the load beside environments in processes of their own.
    return steps * agents / seconds, float("nan") if backend == "async" else max(others, 0.0)


def own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def measure_speed(args: argparse.Namespace) -> list[dict[str, str]]:
    modes: list[tuple[EnvBackend, int]] = [(b, n) for n in args.agents for b in NAMES]
    found: dict[tuple[EnvBackend, int], list[tuple[float, float]]] = {mode: [] for mode in modes}
    for index in range(args.rounds):
        for backend, agents in modes:
            found[backend, agents].append(turn(args.env, backend, agents))
            rate, others = found[backend, agents][-1]
            label = f"round {index + 1}: {NAMES[backend]} x{agents}"
            print(f"{label}: {rate:.0f} steps/s, other load {others:.2f}", flush=True)
    return [speed_row(args, *mode, found[mode], found["sync", mode[1]]) for mode in modes]


def speed_row(
    args: argparse.Namespace,
    backend: EnvBackend,
    agents: int,
    found: list[tuple[float, float]],
    base: list[tuple[float, float]],
) -> dict[str, str]:
    rates, loads = zip(*found, strict=True)
    rate = statistics.median(rates)
    text = "PopulationEnvs.step with random actions, no learner; "
    text += f"{4 * rate:.0f} raw frames/s at 4 a step; median of {len(rates)} rounds of {DECISIONS} steps, "
    text += f"range {min(rates):.4g} to {max(rates):.4g}"
    text += "" if backend == "async" else f", other load at most {max(loads):.2f} cores"
    ratio = statistics.median(r / b for (r, _), (b, _) in zip(found, base, strict=True))
    against = ("", "") if backend == "sync" else (NAMES["sync"], f"{ratio:.2f}")
    threads = {"sync": 1, "async": agents, "envpool": min(agents, os.cpu_count() or 1)}[backend]
    command = f"python benchmarks/atari.py speed --env {args.env} --agents {' '.join(map(str, args.agents))}"
    values = ["random", args.env, str(agents), NAMES[backend], text, f"{rate:.1f}", *against, str(os.cpu_count())]
    values += [str(threads), "uint8", device_name("cpu"), versions(), f"{command} --rounds {args.rounds}"]
    return dict(zip(COLUMNS, values, strict=True))


# --- frames ---


@dataclasses.dataclass
class Referee:
    """What a backend has to show, worked out from the bare frames of a game.

    The rules in which the two differ:
    - a game that ends within a skip: ale-py shows the brighter of the last two frames that were played; EnvPool what it
      has of the last two frames of a whole skip, and the picture before where it has neither;
    - EnvPool knows the first 210 rows of the screen only;
    - FIRE on reset: a step of 4 frames after the no-op in ale-py, one frame in the place of the no-op in EnvPool;
    - after a lost life: a step of 4 no-op frames, and of FIRE, in ale-py; in EnvPool the same as after a reset.
    """

    env: str
    kind: Kind
    fire: bool = False
    lives: bool = False

    def __post_init__(self) -> None:
        made: Any = gym.make(self.env, frameskip=1, obs_type="grayscale", repeat_action_probability=0.0)
        self.game: Any = made.unwrapped
        self.fire = self.fire and "FIRE" in self.game.get_action_meanings()
        self.stack: deque[np.ndarray] = deque(maxlen=4)
        self.last_two: deque[np.ndarray] = deque(maxlen=2)

    def frame(self, action: int) -> tuple[np.ndarray, float, bool]:
        obs, reward, terminated, _, info = self.game.step(action)
        self.left = info["lives"]
        picture = np.array(obs[:210] if self.kind == "envpool" else obs)
        self.last_two.append(picture)
        return picture, float(reward), terminated

    def show(self, picture: np.ndarray, first: bool) -> np.ndarray:
        small = cv2.resize(picture, (84, 84), interpolation=cv2.INTER_AREA)
        self.stack.extend([small] * (4 if first else 1))
        return np.stack(self.stack)

    def reset(self) -> np.ndarray:
        self.game.reset(seed=0)
        return self.begin()

    def begin(self) -> np.ndarray:
        """The frames after a reset of the game: one no-op, or FIRE."""
        fire = self.game.get_action_meanings().index("FIRE") if self.fire else 0
        self.last, _, _ = self.frame(fire if self.kind == "envpool" else 0)
        if self.fire and self.kind == "ale-py":
            return self.show(self.skip(fire)[0], True)
        return self.show(self.last, True)

    def skip(self, action: int) -> tuple[np.ndarray, float, bool]:
        """Four frames, or as many as there are: the picture to show, the reward, whether the game is over."""
        played: list[np.ndarray] = []
        total, over = 0.0, False
        while len(played) < 4 and not over:
            picture, reward, over = self.frame(action)
            played.append(picture)
            total += reward
        if len(played) == 4 or self.kind == "ale-py":
            self.last = np.maximum(*self.last_two)
        elif len(played) == 3:
            self.last = played[2]
        return self.last, total, over

    def step(self, action: int) -> tuple[np.ndarray, np.ndarray | None, float, bool]:
        """The stack, the first stack of the next life where one was lost, the reward, whether the learner's end."""
        before = self.left
        picture, reward, over = self.skip(action)
        obs, lost = self.show(picture, False), self.lives and 0 < self.left < before and not over
        if not lost:
            return obs, None, reward, over
        if self.kind == "envpool":
            return obs, self.begin(), reward, True
        after = self.skip(0)[0]
        if self.fire:
            after = self.skip(self.game.get_action_meanings().index("FIRE"))[0]
        return obs, self.show(after, True), reward, True


@dataclasses.dataclass
class Tally:
    """What has been compared of one game."""

    steps: int = 0
    equal: int = 0
    pixels: int = 0
    differing: int = 0
    max_diff: int = 0
    rewards: bool = True
    ends: bool = True
    foretold: bool = True
    only_last: bool = True  # nothing differed before the last observation
    game_over: bool = False

    def add(self, shown: dict[Kind, np.ndarray], right: dict[Kind, np.ndarray], last: bool) -> None:
        ours, theirs = shown["ale-py"], shown["envpool"]
        diff = np.abs(ours.astype(int) - theirs.astype(int))
        self.steps += 1
        self.equal += not diff.any()
        self.pixels += diff.size
        self.differing += int((diff > 0).sum())
        self.max_diff = max(self.max_diff, int(diff.max()))
        self.only_last &= last or not diff.any()
        self.foretold &= all(np.array_equal(shown[kind], right[kind]) for kind in shown)


def play(env: str, changes: dict[str, Any], limit: int) -> Tally:
    """One game with random actions, at most `limit` steps; each backend's lives go on where it has lost one."""
    kwargs = SAME_START | changes
    ale, pool = make_env(env, kwargs), EnvPoolVector(EnvFactory(env, kwargs, ()), [0])
    kinds: tuple[Kind, Kind] = ("ale-py", "envpool")
    referees = {k: Referee(env, k, kwargs["fire_reset"], "terminal_on_life_loss" in changes) for k in kinds}
    tally, draw = Tally(), np.random.default_rng(0)
    shown: dict[Kind, np.ndarray] = {"ale-py": ale.reset(seed=0)[0], "envpool": pool.reset(seed=[0])[0][0].copy()}
    tally.add(shown, {k: r.reset() for k, r in referees.items()}, False)
    while tally.steps < limit and not tally.game_over:
        action = int(draw.integers(pool.env_spec.actions))
        obs, reward, terminated, _, info = ale.step(action)
        nxt, reward2, terminated2, _, final = pool.step(np.array([action]))
        told = {k: r.step(action) for k, r in referees.items()}
        overs = bool(info[GAME_OVER]), bool(terminated2[0] and final.get("final_info", {})[GAME_OVER][0])
        tally.game_over = any(overs)
        tally.rewards &= reward == reward2[0]
        tally.ends &= terminated == bool(terminated2[0]) and overs[0] == overs[1]
        tally.foretold &= [t[2:] for t in told.values()] == [(reward, terminated), (reward2[0], bool(terminated2[0]))]
        shown = {"ale-py": obs, "envpool": final["final_obs"][0] if terminated2[0] else nxt[0].copy()}
        tally.add(shown, {k: t[0] for k, t in told.items()}, tally.game_over)
        if terminated and not overs[0]:
            first = told["ale-py"][1]
            tally.foretold &= first is not None and np.array_equal(ale.reset()[0], first)
        if terminated2[0] and not overs[1]:
            first = told["envpool"][1]
            tally.foretold &= first is not None and np.array_equal(nxt[0], first)
    pool.close()
    return tally


def explanation(env: str, changes: dict[str, Any], tally: Tally) -> str:
    if tally.equal == tally.steps:
        return "no difference"
    if not tally.foretold:
        return "unexplained"
    if "fire_reset" in changes:
        return "FIRE on reset is a step of 4 frames after the no-op in ale-py and 1 frame instead of it in EnvPool"
    if changes:
        return "after a lost life ale-py plays 4 no-op frames and EnvPool as many as after a reset, here 1"
    if not tally.only_last:
        height = gym.make(env).unwrapped.ale.getScreenDims()[0]  # type: ignore[attr-defined]
        return f"EnvPool resizes the first 210 of the screen's {height} rows"
    return "last stack only: the game ended within a skip, where EnvPool shows older frames in place of those played"


def compare_frames(args: argparse.Namespace) -> list[dict[str, str]]:
    make_env("ALE/Pong-v5")  # registers the names
    envpool_backend.CROPPED = frozenset()  # compare what the library refuses, too
    games = args.games or sorted(name for name in gym.registry if name.startswith("ALE/"))
    cases: list[tuple[str, str, dict[str, Any]]] = [(game, "1 no-op frame", {}) for game in games]
    cases += [("ALE/Breakout-v5", "FIRE on reset", {"fire_reset": True})]
    cases += [("ALE/Breakout-v5", "lost lives end episodes", {"terminal_on_life_loss": True})]
    rows = []
    for env, protocol, changes in cases:
        try:
            t = play(env, changes, args.steps)
        except DeeprlError as error:
            print(error, file=sys.stderr)
            continue
        values = [env, protocol, t.steps, t.equal, f"{t.differing / t.pixels:.6f}", t.max_diff, t.rewards, t.ends]
        values += [t.foretold, explanation(env, changes, t), versions()]
        values += [f"python benchmarks/atari.py frames --steps {args.steps}"]
        rows.append({k: str(v) for k, v in zip(FRAME_COLUMNS, values, strict=True)})
        print(*values[:10], sep="  ", flush=True)
    return rows


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("what", choices=("speed", "frames"))
    flags.add_argument("--env", default="ALE/Breakout-v5", help="of speed")
    flags.add_argument("--agents", type=int, nargs="+", default=[1, 8], help="of speed")
    flags.add_argument("--rounds", type=int, default=5, help="of speed")
    flags.add_argument("--games", nargs="*", metavar="ID", help="of frames; all without it")
    flags.add_argument("--steps", type=int, default=1_000, help="of frames: the most in one game")
    flags.add_argument("--csv", type=Path, help="where rows go; without it they are only printed")
    args = flags.parse_args()
    if args.what == "speed":
        rows = measure_speed(args)
        if args.csv:
            save(args.csv, rows)
        return
    rows = compare_frames(args)
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FRAME_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
