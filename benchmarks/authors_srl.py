"""SRL beside its authors' own classes, on the same numbers: how far apart are the two?

    python benchmarks/authors_srl.py --repo Sequence-Reinforcement-Learning --python .venv/bin/python

--repo: a checkout of dee0512/Sequence-Reinforcement-Learning, whose `scripts/sac.py` needs torch alone. Both sides have
plans of 4 actions in [-1, 1], get the same parameters, and for each of 4 updates two batches of 256 transitions and the
same noise in the actions. Rows (suite `srl`) are those of `authors.py`. Losses and moments of our critics, whose loss
has the half of SAC's, are doubled. Theirs is given a temperature of 1 for its first update too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from authors import Arrays, Comparison

OBS, ACTIONS, BATCH, UPDATES, LENGTH = 11, 3, 256, 4, 4
LOSSES = ("critic_loss", "actor_loss", "model_loss")
PARTS = ("actor", "critic", "model", "target_critic", "target_model")


def inputs() -> Arrays:
    """The batches, [UPDATES, 2, BATCH, ...], and the noise of the next action and of the plan."""
    draw, shape = np.random.default_rng(0), (UPDATES, 2, BATCH)
    given: Arrays = {k: draw.normal(size=(*shape, OBS)) for k in ("obs", "next_obs")}
    given |= {k: draw.uniform(-1.0, 1.0, (*shape, ACTIONS)) for k in ("action", "previous")}
    given |= {"reward": draw.gamma(2.0, 0.5, shape), "end": draw.random(shape) < 0.1}
    given |= {"noise": draw.normal(size=(UPDATES, BATCH, 1 + LENGTH, ACTIONS))}
    return {k: x.astype(np.float32) for k, x in given.items()}


def theirs(repo: Path, suite: str, given: Arrays) -> Arrays:
    """Their side: "component|part" -> numbers."""
    sys.path.insert(0, str(repo / "scripts"))
    import sac
    import torch

    torch.manual_seed(0)
    space = SimpleNamespace(shape=(ACTIONS,), high=np.ones(ACTIONS), low=-np.ones(ACTIONS))
    agent = sac.SACGRU(OBS, space, 0.99, 0.005, 1.0, "Gaussian", 1, True, 256, 3e-4, LENGTH)
    modules = {"actor": agent.policy, "critic": agent.critic, "model": agent.model}
    modules |= {"target_critic": agent.critic_target, "target_model": agent.model_target}
    optimizers = {"actor": agent.policy_optim, "critic": agent.critic_optim, "model": agent.model_optimizer}

    def numbers(when: str) -> Arrays:
        found = {f"{when}: {n}|{k}": p.detach() for n, module in modules.items() for k, p in module.named_parameters()}
        for name, optimizer in optimizers.items():
            for key, p in modules[name].named_parameters():
                for own, ours in (("exp_avg", "mu"), ("exp_avg_sq", "nu")):
                    state = optimizer.state.get(p, {})
                    found[f"{when}: {name}'s {ours}|{key}"] = state.get(own, torch.zeros_like(p))
        return {k: x.numpy().copy() for k, x in found.items()} | {
            f"{when}: log_alpha|": np.array(agent.log_alpha.item())
        }

    found = numbers("start")
    for i in range(UPDATES):
        batches = []
        for b in range(2):
            one = {k: torch.from_numpy(x[i, b]) for k, x in given.items() if k != "noise"}
            reward, mask = one["reward"][:, None], 1.0 - one["end"][:, None]
            batches.append((one["obs"], one["action"], one["previous"], one["next_obs"], reward, mask))
        memory = SimpleNamespace(sample=mock.Mock(side_effect=batches))
        noise = list(torch.from_numpy(given["noise"][i]).unbind(1))
        with mock.patch("torch.distributions.normal._standard_normal", side_effect=noise):
            critic_loss, _, actor_loss, _, _, model_loss = agent.update_parameters(memory, BATCH, i)
        losses = {"critic_loss": critic_loss, "actor_loss": actor_loss, "model_loss": model_loss}
        found |= {f"updates: {k}|{i}": np.array(x) for k, x in losses.items()}
    return found | numbers(f"update {UPDATES}")


def renamed(found: Arrays) -> Arrays:
    """Their numbers by our names of parameters; critics in one array, mean and log sigma in one layer."""
    result: Arrays = {}
    for key, array in found.items():
        component, _, part = key.partition("|")
        module, _, last = part.rpartition(".")
        if not module:
            result[key] = array
        elif "critic" in component:
            number = int(module.removeprefix("linear")) - 1
            own = f"{component}|layers.{number % 3}.{last}"
            one = array.T if last == "weight" else array
            result.setdefault(own, np.zeros((2, *one.shape), one.dtype))[number // 3] = one
        elif "model" in component:
            result[f"{component}|trunk.{2 * int(module[1:]) - 2}.{last}"] = array
        elif module == "gru":
            result[f"{component}|cell.{last}"] = array
        elif module == "mean_linear":
            both = [array, found[key.replace("mean_linear", "log_std_linear")]]
            result[f"{component}|head.0.{last}"] = np.concatenate(both)
        elif module in ("linear1", "linear2"):
            result[f"{component}|encoder.{2 * int(module[-1]) - 2}.{last}"] = array
    return result


def ours(suite: str, given: Arrays, found: Arrays) -> Arrays:
    """Our side: the same numbers. found: `renamed` ones of `theirs`."""
    import torch

    from deeprl.core import rng
    from deeprl.core.spec import Batch, EnvSpec
    from deeprl.online import srl

    config = srl.Config(sequence_length=LENGTH)
    net = srl.build_net(EnvSpec((OBS,), ACTIONS, (-1.0,) * ACTIONS, (1.0,) * ACTIONS), config)
    state = srl.init(net, config, rng.key(0, "init"))
    for part in PARTS:
        getattr(state, part).update({k: torch.tensor(found[f"start: {part}|{k}"]) for k in getattr(state, part)})
    made: Arrays = {}
    for i in range(UPDATES):
        batches, previous = [], torch.from_numpy(given["previous"][i, 1])
        for b in range(2):
            one = {k: torch.from_numpy(given[k][i, b]) for k in ("obs", "action", "reward", "end", "next_obs")}
            batches.append(Batch(discount=state.hparams["discount"] * (1.0 - one.pop("end")), **one))
        noise = torch.from_numpy(given["noise"][i])
        with mock.patch.object(rng, "normal", side_effect=[noise[:, :1], noise[:, 1:]]):
            both = srl.Recalled(batches[0], batches[0].action), srl.Recalled(batches[1], previous)
            state, metrics, _ = srl.update(net, config, state, *both, rng.key(0, "update"), policy=True)
        made |= {f"updates: {k}|{i}": metrics[k] * (2 if k == "critic_loss" else 1) for k in LOSSES}
    trees = {part: getattr(state, part) for part in PARTS} | {"log_alpha": {"": state.log_alpha}}
    for part in PARTS[:3]:
        moments, scale = getattr(state, f"{part}_moments"), 2 if part == "critic" else 1
        trees |= {f"{part}'s mu": {k: x * scale for k, x in moments.m.items()}}
        trees |= {f"{part}'s nu": {k: x * scale**2 for k, x in moments.v.items()}}
    return made | {f"update {UPDATES}: {name}|{k}": x for name, tree in trees.items() for k, x in tree.items()}


if __name__ == "__main__":
    repo, packages = "dee0512/Sequence-Reinforcement-Learning", ("torch", "numpy")
    Comparison("authors_srl.py", repo, ("srl",), inputs, theirs, renamed, ours, packages).main(__doc__)
