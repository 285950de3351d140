"""Which environments train, with which command, and why the others do not.

    make environments
    .peers/environments/bin/python benchmarks/environments.py --csv benchmarks/results/environments.csv \\
        --page docs/environments.md

Each environment is tried in a process of its own, 60 steps of tiny networks in at most `--limit` seconds, without an
evaluation. First the plain command; where that is refused, what the message advises (`try --wrappers ...`, `try dqn`);
then options that a user of the package would know. `command` is the first that trained, or else the plain one, and
`reason` what deeprl said to the ones before it. Outcomes: `trains`; `refused` (one line, exit status 2); `diverges`
(exit status 3); `crashes` (anything else, a fault); `too slow` (more than the limit); `not installed`.

Rows of the CSV file of the same commit are kept, so that the same command goes on where it
was stopped. The page's table, after the line `<!-- benchmarks/environments.py -->`, is written anew each time.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speed_rows import versions_told

from deeprl.run import provenance

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["environment", "like", "package", "version", "command", "outcome", "reason", "versions", "commit"]
MARK = "<!-- benchmarks/environments.py -->\n"
TINY = "--steps 60 --learning-starts 40 --batch-size 8 --buffer-size 100 --eval-episodes 0 --no-tensorboard"
TINY += " --compile off --threads 1"
HIDDEN = {"sac": " --hidden 8 8", "dqn": " --hidden 8"}
HINT = re.compile(r"try (?P<options>--[a-z-]+ [\w.:-]*[\w])|try (?P<algorithm>dqn|sac)\b")


@dataclasses.dataclass(frozen=True)
class Case:
    """An environment, with options of the plain command.

    like: others of the same spaces, which are not tried. more: options to try where no advice helps. note: what else is
    known where it does not train.
    """

    env: str
    package: str = "gymnasium"
    algorithm: str = "sac"
    like: str = ""
    more: tuple[str, ...] = ()
    options: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.env} {self.options}".strip()


def cases() -> list[Case]:
    """All that is tried, one of each kind."""
    return [
        *_each("dqn", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"]),
        *_each("sac", ["Pendulum-v1", "MountainCarContinuous-v0"]),
        *_each("dqn", ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4", "Blackjack-v1"]),
        *_each("sac", ["LunarLanderContinuous-v3", "BipedalWalker-v3", "BipedalWalkerHardcore-v3"], "box2d"),
        *_each("dqn", ["LunarLander-v3"], "box2d"),
        Case("CarRacing-v3", "box2d"),
        Case("CarRacing-v3", "box2d", "dqn", options="""--env-kwargs '{"continuous": false}'"""),
        *_each("sac", [f"{name}-v{version}" for version in (5, 4) for name in MUJOCO]),
        Case("HalfCheetah-v3", like="all MuJoCo environments of v2 and v3"),
        *_each("dqn", ["phys2d/CartPole-v1", "tabular/Blackjack-v0", "tabular/CliffWalking-v0"]),
        Case("phys2d/Pendulum-v0"),
        Case("GymV21Environment-v0", like="GymV26Environment-v0"),
        *_each("dqn", [f"MinAtar/{n}-v1" for n in MINATAR], "minatar"),
        *_each("dqn", [f"ALE/{name}-v5" for name in ("Pong", "Breakout", "SpaceInvaders", "Freeway")], "ale-py"),
        *[Case(f"dmc/{d}-{task}", "dm-control", like=like) for d, task, like in DMC],
        Case("dmc/lqr-lqr_2_1", "dm-control", like="lqr_6_2", note="its actions reach from -1e10 to 1e10"),
        *[
            Case(f"minigrid:{n}", "minigrid", "dqn", like, FLAT, options)
            for n, like in GRIDS
            for options in ("", IMAGE)
        ],
        *[Case(f"gymnasium_robotics:{n}", "gymnasium-robotics", like=like, note=OLD) for n, like in ROBOTICS],
        *[Case(f"highway_env:{n}", "highway-env", algorithm, like, FLATTEN) for n, algorithm, like in HIGHWAY],
        *[Case(f"panda_gym:Panda{n}-v3", "panda-gym") for n in PANDA],
        Case("gym_pusht:gym_pusht/PushT-v0", "gym-pusht"),
    ]


def _each(algorithm: str, names: list[str], package: str = "gymnasium") -> list[Case]:
    return [Case(name, package, algorithm, LIKE.get(name, "")) for name in names]


LIKE = {
    "CartPole-v1": "CartPole-v0",
    "FrozenLake-v1": "FrozenLake8x8-v1",
    "CliffWalking-v1": "CliffWalkingSlippery-v1",
    "phys2d/CartPole-v1": "phys2d/CartPole-v0",
    "ALE/Freeway-v5": "all other games of ALE",
}
MUJOCO = "HalfCheetah Hopper Walker2d Ant Humanoid HumanoidStandup Swimmer Reacher Pusher InvertedPendulum".split()
MUJOCO += ["InvertedDoublePendulum"]
MINATAR = "Asterix Breakout Freeway Seaquest SpaceInvaders".split()
DMC = [
    ("acrobot", "swingup", "swingup_sparse"),
    ("ball_in_cup", "catch", ""),
    ("cartpole", "swingup", "balance, two_poles, three_poles, the sparse ones"),
    ("cheetah", "run", ""),
    ("dog", "run", "stand, walk, trot"),
    ("dog", "fetch", ""),
    ("finger", "spin", "turn_easy, turn_hard"),
    ("fish", "swim", "upright"),
    ("hopper", "hop", "stand"),
    ("humanoid", "run", "stand, walk, run_pure_state"),
    ("humanoid_CMU", "run", "stand, walk"),
    ("manipulator", "bring_ball", "bring_peg, insert_ball, insert_peg"),
    ("pendulum", "swingup", ""),
    ("point_mass", "easy", "hard"),
    ("quadruped", "run", "walk"),
    ("quadruped", "escape", "fetch"),
    ("reacher", "easy", "hard"),
    ("stacker", "stack_2", "stack_4"),
    ("swimmer", "swimmer6", "swimmer15"),
    ("walker", "run", "stand, walk"),
]
GRIDS = [("MiniGrid-Empty-8x8-v0", "all of MiniGrid"), ("BabyAI-GoToObj-v0", "all of BabyAI")]
IMAGE, FLAT = "--wrappers minigrid.wrappers:ImgObsWrapper", ("--wrappers minigrid.wrappers:FlatObsWrapper",)
ROBOTICS = [
    ("FetchReach-v4", "FetchPush, FetchSlide, FetchPickAndPlace, the dense ones"),
    ("HandReach-v3", ""),
    ("HandManipulateBlock-v1", "Egg, Pen, all with touch sensors"),
    ("PointMaze_UMaze-v3", "all point mazes"),
    ("AntMaze_UMaze-v5", "all ant mazes"),
    ("AdroitHandDoor-v1", ""),
    ("AdroitHandHammer-v1", ""),
    ("AdroitHandPen-v1", ""),
    ("AdroitHandRelocate-v1", ""),
    ("FrankaKitchen-v1", ""),
]
HIGHWAY = [
    ("highway-fast-v0", "dqn", "highway, merge, roundabout, exit, which are slower"),
    ("intersection-v0", "dqn", ""),
    ("parking-v0", "sac", ""),
    ("racetrack-v0", "sac", ""),
]
PANDA = "Reach Push Slide PickAndPlace Stack Flip".split()
FLATTEN = ("--wrappers gymnasium.wrappers:FlattenObservation",)
OLD = "gymnasium-robotics 1.4.2 cannot read the joints of MuJoCo 3.12 and later; with constraints-robotics.txt it"
OLD += " trains, with "
OLD += FLATTEN[0]


# --- one environment, in a process of its own ---


def tried(case: Case) -> dict[str, str]:
    """The row of an environment."""
    try:
        version = importlib.metadata.version(case.package)
    except importlib.metadata.PackageNotFoundError:
        return {"outcome": "not installed", "version": "", "command": _command(case.algorithm, case.env, case.options)}
    waiting, seen = [(case.algorithm, case.options)], set()
    said: list[str] = []
    plain: dict[str, str] = {}
    while waiting:
        algorithm, options = waiting.pop(0)
        seen.add((algorithm, options))
        outcome, message = attempt(algorithm, case.env, options)
        row = {"outcome": outcome, "version": version, "command": _command(algorithm, case.env, options)}
        plain = plain or row
        if outcome == "trains":
            return row | {"reason": "; ".join(said)}
        said.append(message if options == case.options else f"with {options}: {message}")
        if outcome == "crashes":  # a fault, whatever else would work
            plain = row
            break
        for hint in HINT.finditer(message):
            waiting.append((hint["algorithm"] or algorithm, hint["options"] or options))
        waiting = [w for w in waiting if w not in seen]
        if not waiting:
            waiting = [(algorithm, option) for option in case.more if (algorithm, option) not in seen][:1]
    return plain | {"reason": "; ".join([*said, case.note] if case.note else said)}


def _command(algorithm: str, env: str, options: str) -> str:
    return " ".join(filter(None, ["deeprl train", algorithm, "--env", env, options]))


def attempt(algorithm: str, env: str, options: str) -> tuple[str, str]:
    """Whether a command trains, and the last line that it wrote."""
    from deeprl.commands.main import main as deeprl

    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        words = _command(algorithm, env, f"{options} {TINY}{HIDDEN[algorithm]} --out {folder}/run")
        try:
            status = deeprl(shlex.split(words)[1:])
        except Exception as error:  # what is to be found
            place = traceback.extract_tb(error.__traceback__)[-1]
            said_last = " ".join(str(error).split()) or f"in {Path(place.filename).name}, line {place.lineno}"
            return "crashes", f"{type(error).__name__}: {said_last}"
        except SystemExit as error:
            status = int(error.code or 0)
    last = next((line for line in said.getvalue().splitlines()[::-1] if line.strip()), "")
    message = last.removeprefix("deeprl: ").replace(f" of {folder}/run", "")
    return {0: "trains", 3: "diverges"}.get(status, "refused"), "" if status == 0 else message


# --- all of them ---


def in_process(case: Case, limit: float) -> dict[str, str]:
    """As `tried`, in a process that may hang, or die of a signal."""
    words = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--one", case.name]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    plain = {"command": _command(case.algorithm, case.env, case.options)}
    with tempfile.TemporaryDirectory() as folder:  # where simulators leave their logs
        process = subprocess.Popen(
            words, cwd=folder, env=env, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return plain | {"outcome": "too slow", "reason": f"no end in {limit:.0f} s"}
    for line in out.splitlines()[::-1]:
        if line.startswith("{"):
            return dict(json.loads(line))
    reason = (err.strip().splitlines() or ["no word"])[-1]
    return plain | {"outcome": "crashes", "reason": f"exit status {process.returncode}: {reason}"}


def rows_of(path: Path | None) -> dict[str, dict[str, str]]:
    if path is None or not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["environment"]: row for row in csv.DictReader(file)}


def complete(case: Case, row: dict[str, str], about: dict[str, str]) -> dict[str, str]:
    found = {"environment": case.name, "like": case.like, "package": case.package} | row | about
    return {column: found.get(column, "") for column in COLUMNS}


def run(args: argparse.Namespace) -> Iterator[dict[str, dict[str, str]]]:
    """All rows so far, again after each environment."""
    versions = versions_told()
    about = {"versions": versions, "commit": provenance.commit()}
    everything = [case for case in cases() if not args.only or any(word in case.name for word in args.only)]
    rows = rows_of(args.csv)
    current = {name for name, row in rows.items() if row["commit"] == about["commit"] and not args.again}
    left = [case for case in everything if case.name not in current]
    with ThreadPoolExecutor(args.jobs) as pool:
        for case, row in zip(left, pool.map(lambda case: in_process(case, args.limit), left), strict=True):
            rows[case.name] = complete(case, row, about)
            print(f"{row['outcome']:9} {row['command']}  {row.get('reason', '')}", flush=True)
            yield rows
    yield rows


def save(path: Path, rows: dict[str, dict[str, str]]) -> None:
    """In the order of `cases`; rows of environments that are not among them any more are left out."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[case.name] for case in cases() if case.name in rows)


def table(rows: dict[str, dict[str, str]]) -> str:
    """A Markdown table for each package."""
    text = ""
    for package in dict.fromkeys(case.package for case in cases()):
        own = [rows[case.name] for case in cases() if case.package == package and case.name in rows]
        if not own:
            continue
        version = next((row["version"] for row in own if row["version"]), "")
        text += f"\n### {package} {version}".rstrip() + "\n\n| environment | command, or why not |\n|---|---|\n"
        for row in own:
            name = row["environment"].partition(" ")[0] + (f" ({row['like']})" if row["like"] else "")
            text += f"| {name} | {_result(row)} |\n"
    return text


def _result(row: dict[str, str]) -> str:
    if row["outcome"] == "trains":
        return f"`{row['command']}`"
    return f"{row['outcome']}: {row['reason']}".replace("|", "\\|").removesuffix(": ")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--csv", type=Path, help="where rows go, and from where those of this commit are taken")
    flags.add_argument("--page", type=Path, help="the page whose table is written anew")
    flags.add_argument("--only", nargs="*", metavar="TEXT", help="environments with one of these in their names")
    flags.add_argument("--again", action="store_true", help="try those with a row of this commit, too")
    flags.add_argument("--limit", type=float, default=120.0, help="seconds for one environment")
    flags.add_argument("--jobs", type=int, default=2, help="how many at once")
    flags.add_argument("--one", metavar="ID", help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.one:
        print("\n" + json.dumps(tried(next(case for case in cases() if case.name == args.one))))
        return
    rows: dict[str, dict[str, str]] = {}
    for rows in run(args):
        if args.csv:
            save(args.csv, rows)
    if args.page:
        before = args.page.read_text(encoding="utf-8").partition(MARK)[0]
        args.page.write_text(before + MARK + table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
