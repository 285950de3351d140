"""Normalised scores: 0 for a random policy, 100 for an expert, from the reference returns that D4RL published.

The figures are those of `d4rl/infos.py` in Farama-Foundation/D4RL (Apache-2.0); they are the same for all versions of a
task. They were measured in Gym's v2 environments with MuJoCo 2.1 (Adroit: v0). Gymnasium's differ a little in physics
and reward, and scores compare with published tables to a point or two, not exactly. Minari datasets carry references of
their own, which win: such scores are not to be compared with D4RL's tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_HALFCHEETAH = (-280.178953, 12135.0)
_HOPPER = (-20.272305, 3234.3)
_WALKER2D = (1.629008, 4592.3)
_ANT = (-325.6, 3879.7)
_PEN = (96.262799, 3076.8331017826877)
_HAMMER = (-274.856578, 12794.134825156867)
_DOOR = (-56.512833, 2880.5693087298737)
_RELOCATE = (-6.425911, 4233.877797728884)

_ENVS = {
    "HalfCheetah": _HALFCHEETAH,
    "Hopper": _HOPPER,
    "Walker2d": _WALKER2D,
    "Ant": _ANT,
    "AdroitHandHammer": _HAMMER,
    "AdroitHandDoor": _DOOR,
    "AdroitHandRelocate": _RELOCATE,
}
_KINDS = "(random|expert|(medium|full)(-(replay|expert))?)"
# D4RL's names of datasets, without their version. The mazes and kitchens of Gymnasium-Robotics have other goals, limits
# and rewards, also by their arguments, and its pen goes on for 200 steps instead of 100: only the name of a dataset
# tells that its returns are D4RL's.
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


def score_range(env: str, dataset_name: str = "") -> tuple[float, ...]:
    """Returns of a random and of an expert policy; empty where D4RL gives none.

    env: an id such as `Hopper-v4`, of any version, with or without `module:`. dataset_name: such as
    `antmaze-umaze-v2`; it counts where the environment's id alone does not tell.
    """
    found = re.fullmatch(r"(?:\w[\w.]*:)?(\w+)-v\d+", env)
    if found and found[1] in _ENVS:
        return _ENVS[found[1]]
    name = re.sub(r"-v\d+$", "", dataset_name).replace("_", "-").replace("-sparse", "")
    return next((pair for pattern, pair in _DATASETS if re.fullmatch(pattern, name)), ())


def normalized(returns: Any, score_range: Sequence[float]) -> Any:
    """100 (return - lowest) / (highest - lowest), elementwise, of a number, an array or a tensor."""
    low, high = score_range
    return 100.0 * (returns - low) / (high - low)
