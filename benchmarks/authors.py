"""SimbaV2 beside the authors' own implementation, on the same numbers: how far apart are the two?

    AUTHORS/bin/pip install jax==0.4.25 jaxlib==0.4.25 flax==0.8.4 optax==0.2.2 tensorflow-probability==0.24.0 \\
        numpy==1.24.4 scipy==1.11.4 omegaconf==2.3.0 gymnasium
    python benchmarks/authors.py --repo SimbaV2 --python AUTHORS/bin/python

--repo: a checkout of DAVIAN-Robotics/SimbaV2. --python: a Python 3.9 to 3.11 with the packages above (theirs needs
them that old). Their factory makes their agent, wrappers included, from their settings for `mujoco` (2 critics, 1
update a step) and `dmc` (1 critic, 2 updates). Both sides get their parameters, 2,000 random steps for the running
statistics, and 4 batches of 256 raw transitions with the same noise in the actions; learning rates fall over 2 steps.
Rows hold the largest absolute difference in a component, and its scale: the largest absolute value on their side.
Parameters may differ by up to two learning rates, 2e-4: where a gradient is rounding alone, Adam's first step still
goes as far as that. Its moments, mu and nu, have no such differences.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

OBS, ACTIONS, BATCH, STEPS, UPDATES, HORIZON = 24, 6, 256, 2_000, 4, 2
SUITES: dict[str, Any] = {"mujoco": {"utd": 1.0}, "dmc": {"critics": 1, "discount": 0.99}}  # beyond our defaults
LOSSES = {"actor/loss": "actor_loss", "temperature/loss": "alpha_loss", "critic/loss": "critic_loss"}  # theirs: ours
PACKAGES = ("jax", "flax", "optax", "tensorflow-probability", "numpy")
COLUMNS = ("suite", "component", "max_abs_difference", "scale", "versions", "commit", "command")
Arrays = dict[str, Any]  # "component|part" -> numbers


def inputs() -> Arrays:
    """The steps for the statistics, then the batches [UPDATES, BATCH, ...]."""
    draw, shape = np.random.default_rng(0), (UPDATES, BATCH)
    centre, spread = 3.0 * draw.normal(size=OBS), np.exp(draw.normal(size=OBS))
    given: Arrays = {"terminated": draw.random(STEPS) < 0.005, "truncated": draw.random(STEPS) < 0.005}
    given |= {"earned": draw.gamma(2.0, 0.5, STEPS), "seen": centre + spread * draw.normal(size=(STEPS, OBS))}
    given |= {k: centre + spread * draw.normal(size=(*shape, OBS)) for k in ("obs", "next_obs")}
    given |= {"action": draw.uniform(-1.0, 1.0, (*shape, ACTIONS)), "reward": draw.gamma(2.0, 0.5, shape)}
    given["end"] = (draw.random(shape) < 0.1).astype(float)
    return {k: x.astype(np.float32) if x.dtype == float else x for k, x in given.items()}


def theirs(repo: Path, suite: str, given: Arrays) -> Arrays:
    """Their side, in JAX: all that is compared, and the parameters and noise that `ours` takes over."""
    sys.path.insert(0, str(repo))
    import jax
    from flax.traverse_util import flatten_dict
    from omegaconf import OmegaConf
    from scale_rl.agents import create_agent
    from tensorflow_probability.substrates.jax import bijectors, distributions

    OmegaConf.register_new_resolver("eval", lambda text: eval(text, {"math": math}))
    config: Any = OmegaConf.load(repo / "configs/online_rl.yaml")
    for part, name in (("env", suite), ("agent", "simbaV2")):
        config[part] = OmegaConf.load(repo / "configs" / part / f"{name}.yaml")
    config.env.num_env_steps = HORIZON * config.env.action_repeat
    OmegaConf.resolve(config)
    rewards: Any = create_agent(*(SimpleNamespace(shape=(1, n)) for n in (OBS, ACTIONS)), config.agent)
    observations, agent = rewards.agent, rewards.agent.agent

    def parameters(when: str) -> Arrays:
        nets = {"actor": agent._actor, "critic": agent._critic, "target critic": agent._target_critic}
        trees = {name: dict(net.params) for name, net in (nets | {"log_alpha": agent._temperature}).items()}
        for name in ("actor", "critic"):
            trees |= {f"{name}'s {k}": getattr(nets[name].opt_state[0], k) for k in ("mu", "nu")}
        return {f"{when}: {k.replace('/', '|', 1)}": np.array(x) for k, x in flatten_dict(trees, sep="/").items()}

    found = parameters("start")
    for t in range(STEPS):
        now = slice(t, t + 1)
        step = {"next_observation": given["seen"][now].astype(float), "reward": given["earned"][now].astype(float)}
        rewards.sample_actions(t, step | {k: given[k][now] for k in ("terminated", "truncated")}, training=True)
    for name, rms in (("observations", observations.obs_rms), ("returns", rewards.G_rms)):
        found |= {f"{name}: {k}|": np.ravel(getattr(rms, k)) for k in ("mean", "var", "count")}
    obs = observations._normalize(given["obs"][0]).astype(np.float32)
    found |= {"returns: last|": rewards.G, "returns: peak|": rewards.G_r_max, "normalised observations|": obs}
    (policy, _), (q, _) = agent._actor(obs), agent._critic(obs, given["action"][0])
    found |= {"scaled rewards|": rewards._scale_reward(given["reward"][0]), "critic's value|": q}
    found |= {"policy's mean|": policy.distribution.mean(), "policy's log_std|": np.log(policy.distribution.stddev())}
    normal = distributions.MultivariateNormalDiag(np.zeros_like(given["action"][0]), np.ones_like(given["action"][0]))
    unit = distributions.TransformedDistribution(normal, bijectors.Identity())  # built as their policy is
    for i in range(UPDATES):
        found |= {f"noise|{i} {j}": unit.sample(seed=k) for j, k in enumerate(jax.random.split(agent._rng, 3)[1:])}
        batch = {"observation": given["obs"][i], "next_observation": given["next_obs"][i]}
        batch |= {"terminated": given["end"][i], "action": given["action"][i], "reward": given["reward"][i]}
        info = rewards.update(i, batch)
        found |= {f"updates: {k}|{i}": info[k] for k in LOSSES}
    return found | parameters(f"update {UPDATES}")


RENAMES = """VmapSimbaV2Critic_0/: /hyper_dense/kernel:.weight scaler/scaler:scaler.weight alpha_scaler:lerp.alpha
    embedder/w:encoder.0.linear embedder/:encoder.0. encoder/layers_0/:encoder.1. encoder/layers_1/:encoder.2. log_temp:
    mlp/w1:expand mlp/w2:contract mlp/: predictor/mean_:mean. predictor/std_:log_std. predictor/value_:value.
    predictor/:value. w1.:hidden. w2.:out."""  # one after the other


def renamed(found: Arrays) -> Arrays:
    """Their numbers by our names of parameters, with weights as [out, in] and critics one by one."""
    result = {}
    for key, array in found.items():
        component, _, part = key.partition("|")
        for old, _, new in (pair.partition(":") for pair in RENAMES.split()):
            part = part.replace(old, new)
        for e, one in enumerate(array if "Vmap" in key else [array]):
            place = part.replace("encoder.", f"critics.{e}.0.").replace("value.", f"critics.{e}.1.")
            result[f"{component}|{place if 'critic' in component else part}"] = one.T if "kernel" in key else one
    return result


def ours(suite: str, given: Arrays, found: Arrays) -> Arrays:
    """Our side, in PyTorch: the same numbers. found: `renamed` ones of `theirs`."""
    import torch
    from torch.func import functional_call

    from deeprl import nets
    from deeprl.core import rng
    from deeprl.core.spec import Batch, EnvSpec, Seen
    from deeprl.online import simba_v2
    from deeprl.run import learning

    data = {k: torch.from_numpy(x) for k, x in given.items()}
    config = simba_v2.Config(**SUITES[suite] | {"lr_horizon": HORIZON})
    net = simba_v2.build_net(EnvSpec((OBS,), ACTIONS, (-1.0,) * ACTIONS, (1.0,) * ACTIONS), config)
    state = simba_v2.init(net, config, rng.key(0, "init"))
    for name, params in (("actor", state.actor), ("critic", state.critic), ("target critic", state.target_critic)):
        params.update({k: torch.tensor(found[f"start: {name}|{k}"]) for k in params})
    ended = data["terminated"] | data["truncated"]
    for step in zip(*(x.split(1) for x in (data["seen"], ended, data["earned"])), strict=True):
        state, _, _ = simba_v2.observe(net, config, state, Seen(*step))
    made: Arrays = {f"observations: {k}|": x for k, x in state.obs_stats.items()}
    made |= {f"returns: {k.replace('returns', 'last')}|": x for k, x in state.return_stats.items()}
    obs = made["normalised observations|"] = learning.normalized(net, config, state, data["obs"][0])
    made["scaled rewards|"] = functional_call(net.return_scale, state.return_stats, (data["reward"][0],))
    made["policy's mean|"], made["policy's log_std|"] = functional_call(net.actor, state.actor, (obs,))
    logits = functional_call(net.critic, state.critic, (obs, data["action"][0]))
    made["critic's value|"] = nets.categorical.mean(logits, simba_v2.support(config, obs))
    for i in range(UPDATES):
        parts = {k: data[k][i] for k in ("obs", "action", "reward", "next_obs")}
        batch = Batch(discount=state.hparams["discount"] * (1.0 - data["end"][i]), **parts)
        noise = [torch.tensor(found[f"noise|{i} {j}"]) for j in range(2)]
        with mock.patch.object(rng, "normal", side_effect=noise):
            state, metrics, _ = simba_v2.update(net, config, state, batch, rng.key(0, "update"))
        made |= {f"updates: {k}|{i}": metrics[name] for k, name in LOSSES.items()}
    trees = {"actor": state.actor, "critic": state.critic, "target critic": state.target_critic}
    for name, moments in (("actor", state.actor_moments), ("critic", state.critic_moments)):
        trees |= {f"{name}'s mu": moments.m, f"{name}'s nu": moments.v}
    for name, tree in (trees | {"log_alpha": {"": state.log_alpha}}).items():
        made |= {f"update {UPDATES}: {name}|{k}": x for k, x in tree.items()}
    return made


@dataclass(frozen=True)
class Comparison:
    """Two sides of one algorithm. Arrays are numbers by "component|part"."""

    script: str
    repo: str  # owner/name of the authors' code
    suites: Iterable[str]
    inputs: Callable[[], Arrays]
    theirs: Callable[[Path, str, Arrays], Arrays]  # (checkout, suite, inputs); run by another Python
    renamed: Callable[[Arrays], Arrays]  # theirs, by our names
    ours: Callable[[str, Arrays, Arrays], Arrays]  # (suite, inputs, renamed ones of theirs)
    packages: tuple[str, ...] = PACKAGES  # that theirs needs

    @property
    def name(self) -> str:
        return self.repo.partition("/")[2]

    def rows(self, args: argparse.Namespace, suite: str, folder: Path) -> list[dict[str, str]]:
        """Of one suite: the largest difference in each component."""
        from speed_rows import versions_told

        from deeprl.run import provenance

        files = [str(folder / name) for name in ("given.npz", "found.npz")]
        np.savez(files[0], **self.inputs())
        script = str(Path(__file__).parent / self.script)
        subprocess.run([args.python, script, "--repo", str(args.repo), "--theirs", suite, *files], check=True)
        found, worst = self.renamed(dict(np.load(files[1]))), dict[str, tuple[float, float]]()
        for key, own in self.ours(suite, self.inputs(), found).items():
            name, x, y = key.partition("|")[0], np.asarray(found[key], float), np.asarray(own, float)
            far, scale = worst.get(name, (0.0, 0.0))
            worst[name] = max(far, np.abs(x.reshape(y.shape) - y).max()), max(scale, np.abs(x).max())
        git = ["git", "-C", str(args.repo), "rev-parse", "--short=10", "HEAD"]
        revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        about = (
            f"{versions_told('deeprl', 'torch', 'numpy')} against {self.name}={revision} {found['versions|']}",
            provenance.commit(),
        )
        command = f"python benchmarks/{self.script} --repo {self.name} --python AUTHORS/bin/python"
        rows = ((suite, name, f"{far:.3g}", f"{scale:.4g}", *about, command) for name, (far, scale) in worst.items())
        return [dict(zip(COLUMNS, row, strict=True)) for row in rows]

    def main(self, description: str | None) -> None:
        flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        flags.add_argument("--repo", type=Path, required=True, help=f"checkout of {self.repo}")
        flags.add_argument("--python", help="a Python that has what their code needs")
        flags.add_argument(
            "--csv", type=Path, default=Path(__file__).parent / "results/authors.csv", help="for the rows"
        )
        flags.add_argument("--theirs", nargs=3, help=argparse.SUPPRESS)
        args = flags.parse_args()
        if args.theirs:
            found = self.theirs(args.repo, args.theirs[0], dict(np.load(args.theirs[1])))
            found["versions|"] = " ".join(f"{k}={importlib.metadata.version(k)}" for k in self.packages)
            np.savez(args.theirs[2], **found)
            return
        from speed_rows import save

        for suite in self.suites:
            with tempfile.TemporaryDirectory() as folder:
                rows = self.rows(args, suite, Path(folder))
            print(*("{:8}{:32}{:>12}{:>12}".format(*row.values()) for row in rows), sep="\n", flush=True)
            save(args.csv, rows, COLUMNS, key=("suite", "component"))


if __name__ == "__main__":
    here = Comparison("authors.py", "DAVIAN-Robotics/SimbaV2", SUITES, inputs, theirs, renamed, ours)
    here.main(__doc__)
