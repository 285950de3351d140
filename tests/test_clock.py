"""The times of a run, on a clock that is turned by hand."""

from __future__ import annotations

import pytest

from deeprl.run.clock import Clock


class Hand:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    hand = Hand()
    monkeypatch.setattr("deeprl.run.clock.time.monotonic", hand)
    return hand


def test_times_by_hand(hand: Hand) -> None:
    clock = Clock()
    assert clock.times(0) == {"wall_s": 0.0, "first_update_s": None, "first_call_s": None, "updates_per_s": 0.0}
    hand.now += 10.0  # random steps
    assert clock.learned() == ""
    assert clock.learn()
    hand.now += 20.0  # compiling
    assert clock.learned() == "first update after 30.0 s, of which its call took 20.0 s"
    hand.now += 1.0
    assert not clock.learn()  # from here on it learns at full speed
    assert clock.learned() == ""
    hand.now += 4.0
    assert not clock.learn()
    # 10 + 20 until the first update; 35 in all; 4 from the second call on
    assert clock.times(200) == {"wall_s": 35.0, "first_update_s": 30.0, "first_call_s": 20.0, "updates_per_s": 50.0}


@pytest.mark.parametrize(
    ("seconds", "line"), [(1.9, ""), (2.0, "first update after 2.0 s, of which its call took 2.0 s")]
)
def test_what_comes_within_two_seconds_is_worth_no_line(hand: Hand, seconds: float, line: str) -> None:
    clock = Clock()
    clock.learn()
    hand.now += seconds
    assert clock.learned() == line


def test_earlier_sessions_count_but_for_the_first_update(hand: Hand) -> None:
    clock = Clock()
    clock.resume(wall_s=100.0, learning_s=50.0)
    hand.now += 5.0
    assert (clock.session_s(), clock.wall_s(), clock.learning_s()) == (5.0, 105.0, 50.0)
    clock.learn()
    hand.now += 2.0
    clock.learned()
    clock.learn()
    hand.now += 10.0
    # 50 + 10 of learning
    assert clock.times(120) == {"wall_s": 117.0, "first_update_s": 7.0, "first_call_s": 2.0, "updates_per_s": 2.0}
