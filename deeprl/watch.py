"""Films an episode of a trained agent, without a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deeprl.api import MakeNet, Policy, load
from deeprl.directory import evaluated_in, read_about
from deeprl.envs.atari import GAME_OVER
from deeprl.envs.checked import Checked, env_name
from deeprl.envs.make import make_env
from deeprl.envs.population import env_seeds
from deeprl.errors import DeeprlError
from deeprl.progress import Progress

_GIF_FPS = 25  # browsers play faster GIFs slowly
_SMALLEST_SIDE = 160  # pixels of a film, at least about so many


def watch(
    run_dir: str | Path,
    seed: int | None = None,
    member: int | None = None,
    out: str | None = None,
    max_steps: int = 1000,
    step: int | None = None,
    net: MakeNet = None,
) -> Path:
    """Write one episode without exploration to `out` (.gif or .mp4; default RUN_DIR/episode_seed_N.gif).

    The other arguments choose the agent, as those of `deeprl.load` do. Raises DeeprlError where the environment cannot
    be drawn or `out` has another ending.
    """
    directory = Path(run_dir)
    where = evaluated_in(read_about(directory))
    policy = load(directory, seed, member, net, step=step)
    moment = "" if step is None else f"_step_{step}"
    path = Path(out) if out else directory / f"episode_seed_{policy.seed}{moment}.gif"
    if path.suffix not in (".gif", ".mp4"):
        raise DeeprlError(f"{path}: films are .gif or .mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.absolute()  # the environment may change the working directory
    env = Checked(make_env(where.env, where.env_kwargs, where.wrappers, render=True))
    frames, episode_return = _film(env, policy, max_steps)
    fps = float(env.metadata.get("render_fps") or 30)
    env.close()
    _write(place, frames, fps)
    print(f"{path}: {len(frames)} frames, return {episode_return:,.1f}", flush=True)
    return path


def _film(env: Any, policy: Policy, max_steps: int) -> tuple[list[np.ndarray], float]:
    obs, _ = env.reset(seed=env_seeds(policy.seed, "eval", 1)[0])
    frames, total, ended = [_frame(env)], 0.0, False
    progress = Progress("filming", max_steps)
    while not ended and len(frames) <= max_steps:
        obs, reward, terminated, truncated, info = env.step(policy(obs))
        total, ended = total + float(reward), truncated or (terminated and info.get(GAME_OVER, True))
        if terminated and not ended:  # a life was lost
            obs, _ = env.reset()
        frames.append(_frame(env))
        progress.update(len(frames))
    progress.close()
    return frames, total


def _frame(env: Any) -> np.ndarray:
    try:
        frame = env.render()
    except Exception as error:  # OpenGL back ends fail in ways of their own
        raise DeeprlError(
            f"cannot draw {env_name(env)}: {error}; MuJoCo needs EGL or OSMesa (MUJOCO_GL=egl or osmesa)"
        ) from error
    if not isinstance(frame, np.ndarray):
        raise DeeprlError(f"{type(env.unwrapped).__name__} has no rgb_array rendering")
    if frame.dtype.kind == "f":  # MinAtar draws in 0 .. 1, one pixel for each cell
        frame = (255.0 * frame).round().astype(np.uint8)
    larger = max(1, _SMALLEST_SIDE // min(frame.shape[:2]))
    return frame.repeat(larger, axis=0).repeat(larger, axis=1)


def _write(path: Path, frames: list[np.ndarray], fps: float) -> None:
    if path.suffix == ".mp4":
        try:
            import imageio
            import imageio_ffmpeg  # noqa: F401
        except ImportError as error:
            raise DeeprlError("MP4 needs a codec; install it with: pip install 'deeprl[video]'") from error
        imageio.mimwrite(path, list[Any](frames), fps=fps, macro_block_size=2)
        return
    from PIL import Image

    stride = max(1, round(fps / _GIF_FPS))
    pictures = [Image.fromarray(f).quantize(64) for f in frames[::stride]]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 * stride / fps, loop=0)
