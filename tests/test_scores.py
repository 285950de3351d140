"""Normalised scores against D4RL's figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeprl.data.scores import normalized, score_range

HOPPER = (-20.272305, 3234.3)


@pytest.mark.parametrize(
    ("env", "name", "expected"),
    [
        ("Hopper-v4", "", HOPPER),
        ("Hopper-v5", "anything", HOPPER),
        ("HalfCheetah-v2", "", (-280.178953, 12135.0)),
        ("Walker2d-v4", "", (1.629008, 4592.3)),
        ("Ant-v4", "", (-325.6, 3879.7)),
        ("AdroitHandPen-v1", "", ()),
        ("gymnasium_robotics:AdroitHandPen-v1", "pen-human-v1", (96.262799, 3076.8331017826877)),
        ("gymnasium_robotics:AdroitHandDoor-v1", "", (-56.512833, 2880.5693087298737)),
        ("AdroitHandHammer-v1", "", (-274.856578, 12794.134825156867)),
        ("AdroitHandRelocate-v1", "", (-6.425911, 4233.877797728884)),
        ("", "hopper_medium_replay-v2", HOPPER),
        ("", "hopper-medium-expert-v0", HOPPER),
        ("", "pen-human-v1", (96.262799, 3076.8331017826877)),
        ("", "antmaze-large-diverse-v2", (0.0, 1.0)),
        ("", "antmaze-umaze-v0", (0.0, 1.0)),
        ("", "kitchen-mixed-v0", (0.0, 4.0)),
        ("", "maze2d-umaze-v1", (23.85, 161.86)),
        ("", "maze2d-umaze-sparse-v1", (23.85, 161.86)),
        ("", "maze2d-large-dense-v1", (30.569041, 303.4857382709002)),
        ("gymnasium_robotics:AntMaze_UMaze-v5", "antmaze-umaze-v2", (0.0, 1.0)),
        ("", "", ()),
        ("Pendulum-v1", "pendulum-random-v0", ()),
        ("AntMaze_UMaze-v5", "", ()),
        ("PointMaze_UMaze-v3", "", ()),
        ("FrankaKitchen-v1", "", ()),
        ("AdroitHandDoorSparse-v1", "", ()),
        ("Swimmer-v4", "", ()),
        ("dmc/hopper-hop", "", ()),
        ("", "D4RL/door/human-v2", ()),
        ("", "hopper-v2", ()),
        ("", "ant_and_bee-v2", ()),
    ],
)
def test_ranges_are_those_of_d4rl(env: str, name: str, expected: tuple[float, ...]) -> None:
    assert score_range(env, name) == expected


def test_scores_are_0_at_the_lowest_and_100_at_the_highest() -> None:
    assert normalized(HOPPER[0], HOPPER) == 0
    assert normalized(HOPPER[1], HOPPER) == 100
    assert normalized(5.0, (0.0, 20.0)) == 25.0
    np.testing.assert_array_equal(normalized(np.array([0.0, 30.0]), (10.0, 20.0)), [-100, 200])
    assert normalized(torch.tensor([15.0]), (10.0, 20.0)).tolist() == [50.0]
