"""What tests of whole runs share: small settings, and what runs are compared by."""

import csv
import json
import shutil
from pathlib import Path

import torch

from deeprl.online import sac
from deeprl.run import checkpoint

ROOT = Path(__file__).parent.parent
# 90 steps with episodes of 25: ends at 25, 50, 75. Updates from step 31 on.
SMALL = {
    "env": "Pendulum-v1",
    "env_kwargs": {"max_episode_steps": 25},
    "steps": 90,
    "learning_starts": 30,
    "hidden": (16, 16),
    "batch_size": 16,
    "compile": "off",
    "tensorboard": False,
    "threads": 1,
    "eval_every": 40,
    "eval_episodes": 2,
    "log_every": 7,
}
TINY = SMALL | {"buffer_size": 70}  # the ring wraps around


def config(out, algorithm=sac, **settings):
    return algorithm.Config(out=str(out), **(TINY | settings))


class Runs:
    """Runs that several tests of a process need alike, made once."""

    def __init__(self, place):
        self._place, self._made = place, {}

    def whole(self, **settings):
        """The directory of a finished run, which is only to be read."""
        return self._run(settings, None)

    def stopped(self, out, step, **settings):
        """Make `out` the directory of a run that was stopped at `step`: a copy."""
        shutil.copytree(self._run(settings, step), out)

    def _run(self, settings, stop):
        key = repr((sorted(settings.items()), stop))
        if key not in self._made:
            out = self._place / str(len(self._made))
            run = sac.train(config(out, **settings), callback=lambda run: run.step == stop)
            assert run.finished == (stop is None)
            self._made[key] = out
        return self._made[key]


def rows(path):
    """A CSV file without its column wall_s."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(file)]


def final(directory):
    """The tensors of the newest checkpoint by name."""
    step, content = checkpoint.load_checkpoint(directory / "checkpoints")
    return step, content["agents"]


def status(directory):
    return json.loads((directory / "status.json").read_text())


def assert_same_run(one, other):
    (step, expected), (other_step, found) = final(one), final(other)
    assert step == other_step
    assert expected.keys() == found.keys()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(one / name) == rows(other / name)
        assert len(rows(one / name)) > 0
    assert status(one)["state"] == status(other)["state"] == "finished"


def train_with_stops(settings, stops, algorithm=sac):
    """The same call again and again, each stopped by its callback at the next of `stops`; the last one finishes."""
    for stop in [*stops, None]:
        run = algorithm.train(settings, callback=lambda run, stop=stop: run.step == stop)
        assert run.finished == (stop is None)
        if stop is not None:
            assert run.step == stop
            assert status(run.directory)["state"] == "stopped"
