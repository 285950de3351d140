"""The datasets of the offline benchmark, made anew in D4RL's manner: Hopper and HalfCheetah, six sets, one command.

    python benchmarks/datasets.py --hdf5 runs/data [--steps 200_000] [--seed 0] [--policies DIR] [--csv FILE.csv]

The sets are Minari datasets `deeprl/hopper/medium-v0` and so on, or with `--hdf5` files such as `hopper-medium.hdf5`.
Those that exist are left as they are, so that the command goes on where it was stopped.

The policies are others', as `deeprl.make_data.policies` reads them, all MIT: 26 snapshots of a TRPO run for each task
(`openai/imitation`), and actors of SAC and TQC (`DLR-RM/rl-trained-agents`). Mean returns of sampled
actions on the v4 environments, with D4RL's score:

- Hopper: the expert is the last TRPO snapshot (3,190; 99). Its run jumps from 590 to 2,700 between two snapshots, so
  the medium policy is the SAC actor, which falls early (about 1,480; 46). The replay set mixes it with the two
  snapshots below it.
- HalfCheetah: TRPO ends at 3,640 (32), a third of the way to TQC's 11,000 (91): the last snapshot is the medium policy,
  TQC the expert, and the snapshots of TRPO make the replay set.

A row of the CSV has what was made beside the size of D4RL's set of the same kind (version 2), whose policies were SAC's
and whose environments were Gym's v2: numbers of the two do not compare to a point.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from speed_rows import append

from deeprl.make_data.collect import Request, Summary, create
from deeprl.make_data.writers import exists
from deeprl.run import provenance


@dataclass(frozen=True)
class Task:
    env: str
    policies: tuple[str, ...]
    medium: str
    expert: str


TASKS = {
    "hopper": Task(
        "Hopper-v4", ("trpo_snapshots_hopper", "sb3_sac_hopper"), "sb3_sac_hopper", "trpo_snapshots_hopper:500"
    ),
    "halfcheetah": Task(
        "HalfCheetah-v4",
        ("trpo_snapshots_halfcheetah", "sb3_tqc_halfcheetah"),
        "trpo_snapshots_halfcheetah:500",
        "sb3_tqc_halfcheetah",
    ),
}
# Transitions (of medium-expert, to a thousandth) and episodes of D4RL's sets, version 2.
D4RL = {
    ("hopper", "medium"): (999_906, 2_187),
    ("hopper", "medium-replay"): (402_000, 2_041),
    ("hopper", "medium-expert"): (2_000_000, 3_214),
    ("halfcheetah", "medium"): (1_000_000, 1_000),
    ("halfcheetah", "medium-replay"): (202_000, 202),
    ("halfcheetah", "medium-expert"): (2_000_000, 2_000),
}
MADE = [f.name for f in dataclasses.fields(Summary)]
COLUMNS = ["env", "kind", *MADE, "d4rl_transitions", "d4rl_episodes", "seed", "commit", "versions", "command"]


@dataclass
class Options:
    policies: str = "benchmarks/reference/policies"
    """Folder of the policies."""
    steps: int = 200_000
    """Transitions of each set."""
    seed: int = 0
    hdf5: str = ""
    """Write files of D4RL's layout into this folder, in place of Minari datasets."""
    csv: str = "benchmarks/results/datasets.csv"


def request(options: Options, name: str, kind: str) -> Request:
    task = TASKS[name]
    target = str(Path(options.hdf5) / f"{name}-{kind}.hdf5") if options.hdf5 else f"deeprl/{name}/{kind}-v0"
    files = tuple(str(Path(options.policies) / f"{stem}.npz") for stem in task.policies)
    expert = task.expert if kind == "medium-expert" else ""
    return Request(target, task.env, kind, options.steps, options.seed, files, medium=task.medium, expert=expert)


def row(asked: Request, made: Summary, theirs: tuple[int, int]) -> dict[str, Any]:
    command = shlex.join(["python", "benchmarks/datasets.py", *sys.argv[1:]])
    values = dataclasses.asdict(made) | {"sources": " ".join(made.sources), "target": Path(made.target).name}
    values |= {key: round(value, 2) for key, value in values.items() if isinstance(value, float)}
    values |= {"env": asked.env, "kind": asked.kind, "seed": asked.seed, "commit": provenance.commit()}
    values |= {"d4rl_transitions": theirs[0], "d4rl_episodes": theirs[1]}
    return values | {"versions": json.dumps(provenance.versions()), "command": command}


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    for (name, kind), theirs in D4RL.items():
        asked = request(options, name, kind)
        if exists(asked.target):
            print(f"{asked.target}: is there already")
            continue
        made = create(asked)
        print(made, flush=True)
        append(Path(options.csv), COLUMNS, row(asked, made, theirs))


if __name__ == "__main__":
    main()
