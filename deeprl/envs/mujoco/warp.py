"""MuJoCo tasks of Gymnasium in MuJoCo Warp, thousands at once on the device of the agents; extra `deeprl[warp]`.

Its MuJoCo computes in float32 with solvers of its own, so that episodes part from Gymnasium's after some steps; agents
are evaluated in Gymnasium's. Physics is not a function of tensors, so that acting, steps and updates are calls of their
own here, each compiled; nothing is read from the device but where the run logs.

What MuJoCo does and this does not: put an environment whose numbers are no longer finite back to where an episode
begins, within an episode. Here such an episode is cut before that step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deeprl.core import rng
from deeprl.core.population import Execution, over_agents
from deeprl.core.spec import Transition
from deeprl.core.tree import flatten, load_flat
from deeprl.envs.device.base import to_bounds
from deeprl.envs.device.population import mean_episodes
from deeprl.envs.make import EnvFactory, refuse_wrappers
from deeprl.envs.mujoco.rules import known, rules_of, time_limit
from deeprl.envs.spaces import env_spec
from deeprl.envs.vector import Episode
from deeprl.errors import DeeprlError

CONTACTS, CONSTRAINTS = 64, 256  # of one environment at once at most; the tasks here have a quarter of it


class Worlds(NamedTuple):
    """The N environments of one agent in play: their physics, what the agent sees, what episodes have brought so far.

    x: positions before the step; steps, ret: of the episodes in progress; ended: see `device.population.Going`.
    """

    qpos: Float[Tensor, "N nq"]
    qvel: Float[Tensor, "N nv"]
    warm: Float[Tensor, "N nv"]
    ctrl: Float[Tensor, "N A"]
    x: Float[Tensor, " N"]
    obs: Float[Tensor, "N O"]
    is_first: Bool[Tensor, " N"]
    steps: Int[Tensor, " N"]
    ret: Float[Tensor, " N"]
    ended: Float[Tensor, "3"]


class WarpEnvs:
    """S x N environments on the device, with the face of `device.population.DeviceEnvs`, stepped from outside of it.

    Environment e of the agent with seed s begins its episodes from (s, e) and the number of the step alone. Raises
    DeeprlError for tasks without rules and for wrappers, and where more touches at once than there is room for.
    """

    restorable = "captured"

    def __init__(self, make: EnvFactory, seeds: Sequence[int], envs_per_agent: int, execution: Execution):
        name = known(make.env, "warp")
        refuse_wrappers("warp", make.wrappers)
        self._wp, self._mjw = _packages()
        env: Any = make()
        self._base = env.unwrapped
        self.spec, self.rules, limit = env_spec(env), rules_of(env, name), time_limit(env)
        self.limit = 0 if limit is None else limit._max_episode_steps
        self.agents, self.width, self._steps = len(seeds), envs_per_agent, 0
        self._keys, self._places = (
            rng.Streams(seeds, execution.device),
            torch.arange(envs_per_agent, device=execution.device),
        )
        self._wp_device = self._wp.device_from_torch(torch.device(execution.device))
        begun = self._base.init_qpos, self._base.init_qvel
        self._begun = [torch.tensor(x).float().to(execution.device) for x in begun]
        self.worlds = self._made(execution.device)
        self._act = over_agents(self._acted, execution, donate=True)
        self._judge = over_agents(self._judged, execution, donate=True)
        self._graph: Any = None

    def _made(self, device: Any) -> Worlds:
        """All environments at the beginning of an episode."""
        wp, shape = self._wp, (self.agents, self.width)
        with wp.ScopedDevice(self._wp_device):
            self._model = self._mjw.put_model(self._base.model)
            self._model.opt.deterministic = self._mjw.DeterminismType.ALL
            self._model.opt.warn_overflow = 0  # it is looked at below
            room = {"nworld": self.agents * self.width, "nconmax": CONTACTS, "njmax": CONSTRAINTS}
            self._data = self._mjw.put_data(self._base.model, self._base.data, **room)
        shared = self._data.qpos, self._data.qvel, self._data.qacc_warmstart, self._data.ctrl
        qpos, qvel, warm, ctrl = (wp.to_torch(array).unflatten(0, shape) for array in shared)
        drawn = [self._fresh(key) for key in self._keys("env", 0).unbind()]
        for into, parts in zip((qpos, qvel), zip(*drawn, strict=True), strict=True):
            into.copy_(torch.stack(parts))
        obs = torch.stack([self._seen(*agent) for agent in zip(qpos, qvel, strict=True)])
        zeros = torch.zeros(shape, device=device)
        going = zeros, obs, zeros == 0, zeros.long(), zeros.clone(), zeros.new_zeros(len(zeros), 3)
        return Worlds(qpos, qvel, warm, ctrl, *going)

    def _fresh(self, key: rng.Key) -> tuple[Tensor, Tensor]:
        """Positions and velocities of an agent's environments as their episodes begin."""

        def one(place: Tensor) -> tuple[Tensor, Tensor]:
            (qpos, qvel), scale = self._begun, self.rules.noise
            first, second = rng.split(rng.fold_in(key, place), 2)
            fast = rng.normal(second, qvel.shape) * scale
            if not self.rules.normal:
                fast = rng.uniform(second, qvel.shape, -scale, scale)
            return qpos + rng.uniform(first, qpos.shape, -scale, scale), qvel + fast

        return torch.vmap(one)(self._places)

    def _seen(self, qpos: Tensor, qvel: Tensor) -> Tensor:
        obs = qpos.new_empty((self.width, *self.spec.obs_shape))
        self.rules.observe(qpos, qvel, obs)
        return obs

    def _acted(self, worlds: Worlds, action: Tensor) -> tuple[Worlds]:
        """What the motors are told. One agent's."""
        ctrl = to_bounds(self.spec, action.nan_to_num(0.0))
        return (worlds._replace(ctrl=ctrl, x=worlds.qpos[:, 0].clone()),)

    def _judged(self, worlds: Worlds, action: Tensor, key: rng.Key) -> tuple[Worlds, Transition]:
        """What a step came to, after whose episodes others begin at once. One agent's."""
        broken = ~(worlds.qpos.isfinite().all(-1) & worlds.qvel.isfinite().all(-1))
        reward, terminated = self.rules.judge(worlds.x, worlds.qpos, worlds.qvel, worlds.ctrl)
        reward, terminated = torch.where(broken, 0.0, reward), terminated & ~broken
        next_obs = torch.where(broken[:, None], worlds.obs, self._seen(worlds.qpos, worlds.qvel))
        steps, ret = worlds.steps + 1, worlds.ret + reward
        truncated = broken | (steps >= self.limit) if self.limit else broken
        over = terminated | truncated
        qpos, qvel = (torch.where(over[:, None], *pair) for pair in zip(self._fresh(key), worlds[:2], strict=True))
        some = over.to(ret.dtype)
        new = worlds._replace(
            qpos=qpos,
            qvel=qvel,
            warm=torch.where(over[:, None], 0.0, worlds.warm),
            obs=torch.where(over[:, None], self._seen(qpos, qvel), next_obs),
            is_first=over,
            steps=torch.where(over, 0, steps),
            ret=torch.where(over, 0.0, ret),
            ended=worlds.ended + torch.stack([some.sum(), (ret * some).sum(), (steps * some).sum()]),
        )
        return new, Transition(worlds.obs.clone(), action, reward, terminated, truncated, next_obs)

    def _simulate(self) -> None:
        """The physics of a step, recorded once on a GPU."""
        with self._wp.ScopedDevice(self._wp_device):
            if self._graph is not None:
                self._wp.capture_launch(self._graph)
                return
            self._frames()
            if self._wp_device.is_cuda:  # from the next step on; this one has loaded what it needs
                with self._wp.ScopedCapture() as captured:
                    self._frames()
                self._graph = captured.graph

    def _frames(self) -> None:
        for _ in range(self._base.frame_skip):
            self._mjw.step(self._model, self._data)

    @property
    def obs(self) -> Float[Tensor, "S N O"]:
        """What the agents see."""
        return self.worlds.obs

    @property
    def is_first(self) -> Bool[Tensor, "S N"]:
        """Where an episode begins."""
        return self.worlds.is_first

    def step(self, action: Float[Tensor, "S N A"]) -> Transition:
        """One step of every environment. action: in [-1, 1]; NaN becomes 0. Moves `obs` on."""
        self._steps += 1
        self._act(self.worlds, action)
        self._simulate()
        return self._judge(self.worlds, action, self._keys("env", self._steps))[0]

    def pop_episodes(self, keep: bool = False) -> list[Episode]:
        """Of each agent whose episodes have ended since the last call as many with their mean return and length.

        keep: the next call tells of them again.
        """
        kinds = self._mjw.OverflowType
        lost = int(kinds.NEFC | kinds.NJMAX_NNZ | kinds.BROADPHASE | kinds.NARROWPHASE | kinds.CCD)
        if bool((self._wp.to_torch(self._data.overflow) & lost).any()):
            raise DeeprlError(f"env_backend warp: more than {CONTACTS} contacts or {CONSTRAINTS} constraints at once")
        return mean_episodes(self.worlds.ended.clone() if keep else self.worlds.ended)

    def pop_faults(self) -> dict[int, str]:
        """None: a network whose actions are not finite shows in the losses."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {"steps": self._steps, "worlds": flatten(self.worlds)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> int:
        """Restore what `state_dict` gave. Returns 0: no environment has to begin anew."""
        self._steps = int(saved["steps"])
        load_flat(self.worlds, saved["worlds"])
        return 0

    def close(self) -> None:
        """End Gymnasium's environment, whose model and settings these have."""
        self._base.close()


def _packages() -> tuple[Any, Any]:
    """Warp and MuJoCo Warp. Raises DeeprlError with the command that installs them."""
    try:
        import mujoco_warp
        import warp
    except ImportError as error:
        raise DeeprlError("env_backend: install MuJoCo Warp with: pip install 'deeprl[warp]'") from error
    warp.config.log_level = logging.ERROR
    warp.init()
    return warp, mujoco_warp
