"""A search as rl-baselines3-zoo does it, with stable-baselines3 and Optuna; `benchmarks/tuning.py --peer` calls it.

    python benchmarks/tuning_peer.py search|test FOLDER WORKER

In `FOLDER/asked.json`: algorithm, settings, space, number of trials. Needs stable-baselines3 and optuna, not deeprl. A
trial is one run of one seed, its number; the value is the mean return of the last evaluation, earlier ones go to the
median pruner (5 trials and a third of the evaluations before it prunes).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import optuna
import torch
from optuna.distributions import FloatDistribution
from optuna.storages.journal import JournalFileBackend
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

LAST = 3  # evaluations whose mean is a test score, as in our search


def main(part: str, folder: Path, worker: int) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    backend = JournalFileBackend(str(folder / "journal.log"))
    evaluations = asked["settings"]["steps"] // asked["settings"]["eval_every"]
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="peer",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=worker, n_startup_trials=10, multivariate=True, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=evaluations // 3),
    )
    if part == "search":
        search(study, asked)
    else:
        test(study, asked, folder, worker)


def search(study: Any, asked: dict[str, Any]) -> None:
    known = {
        name: FloatDistribution(*bounds(table), log=table["scale"] != "linear")
        for name, table in asked["space"].items()
    }
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    while len(study.get_trials(deepcopy=False, states=done)) < asked["trials"]:
        trial = study.ask(known)
        try:
            values = run(asked, named(trial.params, asked["space"]), trial.number, trial)
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, values[-1])


def test(study: Any, asked: dict[str, Any], folder: Path, worker: int) -> None:
    """Winner and default on the test seeds, shared by the two processes; the last one writes what was found."""
    winner = named(study.best_trial.params, asked["space"])
    default = asked["default"] | (
        {"epsilon_steps": asked["default"]["epsilon_steps"] / asked["settings"]["steps"]}
        if "epsilon_steps" in asked["default"]
        else {}
    )
    jobs = [
        (name, settings, seed)
        for name, settings in (("test", winner), ("default", default))
        for seed in asked["test_seeds"]
    ]
    for name, settings, seed in jobs[worker::2]:
        file = folder / f"{name}_{seed}.json"
        if not file.exists():
            file.write_text(json.dumps(run(asked, settings, seed)[-LAST:]), encoding="utf-8")
    files = {name: [folder / f"{name}_{seed}.json" for seed in asked["test_seeds"]] for name in ("test", "default")}
    if all(file.exists() for each in files.values() for file in each):
        found: dict[str, Any] = {"winner": winner, "tuning": study.best_value}
        for name, each in files.items():
            values = [json.loads(file.read_text(encoding="utf-8")) for file in each]
            found[name] = [sum(value) / len(value) for value in values]
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def bounds(table: dict[str, Any]) -> tuple[float, float]:
    low, high = table["low"], table["high"]
    return (1 - high, 1 - low) if table["scale"] == "complement" else (low, high)


def named(params: dict[str, float], space: dict[str, Any]) -> dict[str, float]:
    return {name: 1 - value if space[name]["scale"] == "complement" else value for name, value in params.items()}


def run(asked: dict[str, Any], chosen: dict[str, float], seed: int, trial: Any = None) -> list[float]:
    """The mean return of each evaluation. Raises TrialPruned."""
    settings = asked["settings"]
    env, judge = (gymnasium.make(settings["env"]) for _ in range(2))
    shared = {
        "learning_rate": chosen["lr"],
        "gamma": chosen["discount"],
        "batch_size": settings["batch_size"],
        "learning_starts": settings["learning_starts"],
        "buffer_size": settings["steps"],
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": list(settings["hidden"])},
        "seed": seed,
        "device": "cpu",
    }
    if asked["algorithm"] == "sac":
        model: Any = SAC("MlpPolicy", env, tau=chosen["tau"], **shared)
    else:
        own = {"exploration_fraction": chosen["epsilon_steps"], "exploration_final_eps": chosen["epsilon_end"]}
        model = DQN("MlpPolicy", env, target_update_interval=settings["target_every"], **own, **shared)
    watch = _Watch(judge, settings["eval_every"], settings["eval_episodes"], trial)
    judge.reset(seed=10_000 + seed)
    model.learn(settings["steps"], callback=watch)
    if watch.pruned:
        raise optuna.TrialPruned
    return watch.values


class _Watch(BaseCallback):
    """Evaluates at a cadence, and ends a run that the pruner does not want."""

    def __init__(self, judge: Any, every: int, episodes: int, trial: Any):
        super().__init__()
        self._judge, self._every, self._episodes, self._trial = judge, every, episodes, trial
        self.values: list[float] = []
        self.pruned = False

    def _on_step(self) -> bool:
        if self.n_calls % self._every == 0:
            self.values.append(float(evaluate_policy(self.model, self._judge, self._episodes, warn=False)[0]))
            if self._trial is not None:
                self._trial.report(self.values[-1], len(self.values))
                self.pruned = self._trial.should_prune()
        return not self.pruned


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
