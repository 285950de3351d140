"""One run on disk: directory, schedule, records, progress, checkpoints. What keeps a `train` loop short.

A run directory holds `config.json`, `status.json`, `metrics.csv`, `evaluations.csv`, `tensorboard/`, `checkpoints/`,
`snapshots/` if asked for, `pretraining.csv` where its agents began from another run, and `pbt.csv` where members go on
from others. Opening one continues its run from the newest checkpoint; another run is refused.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deeprl.config import RunConfig, config_hash
from deeprl.config.schedules import changes_between
from deeprl.core import footprint, rng
from deeprl.core.population import Agents
from deeprl.core.tree import TreeState
from deeprl.envs.device.population import DeviceEnvs
from deeprl.envs.device.registry import device_env
from deeprl.envs.make import EnvFactory, refuse_wrappers
from deeprl.envs.mujoco.warp import WarpEnvs
from deeprl.envs.units import Unit, unit_of
from deeprl.envs.vector import Episode, PopulationEnvs
from deeprl.errors import DeeprlError, first_line
from deeprl.run import checkpoint, directory, divergence, extension, own_networks, snapshots
from deeprl.run.clock import Clock
from deeprl.run.device_evaluate import DeviceEvaluator
from deeprl.run.directory import Home, fitting, writing
from deeprl.run.evaluate import Evaluations, GreedyPolicy, StoppedError
from deeprl.run.interrupts import Interrupts
from deeprl.run.logger import RunLogs
from deeprl.run.progress import Progress
from deeprl.run.records import write_json
from deeprl.run.selection import Selection, apply_settings, apply_succession, standings_of

Callback = Callable[["Run"], bool | None]


class Run:
    """A run in progress. step: environment steps of each agent so far; updates: updates of each agent so far.

    A run whose agents have all diverged ends at the next log row, after an evaluation: nothing would change any more.
    It is `diverged` then, not `finished`, and is not continued. `frozen` names the agents that diverged.

    keys("update", i): the agents' keys of a named random stream, int64 [S, 4]. unit: what its steps are.
    pretraining: rows of `pretraining.csv`, which is written when the run begins; origins: what `config.json` keeps of
    the runs that agents began from.
    custom_net: the function of own networks; its name is noted, as they are needed again. stored: `config.json` of
    earlier sessions.
    callback: called after every step of the population; returning True stops the run with a checkpoint. One that is a
    `Selection` lets members go on from others.
    """

    def __init__(
        self,
        algorithm: str,
        config: RunConfig,
        net: Callable[..., Any] | None = None,
        callback: Callback | None = None,
    ):
        self.algorithm, self.config, self.callback, self.custom_net = algorithm, config, callback, net
        self._custom_net = own_networks.name_of(net) if net else ""
        self._selection = callback if isinstance(callback, Selection) else None
        self._rules = {"pbt": self._selection.rules} if self._selection else {}
        self._home = Home(config.out or f"runs/{algorithm}/{config.task}/{config_hash(algorithm, config)}")
        self.step = self.updates = self._previous_step = self._resumed_at = 0
        self.stored = directory.stored_run(self.directory, algorithm, config, self._custom_net, self._rules.get("pbt"))
        self.execution = directory.execution_of(self.stored, config, config.updates())
        self.keys = rng.Streams(config.seeds, self.execution.device)
        self.finished = self.diverged = False
        self._episodes, self._attached = list[Episode](), dict[str, Any]()
        self.frozen, self._metrics_before = list[divergence.Record](), dict[str, Tensor]()
        self._clock, self.unit = Clock(), Unit("steps")
        self._before_end = dict[str, Any]()  # what `extension.of_longer` puts back into the last checkpoint
        self.pretraining, self.origins = list[dict[str, Any]](), dict[str, Any]()
        self._saved_at, self._begun_at = time.monotonic(), (-1, -1)  # the steps of a resumed run and its evaluation
        self._interrupts, self._closing = Interrupts(), contextlib.ExitStack()
        self._logs = RunLogs(self._home.fixed, algorithm, config)
        self._opened, self._waiting = False, False
        self._width = getattr(config, "envs_per_agent", 1)  # steps that a pass of the loop counts
        self._evaluations, self._news = Evaluations(config.seeds, config.eval_episodes), list[str]()

    # --- opening and closing ---

    def __enter__(self) -> Run:
        self._closing.enter_context(self.execution.applied())
        self._closing.enter_context(self._interrupts)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with writing(self.directory), self._closing:
            if self._opened and kind is None:
                self._finish()
            elif self._opened:
                with contextlib.suppress(DeeprlError):  # the error that ends the run says more
                    self._write_status("stopped" if kind is KeyboardInterrupt else "failed")
        if kind is None or issubclass(kind, Exception):  # a Ctrl-C also reaches a compiler that is at work
            state = "finished" if self.finished else "stopped" if error is None else f"failed ({first_line(error)})"
            again = shlex.join(["deeprl", "resume", str(self.directory)])
            by_call = self._custom_net or self._selection
            self._interrupts.leave(f"{state} at step {self.step:,}", "the same call" if by_call else again)

    def make_envs(self) -> PopulationEnvs | DeviceEnvs | WarpEnvs:
        """The environments that the agents act in; they are evaluated in others like them."""
        config: Any = self.config  # that of an online algorithm
        make = EnvFactory(config.env, config.env_kwargs, config.wrappers)
        envs_of = config.seeds, config.envs_per_agent
        outline = self.execution.device == "meta" and config.env_backend == "warp"  # of the shapes, which are the same
        backend: Any = "sync" if outline else config.env_backend
        envs: PopulationEnvs | DeviceEnvs | WarpEnvs
        if backend == "device":
            envs = self._device_envs(make)
        elif backend == "warp":
            envs = WarpEnvs(make, *envs_of, self.execution)
        else:
            envs = PopulationEnvs(make, *envs_of, backend)
        if backend != "device":
            self.evaluate_in(make)
        self._closing.callback(envs.close)
        return envs

    def _device_envs(self, make: EnvFactory) -> DeviceEnvs:
        """Environments as functions of tensors, and evaluations in such."""
        config: Any = self.config
        refuse_wrappers("device", config.wrappers)
        env, limit = device_env(config.env, config.env_kwargs)
        self._evaluations.begin_in(
            DeviceEvaluator(env, limit, config.seeds, config.eval_episodes, self.execution), make
        )
        return DeviceEnvs(env, limit, config.seeds, config.envs_per_agent, self.execution)

    def evaluate_in(self, make: EnvFactory) -> None:
        """Evaluate in environments that `make` makes."""
        self._news += self._evaluations.begin(make)
        self._closing.callback(self._evaluations.close)

    def restore(
        self,
        net: Any,
        agents: Agents,
        envs: PopulationEnvs | DeviceEnvs | WarpEnvs | None = None,
        data: Any = None,
        **parts: Any,
    ) -> None:
        """Begin, or go on from the newest checkpoint. parts: objects with `state_dict` and `load_state_dict`.

        net: the agents' `Net`; own networks are tried first. envs, data: what the agents learn from, one of them or
        both, with such methods too, and a `spec`. data is shared by the agents.

        Raises DeeprlError for networks that cannot be trained, and for a directory that is in use or cannot be read.
        """
        if self.execution.device == "meta":
            raise footprint.MetaDeviceError(footprint.needs_of(len(self.config.seeds), "meta", agents, **parts))
        own_networks.try_out(net, agents.state, self.execution)
        self._require_settings(agents)
        given = {name: part for name, part in (("envs", envs), ("data", data)) if part is not None}
        self._attached = {"agents": TreeState(agents), **given, **parts}
        self.execution.fit(agents.state, getattr(self.config, "batch_size", 1))
        spec = (envs or data).spec
        self.unit = unit_of(self.config.env, spec.action_repeat, offline=envs is None)
        made_of = own_networks.made_of(net, data)
        record = made_of | self.origins | self._rules
        about = (spec, self.execution, self._custom_net, self._evaluations.make, record)
        begin = functools.partial(directory.write_about, self.directory, self.algorithm, self.config, *about)
        directory.require_networks(self.directory, self.stored, made_of)
        found, news = directory.claimed(self.directory, self.stored, self.config, self.execution, begin, self._closing)
        news += self._news
        if found:
            news += self._resume(net, *found)
        elif self.stored is not None:
            news.append(f"{self.directory} has no checkpoint: the run begins anew")
        elif envs is not None and envs.restorable == "no":
            news.append(f"{self.config.env}: after an interruption new episodes begin, all else is restored exactly")
        with writing(self.directory):
            directory.note_made_of(self.directory, self.config, made_of)
            own = found[1]["run"] if found else {"logs": {}}
            news += self._logs.begin(self.step if found else None, own["logs"], anew=own.get("extended", False))
            if not found:
                self._logs.pretraining(self.pretraining)
                self._logs.selection(self._selection.rows() if self._selection else [])
        title = f"{self.algorithm} {self.config.task} x{len(self.config.seeds)}"
        self._progress = Progress(title, self.config.steps, len(self.config.seeds), self.step, self.unit.counted)
        self._closing.callback(self._logs.close)
        self._closing.callback(self._progress.close)
        self._progress.say(*filter(None, news))
        self._opened = True
        self._write_status("running")

    def _require_settings(self, agents: Agents) -> None:
        """Raise DeeprlError for a schedule of settings that these agents do not have, as those of `wsrl --loss own`."""
        named = {name for entry in self.config.schedule for name in entry} - {"step"}
        if missing := named - agents.state.hparams.keys():
            raise DeeprlError(f"schedule: {min(missing)}: these agents do not have this setting")

    def has_checkpoint(self) -> bool:
        """Whether it goes on from a checkpoint, and not from the beginning."""
        return bool(checkpoint.steps(self.directory / "checkpoints"))

    def _resume(self, net: Any, step: int, content: dict[str, Any]) -> list[str]:
        """Take everything back to a checkpoint. Returns lines about what could not be."""
        with fitting(f"the checkpoint of step {step:,} in {self.directory}"):
            own = content["run"] = extension.of_longer(content["run"], step < self.config.steps)
            self._before_end = own.get("before_end", {})
            self.updates = own["updates"]
            self._clock.resume(own["wall_s"], own["learning_s"])
            self._episodes = [Episode(*e) for e in own["episodes"]]  # earlier versions took them at each step
            self._metrics_before, self._evaluations.at = own["metrics"], own["evaluated"]
            self.frozen, self.diverged = own["frozen"], own["diverged"]
            divergence.know(own["causes"])
            if self._selection:
                self._selection.load_state_dict(own["selection"])
            done, agents = step >= self.config.steps or self.diverged, self._attached["agents"].tree
            parts = [name for name in self._attached if not done or name in ("agents", "data")]
            content["agents"] = own_networks.with_fixed(content["agents"], net, agents.state.fixed, "state.")
            restored = {name: self._attached[name].load_state_dict(content[name]) for name in parts}
        self.step, self._resumed_at, self._previous_step = step, step, step - self._width
        self._begun_at = (step, self._evaluations.at)
        anew = restored.get("envs")
        return [f"{self.config.env} cannot be restored exactly: {anew} episodes start anew"] if anew else []

    # --- the loop ---

    def running(self) -> bool:
        """Whether the loop goes on: steps are left, and no callback, `max_hours` or signal has stopped it."""
        if self._waiting:
            return True
        stopped = self.step > self._resumed_at and self.callback is not None and self._stopped_by(self.callback)
        return self.step < self.config.steps and not (stopped or self.diverged or self._to_stop())

    def _stopped_by(self, callback: Callback) -> bool:
        """Call it. If it cannot print, as a terminal or a `tee` is gone, a signal ends the run, or is on its way."""
        try:
            return bool(callback(self))
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            if self._interrupts.signum is None:
                self.save()  # this takes time
            if self._interrupts.signum is None:
                raise
            return True

    def _to_stop(self) -> bool:
        """Whether a signal has come, or the time is over, but for the first step of a session."""
        out_of_time = 0 < self.config.max_hours <= self._clock.session_s() / 3600 and self.step > self._resumed_at
        return out_of_time or self._interrupts.signum is not None

    def wait(self) -> bool:
        """Leave what this step did undone until a later one, if nothing looks at it before: whether that is so.

        A log row, an evaluation, a snapshot and the end of the run do; callbacks, signals and checkpoints can wait too,
        so that steps are done together at the same places in a run that goes on from one.
        """
        config = self.config
        due = any(self.due(every) for every in (config.log_every, config.eval_every, config.snapshot_every))
        self._waiting = not due and self.step < config.steps and not self._changes()
        return self._waiting

    def advance(self) -> None:
        """Count one step of all environments, or one of the gradient where there are none."""
        self._waiting = False
        self._previous_step = self.step
        self.step += self._width
        self._progress.update(min(self.step, self.config.steps))
        faults = self._attached["envs"].pop_faults() if "envs" in self._attached else {}
        if faults.keys() - {f["member"] for f in self.frozen}:
            divergence.freeze(self._attached["agents"].tree, faults)
            self._report_frozen()

    def updates_due(self, per_step: float, after: int, every: int = 1) -> range:
        """The numbers of the updates to do now: `per_step` for each environment step beyond `after`.

        every: they are done in bursts, at multiples of so many steps beyond `after`.
        """
        learned_from = (self.step - after) // every * every
        due = range(self.updates, max(self.updates, math.floor(learned_from * per_step + 1e-9)))
        if due and self._clock.learn() and self.execution.compile:
            self._progress.say("compiling the update: about 20 s, a moment if it has been compiled before")
        self.updates = due.stop
        return due

    def due(self, every: int) -> bool:
        """Whether the last step reached a multiple of `every` (0: never)."""
        return every > 0 and self.step // every > self._previous_step // every

    def end_step(self, metrics: Mapping[str, Tensor], policy: GreedyPolicy) -> None:
        """What follows a step: log, evaluate, change settings, save, each if it is time to."""
        self.log(metrics)
        self.evaluate(policy)
        self._track()
        self.checkpoint()

    def log(self, metrics: Mapping[str, Tensor]) -> None:
        """Write the agents' metrics ([S] each) and mean training returns, if it is time to or the run is at its end."""
        if line := self._clock.learned():
            self._progress.say(line)
        # A session that has only just resumed has not seen every kind of update yet.
        self._metrics_before = metrics = {**self._metrics_before, **metrics}
        if not (self.due(self.config.log_every) or self.step >= self.config.steps):
            return
        now = {"episodes": [tuple(e) for e in self._episodes], "frozen": [*self.frozen], "diverged": self.diverged}
        self._note_before(self.config.log_every, "metrics.csv", now)
        if "envs" in self._attached:
            self._episodes += self._attached["envs"].pop_episodes(keep=not self.due(self.config.log_every))
        self._report_frozen()
        self.diverged = len(self.frozen) == len(self.config.seeds)  # only here: a step that no interruption changes
        if self.diverged:
            self._progress.say(f"all agents of {self.directory} are frozen: the run ends at step {self.step:,}")
        if metrics:  # none in the warm-up, whose returns are not those of the policy that the next row is about
            with writing(self.directory):
                self._logs.metrics(self.step, self.wall_s, {k: v.tolist() for k, v in metrics.items()}, self._episodes)
        self._episodes = []

    def evaluate(self, policy: GreedyPolicy) -> None:
        """Evaluate all agents, if it is time to or the run is at its end, and change settings that are to be changed.

        What stops the run stops this as well: the next session then begins with it.
        """
        if self._evaluation_due():
            evaluated = self._evaluations.at
            try:
                episodes = self._evaluations.run(policy, self.step, self._progress, self._to_stop)
            except StoppedError:
                return
            with writing(self.directory):
                self._note_before(self.config.eval_every, "evaluations.csv", {"evaluated": evaluated})
                self._logs.evaluation(self.step, self.wall_s, episodes)
            mean = sum(e.ret for e in episodes) / len(episodes)
            self._progress.update(self.step, f"return {mean:,.1f} at {self.step:,}")
            if self._selection:
                self._select(self._selection, episodes)
            self._write_status("running")
        if changes := self._changes():
            apply_settings(self._attached["agents"].tree, changes)

    def _changes(self) -> dict[str, float]:
        """What the schedule changes at this step. A session that goes on here does it again, to no effect."""
        return changes_between(self.config.schedule, self._previous_step, self.step)

    def _select(self, selection: Selection, episodes: list[Episode]) -> None:
        """Let members go on from others, if it is time to; not before they have learned, nor at the end of the run."""
        if not self.due(selection.every) or self.updates == 0 or self.step >= self.config.steps:
            return
        agents = self._attached["agents"].tree
        self._report_frozen()
        chosen = selection.choose(self.step, standings_of(agents, episodes, self._attached))
        apply_succession(agents, chosen, self._attached)
        self.frozen = [record for record in self.frozen if record["member"] not in chosen.parents]
        with writing(self.directory):
            self._logs.selection(chosen.rows)
        if chosen.parents:
            told = ", ".join(f"{child} from {parent}" for child, parent in chosen.parents.items())
            self._progress.say(f"step {self.step:,}: members that go on from others: {told}")

    def _note_before(self, every: int, log: str, now: dict[str, Any]) -> None:
        """Note what there was before a row that is only there because the run ends: a longer one goes on from that."""
        if self.step >= self.config.steps and not self.due(every):
            with writing(self.directory):
                logs = self._before_end.get("logs", {}) | {log: self._logs.marks()[log]}
            self._before_end |= now | {"logs": logs}

    def _evaluation_due(self) -> bool:
        now = self.step >= self.config.steps or self.diverged or self.due(self.config.eval_every)
        return now and self._evaluations.missing(self.step)

    def _track(self) -> None:
        """Hand rows on to trackers, once those of this step are complete."""
        if not self._evaluation_due():
            self._progress.say(*filter(None, self._logs.commit()))

    def checkpoint(self) -> None:
        """Save everything that an exact resume needs, if it is time to, and a snapshot of the agents, if one is due."""
        if self.due(self.config.snapshot_every):
            with writing(self.directory):
                snapshots.take(self.directory, self.step, self._attached["agents"].state_dict())
        if 0 < self.config.checkpoint_minutes * 60 <= time.monotonic() - self._saved_at:
            self.save()

    def save(self, only: tuple[str, ...] | None = None, last: bool = False) -> None:
        """Write a checkpoint now. only: the parts to keep (all by default); last: none before it is kept."""
        with writing(self.directory):
            parts = {k: v.state_dict() for k, v in self._attached.items() if only is None or k in only}
            own = {
                "updates": self.updates, "wall_s": self.wall_s, "learning_s": self._clock.learning_s(),
                "frozen": self.frozen, "episodes": [tuple(e) for e in self._episodes], "diverged": self.diverged,
                "metrics": self._metrics_before, "evaluated": self._evaluations.at, "logs": self._logs.marks(),
                "causes": divergence.causes(self._attached["agents"].tree), "before_end": self._before_end,
            }  # fmt: skip
            own |= {"selection": self._selection.state_dict()} if self._selection else {}
            keep = 1 if last else self.config.keep_checkpoints
            checkpoint.save(self.directory / "checkpoints", self.step, {"run": own, **parts}, keep)
        self._saved_at = time.monotonic()
        self._write_status("running")

    def _finish(self) -> None:
        self.finished = self.step >= self.config.steps and not self._evaluation_due()
        done = self.finished or (self.diverged and not self._evaluation_due())
        if done:
            self._report_frozen()
            self._track()
        if self._begun_at != (self.step, self._evaluations.at):
            self.save(only=("agents", "data") if done and not self.config.keep_replay else None, last=done)
        self._report_frozen()  # after the checkpoint, to which a stop must make no difference
        self._write_status("finished" if self.finished else "diverged" if done else "stopped")

    @property
    def directory(self) -> Path:
        """Where the records are."""
        return self._home()

    @property
    def wall_s(self) -> float:
        """Seconds of work on this run, earlier sessions included."""
        return self._clock.wall_s()

    def _report_frozen(self) -> None:
        new = divergence.found(self._attached["agents"].tree, self.config.seeds, self.step, self.frozen)
        self.frozen += new
        self._progress.say(*(f"{self.algorithm} {self.config.task}: {divergence.sentence(record)}" for record in new))

    def _write_status(self, state: str) -> None:
        self._logs.state = state
        status = {"state": state, "step": self.step, "frozen": self.frozen}
        status |= self._clock.times(self.updates * len(self.config.seeds))
        with writing(self.directory):
            write_json(self.directory / "status.json", status)
