"""What the return of an episode can be, where rewards and length of an environment are bounded by its own rules.

Of Gymnasium's own environments, read off their reward and time limit as registered; of the DeepMind Control Suite,
whose episodes are 1,000 simulator steps with rewards in [0, 1]; of MinAtar, whose rewards are 0 or 1. Other
environments, arguments and wrappers may mean anything: nothing is known of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deeprl.envs.units import repeats

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)

_BY_ID: dict[str, Bounds] = {
    "CartPole-v0": (0.0, 200.0),
    "CartPole-v1": (0.0, 500.0),
    "Acrobot-v1": (-500.0, 0.0),
    "MountainCar-v0": (-200.0, 0.0),
    "MountainCarContinuous-v0": (-0.1 * 999, 100.0),
    "Pendulum-v1": (-200.0 * (math.pi**2 + 0.1 * 8.0**2 + 0.001 * 2.0**2), 0.0),
    **{f"InvertedPendulum-v{version}": (0.0, 1000.0) for version in (2, 4, 5)},
    **{f"{name}-v{version}": (-math.inf, 0.0) for name in ("Reacher", "Pusher") for version in (2, 4, 5)},
    "Catch-v0": (-1.0, 1.0),
}
_HARMLESS = {"render_mode", "action_repeat", "width", "height", "camera", "camera_id", "camera_name"}


def return_bounds(env: str, env_kwargs: Mapping[str, Any] | None = None, wrappers: Sequence[str] = ()) -> Bounds:
    """The least and the greatest return of an episode; infinite where nothing is known.

    env: an id. wrappers: `module:Class` each; those that repeat actions change nothing here.
    """
    if set(env_kwargs or {}) - _HARMLESS or not all(repeats(name) for name in wrappers):
        return UNBOUNDED
    if env.startswith("dmc/"):
        return UNBOUNDED if env.startswith("dmc/lqr-") else (0.0, 1000.0)
    if env.startswith("MinAtar/"):
        return 0.0, math.inf
    return _BY_ID.get(env, UNBOUNDED)
