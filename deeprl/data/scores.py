"""Normalised scores: 0 for a random policy, 100 for an expert, from the reference returns that D4RL published.

The figures are those of `d4rl/infos.py` in Farama-Foundation/D4RL (Apache-2.0); they are the same for all versions of a
task. They were measured in Gym's v2 environments with MuJoCo 2.1 (Adroit: v0). Gymnasium's differ a little in physics
and reward, and scores compare with published tables to a point or two, not exactly. Minari datasets carry references of
their own, which win where policies are evaluated in the dataset's own environment: such scores are not to be compared
with D4RL's tables. There is no score anywhere else: not with another time limit, other rewards, a wrapper of the
user's, or an environment of the user's that has the name of one of Gymnasium's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym

_HALFCHEETAH = (-280.178953, 12135.0)
_HOPPER = (-20.272305, 3234.3)
_WALKER2D = (1.629008, 4592.3)
_ANT = (-325.6, 3879.7)
_PEN = (96.262799, 3076.8331017826877)
_HAMMER = (-274.856578, 12794.134825156867)
_DOOR = (-56.512833, 2880.5693087298737)
_RELOCATE = (-6.425911, 4233.877797728884)


class _Task(NamedTuple):
    """Where references were measured: returns of a random and an expert policy, and steps of the time limit.

    wrappers: what the environments of today are, or may be, wrapped in to be this task. registered: their time limit.
    """

    returns: tuple[float, float]
    steps: int
    wrappers: tuple[tuple[str, ...], ...] = ((),)
    registered: int = 0


_ENVS = {
    "HalfCheetah": _Task(_HALFCHEETAH, 1000, registered=1000),
    "Hopper": _Task(_HOPPER, 1000, registered=1000),
    "Walker2d": _Task(_WALKER2D, 1000, registered=1000),
    "Ant": _Task(_ANT, 1000, ((), ("deeprl.data.d4rl:NoContactForces",)), registered=1000),
    "AdroitHandPen": _Task(_PEN, 100, (("deeprl.data.d4rl:DroppedPenEnds",),), registered=200),
    "AdroitHandHammer": _Task(_HAMMER, 200, registered=200),
    "AdroitHandDoor": _Task(_DOOR, 200, registered=200),
    "AdroitHandRelocate": _Task(_RELOCATE, 200, registered=200),
}
# Arguments that change neither world nor rewards, and Adroit's rewards as they are without any.
_HARMLESS = {"render_mode", "width", "height", "camera_id", "camera_name", "default_camera_config"}
_DENSE = {"reward_type": "dense"}
_KINDS = "(random|expert|(medium|full)(-(replay|expert))?)"
# D4RL's names of datasets, without their version. The mazes and kitchens of Gymnasium-Robotics have other goals, limits
# and rewards, also by their arguments: only the returns of the data themselves are D4RL's.
_DATASETS = (
    (rf"halfcheetah-{_KINDS}", _HALFCHEETAH),
    (rf"hopper-{_KINDS}", _HOPPER),
    (rf"walker2d-{_KINDS}", _WALKER2D),
    (rf"ant-{_KINDS}", _ANT),
    (r"pen-(human|cloned|expert)", _PEN),
    (r"hammer-(human|cloned|expert)", _HAMMER),
    (r"door-(human|cloned|expert)", _DOOR),
    (r"relocate-(human|cloned|expert)", _RELOCATE),
    (r"antmaze-(umaze|medium|large)(-(play|diverse))?", (0.0, 1.0)),
    (r"kitchen-(complete|partial|mixed)", (0.0, 4.0)),
    (r"maze2d-open", (0.01, 20.66)),
    (r"maze2d-umaze", (23.85, 161.86)),
    (r"maze2d-medium", (13.13, 277.39)),
    (r"maze2d-large", (6.7, 273.99)),
    (r"maze2d-open-dense", (11.17817, 27.166538620695782)),
    (r"maze2d-umaze-dense", (68.537689, 193.66285642381482)),
    (r"maze2d-medium-dense", (44.264742, 297.4552547777125)),
    (r"maze2d-large-dense", (30.569041, 303.4857382709002)),
)


def score_range(
    env: str, env_kwargs: Mapping[str, Any] | None = None, wrappers: Sequence[str] = (), dataset_name: str = ""
) -> tuple[float, ...]:
    """Returns of a random and of an expert policy; empty where D4RL gives none for this very task.

    env: an id such as `Hopper-v4`, of any version, with or without `gymnasium_robotics:`; it counts if Gymnasium or
    Gymnasium-Robotics registered it, and not for a module of the user's. env_kwargs: none but those that draw pictures,
    that are Adroit's usual ones, or name the time limit of the references. wrappers: none but those of
    `deeprl.data.d4rl`, which the pen needs. dataset_name: such as `antmaze-umaze-v2`; it counts where no environment is
    named.
    """
    if not env:
        name = re.sub(r"-v\d+$", "", dataset_name).replace("_", "-").replace("-sparse", "")
        return next((pair for pattern, pair in _DATASETS if re.fullmatch(pattern, name)), ())
    found = re.fullmatch(r"(?:gymnasium_robotics:)?((\w+)-v\d+)", env)
    task = _ENVS.get(found[2]) if found else None
    if found is None or task is None or tuple(wrappers) not in task.wrappers:
        return ()
    registered = gym.registry.get(found[1])  # None: its package is not imported, or not installed here
    own = _DENSE if registered is None else registered.kwargs
    steps = task.registered if registered is None else registered.max_episode_steps or task.registered
    given = {"max_episode_steps": steps, **own, **(env_kwargs or {})}
    other = [k for k, v in given.items() if k not in _HARMLESS and (k, v) not in _DENSE.items()]
    unchanged = other == ["max_episode_steps"] and given["max_episode_steps"] == task.steps
    return task.returns if unchanged and (registered is None or _is_theirs(registered)) else ()


def _is_theirs(registered: Any) -> bool:
    """Whether Gymnasium or Gymnasium-Robotics made what is registered under an id, and not the user."""
    entry = registered.entry_point
    where = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return where.startswith(("gymnasium.", "gymnasium_robotics.")) and not registered.additional_wrappers


def normalized_score(returns: Any, score_range: Sequence[float]) -> Any:
    """100 (return - lowest) / (highest - lowest), elementwise, of a number, an array or a tensor."""
    low, high = score_range
    return 100.0 * (returns - low) / (high - low)


def is_of_d4rl(returns: Sequence[float]) -> bool:
    """Whether a pair of returns is one of D4RL's references."""
    return tuple(returns) in {task.returns for task in _ENVS.values()} | {pair for _, pair in _DATASETS}
