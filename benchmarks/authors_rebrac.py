"""ReBRAC beside its authors' own implementation, on the same numbers: how far apart are the two?

    python benchmarks/authors_rebrac.py --repo CORL --python AUTHORS/bin/python

--repo: a checkout of corl-team/CORL, where its authors keep it. --python: one that `authors.py` says how to make, with
chex==0.1.86 and tqdm; what their file imports to read data, to evaluate and to log is not needed here. Both sides have
the settings of hopper-medium-replay, get the same parameters, 4 batches of 256 transitions with the same noise in the
target actions, and move the policy in the first and the third update. Rows (suite `rebrac`) are those of `authors.py`:
the largest absolute difference in a component, and the largest absolute value on their side. Parameters may differ by
up to 4 learning rates, 4e-3, where a gradient is rounding alone.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from authors import Arrays, Comparison

OBS, ACTIONS, BATCH, UPDATES, RECIPE = 11, 3, 256, 4, "hopper-medium-replay"
THEIRS = {"actor_bc_coef": 0.05, "critic_bc_coef": 0.5, "gamma": 0.99, "tau": 5e-3}  # hopper/medium_replay_v2.yaml
THEIRS |= {"policy_noise": 0.2, "noise_clip": 0.5}
LOSSES = {"critic_loss": "critic_loss", "actor_loss": "actor_loss", "bc_mse_policy": "imitation_loss"}  # theirs: ours
LR = 1e-3


def inputs() -> Arrays:
    """The batches, [UPDATES, BATCH, ...]."""
    draw, shape = np.random.default_rng(0), (UPDATES, BATCH)
    given: Arrays = {k: draw.normal(size=(*shape, OBS)) for k in ("obs", "next_obs")}
    given |= {k: draw.uniform(-1.2, 1.2, (*shape, ACTIONS)).clip(-1.0, 1.0) for k in ("action", "next_action")}
    given |= {"reward": draw.gamma(2.0, 0.5, shape), "end": draw.random(shape) < 0.1}
    return {k: x.astype(np.float32) for k, x in given.items()}


def authors_file(repo: Path) -> Any:
    """Their module, without the packages that it imports beside jax and flax."""
    absent = {name: ModuleType(name) for name in ("d4rl", "gym", "pyrallis", "wandb")}
    absent["gym"].Env = object  # type: ignore[attr-defined]
    absent["pyrallis"].wrap = lambda: lambda function: function  # type: ignore[attr-defined]
    sys.modules |= absent
    sys.path.insert(0, str(repo / "algorithms/offline"))
    import rebrac

    return rebrac


def theirs(repo: Path, suite: str, given: Arrays) -> Arrays:
    """Their side, in JAX: "component|part" -> numbers, and the noise."""
    import jax
    import optax
    from flax.traverse_util import flatten_dict

    code, key = authors_file(repo), jax.random.PRNGKey(0)
    seen = {"actor": (given["obs"][0, :1],), "critic": (given["obs"][0, :1], given["action"][0, :1])}
    modules = {"actor": code.DetActor(ACTIONS, layernorm=False), "critic": code.EnsembleCritic(num_critics=2)}
    kinds = {"actor": code.ActorTrainState, "critic": code.CriticTrainState}
    nets: dict[str, Any] = {
        part: kinds[part].create(
            apply_fn=module.apply,
            params=module.init(key, *seen[part]),
            target_params=module.init(key, *seen[part]),
            tx=optax.adam(learning_rate=LR),
        )
        for part, module in modules.items()
    }

    def parameters(when: str) -> Arrays:
        trees: Arrays = {}
        for part, net in nets.items():
            adam = net.opt_state[0]
            trees |= {part: net.params, f"target_{part}": net.target_params}
            trees |= {f"{part}'s mu": adam.mu, f"{part}'s nu": adam.nu}
        flat = ((name, k, x) for name, tree in trees.items() for k, x in flatten_dict(tree["params"], sep=".").items())
        return {f"{when}: {name}|{k}": np.array(x) for name, k, x in flat}

    found = parameters("start")
    both, alone = partial(code.update_td3, normalize_q=True, **THEIRS), partial(code.update_td3_no_targets, **THEIRS)
    updates = [jax.jit(both), jax.jit(alone)]
    for i in range(UPDATES):
        key = jax.random.PRNGKey(i)
        found[f"noise|{i}"] = np.array(jax.random.normal(jax.random.split(key)[1], (BATCH, ACTIONS)))
        batch = {"states": given["obs"][i], "actions": given["action"][i], "next_states": given["next_obs"][i]}
        batch |= {"next_actions": given["next_action"][i], "rewards": given["reward"][i], "dones": given["end"][i]}
        metrics = code.Metrics.create([*LOSSES, "q_min", "bc_mse_random", "action_mse"])
        _, nets["actor"], nets["critic"], metrics = updates[i % 2](key=key, batch=batch, metrics=metrics, **nets)
        values = metrics.compute()
        found |= {f"updates: {k}|{i}": values[k] for k in list(LOSSES)[: 1 if i % 2 else 3]}
    return found | parameters(f"update {UPDATES}")


def renamed(found: Arrays) -> Arrays:
    """Their numbers by our names of parameters: weights of an MLP as [out, in]."""
    result: Arrays = {}
    for key, array in found.items():
        component, _, part = key.partition("|")
        *_, module, last = ["", *part.split(".")]
        kind, _, number = module.partition("_")
        if not number:
            result[key] = array
        elif "critic" in component:
            name = {"kernel": "weight", "scale": "weight"}.get(last, last)
            result[f"{component}|{'norms' if kind == 'LayerNorm' else 'layers'}.{number}.{name}"] = array
        else:
            result[f"{component}|trunk.{2 * int(number)}.{'weight' if last == 'kernel' else last}"] = array.T
    return result


def ours(suite: str, given: Arrays, found: Arrays) -> Arrays:
    """Our side, in PyTorch: the same numbers. found: `renamed` ones of `theirs`."""
    import torch

    from deeprl.core import rng
    from deeprl.core.spec import Batch, EnvSpec
    from deeprl.offline import rebrac
    from deeprl.recipes import RECIPES

    config = rebrac.Config(dataset="given", steps=UPDATES, **RECIPES["rebrac"][RECIPE].settings)
    net = rebrac.build_net(EnvSpec((OBS,), ACTIONS, (-1.0,) * ACTIONS, (1.0,) * ACTIONS), config)
    state, parts = rebrac.init(net, config, rng.key(0, "init")), ("actor", "critic", "target_actor", "target_critic")
    for part in parts:
        getattr(state, part).update({k: torch.tensor(found[f"start: {part}|{k}"]) for k in getattr(state, part)})
    made: Arrays = {}
    for i in range(UPDATES):
        data = {k: torch.from_numpy(x[i]) for k, x in given.items()}
        next_action, discount = data.pop("next_action"), state.hparams["discount"] * (1.0 - data.pop("end"))
        batch, policy = Batch(discount=discount, **data), i % config.policy_delay == 0
        with mock.patch.object(rng, "normal", return_value=torch.tensor(found[f"noise|{i}"])):
            state, metrics, _ = rebrac.update(
                net, config, state, batch, rng.key(0, "update"), next_action, policy=policy
            )
        made |= {f"updates: {k}|{i}": metrics[name] for k, name in LOSSES.items() if name in metrics}
    trees = {part: getattr(state, part) for part in parts}
    for part in parts[:2]:
        moments = getattr(state, f"{part}_moments")
        trees |= {f"{part}'s mu": moments.m, f"{part}'s nu": moments.v}
    return made | {f"update {UPDATES}: {name}|{k}": x for name, tree in trees.items() for k, x in tree.items()}


if __name__ == "__main__":
    Comparison("authors_rebrac.py", "corl-team/CORL", ("rebrac",), inputs, theirs, renamed, ours).main(__doc__)
