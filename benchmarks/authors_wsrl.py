"""WSRL beside its authors' own implementation, on the same numbers: how far apart are the two?

    AUTHORS/bin/pip install distrax==0.1.5 ml_collections einops overrides
    python benchmarks/authors_wsrl.py --repo wsrl --python AUTHORS/bin/python

--repo: a checkout of zhouzypaul/wsrl. --python: one that `authors.py` says how to make, with the packages above too.
Both sides have the settings of locomotion, get the same parameters and 4 times 1,024 transitions with the same noise
in the actions and the same critics drawn: 16 updates of the critics, and 4 of policy and temperature.

What differs by intent shows in the rows of suite `wsrl`: their critics share one last layer, which is left out there;
their Adam makes a step, of gradient zero, also for the networks whose loss is left out, so that their policy goes on by
its momentum in each update of the critics; and their temperature is softplus of what is learned, from the entropy at
the next observations. In suite `wsrl as theirs` our side has such a last layer, makes those steps and takes their
temperature over, which leaves rounding: a parameter may differ by some learning rates where its gradient is rounding
alone. Rows are those of `authors.py`; losses and moments of our critics, which learn from the sum over critics where
theirs learn from the mean, are divided by their number.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from authors import Arrays, Comparison

OBS, ACTIONS, BATCH, UTD, CYCLES, CRITICS = 11, 3, 256, 4, 4, 10
SUITES = ("wsrl", "wsrl as theirs")
LOSSES = {"critic_loss": "critic_loss", "predicted_qs": "q", "target_qs": "td_target", "actor_loss": "actor_loss"}
PARTS = ("actor", "critic")


def inputs() -> Arrays:
    """The transitions, [CYCLES, UTD * BATCH, ...]."""
    draw, shape = np.random.default_rng(0), (CYCLES, UTD * BATCH)
    given: Arrays = {k: draw.normal(size=(*shape, OBS)) for k in ("obs", "next_obs")}
    given["action"] = draw.uniform(-1.2, 1.2, (*shape, ACTIONS)).clip(-1.0, 1.0)
    given |= {"reward": draw.gamma(2.0, 0.5, shape), "end": draw.random(shape) < 0.1}
    return {k: x.astype(np.float32) for k, x in given.items()}


def theirs(repo: Path, suite: str, given: Arrays) -> Arrays:
    """Their side, in JAX: "component|part" -> numbers, the noise and the critics that were drawn."""
    sys.path.insert(0, str(repo))
    import distrax
    import jax
    from experiments.configs.train_config import get_config
    from flax.traverse_util import flatten_dict
    from wsrl.agents import SACAgent

    settings = get_config("locomotion_wsrl").agent_kwargs.to_dict()
    start = jax.random.PRNGKey(0), given["obs"][0, :1], given["action"][0, :1]
    agent = SACAgent.create(*start, encoder_def=None, shared_encoder=False, **settings)
    split = jax.random.split

    def parameters(when: str) -> Arrays:
        trees = {part: agent.state.params[f"modules_{part}"] for part in PARTS}
        trees["target_critic"] = agent.state.target_params["modules_critic"]
        for part in PARTS:
            leaves = jax.tree_util.tree_leaves(agent.state.opt_states[part], is_leaf=lambda x: hasattr(x, "mu"))
            (adam,) = (x for x in leaves if hasattr(x, "mu"))
            trees |= {f"{part}'s {k}": getattr(adam, k)[f"modules_{part}"] for k in ("mu", "nu")}
        flat = ((name, k, x) for name, tree in trees.items() for k, x in flatten_dict(tree, sep=".").items())
        return {f"{when}: {name}|{k}": np.array(x) for name, k, x in flat}

    def noise(key: Any, rows: int) -> Any:
        ones = np.ones((rows, ACTIONS), np.float32)
        return np.array(distrax.MultivariateNormalDiag(0.0 * ones, ones).sample(seed=key))

    found, names = parameters("start"), {"obs": "observations", "action": "actions", "next_obs": "next_observations"}
    for i in range(CYCLES):
        key = agent.state.rng
        for j in range(UTD + 1):  # as their updates split it, of critics first and then of the policy
            _, of_actor, of_critic, _ = split(key, 4)
            rest, next_action = split(of_critic)
            if j < UTD:
                found[f"drawn|{i} {j}"] = np.array(jax.random.randint(split(rest)[1], (2,), 0, CRITICS))
                found[f"noise|{i} {j}"] = noise(split(next_action)[1], BATCH)
            else:
                found[f"noise|{i} {j}"] = noise(split(of_actor, 4)[2], UTD * BATCH)
            key = split(key)[0]
        batch = {name: given[k][i] for k, name in names.items()}
        batch |= {"rewards": given["reward"][i], "masks": 1.0 - given["end"][i]}
        found[f"temperature|{i}"] = np.array(agent.forward_temperature())
        agent, info = agent.update_high_utd(batch, utd_ratio=UTD)
        found |= {f"updates: {k}|{i}": np.array((info["critic"] | info["actor"])[k]) for k in LOSSES}
    found[f"update {CYCLES}: temperature|"] = np.array(agent.forward_temperature())
    return found | parameters(f"update {CYCLES}")


def renamed(found: Arrays) -> Arrays:
    """Their numbers by our names of parameters: weights of an MLP as [out, in], and its two heads in one."""
    result: Arrays = {}
    for key, array in found.items():
        component, _, part = key.partition("|")
        *path, module, last = ["", "", *part.split(".")]
        kind, _, number = module.partition("_")
        name = {"kernel": "weight", "scale": "weight"}.get(last, last)
        if not number:
            result[key] = array
        elif "critic" in component:
            place = "norms" if kind == "LayerNorm" else "layers"
            result[f"{component}|{place}.{number if path[-1] else 2}.{name}"] = array if path[-1] else array[None]
        elif path[-1]:
            result[f"{component}|trunk.{3 * int(number) + (kind == 'LayerNorm')}.{name}"] = array.T
        else:
            result[f"{component}|head {number}.{name}"] = array.T
    for key in [key for key in result if "|head 0" in key]:
        heads = [result.pop(key.replace("head 0", f"head {i}")) for i in range(2)]
        result[key.replace("head 0", "trunk.6")] = np.concatenate(heads)
    return result


def with_shared_layer(spec: Any, config: Any) -> Any:
    """Networks as ours, but the critics share their last layer."""
    import torch
    from torch import nn

    from deeprl.offline import wsrl

    class Shared(nn.Linear):
        """The last layer of all critics. weight: [1, in, 1], bias: [1, 1]."""

        def forward(self, x: torch.Tensor, *part: Any) -> torch.Tensor:
            return x @ self.weight + self.bias

    actor, critic = wsrl.make_net(spec, config)
    layers: Any = critic.layers
    layers[-1] = last = Shared(config.critic_hidden[-1], 1)
    last.weight, last.bias = nn.Parameter(last.weight.T[None].clone()), nn.Parameter(last.bias[None].clone())
    return actor, critic


def ours(suite: str, given: Arrays, found: Arrays) -> Arrays:
    """Our side, in PyTorch: the same numbers. found: `renamed` ones of `theirs`."""
    import torch

    from deeprl import nets
    from deeprl.core import rng
    from deeprl.core.optim import adam
    from deeprl.core.spec import Batch, EnvSpec
    from deeprl.offline import wsrl

    config, as_theirs = wsrl.Config(env="given"), suite != "wsrl"
    spec = EnvSpec((OBS,), ACTIONS, (-1.0,) * ACTIONS, (1.0,) * ACTIONS)
    net = wsrl.build_net(spec, config, with_shared_layer if as_theirs else None)
    state, key = wsrl.init(net, config, rng.key(0, "init")), rng.key(0, "update")
    for part in (*PARTS, "target_critic"):
        params = getattr(state, part)
        params.update({k: torch.tensor(found[f"start: {part}|{k}"]).expand_as(p).clone() for k, p in params.items()})

    def idle(state: Any, part: str) -> Any:
        """After a step of Adam with gradient zero."""
        params, moments = getattr(state, part), getattr(state, f"{part}_moments")
        grads = {k: torch.zeros_like(p) for k, p in params.items()}
        params, moments = adam(params, grads, moments, state.hparams[f"{part}_lr"])
        return state._replace(**{part: params, f"{part}_moments": moments})

    made: Arrays = {}
    for i in range(CYCLES):
        data = {k: torch.from_numpy(x[i]) for k, x in given.items()}
        batch = Batch(discount=state.hparams["discount"] * (1.0 - data.pop("end")), **data)
        metrics: list[Any] = []
        for j in range(UTD + 1):
            drawn = torch.tensor(found.get(f"drawn|{i} {j}", ()))
            noise = mock.patch.object(rng, "normal", return_value=torch.tensor(found[f"noise|{i} {j}"]))
            with noise, mock.patch.object(nets, "drawn_critics", return_value=drawn):
                if j < UTD:
                    rows = Batch(*(x[j * BATCH : (j + 1) * BATCH] for x in batch))
                    new, found_now, _ = wsrl.update(net, config, state, rows, key)
                else:
                    if as_theirs:
                        state = state._replace(log_alpha=torch.tensor(found[f"temperature|{i}"]).log())
                    new, found_now, _ = wsrl.update_policy(net, config, state, batch, key)
            state = idle(new, "critic" if j == UTD else "actor") if as_theirs else new
            metrics.append(found_now)
        means = {k: torch.stack([m[k] for m in metrics if k in m]).mean() for k in LOSSES.values()}
        means["critic_loss"] /= CRITICS
        made |= {f"updates: {k}|{i}": means[name] for k, name in LOSSES.items()}
    trees = {part: getattr(state, part) for part in (*PARTS, "target_critic")}
    for part, scale in (("actor", 1), ("critic", CRITICS)):
        moments = getattr(state, f"{part}_moments")
        trees |= {f"{part}'s mu": {k: x / scale for k, x in moments.m.items()}}
        trees |= {f"{part}'s nu": {k: x / scale**2 for k, x in moments.v.items()}}
    if not as_theirs:
        trees["temperature"] = {"": state.log_alpha.exp()}
    flat = ((f"update {CYCLES}: {name}|{k}", x) for name, tree in trees.items() for k, x in tree.items())
    return made | {k: x for k, x in flat if as_theirs or "layers.2" not in k}


if __name__ == "__main__":
    Comparison("authors_wsrl.py", "zhouzypaul/wsrl", SUITES, inputs, theirs, renamed, ours).main(__doc__)
