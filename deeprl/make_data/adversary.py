"""Adversaries of `deeprl.make_data.corruption`: who tells which changes of a transition look worst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from deeprl.core import rng
from deeprl.core.population import member as take_member
from deeprl.core.population import resolve_device
from deeprl.data.datasets import Dataset
from deeprl.errors import DeeprlError, first_line
from deeprl.nets import bound, functional_call
from deeprl.run.trained import load_population


@runtime_checkable
class Adversary(Protocol):
    """Differentiable functions of the dataset's own observations and of actions in [-1, 1]."""

    def q(self, obs: Float[Tensor, "B O"], action: Float[Tensor, "B A"]) -> Float[Tensor, "E B"]: ...

    def policy(self, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B A"]: ...


class _Agent:
    """A trained EDAC agent as an adversary."""

    def __init__(self, population: Any, number: int, about: dict[str, Any]):
        self.about = about
        self._state, self._act = take_member(population.state, number), population.act()
        self._net = bound(population.net, self._state.fixed)

    def q(self, obs: Float[Tensor, "B O"], action: Float[Tensor, "B A"]) -> Float[Tensor, "E B"]:
        return functional_call(self._net.critic, self._state.critic, (self._state.facts.see(obs), action))

    def policy(self, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B A"]:
        first = torch.zeros(len(obs), dtype=torch.bool, device=obs.device)
        return self._act(self._state, (), obs, first, rng.key(0, "eval", device=obs.device))[0]


def load_adversary(run_dir: str | Path, dataset: Dataset, member: int = 0, device: str = "cpu") -> Adversary:
    """An agent of an `edac` run, at its newest checkpoint, as an adversary of the dataset that it was trained on.

    Raises DeeprlError for a run of another algorithm, and unless the data have the digest that the run has stored.
    """
    population = load_population(run_dir, device=resolve_device(device))
    algorithm = population.module.__name__.rpartition(".")[2]
    if algorithm != "edac":
        raise DeeprlError(f"adversary: {run_dir} is a run of {algorithm}; the adversary is an agent of edac")
    if not 0 <= member < len(population.members):
        raise DeeprlError(f"adversary: {run_dir} has no member {member}; it has {len(population.members)}")
    source = population.config.member(member).datasets()[0]
    known, here = population.digests.get(source), dataset.digest()
    if known is None:
        raise DeeprlError(
            f"adversary: {run_dir} has no checkpoint, and its snapshots do not tell what it was trained on"
        )
    if known != here:
        raise DeeprlError(
            f"adversary: {run_dir} was trained on {source} (digest {known}), which is not {dataset.name} (digest"
            f" {here}); it must have seen the clean dataset"
        )
    about = {"run": str(run_dir), "algorithm": algorithm, "member": member, "step": population.step}
    return _Agent(population, member, about | {"seed": population.members[member]["seed"]})


def needs_adversary(attack: str, elements: Sequence[str]) -> bool:
    """Whether an attack asks a critic: adversarial rewards are only negated."""
    return attack == "adversarial" and list(elements) != ["reward"]


def opponent_of(
    dataset: Dataset, attack: str, elements: Sequence[str], adversary: Adversary | str | Path | None, device: str
) -> Adversary | None:
    """The adversary of an attack, if it needs one.

    Raises DeeprlError if it is missing, given in vain, or of other shapes than the dataset.
    """
    if needs_adversary(attack, elements) != (adversary is not None):
        why = "none is needed" if adversary is not None else "one is needed: train edac on the clean dataset"
        raise DeeprlError(f"adversary: {why} for {attack} corruption of {', '.join(elements)}")
    if isinstance(adversary, str | Path):
        adversary = load_adversary(adversary, dataset, device=device)
    if adversary is not None:
        obs, action = (array[:2].to(device) for array in (dataset.data.obs, dataset.data.action))
        try:
            shapes = [tuple(x.shape) for x in (adversary.policy(obs), adversary.q(obs, action))]
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise DeeprlError(f"adversary: cannot take these rows ({first_line(error)})") from error
        if shapes[0] != tuple(action.shape) or len(shapes[1]) != 2 or shapes[1][1] != len(obs):
            raise DeeprlError(f"adversary: policy and q return {shapes[0]} and {shapes[1]} for {len(obs)} rows")
    return adversary
