"""One run on disk: directory, schedule, records, progress, checkpoints. What keeps a `train` loop short.

A run directory holds `config.json`, `status.json`, `metrics.csv`, `evaluations.csv`, `tensorboard/` and `checkpoints/`.
Opening a directory that holds the same run continues it from its newest checkpoint; one that holds another run is
refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxtyping import Int
from torch import Tensor

from deeprl import checkpoint, health, rng
from deeprl.config import RunConfig, config_hash
from deeprl.directory import stored_execution, write_about, write_json
from deeprl.envs import Episode, PopulationEnvs
from deeprl.evaluate import Evaluator, PopulationPolicy
from deeprl.logger import CsvLog, TensorBoardLog
from deeprl.make_env import EnvFactory
from deeprl.population import Agents, resolve_execution
from deeprl.progress import Progress
from deeprl.tree import flatten, load_flat

Callback = Callable[["Run"], bool | None]


class Run:
    """A run in progress. step: environment steps of each agent so far; updates: updates of each agent so far.

    A run whose agents have all diverged ends at the next log row, after an evaluation: nothing would change any more.
    It is `diverged` then, not `finished`, and is not continued. `frozen` names the agents that diverged.

    net: the function of own networks, to note in `config.json` that they are needed again.
    callback: called after every step of the population; returning True stops the run with a checkpoint.
    """

    def __init__(
        self,
        algorithm: str,
        config: RunConfig,
        updates: int,
        net: Callable[..., Any] | None = None,
        callback: Callback | None = None,
    ):
        self.algorithm, self.config, self.callback = algorithm, config, callback
        self._custom_net = f"{net.__module__}:{net.__qualname__}" if net else ""
        self.directory = Path(config.out or f"runs/{algorithm}/{config.env}/{config_hash(algorithm, config)}")
        self.step = self.updates = 0
        stored = stored_execution(self.directory, algorithm, config, self._custom_net)
        self.execution = stored or resolve_execution(config, updates)
        self.execution.apply()
        self.streams = rng.Streams(config.seeds, self.execution.device)
        self.finished = self.diverged = False
        self._episodes: list[Episode] = []
        self._previous_step = self._resumed_at = 0
        self._metrics_before: Mapping[str, Tensor] = {}
        self._attached: dict[str, Any] = {}
        self._frozen: list[health.Record] = []
        self._wall_before = self._learning_s = 0.0
        self._started = self._saved_at = time.monotonic()
        self._learning_since: float | None = None
        self._compiled = False
        self._make_env = EnvFactory(config.env, dict(config.env_kwargs), config.wrappers)
        self._evaluator = Evaluator(self._make_env, config.seeds, config.eval_episodes, keep=not config.wrappers)
        self._evaluated = -1

    # --- opening and closing ---

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "_progress"):
            if kind is None:
                self._finish()
            self._progress.close()
            self._tensorboard.close()
            self._attached["envs"].close()
        self._evaluator.close()

    def make_envs(self) -> PopulationEnvs:
        """The environments that the agents act in."""
        self._make_env().close()  # a clear error before S x N environments are made
        return PopulationEnvs(self._make_env, self.config.seeds, self.config.envs_per_agent, self.config.env_backend)

    def restore(self, agents: Agents, envs: PopulationEnvs, **parts: Any) -> None:
        """Begin, or go on from the newest checkpoint. parts: objects with `state_dict` and `load_state_dict`."""
        self._attached = {"agents": _TreeState(agents), "envs": envs, **parts}
        write_about(self.directory, self.algorithm, self.config, envs.spec, self.execution, self._custom_net)
        found = checkpoint.load(self.directory / "checkpoints")
        metrics, evaluations = self.directory / "metrics.csv", self.directory / "evaluations.csv"
        self._metrics, self._evaluations = CsvLog(metrics), CsvLog(evaluations)
        if found is not None:
            self._resume(*found)
        step = self.step if found else -1
        self._metrics.cut_after(step)
        self._evaluations.cut_after(step)
        names = [f"member_{i}_seed_{s}" for i, s in enumerate(self.config.seeds)]
        self._tensorboard = TensorBoardLog(self.directory / "tensorboard", names, step + 1)
        title = f"{self.algorithm} {self.config.env} x{len(self.config.seeds)}"
        self._progress = Progress(title, self.config.steps, len(self.config.seeds), self.step)
        self._write_status("running")

    def _resume(self, step: int, content: dict[str, Any]) -> None:
        self.step, own = step, content["run"]
        self._resumed_at, self._metrics_before = step, own.get("metrics", {})
        self.updates, self._wall_before, self._learning_s = own["updates"], own["wall_s"], own["learning_s"]
        self._episodes = [Episode(*e) for e in own["episodes"]]
        self._evaluated, self._frozen, self.diverged = own["evaluated"], own["frozen"], own["diverged"]
        for name, part in self._attached.items():
            if name in content:
                anew = part.load_state_dict(content[name])
                if anew:
                    print(f"{self.config.env} cannot be restored exactly: {anew} episodes start anew", flush=True)

    # --- the loop ---

    def running(self) -> bool:
        """Whether the loop goes on: steps are left, and neither the callback nor `max_hours` has stopped it."""
        stopped = self.step > self._resumed_at and self.callback is not None and self.callback(self)
        hours = (time.monotonic() - self._started) / 3600
        out_of_time = 0 < self.config.max_hours <= hours and self.step > self._resumed_at
        return self.step < self.config.steps and not (stopped or out_of_time or self.diverged)

    def advance(self, episodes: list[Episode]) -> None:
        """Count one step of all environments."""
        self._previous_step = self.step
        self.step += self.config.envs_per_agent
        self._episodes += episodes
        self._progress.update(min(self.step, self.config.steps))
        faults = self._attached["envs"].pop_faults()
        if faults.keys() - {f["member"] for f in self._frozen}:
            health.freeze(self._attached["agents"].tree, faults)
            self._report_frozen()

    def updates_due(self, per_step: float, after: int, every: int = 1) -> range:
        """The numbers of the updates to do now: `per_step` for each environment step beyond `after`.

        every: they are done in bursts, at multiples of so many steps beyond `after`.
        """
        learned_from = (self.step - after) // every * every
        due = range(self.updates, max(self.updates, math.floor(learned_from * per_step + 1e-9)))
        if due and not self._compiled:
            self._compiled = True
            if self.execution.compile:
                self._progress.say("compiling the update: up to a minute, less when it has been compiled before")
        elif due and self._learning_since is None:  # the second update: compilation is no part of the speed
            self._learning_since = time.monotonic()
        self.updates = due.stop
        return due

    def keys(self, stream: str, counter: int) -> Int[Tensor, "S 4"]:
        """The agents' keys of a named random stream."""
        return self.streams(stream, counter)

    def due(self, every: int) -> bool:
        """Whether the last step reached a multiple of `every` (0: never)."""
        return every > 0 and self.step // every > self._previous_step // every

    def log(self, metrics: Mapping[str, Tensor]) -> None:
        """Write the agents' metrics ([S] each) and mean training returns, if it is time to."""
        # A session that has only just resumed has not seen every kind of update yet.
        self._metrics_before = metrics = {**self._metrics_before, **metrics}
        if not self.due(self.config.log_every):
            return
        self._report_frozen()
        self.diverged = len(self._frozen) == len(self.config.seeds)  # only here: a step that no interruption changes
        if self.diverged:
            self._progress.say(f"all agents of {self.directory} are frozen: the run ends at step {self.step:,}")
        if not metrics:  # warm-up: no row, and its returns are not those of the policy that the next row is about
            self._episodes = []
            return
        values = {f"train/{name}": value.tolist() for name, value in metrics.items()}
        rows: list[dict[str, Any]] = []
        for i, seed in enumerate(self.config.seeds):
            own = [e for e in self._episodes if e.member == i]
            train = {
                "train/return": sum(e.ret for e in own) / len(own) if own else math.nan,
                "train/length": sum(e.length for e in own) / len(own) if own else math.nan,
            } | {name: value[i] for name, value in values.items()}
            rows.append({"step": self.step, "member": i, "seed": seed, "wall_s": round(self.wall_s, 2)} | train)
            if self.config.tensorboard:
                self._tensorboard.write(self.step, i, {k: v for k, v in train.items() if not math.isnan(v)})
        self._metrics.write(rows)
        self._episodes = []

    def evaluate(self, policy: PopulationPolicy) -> None:
        """Evaluate all agents, if it is time to or the run is at its end."""
        due = self.due(self.config.eval_every) or self.step >= self.config.steps or self.diverged
        if not due or self.config.eval_episodes == 0 or self._evaluated == self.step:
            return
        episodes = self._evaluator(policy, self.step)
        wall = round(self.wall_s, 2)
        self._evaluations.write(
            [
                {"step": self.step, "member": e.member, "seed": self.config.seeds[e.member], "episode": e.env,
                 "return": e.ret, "length": e.length, "wall_s": wall}
                for e in episodes
            ]
        )  # fmt: skip
        self._evaluated = self.step
        for i in range(len(self.config.seeds)):
            own = [e.ret for e in episodes if e.member == i]
            if self.config.tensorboard:
                self._tensorboard.write(self.step, i, {"eval/return": sum(own) / len(own)})
        mean = sum(e.ret for e in episodes) / len(episodes)
        self._progress.update(self.step, f"return {mean:,.1f} at {self.step:,}")
        self._write_status("running")

    def checkpoint(self) -> None:
        """Save everything that an exact resume needs, if it is time to."""
        minutes = self.config.checkpoint_minutes
        if minutes > 0 and time.monotonic() - self._saved_at >= minutes * 60:
            self.save()

    def save(self, only: tuple[str, ...] | None = None) -> None:
        """Write a checkpoint now. only: the parts to keep (all by default)."""
        self._report_frozen()
        parts = {k: v.state_dict() for k, v in self._attached.items() if only is None or k in only}
        own = {
            "updates": self.updates, "wall_s": self.wall_s, "learning_s": self.learning_s, "frozen": self._frozen,
            "episodes": [tuple(e) for e in self._episodes], "evaluated": self._evaluated,
            "metrics": self._metrics_before, "diverged": self.diverged,
        }  # fmt: skip
        keep = self.config.keep_checkpoints if only is None else 1
        checkpoint.save(self.directory / "checkpoints", self.step, {"run": own, **parts}, keep)
        self._saved_at = time.monotonic()
        self._write_status("running")

    def _finish(self) -> None:
        self._report_frozen()
        self.finished = self.step >= self.config.steps
        if self.step > self._resumed_at or self.step == 0:
            self.save(only=("agents",) if self.finished or self.diverged else None)
        self._write_status("finished" if self.finished else "diverged" if self.diverged else "stopped")

    # --- status ---

    @property
    def wall_s(self) -> float:
        """Seconds of work on this run, earlier sessions included."""
        return self._wall_before + time.monotonic() - self._started

    @property
    def learning_s(self) -> float:
        """Seconds since the first update of each session, which compiles."""
        since = self._learning_since
        return self._learning_s + (time.monotonic() - since if since is not None else 0.0)

    @property
    def frozen(self) -> list[health.Record]:
        """Agents that diverged: member, seed, the first update not taken, the step at which it was noticed, cause."""
        return self._frozen

    def _report_frozen(self) -> None:
        agents = self._attached["agents"].tree
        health.look(agents)
        known = {f["member"] for f in self._frozen}
        for record in health.records(agents, self.config.seeds, self.step):
            if record["member"] not in known:
                self._frozen.append(record)
                self._progress.say(f"{self.algorithm} {self.config.env}: {health.sentence(record)}")

    def _write_status(self, state: str) -> None:
        rate = self.updates * len(self.config.seeds) / self.learning_s if self.learning_s > 0 else 0.0
        status = {"state": state, "step": self.step, "wall_s": round(self.wall_s, 2),
                  "updates_per_s": round(rate, 2), "frozen": self._frozen}  # fmt: skip
        write_json(self.directory / "status.json", status)


class _TreeState:
    """A population as a part of a checkpoint: its tensors by name, restored in place."""

    def __init__(self, tree: Any):
        self.tree = tree

    def state_dict(self) -> dict[str, Tensor]:
        return flatten(self.tree)

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        load_flat(self.tree, saved)
