"""Speed of a peer library; runs inside the peer's own environment (`make peers`), without deeprl.

    .peers/sb3/bin/python benchmarks/peers.py sb3 --algorithm sac --seconds 20 --threads 2
    .peers/sbx/bin/python benchmarks/peers.py sbx --algorithm td3 --seconds 20 --threads 1 --cores 0 --wait
    .peers/d3rlpy/bin/python benchmarks/peers.py d3rlpy --algorithm iql --seconds 20 --threads 2

Peers: `sb3` (stable-baselines3, eager PyTorch), `sbx` (its JAX sibling), `d3rlpy` (offline, eager PyTorch), and
`sb3-medium`: stable-baselines3 after `torch.set_float32_matmul_precision("medium")`, which is what deeprl's precision
`fast` sets.

Prints one JSON line, whose numbers are those of stopwatch.py. What a turn is (`--what`):
    loop      one policy action, one environment step (in the peer's Monitor and DummyVecEnv wrappers), one insert into
              the replay buffer, and, every `--every` steps, one sample from it and one update. d3rlpy: one turn of its
              `fit`, a sample from the data set and an update.
    update    one sample and one update, by the peer's own `train` or `update`.
Not included: imports, random steps, compilation, the first `--warmup-steps` turns, evaluation, logs, checkpoints.

Where a peer computes something else than deeprl, `includes` says so. sbx has no network for MinAtar's small images (its
convolution needs at least 36 x 36 pixels), so it is measured on the others only.
"""

from __future__ import annotations

from stopwatch import Stopwatch, parse, say, versions  # first: it reads the clock

import argparse  # isort: skip
import contextlib
import json
import os
import sys
from typing import Any

from speed_tasks import CLIP, EPSILON, LEARNING_STARTS, OFFLINE, POLICY_DELAY, TARGET_EVERY, Task, includes, task

PACKAGES = {
    "sb3": ("stable-baselines3", "torch", "gymnasium", "mujoco", "minatar", "numpy"),
    "sbx": ("sbx-rl", "stable-baselines3", "jax", "flax", "torch", "gymnasium", "mujoco", "numpy"),
    "d3rlpy": ("d3rlpy", "torch", "gymnasium", "numpy"),
}
ENDLESS = 1_000_000_000  # steps: the window ends the run


# --- stable-baselines3 and sbx ---


def make_env(kind: Task) -> Any:
    """The environment as Gymnasium makes it; given a name, the peer would make it with render_mode="rgb_array"."""
    import gymnasium

    if kind.minatar:
        import minatar.gym

        minatar.gym.register_envs()
    return gymnasium.make(kind.env)


def minatar_torso() -> type:
    """MinAtar's convolution as a features extractor of stable-baselines3, for boolean images [B, H, W, C]."""
    import torch
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class Torso(BaseFeaturesExtractor):
        def __init__(self, observation_space: Any) -> None:
            height, width, channels = observation_space.shape
            super().__init__(observation_space, (height - 2) * (width - 2) * 16)
            self.convolution = torch.nn.Conv2d(channels, 16, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.convolution(images.movedim(-1, 1))).flatten(1)

    return Torso


def settings(peer: str, algorithm: str, kind: Task, env: Any) -> dict[str, Any]:
    """Arguments of the algorithm's class, beyond those that all classes share."""
    import numpy
    from stable_baselines3.common.noise import NormalActionNoise

    if algorithm == "sac":
        return {"ent_coef": "auto"}
    if algorithm == "td3":
        actions = env.action_space.shape
        noise = NormalActionNoise(numpy.zeros(actions), numpy.full(actions, 0.1))
        return {"policy_delay": POLICY_DELAY, "action_noise": noise}
    epsilon = {"exploration_initial_eps": EPSILON, "exploration_final_eps": EPSILON}
    return epsilon | {"target_update_interval": TARGET_EVERY} | ({} if peer == "sbx" else {"max_grad_norm": CLIP})


def build(args: argparse.Namespace, kind: Task) -> Any:
    """A model with the settings that all sides share."""
    import torch  # also in sbx, whose replay buffer is stable-baselines3's

    torch.set_num_threads(args.threads)
    if args.peer == "sb3-medium":
        torch.set_float32_matmul_precision("medium")
    if args.peer == "sbx":
        if kind.minatar:
            raise SystemExit("sbx has no network for MinAtar's images")
        import sbx as library
    else:
        import stable_baselines3 as library
    env = make_env(kind)
    torso = {"features_extractor_class": minatar_torso()} if kind.minatar else {}
    return getattr(library, args.algorithm.upper())(
        "MlpPolicy",
        env,
        learning_rate=kind.lr,
        buffer_size=kind.buffer,
        learning_starts=LEARNING_STARTS,
        batch_size=kind.batch,
        train_freq=args.every,
        gradient_steps=1,
        policy_kwargs={"net_arch": list(kind.hidden), **torso},
        seed=args.seed,
        device=args.device,
        verbose=0,
        **settings(args.peer, args.algorithm, kind, env),
    )


def measure_online(args: argparse.Namespace, kind: Task) -> dict[str, Any]:
    model = build(args, kind)
    # Every update of both peers reads its losses back (`.item()`), so no device work is queued when the watch is read.
    if args.what == "loop":
        watch = Stopwatch(LEARNING_STARTS + args.warmup_steps, args.seconds, args.wait, ratio=1 / args.every)
        model.learn(ENDLESS, lambda *_: not watch.tick(model.num_timesteps, model._n_updates), log_interval=ENDLESS)
        return watch.result()
    watch = Stopwatch(args.warmup_steps, args.seconds, args.wait)

    def tick(*_: object) -> bool:
        return watch.tick(model._n_updates, model._n_updates)

    model.learn(LEARNING_STARTS + args.every, lambda *_: not tick())  # until its first update
    while not tick():
        model.train(gradient_steps=1, batch_size=kind.batch)
    return watch.result()


# --- d3rlpy ---


class Over(Exception):  # noqa: N818
    """Ends d3rlpy's `fit`, which has no other way to stop."""


def measure_iql(args: argparse.Namespace, kind: Task) -> dict[str, Any]:
    """IQL on random transitions in episodes of 1,000 steps, with observations and actions as in HalfCheetah."""
    import d3rlpy
    import torch
    from speed_data import synthetic

    torch.set_num_threads(args.threads)
    made = synthetic(kind.buffer, args.seed)
    ends = [made[key].astype("float32") for key in ("terminals", "timeouts")]
    data = d3rlpy.dataset.MDPDataset(made["observations"], made["actions"], made["rewards"], *ends)
    layers = d3rlpy.models.VectorEncoderFactory(list(kind.hidden))
    config = d3rlpy.algos.IQLConfig(
        batch_size=kind.batch,
        actor_encoder_factory=layers,
        critic_encoder_factory=layers,
        value_encoder_factory=layers,
    )
    learner = config.create(device=f"{args.device}:0")
    watch = Stopwatch(args.warmup_steps, args.seconds, args.wait)
    if args.what == "update":
        learner.build_with_dataset(data)
        done = 0
        while not watch.tick(done, done):
            learner.update(data.sample_transition_batch(kind.batch))
            done += 1
        return watch.result()

    def tick(_learner: object, _epoch: int, done: int) -> None:
        if watch.tick(done, done):
            raise Over

    with contextlib.suppress(Over):
        quiet = d3rlpy.logging.NoopAdapterFactory()
        learner.fit(data, ENDLESS, 10_000, logger_adapter=quiet, show_progress=False, callback=tick)
    return watch.result()


# --- all ---


def difference(peer: str, algorithm: str) -> str:
    """What this peer does otherwise."""
    if peer == "sbx" and algorithm == "dqn":
        return "no log, both layers as wide as the first, gradients not clipped"
    return "no log"


def measure(args: argparse.Namespace) -> dict[str, Any]:
    os.environ.setdefault("JAX_PLATFORMS", args.device)
    kind = task(args.algorithm, args.env, args.size)
    if (args.algorithm in OFFLINE) != (args.peer == "d3rlpy"):
        raise SystemExit(f"{args.peer} is not measured for {args.algorithm}")
    found = (measure_iql if args.peer == "d3rlpy" else measure_online)(args, kind)
    return {
        "peer": args.peer,
        **found,
        "agents": 1,
        "threads": args.threads,
        "device": args.device,
        "precision": "float32, matmul medium" if args.peer == "sb3-medium" else "float32",
        "versions": versions(PACKAGES[args.peer.removesuffix("-medium")]),
        "includes": includes(args.algorithm, kind, args.what, args.every, difference(args.peer, args.algorithm)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("sb3", "sb3-medium", "sbx", "d3rlpy"))
    args = parse(parser)
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(args)
    say(json.dumps(result))


if __name__ == "__main__":
    main()
