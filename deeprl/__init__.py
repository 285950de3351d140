"""deeprl: deep-RL algorithms for control and offline RL that train populations of agents in one process.

run = deeprl.train("sac", env="Pendulum-v1", seeds=[0, 1, 2], steps=20_000)
policy = deeprl.load(run.directory, seed=1)
action = policy(obs)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

__version__ = "0.1.0"


class Algorithm(NamedTuple):
    """An entry of the catalogue: module, full name, paper, and what it needs."""

    module: str
    title: str
    paper: str
    needs: str


ALGORITHMS = {
    "bc": Algorithm(
        "deeprl.offline.bc",
        "Behaviour cloning, of all episodes or the best ones",
        "Chen et al. 2021, arXiv 2106.01345 (%BC)",
        "a dataset with continuous actions and vector observations",
    ),
    "cql": Algorithm(
        "deeprl.offline.cql",
        "Conservative Q-learning, offline; Cal-QL",
        "Kumar et al. 2020, arXiv 2006.04779",
        "a dataset with continuous actions and vector observations",
    ),
    "dqn": Algorithm(
        "deeprl.online.dqn",
        "Deep Q-learning; double, dueling, n-step, prioritised, C51, HL-Gauss, two-hot",
        "Mnih et al. 2015, Nature 518",
        "discrete actions, vectors or images",
    ),
    "edac": Algorithm(
        "deeprl.offline.edac",
        "SAC-N and EDAC: SAC with the minimum of many, diversified critics, offline",
        "An et al. 2021, arXiv 2110.01548",
        "a dataset with continuous actions and vector observations",
    ),
    "iql": Algorithm(
        "deeprl.offline.iql",
        "Implicit Q-learning, offline",
        "Kostrikov et al. 2022, arXiv 2110.06169",
        "a dataset with continuous actions and vector observations",
    ),
    "rebrac": Algorithm(
        "deeprl.offline.rebrac",
        "ReBRAC: TD3 with penalties for leaving the data's actions in policy and targets, offline",
        "Tarasov et al. 2023, arXiv 2305.09836",
        "a dataset with continuous actions and vector observations",
    ),
    "riql": Algorithm(
        "deeprl.offline.riql",
        "Robust IQL, for datasets with corrupted rows",
        "Yang et al. 2024, arXiv 2310.12955",
        "a dataset with continuous actions and vector observations",
    ),
    "rlpd": Algorithm(
        "deeprl.offline.rlpd",
        "Online learning from scratch with offline data in every batch",
        "Ball et al. 2023, arXiv 2302.02948",
        "a dataset and its environment, continuous actions and vector observations",
    ),
    "sac": Algorithm(
        "deeprl.online.sac",
        "Soft Actor-Critic, learned temperature",
        "Haarnoja et al. 2018, arXiv 1812.05905",
        "continuous actions (Box), vector observations",
    ),
    "simba": Algorithm(
        "deeprl.online.simba",
        "SimBa: SAC or DDPG on normalised observations and residual networks",
        "Lee et al. 2025, arXiv 2410.09754",
        "continuous actions (Box), vector observations",
    ),
    "simba_v2": Algorithm(
        "deeprl.online.simba_v2",
        "SimbaV2: SAC on hyperspherical networks, categorical critic, reward scaling",
        "Lee et al. 2025, arXiv 2502.15280",
        "continuous actions (Box), vector observations",
    ),
    "srl": Algorithm(
        "deeprl.online.srl",
        "Sequence RL: plans of several actions from one observation, with a learned model",
        "Patel & Siegelmann 2025, arXiv 2410.08979",
        "continuous actions (Box), vector observations",
    ),
    "td3": Algorithm(
        "deeprl.online.td3",
        "Twin Delayed Deep Deterministic policy gradient",
        "Fujimoto et al. 2018, arXiv 1802.09477",
        "continuous actions (Box), vector observations",
    ),
    "td3_bc": Algorithm(
        "deeprl.offline.td3_bc",
        "TD3 with behaviour cloning, offline",
        "Fujimoto & Gu 2021, arXiv 2106.06860",
        "a dataset with continuous actions and vector observations",
    ),
    "wsrl": Algorithm(
        "deeprl.offline.wsrl",
        "From a run that learned offline to online learning, without its data or with it",
        "Zhou et al. 2025, arXiv 2412.07762",
        "a finished offline run, continuous actions and vector observations",
    ),
}

if TYPE_CHECKING:
    from deeprl.api import dry_run as dry_run
    from deeprl.api import extend as extend
    from deeprl.api import load as load
    from deeprl.api import train as train
    from deeprl.reporting.table import results as results
    from deeprl.tuning.tune import tune as tune


def __getattr__(name: str) -> Any:
    # Imported at first use: `deeprl --help` must not wait for torch.
    if name in ("dry_run", "extend", "load", "train"):
        from deeprl import api

        return getattr(api, name)
    if name == "results":
        from deeprl.reporting.table import results

        return results
    if name == "tune":
        from deeprl.tuning.tune import tune

        return tune
    raise AttributeError(f"module 'deeprl' has no attribute {name!r}")


__all__ = ["ALGORITHMS", "Algorithm", "dry_run", "extend", "load", "results", "train", "tune"]
