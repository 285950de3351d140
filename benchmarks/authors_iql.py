"""IQL beside its authors' own implementation, on the same numbers: how far apart are the two?

    python benchmarks/authors_iql.py --repo implicit_q_learning --python AUTHORS/bin/python

--repo: a checkout of ikostrikov/implicit_q_learning. --python: one that `offline_peer.py` says how to make. Both sides
have the settings of locomotion, get the same parameters and 4 batches of 256 transitions, some of whose actions are at
their bounds, and the policy's learning rate falls over 4 steps. Rows (suite `iql`) are those of `authors.py`: the
largest absolute difference in a component, and the largest absolute value on their side. Parameters may differ by up
to 4 learning rates, 1.2e-3, where a gradient is rounding alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from authors import Arrays, Comparison
from offline_peer import AUTHORS, give_back_names

OBS, ACTIONS, BATCH, UPDATES = 11, 3, 256, 4
BOUND = 1.0 - 1e-5  # of the actions in their datasets
PARTS = ("actor", "critic", "value", "target_critic")
LOSSES = ("value_loss", "actor_loss", "critic_loss")


def inputs() -> Arrays:
    """The batches, [UPDATES, BATCH, ...]."""
    draw, shape = np.random.default_rng(0), (UPDATES, BATCH)
    given: Arrays = {k: draw.normal(size=(*shape, OBS)) for k in ("obs", "next_obs")}
    given["action"] = draw.uniform(-1.2, 1.2, (*shape, ACTIONS)).clip(-1.0, 1.0)
    given |= {"reward": draw.gamma(2.0, 0.5, shape), "end": draw.random(shape) < 0.1}
    return {k: x.astype(np.float32) for k, x in given.items()}


def theirs(repo: Path, suite: str, given: Arrays) -> Arrays:
    """Their side, in JAX: "component|part" -> numbers."""
    give_back_names(repo)
    from common import Batch
    from flax.traverse_util import flatten_dict
    from learner import Learner

    agent = Learner(0, given["obs"][0, :1], given["action"][0, :1], **AUTHORS, max_steps=UPDATES)

    def parameters(when: str) -> Arrays:
        trees = {f"{when}: {part}": getattr(agent, part).params for part in PARTS}
        for part in PARTS[:3]:
            adam = getattr(agent, part).opt_state[0]
            trees |= {f"{when}: {part}'s mu": adam.mu, f"{when}: {part}'s nu": adam.nu}
        flat = ((name, k, x) for name, tree in trees.items() for k, x in flatten_dict(tree.unfreeze(), sep=".").items())
        return {f"{name}|{k}": np.array(x) for name, k, x in flat}

    found = parameters("start")
    for i in range(UPDATES):
        obs, action, next_obs = given["obs"][i], given["action"][i].clip(-BOUND, BOUND), given["next_obs"][i]
        info = agent.update(Batch(obs, action, given["reward"][i], 1.0 - given["end"][i], next_obs))
        found |= {f"updates: {k}|{i}": np.array(info[k]) for k in LOSSES}
    return found | parameters(f"update {UPDATES}")


def renamed(found: Arrays) -> Arrays:
    """Their numbers by our names of parameters: weights of an MLP as [out, in], those of the critics in one array."""
    result: Arrays = {}
    for key, array in found.items():
        component, _, part = key.partition("|")
        *path, last = part.split(".")
        kind = {"kernel": "weight", "bias": "bias"}.get(last)
        if kind is None:
            result[f"{component}|{part.replace('log_stds', 'raw_log_std')}"] = array
            continue
        layer = int(path[-1].rpartition("_")[2]) if len(path) > 1 else 2  # the policy's last stands alone
        if "critic" in component:
            own, critic = f"{component}|layers.{layer}.{kind}", int(path[0].rpartition("_")[2])
            result.setdefault(own, np.zeros((2, *array.shape), array.dtype))[critic] = array
        else:
            trunk = "trunk." if "actor" in component else ""
            result[f"{component}|{trunk}{2 * layer}.{kind}"] = array.T
    return result


def ours(suite: str, given: Arrays, found: Arrays) -> Arrays:
    """Our side, in PyTorch: the same numbers. found: `renamed` ones of `theirs`."""
    import torch

    from deeprl.core import rng
    from deeprl.core.spec import Batch, EnvSpec
    from deeprl.offline import iql
    from deeprl.recipes import RECIPES

    settings = {k: v for k, v in RECIPES["iql"]["mujoco"].settings.items() if k != "rewards"}
    config = iql.Config(dataset="given", steps=UPDATES, **settings)
    net = iql.build_net(EnvSpec((OBS,), ACTIONS, (-1.0,) * ACTIONS, (1.0,) * ACTIONS), config)
    state = iql.init(net, config, rng.key(0, "init"))
    for part in PARTS:
        getattr(state, part).update({k: torch.tensor(found[f"start: {part}|{k}"]) for k in getattr(state, part)})
    made: Arrays = {}
    for i in range(UPDATES):
        parts = {k: torch.from_numpy(given[k][i]) for k in ("obs", "action", "reward", "next_obs")}
        batch = Batch(discount=state.hparams["discount"] * (1.0 - torch.from_numpy(given["end"][i])), **parts)
        state, metrics, _ = iql.update(net, config, state, batch, rng.key(0, "update"))
        made |= {f"updates: {k}|{i}": metrics[k] for k in LOSSES}
    trees = {part: getattr(state, part) for part in PARTS}
    for part in PARTS[:3]:
        moments = getattr(state, f"{part}_moments")
        trees |= {f"{part}'s mu": moments.m, f"{part}'s nu": moments.v}
    return made | {f"update {UPDATES}: {name}|{k}": x for name, tree in trees.items() for k, x in tree.items()}


if __name__ == "__main__":
    repo = "ikostrikov/implicit_q_learning"
    Comparison("authors_iql.py", repo, ("iql",), inputs, theirs, renamed, ours).main(__doc__)
