"""The DeepMind Control Suite (Tassa et al. 2018, arXiv 1801.00690) as Gymnasium environments: `dmc/walker-run`.

Names are `dmc/DOMAIN-TASK`, as dm_control's suite has them (`dmc/ball_in_cup-catch`). An episode of 1,000 simulator
steps never terminates: its end is a time limit, after which values bootstrap. Where a task does end an episode itself
(it sets the discount to 0), that is a termination. Rewards are in [0, 1] for each simulator step, but for lqr's, which
are 1 - cost.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import gymnasium as gym
import numpy as np

from deeprl.errors import DeeprlError, nearest


class DMControl(gym.Env):
    """One task of the suite.

    Observations are the parts of the task's own observation, flattened and joined in the order in which dm_control
    lists them (walker: orientations, height, velocity; cheetah: position, velocity), [O] float64. Actions [A] in the
    units of the task. The reward of a step is the sum over its `action_repeat` simulator steps; an episode that ends
    between them ends the step. `reset(seed=...)` makes the episode and those after it a function of the seed alone.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 40}  # noqa: RUF012

    def __init__(
        self, name: str, action_repeat: int = 1, render_mode: str | None = None, size: int = 240, camera: int = 0
    ):
        if type(action_repeat) is not int or action_repeat < 1:
            raise ValueError(f"action_repeat must be a positive whole number, not {action_repeat!r}")
        self.deeprl_action_repeat = action_repeat  # a name of our own: other environments may mean something else
        self.render_mode, self._size, self._camera = render_mode, size, camera
        suite = _suite()
        domain, _, task = name.partition("-")
        if (domain, task) not in suite.ALL_TASKS:
            known = [f"dmc/{d}-{t}" for d, t in suite.ALL_TASKS]
            raise DeeprlError(f"unknown environment 'dmc/{name}'{nearest(f'dmc/{name}', known)}")
        # lqr draws its model when it is made: the same for all. The task's own generator follows `reset(seed=...)`.
        # It alone has no time limit: 1,000 steps of 0.03 s, as everywhere.
        limit = {"time_limit": 30.0} if domain == "lqr" else {}
        self._env = suite.load(domain, task, task_kwargs={"random": 0, **limit})
        self._env.task._random = np.random.RandomState()
        parts, actions = self._env.observation_spec(), self._env.action_spec()
        dim = sum(int(np.prod(part.shape)) for part in parts.values())
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (dim,), np.float64)
        low, high = (np.broadcast_to(x, actions.shape).astype(np.float32) for x in (actions.minimum, actions.maximum))
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
        control_s = self._env.control_timestep()
        self.metadata = self.metadata | {"render_fps": round(1.0 / (control_s * action_repeat))}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._env.task._random = np.random.RandomState(seed)
        return _flat(self._env.reset().observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 0.0
        for _ in range(self.deeprl_action_repeat):
            now = self._env.step(action)
            reward += float(now.reward or 0.0)
            if now.last():
                break
        terminated = bool(now.last() and now.discount == 0.0)
        return _flat(now.observation), reward, terminated, bool(now.last()) and not terminated, {}

    def render(self) -> Any:
        return self._env.physics.render(self._size, self._size, self._camera)

    def close(self) -> None:
        self._env.close()


def _flat(observation: Any) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in observation.values()], dtype=np.float64)


@functools.cache
def _suite() -> Any:
    """dm_control's suite, made to work with the installed version of MuJoCo."""
    if not os.environ.get("DISPLAY"):  # otherwise its choice of a renderer warns that there is no screen
        os.environ.setdefault("MUJOCO_GL", "egl")
    import mujoco

    warn = mujoco.get_mju_user_warning()
    from dm_control.mujoco.wrapper.mjbindings import sizes

    # dm_control lists the arrays of one version of MuJoCo and fails on any that another version has renamed. None of
    # those that have changed so far (of deformable bodies) is used by the suite.
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    for struct, example in (("mjmodel", model), ("mjdata", mujoco.MjData(model))):
        arrays = sizes.array_sizes[struct]
        for name in [name for name in arrays if not hasattr(example, name)]:
            del arrays[name]
    from dm_control import suite

    mujoco.set_mju_user_warning(warn)  # which importing dm_control has replaced by its own
    return suite
