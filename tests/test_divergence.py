"""Agents that diverge: frozen, named with step and cause, in the exit status; the others bit for bit as ever."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import assert_equal
from probe_envs import Pictures
from run_helpers import SMALL
from torch import Tensor

from deeprl.commands.main import main
from deeprl.core.population import Agents, Execution, cause_code, cause_name, freezing, new_agents, over_agents
from deeprl.core.spec import EnvSpec
from deeprl.envs.make import EnvFactory
from deeprl.envs.spaces import to_env_action
from deeprl.envs.vector import PopulationEnvs
from deeprl.online import dqn, sac, td3
from deeprl.reporting.read import read_runs
from deeprl.reporting.report import write_report
from deeprl.run import checkpoint, divergence
from deeprl.run.loop import Run

# 90 steps with episodes of 25; update i is done at step 31 + i; rows at 35, 42, 49, ..; evaluations at 40, 80 and 90.
TINY: dict[str, Any] = SMALL | {"seeds": (0, 1, 2)}
DQN = {"env": "CartPole-v1", "prioritized": True, "n_step": 2, "utd": 1.0, "train_every": 1}


def config(out: Path, algorithm: Any = sac, poison: str = "", **settings: Any) -> Any:
    wrappers = {"wrappers": (f"poison_envs:{poison}",)} if poison else {}
    return algorithm.Config(out=str(out), **(TINY | wrappers | (DQN if algorithm is dqn else {}) | settings))


def rows(path: Path, without: int | None = None) -> list[dict[str, str]]:
    """A CSV file without its column wall_s and without the rows of one member."""
    with path.open(newline="") as file:
        found = [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(file)]
    return [row for row in found if row["member"] != str(without)]


def final(directory: Path) -> dict[str, Tensor]:
    """The tensors of the newest checkpoint by name."""
    found = checkpoint.load_checkpoint(directory / "checkpoints")
    assert found is not None
    return found[1]["agents"]


def status(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "status.json").read_text())


def assert_others_equal(clean: Path, poisoned: Path, victim: int = 1) -> None:
    """All members but one have bit-equal tensors and the same rows in all records."""
    expected, found = final(clean), final(poisoned)
    assert expected.keys() == found.keys()
    others = [m for m in range(len(expected["frozen_at"])) if m != victim]
    assert [k for k in expected if not torch.equal(expected[k][others], found[k][others])] == []
    assert found["frozen_at"][others].tolist() == [-1] * len(others)
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(clean / name, victim) == rows(poisoned / name, victim)
        assert len(rows(clean / name)) == len(rows(poisoned / name)) > 0


Clean = Callable[..., Path]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """The directory of a run in which nothing is wrong, trained at the first request."""
    made: dict[str, Path] = {}

    def directory(algorithm: Any = sac, **settings: Any) -> Path:
        name = f"{algorithm.__name__} {settings}"
        if name not in made:
            made[name] = tmp_path_factory.mktemp("clean") / "run"
            assert algorithm.train(config(made[name], algorithm, **settings)).frozen == []
        return made[name]

    return directory


def tree_of(run: Run) -> Agents:
    return run._attached["agents"].tree


# --- the cause ---


class Counter(NamedTuple):
    value: Tensor
    step: Tensor


def count(state: Counter, loss: Tensor) -> tuple[Counter, dict[str, Tensor], tuple[()]]:
    return Counter(state.value + loss, state.step + 1), {"loss": loss, "square": loss * loss}, ()


def counters(agents: int) -> Agents:
    return new_agents([Counter(torch.tensor(0.0), torch.tensor(0)) for _ in range(agents)])


def check_causes(execution: Execution) -> None:
    """Of three agents one stays well, one has a NaN loss at update 1, one a loss whose square overflows at update 0."""
    agents = counters(3)
    step = over_agents(freezing(count), execution, donate=True)
    for losses in ([1.0, 1.0, 1e30], [2.0, math.nan, math.nan], [4.0, 1e30, 1.0]):
        step(agents, torch.tensor(losses))
    assert agents.frozen_at.tolist() == [-1, 1, 0]
    assert agents.state.value.tolist() == [7.0, 1.0, 0.0]
    assert [cause_name(c) for c in agents.cause.tolist()[1:]] == ["loss", "square"]
    assert int(agents.cause[0]) == -1


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_cause_is_the_first_metric_that_was_not_finite_and_stays(backend: Any) -> None:
    check_causes(Execution(backend=backend))


def test_code_of_a_cause_is_the_same_in_every_session() -> None:
    # CRC-32 of the name, as `gzip` and others compute it: checkpoints hold it.
    assert cause_code("critic_loss") == 0x5DBF5E28
    assert cause_name(0x5DBF5E28) == "critic_loss"
    assert cause_name(3) == "a metric"


def test_agents_of_a_freezing_update_can_be_given_a_cause() -> None:
    agents = counters(1)
    over_agents(freezing(count, cause="observation"), Execution(), donate=True)(agents, torch.tensor([math.inf]))
    assert cause_name(int(agents.cause[0])) == "observation"


# --- data ---

# What is wrong, since which step, and at which update (none is done before step 31).
DATA = {
    "Reward": ("reward", 40, 9),
    "Infinite": ("reward", 40, 9),
    "Observation": ("observation", 40, 9),
    "LastObservation": ("observation", 50, 19),
    "FirstObservation": ("observation", 26, 0),
    "VeryFirstObservation": ("observation", 1, 0),
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("poison", DATA)
def test_bad_data_freeze_their_agent_before_it_learns_from_them(
    poison: str, normalize: bool, clean: Clean, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cause, step, update = DATA[poison]
    run = sac.train(config(tmp_path / "run", poison=poison, normalize_obs=normalize, steps=60))
    record = {"member": 1, "seed": 1, "update": update, "step": step, "cause": cause}
    assert run.frozen == status(tmp_path / "run")["frozen"] == [record]
    line = f"sac Pendulum-v1: seed 1 (member 1) diverged: {cause} was not finite at step {step}, before update {update}"
    assert f"{line}; it is frozen, the others go on\n" in capsys.readouterr().out
    assert run.finished
    found = final(tmp_path / "run")
    assert found["state.step"].tolist() == [30, update, 30]
    assert all(leaf.isfinite().all() for leaf in found.values())
    assert_others_equal(clean(normalize_obs=normalize, steps=60), tmp_path / "run")


def test_integer_observations_are_not_looked_at_and_finite_ones_pass() -> None:
    pictures = PopulationEnvs(Pictures, (0, 1))
    pictures.step(np.zeros((2, 1, 1), np.float32))
    assert pictures.pop_faults() == {}
    bad = np.zeros((2, 1, 1), np.float32)
    bad[1] = np.nan
    pictures.step(bad)
    assert pictures.pop_faults() == {1: "action"}
    assert pictures.pop_faults() == {}  # handed out once


# --- actions ---


def test_actions_that_are_not_finite_never_reach_a_simulator() -> None:
    spec = EnvSpec((3,), 2, (-2.0, 0.0), (2.0, 1.0))
    given = np.array([[np.nan, np.nan], [np.inf, -np.inf], [0.3, -0.7]], np.float32)
    done = to_env_action(spec, given)
    assert done[:2].tolist() == [[0.0, 0.5], [2.0, 0.0]]  # the middle; the bounds
    assert done.dtype == np.float32
    assert done[2].tobytes() == to_env_action(spec, given[2:])[0].tobytes()


@pytest.mark.parametrize("env", ["Pendulum-v1", "HalfCheetah-v5"])
def test_environments_go_on_under_actions_that_are_not_finite(env: str) -> None:
    make = EnvFactory(env, {}, ())
    envs, clean = PopulationEnvs(make, (0, 1)), PopulationEnvs(make, (0, 1))
    action = np.full((2, 1, envs.spec.action_dim), 0.25, np.float32)
    for _ in range(3):
        bad = action.copy()
        bad[0] = np.nan
        spoiled, whole = envs.step(bad), clean.step(action)
        assert envs.pop_faults() == {0: "action"}
        assert all(np.isfinite(x).all() for x in (spoiled.next_obs, spoiled.reward))
        assert (spoiled.next_obs[1] == whole.next_obs[1]).all()
        assert spoiled.reward[1] == whole.reward[1]
    envs.close()
    clean.close()


# --- the others, bit for bit ---

OTHERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "sac": (sac, "Huge", {}),
    "sac_loop": (sac, "Huge", {"backend": "loop"}),
    "sac_loop_reward": (sac, "Reward", {"backend": "loop"}),
    "td3": (td3, "Huge", {}),
    "td3_loop": (td3, "Observation", {"backend": "loop"}),
    "dqn": (dqn, "Huge", {}),
    "dqn_reward": (dqn, "Reward", {}),
    "dqn_loop": (dqn, "Observation", {"backend": "loop"}),
}


def check_others(out: Path, clean: Clean, case: str, **more: Any) -> list[divergence.Record]:
    algorithm, poison, settings = OTHERS[case]
    settings = settings | more | {"steps": 60}
    run = algorithm.train(config(out, algorithm, poison, **settings))
    assert_others_equal(clean(algorithm, **settings), out)
    assert [f["member"] for f in run.frozen] == [1]
    assert final(out)["frozen_at"][1] == run.frozen[0]["update"]
    return run.frozen


@pytest.mark.parametrize("case", OTHERS)
def test_others_are_bit_for_bit_as_in_the_population_that_stayed_finite(
    case: str, clean: Clean, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = check_others(tmp_path / "run", clean, case)
    shown = capsys.readouterr().out
    assert shown.count("diverged") == 1
    if OTHERS[case][1] != "Huge":
        assert record["step"] == 40
        return
    # Reward 40 overflows the loss; the first update that may draw it is number 9.
    assert record["cause"] == ("loss" if case == "dqn" else "critic_loss")
    assert 9 <= record["update"] < 30
    assert record["step"] % 7 == 0  # noticed when a row is logged
    assert f"was not finite at update {record['update']}, noticed at step {record['step']};" in shown


@pytest.mark.compiled
def test_causes_in_compiled_updates() -> None:
    for backend in ("vmap", "loop"):
        check_causes(Execution(backend=backend, compile=True))


@pytest.mark.compiled
def test_others_are_bit_for_bit_the_same_in_a_compiled_population(clean: Clean, tmp_path: Path) -> None:
    check_others(tmp_path / "run", clean, "sac", compile="on")


IN_AVX2 = """
import torch
from typing import NamedTuple
from deeprl.core.population import Execution, freezing, new_agents, over_agents

class State(NamedTuple):
    x: torch.Tensor
    step: torch.Tensor

def update(state, data):
    metrics = {name: data[i] * 2.0 for i, name in enumerate("abcdefgh")}
    return state._replace(x=state.x + 1.0, step=state.step + 1), metrics, ()

agents = new_agents([State(torch.zeros(3), torch.tensor(0))] * 4)
data = torch.ones(4, 8)
data[2, 5] = torch.inf
over_agents(freezing(update), Execution(compile=True), donate=True)(agents, data)
print(agents.frozen_at.tolist(), agents.state.x[:, 0].tolist())
"""


@pytest.mark.inductor
@pytest.mark.compiled
def test_code_for_avx2_freezes_whom_it_should() -> None:
    """TorchInductor (torch 2.13) makes wrong code of some chains of int64: with one, all of them were frozen."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", IN_AVX2], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[-1, -1, 0, -1] [1.0, 1.0, 0.0, 1.0]"


# --- parameters ---


def spoiled_at(step: int, spoil: Callable[[Any], None], stop: bool = False) -> Callable[[Run], bool]:
    """A callback that changes the state of the population after a step."""

    def callback(run: Run) -> bool:
        if run.step == step:
            spoil(tree_of(run).state)
        return stop and run.step == step

    return callback


def spoil_actor(state: sac.State) -> None:
    state.actor["trunk.0.weight"][1, 0, 0] = torch.nan


def spoil_moments(state: sac.State) -> None:
    state.critic_moments.v["layers.1.weight"][1, 0, 0, 0] = torch.inf  # no loss and no action shows it


def spoil_rate(state: sac.State) -> None:
    state.hparams["actor_lr"][1] = 3e38


# After step 50 the last update was number 19. The actor's action of step 51 is bad; the moments are seen at row 56.
@pytest.mark.parametrize(
    ("spoil", "cause", "step", "update"),
    [
        (spoil_actor, "parameter actor.trunk.0.weight", 51, 20),
        (spoil_moments, "parameter critic_moments.v.layers.1.weight", 56, 26),
    ],
)
def test_parameters_that_are_not_finite_are_named(
    spoil: Any,
    cause: str,
    step: int,
    update: int,
    clean: Clean,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = sac.train(config(tmp_path / "run"), callback=spoiled_at(50, spoil))
    assert run.frozen == [{"member": 1, "seed": 1, "update": update, "step": step, "cause": cause}]
    assert f"{cause} was not finite at update {update}, noticed at step {step};" in capsys.readouterr().out
    assert cause_name(int(final(tmp_path / "run")["cause"][1])) == cause
    assert_others_equal(clean(), tmp_path / "run")


def test_absurd_learning_rate_freezes_its_agent_alone(clean: Clean, tmp_path: Path) -> None:
    run = sac.train(config(tmp_path / "run"), callback=spoiled_at(50, spoil_rate))
    (record,) = run.frozen
    assert record["member"] == 1
    assert record["update"] in (20, 21)  # the first one with that rate, or the next, which loses by it
    assert_others_equal(clean(), tmp_path / "run")


def test_stop_names_bad_parameters_but_changes_nothing(tmp_path: Path) -> None:
    whole = sac.train(config(tmp_path / "whole"), callback=spoiled_at(50, spoil_moments))
    run = sac.train(config(tmp_path / "run"), callback=spoiled_at(50, spoil_moments, stop=True))
    assert [(f["step"], f["update"]) for f in run.frozen] == [(50, 20)]
    assert final(tmp_path / "run")["frozen_at"].tolist() == [-1, -1, -1]
    assert sac.train(config(tmp_path / "run")).frozen == whole.frozen
    assert_equal(final(tmp_path / "whole"), final(tmp_path / "run"))


def test_look_names_the_first_bad_leaf_of_each_agent_and_blames_no_parameter_for_bad_data() -> None:
    agents = counters(5)
    divergence.freeze(agents, {1: "reward", 2: "action"})
    agents.state.value[1:4] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    agents.state.step[4] = 2**60  # integers are never looked at
    before = agents.state.value.clone()
    divergence.look(agents)
    found = divergence.found(agents, range(5), 7, ())
    assert [(r["member"], r["cause"], r["step"]) for r in found] == [
        (1, "reward", 7), (2, "parameter value", 7), (3, "parameter value", 7)
    ]  # fmt: skip
    assert torch.equal(agents.state.value.nan_to_num(), before.nan_to_num())


def test_agent_is_frozen_once_with_its_first_cause() -> None:
    agents = counters(2)
    agents.state.step.fill_(4)
    divergence.freeze(agents, {1: "observation"})
    agents.state.step.fill_(5)
    divergence.freeze(agents, {1: "reward"})
    assert divergence.found(agents, (5, 6), 9, ()) == [
        {"member": 1, "seed": 6, "update": 4, "step": 9, "cause": "observation"}
    ]


# --- resume ---


@pytest.mark.parametrize(("poison", "stops"), [("Reward", (39, 40, 41, 66)), ("Huge", (39, 85))])
def test_frozen_agent_stays_reported_once_after_resumes_and_the_run_is_identical(
    poison: str, stops: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path / "parts", poison=poison)
    for stop in stops:
        sac.train(settings, callback=lambda run, stop=stop: run.step == stop)
    run = sac.train(settings)
    assert capsys.readouterr().out.count("diverged") == 1
    whole = sac.train(config(tmp_path / "whole", poison=poison))
    assert run.frozen == whole.frozen == status(tmp_path / "parts")["frozen"]
    assert len(run.frozen) == 1
    expected, found = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(tmp_path / "whole" / name) == rows(tmp_path / "parts" / name)


# --- evaluation ---


def test_evaluation_that_is_not_finite_is_recorded_as_it_is_and_freezes_nobody(clean: Clean, tmp_path: Path) -> None:
    run = sac.train(config(tmp_path / "run", poison="EvaluationReward"))
    assert run.finished
    assert run.frozen == []
    assert_others_equal(clean(), tmp_path / "run")
    own = [row for row in rows(tmp_path / "run" / "evaluations.csv") if row["member"] == "1"]
    assert [row["return"] for row in own] == ["nan"] * 6
    assert math.isnan(read_runs(tmp_path / "run")[0].agents[1].final.mean)
    page = write_report(tmp_path / "run", tmp_path / "report").read_text()
    assert "the final return of seed 1 is not finite, so there are no statistics" in page


def test_observations_of_an_evaluation_that_are_not_finite_break_nothing(tmp_path: Path) -> None:
    run = sac.train(config(tmp_path / "run", poison="EvaluationObservation"))
    assert run.frozen == []
    own = [row for row in rows(tmp_path / "run" / "evaluations.csv") if row["member"] == "1"]
    assert [row["return"] for row in own] == ["25.0"] * 6  # 25 steps of reward 1, under the action 0


# --- nobody left ---


@pytest.mark.parametrize("stops", [(), (39, 40, 41)])
def test_run_ends_at_the_next_row_once_all_agents_are_frozen(
    stops: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(tmp_path / "run", poison="All")
    for stop in stops:
        assert not sac.train(settings, callback=lambda run, stop=stop: run.step == stop).diverged
        assert status(tmp_path / "run")["state"] == "stopped"
    run = sac.train(settings)
    assert (run.step, run.finished, run.diverged) == (42, False, True)
    assert [(f["seed"], f["step"], f["update"]) for f in run.frozen] == [(0, 40, 9), (1, 40, 9), (2, 40, 9)]
    shown = capsys.readouterr().out
    assert shown.count("diverged") == 3
    assert shown.count("are frozen: the run ends at step 42") == 1
    assert status(tmp_path / "run")["state"] == "diverged"
    assert sorted({int(r["step"]) for r in rows(tmp_path / "run" / "evaluations.csv")}) == [40, 42]
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.csv")}
    again = sac.train(settings)  # nothing is left to do
    assert (again.step, again.diverged, again.frozen) == (42, True, run.frozen)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "run").glob("*.csv")}
    assert status(tmp_path / "run")["state"] == "diverged"


def test_run_without_updates_ends_too(tmp_path: Path) -> None:
    run = sac.train(config(tmp_path / "run", poison="All", learning_starts=80))
    assert (run.step, run.updates, run.diverged) == (42, 0, True)


# --- exit status ---

FLAGS = """--env Pendulum-v1 --env-kwargs {"max_episode_steps":25} --steps 60 --learning-starts 30 --hidden 16 16
--batch-size 16 --compile off --no-tensorboard --threads 1 --eval-every 30 --eval-episodes 1 --log-every 7""".split()


def test_exit_status_is_3_when_agents_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    words = ["train", "sac", *FLAGS, "--seeds", "0-2", "--out", out, "--wrappers", "poison_envs:Reward"]
    line = f"1 of 3 agents of {out} diverged: seed 1 (member 1, step 40: reward)\n"
    for again in (words, words, ["resume", out]):
        assert main(again) == 3
        shown = capsys.readouterr().out
        assert "finished at step 60" in shown
        assert shown.endswith(line)


def test_stopped_run_with_frozen_agents_exits_with_3(tmp_path: Path) -> None:
    words = ["train", "sac", *FLAGS, "--out", str(tmp_path / "run"), "--max-hours", "1e-9"]  # time for one step
    assert main([*words, "--seeds", "1", "--wrappers", "poison_envs:VeryFirstObservation"]) == 3
    assert status(tmp_path / "run")["state"] == "stopped"


def test_sweep_exits_with_3_and_names_agents_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.toml"
    settings = {k: v for k, v in TINY.items() if k not in ("env", "seeds", "env_kwargs")} | {"steps": 60}
    text = [f"out = {json.dumps(str(tmp_path / 'out'))}", "[defaults]", "env_kwargs = {max_episode_steps = 25}"]
    text += [f"{k} = {json.dumps(v)}" for k, v in settings.items()]
    for label, poison in (("well", "Poison"), ("ill", "Reward"), ("all", "All")):
        text += ["[[experiment]]", 'algorithm = "sac"', 'env = "Pendulum-v1"', 'seeds = "0-1"', f'label = "{label}"']
        text += [f'wrappers = ["poison_envs:{poison}"]']
    file.write_text("\n".join(text))
    for again in (False, True):
        assert main(["sweep", str(file)]) == 3
        shown = capsys.readouterr().out
        assert shown.count("finished before") == 3 * again
        report, ill, everyone = shown.splitlines()[-3:]
        assert report.startswith("report: ")
        assert ill.endswith("Pendulum-v1_ill diverged: seed 1 (member 1, step 40: reward)")
        assert ill.startswith("1 of 2 agents of ")
        assert everyone.startswith("2 of 2 agents of ")
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "was frozen after 40 simulator steps, update 9: reward was not finite." in page
    everyone = "All agents of run sac/Pendulum-v1_all (sac, Pendulum-v1) diverged"
    assert f"{everyone}: it ended after 42 simulator steps." in page
    assert page.count("Unfinished") == 0


def test_help_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "3 done, but agents diverged" in capsys.readouterr().out
