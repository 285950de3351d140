"""What a step is. Everything that shows or compares steps asks `unit_of`, and names the unit that it gets.

Settings and the files of a run count what an agent does: its decisions, or updates where it learns from a dataset.
Results of different runs are compared by simulator steps: an action that is repeated is as many of them. Atari games
are the exception, where decisions are counted as well (four frames each by default; published curves count frames,
steps or decisions, and say which).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Unit(NamedTuple):
    """What results count, how many of it a step of a run is, and what a run itself calls its steps."""

    name: str
    factor: int = 1
    counted: str = "steps"

    def told(self, step: int) -> str:
        """A number of the run's own steps as results show it, such as `20,000 simulator steps`."""
        return f"{step * self.factor:,} {self.name}"


def unit_of(env: str, action_repeat: int, offline: bool) -> Unit:
    """The unit of a run. env: its id. action_repeat: as in `EnvSpec`. offline: it learns from a dataset alone."""
    if offline:
        return Unit("gradient steps", counted="gradient steps")
    if action_repeat < 1 or env.rpartition(":")[2].startswith("ALE/"):
        return Unit("decisions", counted="decisions")
    return Unit("simulator steps", action_repeat, "decisions" if action_repeat > 1 else "steps")


def recorded_unit(info: Mapping[str, Any]) -> Unit:
    """The unit of a run, from its `config.json`."""
    config = info["config"]
    offline = bool(config.get("dataset")) and "envs_per_agent" not in config
    return unit_of(str(config.get("env", "")), int(info.get("spec", {}).get("action_repeat", 1)), offline)


def repeats(wrapper: str) -> bool:
    """Whether a wrapper, `module:Class`, is one of `deeprl.envs.repeat`, which hold actions."""
    return wrapper.startswith("deeprl.envs.repeat:Repeat")
