"""Normalised scores against D4RL's figures."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from deeprl.data.scores import normalized_score, score_range

HOPPER = (-20.272305, 3234.3)


PEN = (96.262799, 3076.8331017826877)
DOOR = (-56.512833, 2880.5693087298737)
ANT = (-325.6, 3879.7)
DROPPED, CONTACTS = ("deeprl.data.d4rl:DroppedPenEnds",), ("deeprl.data.d4rl:NoContactForces",)
ROBOTICS = "gymnasium_robotics:AdroitHand"


class Mine(gym.Env):
    """An environment of the user's."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hopper_medium_replay-v2", HOPPER),
        ("hopper-medium-expert-v0", HOPPER),
        ("hopper-medium", HOPPER),
        ("pen-human-v1", PEN),
        ("antmaze-large-diverse-v2", (0.0, 1.0)),
        ("antmaze-umaze-v0", (0.0, 1.0)),
        ("kitchen-mixed-v0", (0.0, 4.0)),
        ("maze2d-umaze-v1", (23.85, 161.86)),
        ("maze2d-umaze-sparse-v1", (23.85, 161.86)),
        ("maze2d-large-dense-v1", (30.569041, 303.4857382709002)),
        ("", ()),
        ("D4RL/door/human-v2", ()),
        ("hopper-v2", ()),
        ("ant_and_bee-v2", ()),
        ("pendulum-random-v0", ()),
    ],
)
def test_names_of_datasets_count_where_no_environment_is_named(name: str, expected: tuple[float, ...]) -> None:
    assert score_range("", dataset_name=name) == expected
    for env in ("dmc/hopper-hop", "my_module:Hopper-v0", "gymnasium_robotics:AntMaze_UMaze-v5", "FrankaKitchen-v1"):
        assert score_range(env, dataset_name=name) == ()


@pytest.mark.parametrize(
    ("env", "kwargs", "wrappers", "expected"),
    [
        ("Hopper-v4", {}, (), HOPPER),
        ("Hopper-v5", {}, (), HOPPER),
        ("HalfCheetah-v2", {}, (), (-280.178953, 12135.0)),
        ("Walker2d-v4", {}, (), (1.629008, 4592.3)),
        ("Ant-v4", {}, (), ANT),
        ("Ant-v4", {}, CONTACTS, ANT),
        (f"{ROBOTICS}Door-v1", {}, (), DOOR),
        ("AdroitHandHammer-v1", {}, (), (-274.856578, 12794.134825156867)),
        ("AdroitHandRelocate-v1", {}, (), (-6.425911, 4233.877797728884)),
        (f"{ROBOTICS}Pen-v1", {"max_episode_steps": 100}, DROPPED, PEN),
        # the same task, said in more words
        ("Hopper-v4", {"max_episode_steps": 1000, "render_mode": "rgb_array", "width": 64}, (), HOPPER),
        (f"{ROBOTICS}Door-v1", {"reward_type": "dense", "max_episode_steps": 200}, (), DOOR),
        # other tasks
        ("my_module:Hopper-v4", {}, (), ()),
        ("Hopper-v4", {"max_episode_steps": 500}, (), ()),
        ("Hopper-v4", {"forward_reward_weight": 2.0}, (), ()),
        ("HalfCheetah-v5", {"ctrl_cost_weight": 0.0}, (), ()),
        ("Hopper-v4", {"terminate_when_unhealthy": False}, (), ()),
        ("Hopper-v4", {}, ("my_module:Halved",), ()),
        ("Hopper-v4", {}, DROPPED, ()),
        ("Ant-v4", {}, (*CONTACTS, "my_module:Halved"), ()),
        (f"{ROBOTICS}Door-v1", {"reward_type": "sparse"}, (), ()),
        (f"{ROBOTICS}Door-v1", {"max_episode_steps": 300}, (), ()),
        (f"{ROBOTICS}Pen-v1", {}, (), ()),
        (f"{ROBOTICS}Pen-v1", {"max_episode_steps": 100}, (), ()),
        (f"{ROBOTICS}Pen-v1", {}, DROPPED, ()),
        ("AdroitHandDoorSparse-v1", {}, (), ()),
        ("Swimmer-v4", {}, (), ()),
        ("Pendulum-v1", {}, (), ()),
    ],
)
def test_environments_count_as_they_were_when_the_references_were_measured(
    env: str, kwargs: dict[str, Any], wrappers: tuple[str, ...], expected: tuple[float, ...]
) -> None:
    assert score_range(env, kwargs, wrappers) == expected
    assert score_range(env, kwargs, wrappers, "hopper-medium-v2") == expected


@pytest.mark.parametrize(
    "made",
    [
        {"entry_point": Mine, "max_episode_steps": 1000},
        {"entry_point": "my_module:Hopper", "max_episode_steps": 1000},
        {"entry_point": "gymnasium.envs.mujoco.hopper_v4:HopperEnv", "max_episode_steps": 300},
        {
            "entry_point": "gymnasium.envs.mujoco.hopper_v4:HopperEnv", "max_episode_steps": 1000,
            "kwargs": {"healthy_reward": 0.0},
        },
    ],
)  # fmt: skip
def test_what_the_user_registered_under_a_known_name_has_no_score(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = dict(gym.registry)
    monkeypatch.setattr(gym.envs.registration, "registry", registry)
    monkeypatch.setattr(gym, "registry", registry)
    gym.register("Hopper-v7", **made)
    assert score_range("Hopper-v7") == ()


def test_scores_are_0_at_the_lowest_and_100_at_the_highest() -> None:
    assert normalized_score(HOPPER[0], HOPPER) == 0
    assert normalized_score(HOPPER[1], HOPPER) == 100
    assert normalized_score(5.0, (0.0, 20.0)) == 25.0
    np.testing.assert_array_equal(normalized_score(np.array([0.0, 30.0]), (10.0, 20.0)), [-100, 200])
    assert normalized_score(torch.tensor([15.0]), (10.0, 20.0)).tolist() == [50.0]
