"""Agents of several runs, gathered into one, go on as they would have gone on where they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprl.config import build
from deeprl.errors import DeeprlError
from deeprl.reporting.read import read_runs
from deeprl.run.checkpoint import load_checkpoint
from deeprl.run.gather import Seat, gather
from deeprl.run.trained import algorithm_module

SMALL = {"compile": "off", "backend": "loop", "eval_every": 24, "eval_episodes": 2, "tensorboard": False}
ONLINE = SMALL | {"hidden": (8, 8), "learning_starts": 24, "batch_size": 8, "buffer_size": 40, "steps": 72}
ON_DEVICE = {"algorithm": "dqn", "env": "CartPole-v1", "env_backend": "device", "lr": 1e-3, "prioritized": True}
ON_HOST = {"algorithm": "sac", "env": "Pendulum-v1", "actor_lr": 1e-3, "envs_per_agent": 2}


def trained(out: Path, case: dict[str, Any], until: int, **own: Any) -> Any:
    kind = algorithm_module(case["algorithm"])
    settings = {k: v for k, v in case.items() if k != "algorithm"}
    config = build(kind.Config, ONLINE | settings | own | {"out": str(out)})
    kind.train(config, callback=lambda run: run.step >= until)
    return config


@pytest.mark.parametrize("case", [ON_DEVICE, ON_HOST], ids=["dqn on the device", "sac on the host"])
def test_gathered_agents_go_on_as_they_would_have_where_they_were(tmp_path: Path, case: dict[str, Any]) -> None:
    lr = "lr" if case["algorithm"] == "dqn" else "actor_lr"
    first = trained(tmp_path / "a", case, 48, seeds=(0, 1), **{lr: (1e-3, 2e-3)})
    trained(tmp_path / "b", case, 48, seeds=(2, 3), **{lr: (3e-3, 4e-3)})
    config = dataclasses.replace(first, seeds=(3, 0), out=str(tmp_path / "c"), **{lr: (4e-3, 1e-3)})

    gather([Seat(tmp_path / "b", 1), Seat(tmp_path / "a", 0)], config)
    algorithm_module(case["algorithm"]).train(config)
    whole = {0: ("a2", 0, (0, 1), (1e-3, 2e-3)), 1: ("b2", 1, (2, 3), (3e-3, 4e-3))}
    for folder, _, seeds, rates in whole.values():
        trained(tmp_path / folder, case, 1000, seeds=seeds, **{lr: rates})

    here = load_checkpoint(tmp_path / "c/checkpoints")
    agents = {a.member: a for a in read_runs(tmp_path / "c")[0].agents}
    for member, (folder, there, _, _) in zip((1, 0), whole.values(), strict=True):
        alone = load_checkpoint(tmp_path / folder / "checkpoints")
        assert here is not None
        assert alone is not None
        assert here[0] == alone[0] == 72
        for name, value in alone[1]["agents"].items():
            assert torch.equal(here[1]["agents"][name][member], value[there]), name
        other = next(a for a in read_runs(tmp_path / folder)[0].agents if a.member == there)
        assert [(e.step, e.returns) for e in agents[member].evaluations] == [
            (e.step, e.returns) for e in other.evaluations
        ]
        assert len(other.evaluations) == 3


def test_runs_that_do_not_fit_together_are_refused_by_name(tmp_path: Path) -> None:
    config = trained(tmp_path / "a", ON_DEVICE, 24, seeds=(0,))
    trained(tmp_path / "b", ON_DEVICE, 48, seeds=(1,))
    other = dataclasses.replace(config, seeds=(0, 1), out=str(tmp_path / "c"))
    with pytest.raises(DeeprlError, match=r"different steps: \[24, 48\]"):
        gather([Seat(tmp_path / "a", 0), Seat(tmp_path / "b", 0)], other)
    with pytest.raises(DeeprlError, match=r"a: hidden is \[8, 8\] there, \[4, 4\] here"):
        gather([Seat(tmp_path / "a", 0)], dataclasses.replace(other, seeds=(0,), hidden=(4, 4)))
    trained(tmp_path / "d", ON_DEVICE, 1000, seeds=(0,))
    with pytest.raises(DeeprlError, match=r"d has no checkpoint from which"):
        gather([Seat(tmp_path / "d", 0)], dataclasses.replace(other, seeds=(0,)))
