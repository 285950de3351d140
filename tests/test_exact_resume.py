"""A run that was stopped, killed or set back ends as one that was not, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import gymnasium as gym
import pytest
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from run_helpers import ROOT, TINY, assert_same_run, config, final, rows, status, train_with_stops

from deeprl.online import sac, td3
from deeprl.run import checkpoint

# Stops: before learning in mid-episode, at an episode end, twice in a row during learning, at an evaluation (40 or 80),
# and right before a log row whose step does no update (utd 0.5: step 35, updates at 34 and 36).
# TD3 updates the policy at steps 32, 34, ..: stops between the two kinds of update, before the first row that has the
# policy's metrics, and before a row (49) whose step updates the critic alone. With a delay of 3: at steps 33, 36, ..
CASES = {
    "vmap": ({"seeds": (0, 1)}, (13, 25, 44, 45, 80)),
    "loop": ({"steps": 60, "seeds": (0, 1), "backend": "loop"}, (13, 44, 45)),
    "vmap_three_envs": ({"steps": 60, "seeds": (0, 1), "envs_per_agent": 3}, (15, 30, 45, 48)),
    "loop_three_envs": ({"steps": 60, "seeds": (0, 1), "envs_per_agent": 3, "backend": "loop"}, (15, 48)),
    "half_utd": ({"seeds": (0, 1), "utd": 0.5}, (31, 34, 62, 83)),
    "double_utd": ({"seeds": (0,), "utd": 2.0, "steps": 60}, (29, 41)),
    "normalize_obs": ({"steps": 60, "seeds": (0, 1), "normalize_obs": True}, (13, 47)),
    "per_agent_settings": (
        {"steps": 60, "seeds": (0, 0), "actor_lr": (1e-3, 1e-4), "target_entropy": (-1.0, 0.0)},
        (50,),
    ),
    "cheetah": ({"seeds": (0, 1), "env": "HalfCheetah-v5", "steps": 60, "eval_every": 30}, (13, 44)),
    "cheetah_three_envs": ({"seeds": (0,), "env": "HalfCheetah-v5", "steps": 60, "envs_per_agent": 3}, (27, 45)),
    "td3": ({"algorithm": td3, "seeds": (0, 1)}, (13, 31, 32, 45, 48, 80)),
    "td3_loop": ({"steps": 60, "algorithm": td3, "seeds": (0, 1), "backend": "loop"}, (45, 48)),
    "td3_delay_3": ({"algorithm": td3, "seeds": (0,), "policy_delay": 3, "learning_starts": 33}, (34, 35, 41, 76)),
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_continued_run_is_identical(case, tmp_path):
    settings, stops = CASES[case]
    algorithm = settings.get("algorithm", sac)
    algorithm.train(config(tmp_path / "whole", **settings))
    train_with_stops(config(tmp_path / "parts", **settings), stops, algorithm)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_random_stops_give_an_identical_run(tmp_path):
    stops = sorted(random.Random(7).sample(range(1, 90), 6))
    sac.train(config(tmp_path / "whole", utd=0.4))
    train_with_stops(config(tmp_path / "parts", utd=0.4), stops)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resume_from_an_older_checkpoint_cuts_the_records(tmp_path, runs):
    settings = config(tmp_path / "parts")
    for stop in (33, 60):
        sac.train(settings, callback=lambda run, stop=stop: run.step == stop)
    newest = tmp_path / "parts" / "checkpoints" / "000000060" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="000000060 is broken"):
        sac.train(settings)
    assert_same_run(runs.whole(), tmp_path / "parts")


@pytest.mark.parametrize("seed", [0])
def test_hard_killed_run_continues_identically(seed, tmp_path):
    """Killed at a step that is drawn from `seed`, and so much later that it is in the midst of anything."""
    draw = random.Random(seed)
    step, later = draw.randrange(40, 100), draw.uniform(0.0, 0.05)
    print(f"seed {seed}: killed {later:.3f} s after step {step} is on the disk")  # shown if the test fails
    settings = TINY | {"seeds": [0, 1], "steps": 140, "checkpoint_minutes": 0.0005, "buffer_size": 1000}
    out, whole = tmp_path / "killed", tmp_path / "whole"
    code = (
        "import json, sys, time, torch; torch.set_num_threads(1)\n"
        "from deeprl.config import build\nfrom deeprl.online import sac\n"
        "late = lambda run: run.step == 135 and time.sleep(600)\n"  # the signal may be late, but the run is not over
        "sac.train(build(sac.Config, json.loads(sys.argv[1])), callback=late)"
    )
    command = [sys.executable, "-c", code, json.dumps(settings | {"out": str(out)})]
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 600  # of a machine that does other things
        while (
            max(checkpoint.steps(out / "checkpoints"), default=0) < step
            and child.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        time.sleep(later)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert status(out)["state"] == "running"
    assert 0 < status(out)["step"] < 140
    for directory in (out, whole):
        sac.train(config(directory, **(settings | {"seeds": (0, 1), "checkpoint_minutes": 0.0})))
    assert_same_run(whole, out)


def test_callback_that_is_true_at_the_checkpoint_does_not_stop_the_next_call(tmp_path):
    def stop_at_50(run):
        return run.step == 50

    assert not sac.train(config(tmp_path / "run"), callback=stop_at_50).finished
    assert sac.train(config(tmp_path / "run"), callback=stop_at_50).finished


def test_agent_alone_equals_agent_in_a_loop_population(tmp_path):
    sac.train(config(tmp_path / "three", seeds=(4, 5, 6), backend="loop"))
    sac.train(config(tmp_path / "alone", seeds=(5,), backend="loop"))
    _, three = final(tmp_path / "three")
    _, alone = final(tmp_path / "alone")
    assert [k for k in alone if not torch.equal(three[k][1], alone[k][0])] == []
    of_5 = [row for row in rows(tmp_path / "three" / "evaluations.csv") if row["seed"] == "5"]
    assert [r | {"member": ""} for r in of_5] == [
        r | {"member": ""} for r in rows(tmp_path / "alone" / "evaluations.csv")
    ]


def test_max_hours_stops_each_call_and_the_run_continues(tmp_path, monkeypatch, runs):
    # A clock that advances by one second at each look at it; a call stops after 60 of them.
    ticks = iter(range(10**9))
    monkeypatch.setattr("deeprl.run.loop.time.monotonic", lambda: float(next(ticks)))
    settings = config(tmp_path / "run", max_hours=60 / 3600, checkpoint_minutes=0.0)
    reached = []
    for _ in range(30):
        run = sac.train(settings)
        reached.append(run.step)
        if run.finished:
            break
        assert status(run.directory)["state"] == "stopped"
    assert len(reached) > 2
    # Each call goes on from the one before, be it with the evaluation in which that was stopped.
    assert reached[:-1] == sorted(set(reached[:-1]))
    assert reached[-1] == 90
    monkeypatch.undo()
    assert_same_run(runs.whole(), tmp_path / "run")


def test_env_that_cannot_be_restored_says_so_and_goes_on(tmp_path, capsys):
    settings = {"env": "opaque_envs:Unseeded-v0", "env_kwargs": {}, "seeds": (0, 1)}
    sac.train(config(tmp_path / "run", **settings), callback=lambda run: run.step == 50)
    capsys.readouterr()
    assert sac.train(config(tmp_path / "run", **settings)).finished
    assert "Unseeded-v0 cannot be restored exactly: 2 episodes start anew" in capsys.readouterr().out


class Curriculum(PendulumEnv):
    """Rewards shrink from one episode to the next."""

    episodes = 0

    def reset(self, **kwargs):
        self.episodes += 1
        return super().reset(**kwargs)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, float(reward) - self.episodes, terminated, truncated, info

    def state_dict(self):
        return {"state": self.state, "episodes": self.episodes}

    def load_state_dict(self, state):
        vars(self).update(state)


def test_env_that_remembers_episodes_is_evaluated_alike_after_a_resume(tmp_path):
    gym.register("Curriculum-v0", Curriculum)
    settings = {"env": "Curriculum-v0", "seeds": (0, 1)}
    sac.train(config(tmp_path / "whole", **settings))
    train_with_stops(config(tmp_path / "parts", **settings), (30, 60))
    gym.registry.pop("Curriculum-v0")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
