"""Environments by name: Gymnasium ids, own modules, wrappers; and what is missing where one cannot be made."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym

from deeprl.core.objects import imported, load_object, see_working_directory
from deeprl.envs import blame
from deeprl.envs.atari import make_atari
from deeprl.envs.dmc import DMControl
from deeprl.errors import DeeprlError, nearest, one_line

MakeEnv = Callable[[], gym.Env]

# Packages whose environments come with an extra of setup.cfg, what registers them, and the id of one of them.
_NAMESPACES = {
    "ALE": ("atari", "ale_py", "ALE/Pong-v5"),
    "MinAtar": ("minatar", "minatar.gym", "MinAtar/Breakout-v1"),
    "dmc": ("dmc", "dm_control", ""),
}
_DEVICE_ONLY = {"Catch-v0", "TMaze-v0"}  # that Gymnasium does not have
_EXTRAS = {"ale_py": "atari", "opencv": "atari", "minatar": "minatar", "Box2D": "box2d", "box2d": "box2d"}
_EXTRAS["gymnasium_robotics"] = "robotics"


def _make_dmc(env: str, kwargs: dict[str, Any]) -> gym.Env:
    return DMControl(env.partition("/")[2], **kwargs)


_OWN: dict[str, Callable[[str, dict[str, Any]], gym.Env]] = {"ALE": make_atari, "dmc": _make_dmc}


def make_env(
    env: str, env_kwargs: Mapping[str, Any] | None = None, wrappers: Sequence[str] = (), render: bool = False
) -> gym.Env:
    """One environment: a Gymnasium id, or `module:Id-v0` to import `module` first; wrappers are `module:Class`.

    render: as `render_mode="rgb_array"`, in which it can be filmed.

    Raises DeeprlError for an unknown id (with the nearest names), a missing extra (with the command that installs it)
    and any error of the environment as it is made, with its package and version, and MuJoCo's where that took part.
    """
    kwargs: dict[str, Any] = copy.deepcopy(dict(env_kwargs or {}))  # an environment may write into its own
    if render:
        kwargs["render_mode"] = "rgb_array"
        if not os.environ.get("DISPLAY"):  # headless: MuJoCo renders through EGL, SDL without a screen
            os.environ.setdefault("MUJOCO_GL", "egl")
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    see_working_directory()
    _warn_once_per_text()
    if (namespace := env.partition("/")[0]) in _NAMESPACES:
        _register(namespace)
    name = imported(env)
    if name in _DEVICE_ONLY or "deeprl.envs.device.registry" in sys.modules:  # it needs torch, simulators do not
        from deeprl.envs.device.registry import for_make

        kwargs = for_make(env, kwargs)
    try:
        made = _OWN[namespace](env, kwargs) if namespace in _OWN else gym.make(env, **kwargs)
        own = _OF_MODULE.get(type(made.unwrapped).__module__)
        made = own(made) if own else made
    except DeeprlError:
        raise
    except Exception as error:  # an environment may refuse its arguments by any error
        raise DeeprlError(_refusal(env, kwargs, error)) from error
    for wrapper in wrappers:
        try:
            made = load_object(wrapper, "wrapper")(made)
        except DeeprlError:
            raise
        except Exception as error:
            raise DeeprlError(f"wrapper {wrapper}: {blame.reason(error)}") from error
        if not isinstance(made, gym.Env):
            raise DeeprlError(f"wrapper {wrapper}: gives {type(made).__name__}, not an environment")
    return made


@dataclasses.dataclass(frozen=True)
class EnvFactory:
    """Makes one environment as `make_env` does; picklable, for environments in processes of their own."""

    env: str
    env_kwargs: dict[str, Any]
    wrappers: tuple[str, ...]

    def __call__(self) -> gym.Env:
        return make_env(self.env, self.env_kwargs, self.wrappers)


def refuse_wrappers(backend: str, wrappers: Sequence[str], act_on: str = "environments of Gymnasium") -> None:
    """Raise DeeprlError where there are wrappers, which a way to step environments has no place for."""
    if wrappers:
        raise DeeprlError(f"env_backend {backend}: wrappers act on {act_on} ({', '.join(wrappers)}); use sync")


class SeededStart(gym.Wrapper):
    """Lets a MinAtar game that is reset with a seed depend on the seed alone.

    Its sticky actions hold the last action of the game before through a reset. An environment that evaluates for the
    second time would else begin otherwise than one that was made anew when the run resumed.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            base: Any = self.unwrapped
            base.game.last_action = 0
        return self.env.reset(seed=seed, options=options)


class FreshWorld(gym.Wrapper):
    """Lets an episode of BipedalWalker depend on its seed and actions alone.

    Box2D's world goes on through its resets and remembers the bodies of earlier episodes in how it solves contacts.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        base: Any = self.unwrapped
        base._destroy()
        base.world = type(base.world)()
        return self.env.reset(seed=seed, options=options)


# What the environments of other packages need; a user's own may have the same names.
_OF_MODULE = {"minatar.gym": SeededStart, "gymnasium.envs.box2d.bipedal_walker": FreshWorld}


@functools.cache
def _warn_once_per_text() -> None:
    """MuJoCo's warnings once each on stderr, instead of a MUJOCO_LOG.TXT wherever the user stands.

    Left out: the deprecation of an attribute in the models that Gymnasium ships, which no user can mend.
    """
    try:
        import mujoco
    except ImportError:
        return
    told = set()

    def warn(text: str) -> None:
        if text not in told and "settotalmass" not in text:
            print(f"MuJoCo: {text}", file=sys.stderr)
        told.add(text)

    mujoco.set_mju_user_warning(warn)


def _install_hint(text: str) -> str:
    extra = next((extra for name, extra in _EXTRAS.items() if name in text), None)
    return f"; install it with: pip install 'deeprl[{extra}]'" if extra else ""


@functools.cache  # MinAtar warns of every registration after the first
def _register(namespace: str) -> None:
    """Import the package behind a name space such as ALE/. Raises DeeprlError with the command that installs it."""
    extra, package, known = _NAMESPACES[namespace]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        hint = f"install it with: pip install 'deeprl[{extra}]'"
        raise DeeprlError(f"the environments of {namespace}/ are not installed; {hint}") from error
    if known and known not in gym.registry:  # once: a second time warns of each name
        getattr(module, "register_envs", lambda: None)()


def _refusal(env: str, kwargs: Mapping[str, Any], error: Exception) -> str:
    """Why an environment cannot be made, in one line."""
    if isinstance(error, gym.error.DependencyNotInstalled):
        return f"{env}: {one_line(error)}{_install_hint(str(error))}"
    malformed = isinstance(error, gym.error.Error) and env.rpartition(":")[2] not in gym.registry
    if malformed or isinstance(error, gym.error.UnregisteredEnv):
        return f"unknown environment {env!r}{nearest(env, gym.registry) or f' ({one_line(error)})'}"
    if isinstance(error, ModuleNotFoundError):
        what = f"cannot import {error.name!r}" if error.name else one_line(error)
        return f"{env}: {what}{_install_hint(str(error))}"
    if "render_mode" in kwargs and "unexpected keyword argument 'render_mode'" in str(error):
        return f"{env} cannot be drawn: its constructor takes no render_mode"
    arguments = f" with arguments {kwargs}" if kwargs else ""
    return f"{env}{arguments}{blame.packages_of(env, error)}: {blame.reason(error)}"
