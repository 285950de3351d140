"""The parts of the speed benchmarks that need no measuring: modes, rows, files, ratios, counted operations."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import eager  # noqa: E402
import growth  # noqa: E402
import roofline  # noqa: E402
import speed  # noqa: E402
import speed_turns  # noqa: E402
import stopwatch  # noqa: E402
from against import interval  # noqa: E402
from speed_modes import Mode, all_modes, launch_modes, peers  # noqa: E402
from speed_rows import save, save_json, table, typed_command  # noqa: E402
from speed_tasks import includes, task  # noqa: E402


def arguments(line: str = "") -> argparse.Namespace:
    args = speed.checked(speed.parser().parse_args(["--cores", "2", *line.split()]))
    args.command = typed_command("speed.py", args, speed.FLAGS)
    return args


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)


def mode(library: str, processes: int, agents: int, what: str = "loop", every: int = 1) -> Mode:
    return Mode(library, what, processes, 2 // processes, agents, every, "", ())


def result(rate: float, **more) -> dict:
    about = {"includes": "a step", "precision": "float32", "device": "cpu", "versions": {"torch": "2"}}
    return about | {"steps_per_s": rate, "other_load": 0.01, "first_update_s": 9.0, "compile_s": 5.0} | more


# --- the stopwatch ---


def run_watch(monkeypatch, turns: list[float], *, ratio: float = 1.0, warm_at: int = 3, seconds: float = 4.0):
    """A watch that saw turns of these lengths; with ratio 1/n every n-th step ends with an update."""
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stopwatch, "STARTED", 90.0)
    watch = stopwatch.Stopwatch(warm_at, seconds, ratio=ratio)
    for step, length in enumerate(turns, 1):
        now[0] += length
        if watch.tick(step, int(step * ratio + 1e-9)):
            return watch
    return watch


def test_window_opens_when_warm_and_counts_its_own_turns_alone(monkeypatch):
    found = run_watch(monkeypatch, [1.0, 7.0, 1.0, 2.0, 1.0, 1.0, 1.0]).result()
    # opened after 3 turns; 2 + 1 + 1 = 4 s are 3 steps
    assert (found["steps"], found["updates"], found["seconds"], found["steps_per_s"]) == (3, 3, 4.0, 0.75)
    assert found["slowest_step_s"] == 2.0
    assert found["first_update_s"] == 11.0  # the first turn ends 11 s after the process began
    assert found["compile_s"] == 5.0  # the turn of 7 s, less the 2 s that a turn may take


def test_updates_must_stand_in_the_stated_ratio(monkeypatch):
    found = run_watch(monkeypatch, [0.1] * 100, ratio=0.1, seconds=3.75).result()
    assert (found["steps"], found["updates"]) == (38, 4)  # steps 4 .. 41
    watch = run_watch(monkeypatch, [0.1] * 100, ratio=0.1, seconds=3.75)
    watch.ratio = 1.0
    with pytest.raises(SystemExit, match="38 steps but 4 updates: not 1 updates per step"):
        watch.result()


def test_training_that_ends_early_is_no_result(monkeypatch):
    with pytest.raises(SystemExit, match="ended before the window"):
        run_watch(monkeypatch, [1.0] * 4).result()


# --- modes ---


def test_population_is_shared_out_equally_or_stays_in_one_process():
    both = launch_modes(arguments(), "deeprl", ["worker"], agents=4)
    assert [(m.processes, m.threads, m.agents) for m in both] == [(1, 2, 4), (2, 1, 4)]
    assert both[0].commands[0][0] == "worker"
    assert {"--agents=4", "--cores=0,1", "--threads=2"} <= set(both[0].commands[0])
    assert {"--agents=2", "--cores=1", "--seed=2", "--threads=1"} <= set(both[1].commands[1])
    assert [m.processes for m in launch_modes(arguments(), "deeprl", ["worker"], agents=3)] == [1]
    assert [m.agents for m in launch_modes(arguments(), "sb3", ["peer"])] == [1, 2]


def test_all_modes_of_a_command_line():
    args = arguments("--algorithm dqn --agents 1,2 --what loop,update --every 10 --peers eager --roofline r.csv")
    names = [(m.name, m.agents) for m in all_modes(args)]
    assert names[:3] == [
        ("deeprl: 1 process x 2 threads, 1 update in 10 steps", 1),
        ("deeprl: 1 process x 2 threads, 1 update in 10 steps", 2),
        ("deeprl: 2 processes x 1 thread, 1 update in 10 steps", 2),
    ]
    assert ("deeprl update: 2 processes x 1 thread", 2) in names
    assert ("eager update: 1 process x 2 threads", 1) in names
    assert next(name for name, _ in names if name.startswith("matmul")) == "matmul update: 1 process x 2 threads"
    assert len(names) == len(set(names)) == 3 + 2 + 3 + 2 + 2


def test_backends_of_environments_are_modes_of_their_own_and_sync_is_what_others_are_compared_with():
    args = arguments("--algorithm dqn --agents 2 --backends sync,device --what loop,update --cores 1")
    modes = all_modes(args)
    assert [m.name for m in modes] == [
        "deeprl: 1 process x 1 thread",
        "deeprl, device environments: 1 process x 1 thread",
        "deeprl update: 1 process x 1 thread",
        "deeprl, device environments update: 1 process x 1 thread",
    ]
    assert ["--set=env_backend=device" in m.commands[0] for m in modes] == [False, True, False, True]
    args.command = ""
    rounds = {mode: [result(10.0 * (i + 1))] for i, mode in enumerate(modes)}
    found = [(r["variant"], r["ratio_to"], r["ratio"]) for r in table(args, rounds) if r["ratio"]]
    assert found == [(modes[1].name, modes[0].name, "2.00"), (modes[3].name, modes[2].name, "1.33")]


def test_peers_by_name_and_by_python():
    assert peers(f"eager,sb3={sys.executable}") == {"eager": sys.executable, "sb3": sys.executable}
    with pytest.raises(SystemExit, match="known are sb3"):
        peers("sb4")
    with pytest.raises(SystemExit, match="make peers"):
        peers("sb3=nowhere/python")


def test_precision_is_one_setting():
    args = arguments("--set precision=bf16 --set critics=3")
    assert (args.precision, args.set) == ("bf16", ["critics=3"])
    assert "--set=precision=bf16" in all_modes(args)[0].commands[0]


def test_tasks_know_their_environment():
    assert task("td3").env == "HalfCheetah-v5"
    assert task("dqn").hidden == (120, 84)
    assert task("dqn", "MinAtar/Asterix-v1").batch == 32
    with pytest.raises(SystemExit, match="known are sac, td3, dqn, iql"):
        task("ppo")
    assert "every 10 steps 1 update of batch 128, layers of 120x84" in includes("dqn", task("dqn"), "loop", 10)


# --- rows ---


def test_ratios_are_those_of_each_round_against_the_best_mode_of_a_peer():
    ours = mode("deeprl", 1, 8)
    rounds = {
        ours: [result(300.0), result(200.0), result(100.0)],
        mode("sb3", 1, 1): [result(10.0), result(10.0), result(10.0)],
        mode("sb3", 2, 2): [result(100.0), result(50.0), result(100.0)],
    }
    rows = table(arguments("--rounds 3"), rounds)
    assert [(r["variant"], r["ratio_to"], r["ratio"]) for r in rows] == [
        ("deeprl: 1 process x 2 threads", "", ""),
        ("sb3: 1 process x 2 threads", "", ""),
        ("sb3: 2 processes x 1 thread", "", ""),
        ("deeprl: 1 process x 2 threads", "sb3: 2 processes x 1 thread", "3.00"),  # the median of 3, 4 and 1
    ]
    assert rows[0]["steps_per_s"] == "200.0"
    assert "ratio: median of 3 rounds of 20 s, range 1 to 4" in rows[3]["includes"]
    assert (
        "apart: first update after 9.0 to 9.0 s; slow turns, such as compilation, 5.0 to 5.0 s" in rows[0]["includes"]
    )


def test_updates_alone_are_not_compared_with_loops():
    rounds = {
        mode("deeprl", 1, 8): [result(3.0)],
        mode("deeprl", 1, 8, "update"): [result(4.0)],
        mode("sb3", 1, 1): [result(1.0)],
        mode("sb3", 1, 1, "update"): [result(2.0)],
    }
    ratios = {(r["variant"], r["ratio_to"]): r["ratio"] for r in table(arguments(), rounds) if r["ratio"]}
    assert ratios == {
        ("deeprl: 1 process x 2 threads", "sb3: 1 process x 2 threads"): "3.00",
        ("deeprl update: 1 process x 2 threads", "sb3 update: 1 process x 2 threads"): "2.00",
    }


def test_new_rows_replace_those_of_the_same_key(tmp_path):
    path = tmp_path / "speed.csv"
    first = {mode("deeprl", 1, 8): [result(2.0)], mode("sb3", 1, 1): [result(1.0)], mode("sb3", 2, 2): [result(0.5)]}
    save(path, table(arguments(), first))
    save(path, table(arguments("--algorithm td3"), {mode("deeprl", 1, 8): [result(7.0)]}))
    again = {mode("deeprl", 1, 8): [result(3.0)], mode("sb3", 1, 1): [result(1.0)], mode("sb3", 2, 2): [result(1.5)]}
    save(path, table(arguments(), again))
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(r["algorithm"], r["variant"], r["ratio_to"], r["steps_per_s"]) for r in rows] == [
        ("td3", "deeprl: 1 process x 2 threads", "", "7.0"),
        ("sac", "deeprl: 1 process x 2 threads", "", "3.0"),
        ("sac", "sb3: 1 process x 2 threads", "", "1.0"),
        ("sac", "sb3: 2 processes x 1 thread", "", "1.5"),
        ("sac", "deeprl: 1 process x 2 threads", "sb3: 2 processes x 1 thread", "3.0"),  # another mode is best now
    ]


def test_json_holds_rows_medians_of_all_modes_and_failures(tmp_path):
    rounds = {mode("deeprl", 1, 8): [result(2.0, compile_s=9.0), result(3.0), result(4.0)]}
    args = arguments()
    save_json(tmp_path / "new" / "speed.json", args, rounds, table(args, rounds), {"sb3": "died"}, roofline=[])
    found = json.loads((tmp_path / "new" / "speed.json").read_text())
    (one,) = found["modes"]
    assert (one["steps_per_s"], one["compile_s"], one["first_update_s"], len(one["rounds"])) == (3.0, 5.0, 9.0, 3)
    assert found["rows"][0]["steps_per_s"] == "3.0"
    assert (found["failed"], found["roofline"]) == ({"sb3": "died"}, [])


def test_command_of_a_row_names_no_path_of_this_machine(tmp_path):
    line = f"--peers sb3={tmp_path}/python,eager --agents 1,2 --set critics=3 --roofline {tmp_path}/r.csv"
    args = speed.parser().parse_args(line.split())
    command = typed_command("speed.py", args, speed.FLAGS)
    assert command.startswith("python benchmarks/speed.py --algorithm sac --agents 1,2 --what loop --every 1")
    assert "--peers sb3,eager" in command
    assert command.endswith("--set critics=3")
    assert str(tmp_path) not in command


# --- turns ---


def worker(tmp_path: Path, text: str) -> Mode:
    script = tmp_path / "worker.py"
    script.write_text(text)
    return Mode("deeprl", "loop", 1, 1, 1, 1, "", ((sys.executable, str(script)),))


def test_turn_sums_its_processes_and_a_dead_one_tells_why(tmp_path):
    line = {"steps": 2, "updates": 2, "steps_per_s": 5.0, "cpu_s_per_s": 0.1, "slowest_step_s": 0.1}
    line |= {"first_update_s": 1.0, "compile_s": 0.5}
    good = worker(tmp_path, f"print('READY', flush=True); input(); print({json.dumps(json.dumps(line))})")
    twice = Mode("deeprl", "loop", 2, 1, 2, 1, "", good.commands * 2)
    found = speed_turns.turn(twice, 0.1)
    assert (found["steps"], found["steps_per_s"], found["compile_s"]) == (4, 10.0, 0.5)
    bad = worker(tmp_path, "print('READY', flush=True); input(); raise SystemExit('no memory left')")
    with pytest.raises(speed_turns.ModeFailed, match=r"died \(exit status 1\)\nno memory left"):
        speed_turns.turn(bad, 0.1)


def test_mode_that_fails_is_left_out_and_remembered(tmp_path, monkeypatch):
    good, bad = mode("deeprl", 1, 8), mode("sb3", 1, 1)

    def turn(one, _seconds):
        if one is bad:
            raise speed_turns.ModeFailed("sb3 died")
        return result(1.0, cpu_s_per_s=1.0, slowest_step_s=0.1)

    monkeypatch.setattr(speed_turns, "turn", turn)
    rounds, failed = {good: [], bad: []}, {}
    speed.take_turns(arguments(), rounds, failed, "round 1/1")
    assert list(rounds) == [good]
    assert failed == {"sb3: 1 process x 2 threads, 1 agents": "sb3 died"}
    del rounds[good]
    with pytest.raises(SystemExit, match="every mode has failed"):
        speed.take_turns(arguments(), rounds, failed, "round 2/1")


# --- the roofline ---


def test_counted_operations_of_an_mlp_are_those_of_its_matrices():
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    x = torch.zeros(11, 5)

    def step():
        net(x).sum().backward()

    forward = 2 * 11 * (5 * 7 + 7 * 3)
    assert roofline.count_flops(net, x) == forward
    assert roofline.count_flops(step) == 2 * forward + 2 * 11 * 7 * 3  # weights; inputs of the second layer alone


def test_operations_of_a_sac_update_by_hand():
    args = SimpleNamespace(algorithm="sac", env="HalfCheetah-v5", size="", every=1, set=[])
    # Observations 17, actions 6, layers 256 x 256, batch 256, two critics; 2 operations a multiplication. The critics'
    # single output is a sum over 256 numbers and no matrix product.
    actor, critic = 17 * 256 + 256 * 256 + 2 * 256 * 6, 23 * 256 + 256 * 256
    actor_inputs, critic_inputs = actor - 17 * 256, critic - 23 * 256  # no gradient of what the network is given
    critic_part = actor + 2 * critic + 2 * (2 * critic + critic_inputs)  # next action, target, forward and backward
    actor_part = 2 * actor + actor_inputs + 2 * 2 * critic  # forward and backward, through the critics to the action
    by_hand = 2 * 256 * (critic_part + actor_part)
    assert roofline.flops_per_update(args) == by_hand
    assert by_hand / 1e9 == pytest.approx(0.58, abs=0.005)


@pytest.mark.parametrize("env", ["CartPole-v1", "MinAtar/Breakout-v1"])
def test_operations_of_a_dqn_update_by_hand(env):
    if env.startswith("MinAtar"):
        pytest.importorskip("minatar")
        first, rest, batch = 64 * 36 * 16, 1024 * 128 + 128 * 3, 32  # 64 patches of 3 x 3 x 4; three actions
    else:
        first, rest, batch = 4 * 120, 120 * 84 + 84 * 2, 128
    args = SimpleNamespace(algorithm="dqn", env=env, size="", every=1, set=[])
    assert roofline.flops_per_update(args) == 2 * batch * (3 * (first + rest) + rest)


def test_share_of_the_ceiling_takes_products_of_the_same_launch_mode():
    rounds = {
        mode("deeprl", 1, 8, every=10): [result(100.0), result(300.0)],
        mode("deeprl", 2, 8): [result(5.0), result(5.0)],
        mode("matmul", 1, 1, "update"): [result(1.0, flops_per_s=100.0), result(1.0, flops_per_s=200.0)],
    }
    (row,) = roofline.table(arguments(), rounds, flops=2.0)
    assert row["updates_per_s"] == "20.0"  # 10 and 30
    assert row["ceiling_updates_per_s"] == "75.0"  # 150 / 2
    assert row["fraction"] == "0.250"  # of 10 * 2 / 100 and 30 * 2 / 200
    assert "20.0 is 25% of it" in roofline.sentence(row)
    assert list(row) == roofline.COLUMNS


# --- the eager peer ---


@pytest.mark.parametrize("algorithm", ["sac", "td3", "dqn"])
def test_eager_agent_learns_from_its_own_steps(algorithm):
    kind = task(algorithm)
    env = eager.make_env(kind)
    torch.manual_seed(0)
    agent, buffer = eager.AGENTS[algorithm](env, kind, "cpu"), eager.Buffer(env, 50, "cpu")
    network = agent.q if algorithm == "dqn" else agent.policy
    target = agent.target if algorithm == "dqn" else agent.targets
    obs, _ = env.reset(seed=0)
    for _ in range(60):
        action = agent.act(obs)
        assert env.action_space.contains(np.asarray(action, env.action_space.dtype))
        next_obs, reward, terminated, truncated, _ = env.step(action)
        buffer.add(obs, action, float(reward), terminated, next_obs)
        obs = env.reset()[0] if terminated or truncated else next_obs
    assert buffer.added == 60

    def parameters(module):
        return torch.cat([p.detach().flatten().clone() for p in module.parameters()])

    seen = [(parameters(network), parameters(target))]
    for _ in range(2):
        agent.update(buffer.sample(16))
        seen.append((parameters(network), parameters(target)))
    moved = [(not torch.equal(a[0], b[0]), not torch.equal(a[1], b[1])) for a, b in itertools.pairwise(seen)]
    # TD3 moves its policy and its targets with every second update; DQN's target is copied by its loop.
    assert (
        moved
        == {"sac": [(True, True)] * 2, "td3": [(False, False), (True, True)], "dqn": [(True, False)] * 2}[algorithm]
    )
    assert all(p.isfinite().all() for pair in seen for p in pair)


# --- growth ---


def growing() -> list[dict[str, str]]:
    rounds = {mode("deeprl", 1, 1): [result(100.0)], mode("deeprl", 1, 4): [result(200.0)]}
    return growth.table(arguments(), rounds)


def test_growth_is_the_time_of_a_population_step():
    rows = growing()
    assert [(r["agents"], r["step_ms"], r["times_one"]) for r in rows] == [("1", "10", "1.00"), ("4", "20", "2.00")]
    assert list(rows[0]) == growth.COLUMNS


def test_growth_is_plotted_from_its_rows(tmp_path):
    growth.plot(growing(), tmp_path / "plots" / "growth.png")
    assert (tmp_path / "plots" / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_interval_of_a_median_by_order_statistics():
    # P(X <= 5) = 0.0207 and P(X <= 6) = 0.0577 for X ~ B(20, 1/2): the 6th and the 15th, 95.9 %.
    assert interval([*range(1, 21)]) == (6, 15)
    assert interval([5, 3, 1, 2, 6, 4]) == (1, 6)  # 96.9 %
    assert interval([3, 1, 2]) == (1, 3)
