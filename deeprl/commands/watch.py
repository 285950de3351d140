"""Films an episode of a trained agent, without a screen."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deeprl.api import Policy, load
from deeprl.commands.frames import Frames
from deeprl.envs.atari import GAME_OVER, GAME_RETURN
from deeprl.envs.blame import involves_mujoco
from deeprl.envs.checked import Checked, env_name
from deeprl.envs.make import make_env
from deeprl.envs.vector import env_seeds
from deeprl.errors import DeeprlError, one_line
from deeprl.run.directory import evaluated_in
from deeprl.run.progress import Progress
from deeprl.run.records import read_about
from deeprl.run.targets import check_film
from deeprl.run.trained import OwnNet

_GIF_FPS = 25  # browsers play faster GIFs slowly


class Film(NamedTuple):
    """The frames of an episode, the sum of its rewards so far, and whether it was over or has been cut."""

    frames: Frames
    ret: float
    over: bool


def run(options: argparse.Namespace) -> int:
    """The command."""
    watch(options.run_dir, options.seed, options.member, options.out, options.max_steps, options.step)
    return 0


def watch(
    run_dir: str | Path,
    seed: int | None = None,
    member: int | None = None,
    out: str | None = None,
    max_steps: int = 1000,
    step: int | None = None,
    net: OwnNet = None,
) -> Path:
    """Write one episode without exploration to `out` (.gif or .mp4) and print its return, or that it was cut.

    The other arguments choose the agent, as those of `deeprl.load` do. Default of `out`: RUN_DIR/episode_seed_N.gif,
    with `_member_M` where several agents have that seed and `_step_K` for a snapshot; a film of the same agent is
    replaced. What is there stays as it is until the new film is complete.

    Raises DeeprlError where the environment cannot be drawn, `max_steps` is not positive, `out` has another ending, is
    a directory or belongs to the records of a run.
    """
    if max_steps < 1:
        raise DeeprlError(f"--max-steps: must be positive, not {max_steps}")
    directory = Path(run_dir)
    about = read_about(directory)
    where = evaluated_in(about)
    if out is not None:
        check_film(out)
    policy = load(directory, seed, member, net, step=step)
    path = Path(out) if out is not None else directory / _name(about, policy.seed, member, step)
    check_film(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.absolute()  # the environment may change the working directory
    env = Checked(make_env(where.env, where.env_kwargs, where.wrappers, render=True))
    try:
        film = _film(env, policy, max_steps)
        _write(place, film.frames.pictures(), float(env.metadata.get("render_fps") or 30))
    finally:
        env.close()
    told = f"return {film.ret:,.1f}" if film.over else f"return {film.ret:,.1f} so far: cut at --max-steps {max_steps}"
    print(f"{path}: {len(film.frames)} frames, {told}", flush=True)
    return path


def _name(about: Mapping[str, Any], seed: int, member: int | None, step: int | None) -> str:
    """The file of a film that got no name: one for each agent and snapshot of a run."""
    alike = [m["seed"] for m in about["members"]].count(seed)
    which = f"_member_{member}" if alike > 1 else ""  # its number was needed to choose it
    moment = "" if step is None else f"_step_{step}"
    return f"episode_seed_{seed}{which}{moment}.gif"


def _film(env: Any, policy: Policy, max_steps: int) -> Film:
    obs, _ = env.reset(seed=env_seeds(policy.seed, "eval", 1)[0])
    policy.reset()
    frames, total, over = Frames(env_name(env)), 0.0, False
    frames.add(_drawn(env))
    progress = Progress("filming", max_steps)
    while not over and len(frames) <= max_steps:
        obs, reward, terminated, truncated, info = env.step(policy(obs))
        total, over = total + float(reward), truncated or (terminated and info.get(GAME_OVER, True))
        if terminated and not over:  # a life was lost
            obs, _ = env.reset()
            policy.reset()
        frames.add(_drawn(env))
        progress.update(len(frames))
    progress.close()
    return Film(frames, float(info.get(GAME_RETURN, total)) if over else total, over)


def _drawn(env: Any) -> Any:
    try:
        return env.render()
    except DeeprlError:
        raise
    except Exception as error:  # OpenGL back ends fail in ways of their own
        needs = "; MuJoCo needs EGL or OSMesa (MUJOCO_GL=egl or osmesa)" if involves_mujoco(error) else ""
        raise DeeprlError(f"cannot draw {env_name(env)}: {type(error).__name__}: {one_line(error)}{needs}") from error


def _write(path: Path, pictures: list[np.ndarray], fps: float) -> None:
    """Write a film in one step: it has another name until it is complete, and is gone on an error."""
    part = path.with_name(f"{path.stem}.part{path.suffix}")  # encoders go by the ending
    try:
        (_write_mp4 if path.suffix.lower() == ".mp4" else _write_gif)(part, pictures, fps)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write_mp4(path: Path, pictures: list[np.ndarray], fps: float) -> None:
    try:
        import imageio
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise DeeprlError("MP4 needs a codec; install it with: pip install 'deeprl[video]'") from error
    imageio.mimwrite(path, list[Any](pictures), fps=fps, macro_block_size=2)


def _write_gif(path: Path, pictures: list[np.ndarray], fps: float) -> None:
    from PIL import Image

    stride = max(1, round(fps / _GIF_FPS))
    images = [Image.fromarray(picture).quantize(64) for picture in pictures[::stride]]
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=1000 * stride / fps, loop=0)
