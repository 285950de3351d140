"""How many files one enters to follow a setting of SAC, and a transition, to the gradient.

    python benchmarks/rooms.py [SETTING]

Traced in a tiny run, not compiled: compiling adds `core/compiled.py` and `core/inductor.py` to both.
A number that nothing else has, the mark, is given to the setting on the command line, or is the reward of the first
step. It has arrived where it is by itself the argument of a call in an update (the setting), or where the first loss
is computed (the transition). A call of a function in `deeprl/` is on the way if

- it is under way when the mark arrives,
- or its caller is on the way and it hands the mark on: it is in what the call returns, or in a place of its arguments
  (`self` too) where it was not before. Places are items, fields and attributes, not closures and modules.

So what has only to pass a whole config on counts; what looks at it for something else, such as a directory's name, does
not. The way is read from the first call: into a call, and back to its caller where that makes another one on the way.
It begins in the command `train`, which `commands/main.py` calls by its name, and of a transition in SAC's `train`. A
return is a step into a file that was seen before.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch._C import _functorch as functorch

import deeprl
from deeprl.commands.main import main as deeprl_command
from deeprl.online.sac import Config

PACKAGE = Path(deeprl.__file__).parent
MARK = 0.00317
RUN = ["train", "sac", "--env", "Marked-v0", "--steps", "9", "--learning-starts", "7", "--eval-episodes", "0"]
RUN += ["--hidden", "4", "4", "--compile", "off", "--no-tensorboard"]


class Marked(gym.Env):
    """An environment whose first reward is `first`; the others are 0. It can be captured, as MuJoCo's are."""

    observation_space, action_space = gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Box(-1.0, 1.0, (1,))
    first = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.reward = self.first
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward, self.reward = self.reward, 0.0
        return np.zeros(2, np.float32), reward, False, False, {}

    def state_dict(self) -> dict[str, float]:
        return {"reward": self.reward}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.reward = state["reward"]


def is_mark(value: Any) -> bool:
    """Whether the mark is a number, or among those of an array or a tensor, also within `torch.vmap` and `grad`."""
    if isinstance(value, torch.Tensor):
        while functorch.is_functorch_wrapped_tensor(value):
            value = functorch.get_unwrapped(value)
        real = value.is_floating_point() and not value.is_meta
        return real and bool((value == torch.tensor(MARK, dtype=value.dtype)).any())
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "f" and bool((value == value.dtype.type(MARK)).any())
    return isinstance(value, float) and value == MARK


def places(value: Any, seen: set[int], at: str = "") -> set[str]:
    """The paths in a value at which the mark is."""
    if id(value) in seen or isinstance(value, str | type | torch.nn.Module):
        return set()
    seen.add(id(value))
    if is_mark(value):
        return {at}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    elif not isinstance(value, dict):
        value = getattr(value, "__dict__", {}) if type(value).__module__.startswith("deeprl.") else {}
    return {place for name, part in value.items() for place in places(part, seen, f"{at}.{name}")}


@dataclass(eq=False)
class Call:
    """A call of a function in `deeprl/`. given: its arguments, each with the places of the mark in it."""

    file: str
    name: str
    given: list[tuple[Any, set[str]]] = field(default_factory=list)
    below: list[Call] = field(default_factory=list)
    on_way: bool = False

    def way(self) -> list[tuple[str, str]]:
        """(file, function) in the order of reading."""
        found, below = [(self.file, self.name)], [call for call in self.below if call.on_way]
        for call in below:
            found += call.way() + [(self.file, self.name)] * (call is not below[-1])
        return found


class Tracer:
    """The calls of a run until the mark arrives. alone: as the argument of a call in an update, else with a loss."""

    def __init__(self, alone: bool):
        self.alone, self.stack, self.arrived = alone, [Call("", "")], False

    def __call__(self, frame: FrameType, event: str, result: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)) or self.arrived:
            return
        if event == "return":
            call = self.stack.pop()
            call.on_way = any(places(value, set()) - before for value, before in [(result, set[str]()), *call.given])
            call.given = []
            return
        given = [(value, places(value, set())) for value in frame.f_locals.values()]
        self.stack[-1].below.append(Call(str(Path(code.co_filename).relative_to(PACKAGE)), code.co_name, given))
        self.stack.append(self.stack[-1].below[-1])
        in_update = any(call.name == "update" for call in self.stack[:-1])
        if in_update and (any("" in where for _, where in given) if self.alone else code.co_name.endswith("_loss")):
            self.arrived = True
            for call in self.stack:
                call.on_way = True


def trace(alone: bool, *words: str) -> list[tuple[str, str]]:
    """The way of the mark in a run."""
    tracer = Tracer(alone)
    root = tracer.stack[0]
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(tracer)
        deeprl_command([*RUN, *words, "--out", folder])
        sys.setprofile(None)
    if not tracer.arrived:
        raise SystemExit("the mark has not arrived in an update")
    while root.name != ("run" if alone else "train"):
        root = next(call for call in root.below if call.on_way)
    return root.way()


def show(title: str, way: list[tuple[str, str]]) -> None:
    """Print a way, a line for each stay in a file, and its numbers."""
    stays: list[tuple[str, list[str]]] = []
    for file, name in way:
        if not stays or stays[-1][0] != file:
            stays.append((file, []))
        stays[-1][1].append(name)
    files = list(dict.fromkeys(file for file, _ in stays))
    print(f"{title}: {len(files)} files, {len(stays) - len(files)} returns")
    for number, (file, names) in enumerate(stays):
        again = "again" if file in [other for other, _ in stays[:number]] else ""
        print(f"  {file:24} {again:6} {' '.join(dict.fromkeys(names))}")


def main() -> None:
    setting = sys.argv[1] if len(sys.argv) > 1 else "tau"
    if not isinstance(getattr(Config(), setting, None), float):
        raise SystemExit(f"{setting}: not a setting of SAC that is a number")
    gym.register("Marked-v0", entry_point=lambda **_: Marked())
    show(f"{setting}, from its flag to the gradient", trace(True, "--" + setting.replace("_", "-"), str(MARK)))
    Marked.first = MARK
    show("a transition, from the environment to the gradient", trace(False))


if __name__ == "__main__":
    main()
