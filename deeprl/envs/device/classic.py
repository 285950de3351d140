"""Classic control: the tasks of Gymnasium's ids in float32, from the same equations; each step is exact to rounding."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deeprl.core import rng
from deeprl.core.spec import EnvSpec
from deeprl.envs.device.base import Outcome

Number = Float[Tensor, ""]


def _zero(like: Tensor) -> Tensor:
    return torch.zeros_like(like)


def _never(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool)


class Cart(NamedTuple):
    """Position [m] and velocity of the cart, angle [rad] and angular velocity of the pole."""

    x: Number
    v: Number
    angle: Number
    turn: Number


class CartPole:
    """CartPole-v1 (Barto, Sutton & Anderson 1983): push a cart left or right so that its pole stays upright."""

    spec = EnvSpec((4,), 0, (), (), actions=2)
    limit = 500

    def reset(self, key: rng.Key) -> Cart:
        return Cart(*rng.uniform(key, (4,), -0.05, 0.05).unbind())

    def observe(self, state: Cart) -> Float[Tensor, "4"]:
        return torch.stack(list(state))

    def step(self, state: Cart, action: Int[Tensor, ""], key: rng.Key) -> Outcome:
        gravity, pole, total, half, push, dt = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02
        x, v, angle, turn = state
        sin, cos = torch.sin(angle), torch.cos(angle)
        force = torch.where(action == 1, push, -push)
        pushed = (force + pole * half * turn.square() * sin) / total
        bend = (gravity * sin - cos * pushed) / (half * (4.0 / 3.0 - pole * cos.square() / total))
        drive = pushed - pole * half * bend * cos / total
        after = Cart(x + dt * v, v + dt * drive, angle + dt * turn, turn + dt * bend)
        fallen = (after.x.abs() > 2.4) | (after.angle.abs() > 12 * 2 * math.pi / 360)
        return Outcome(after, torch.ones_like(x), fallen)


class Swing(NamedTuple):
    """Angle [rad] from upright, not wrapped, and angular velocity [rad/s]."""

    angle: Number
    turn: Number


class Pendulum:
    """Pendulum-v1: swing a pendulum up with a torque that is too small to do it at once, and hold it there."""

    spec = EnvSpec((3,), 1, (-2.0,), (2.0,))
    limit = 200

    def reset(self, key: rng.Key) -> Swing:
        angle, turn = rng.uniform(key, (2,), -1.0, 1.0).unbind()
        return Swing(math.pi * angle, turn)

    def observe(self, state: Swing) -> Float[Tensor, "3"]:
        return torch.stack([torch.cos(state.angle), torch.sin(state.angle), state.turn])

    def step(self, state: Swing, action: Float[Tensor, "1"], key: rng.Key) -> Outcome:
        gravity, mass, length, dt = 10.0, 1.0, 1.0, 0.05
        torque = action[0].clamp(-2.0, 2.0)
        wrapped = torch.remainder(state.angle + math.pi, 2 * math.pi) - math.pi
        cost = wrapped.square() + 0.1 * state.turn.square() + 0.001 * torque.square()
        pull = 3 * gravity / (2 * length) * torch.sin(state.angle) + 3.0 / (mass * length**2) * torque
        turn = (state.turn + pull * dt).clamp(-8.0, 8.0)
        return Outcome(Swing(state.angle + turn * dt, turn), -cost, _never(cost))


class Arms(NamedTuple):
    """Angle of the first link from hanging down, of the second to the first [rad], and their velocities."""

    first: Number
    second: Number
    first_turn: Number
    second_turn: Number


class Acrobot:
    """Acrobot-v1 (Sutton 1996, with the equations of Sutton & Barto's book): swing two links above the bar."""

    spec = EnvSpec((6,), 0, (), (), actions=3)
    limit = 500

    def reset(self, key: rng.Key) -> Arms:
        return Arms(*rng.uniform(key, (4,), -0.1, 0.1).unbind())

    def observe(self, state: Arms) -> Float[Tensor, "6"]:
        one, two, *turns = state
        return torch.stack([torch.cos(one), torch.sin(one), torch.cos(two), torch.sin(two), *turns])

    def step(self, state: Arms, action: Int[Tensor, ""], key: rng.Key) -> Outcome:
        torque, dt, old = (action - 1).to(torch.float32), 0.2, torch.stack(list(state))
        k1 = self._slope(old, torque)
        k2 = self._slope(old + dt / 2 * k1, torque)
        k3 = self._slope(old + dt / 2 * k2, torque)
        k4 = self._slope(old + dt * k3, torque)
        first, second, *turns = (old + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).unbind()
        turns = [turn.clamp(-most, most) for turn, most in zip(turns, (4 * math.pi, 9 * math.pi), strict=True)]
        after = Arms(_wrapped(first), _wrapped(second), *turns)
        above = -torch.cos(after.first) - torch.cos(after.second + after.first) > 1.0
        return Outcome(after, torch.where(above, 0.0, -1.0), above)

    def _slope(self, state: Float[Tensor, "4"], torque: Number) -> Float[Tensor, "4"]:
        one, two, w1, w2 = state.unbind()
        g, centre, inertia = 9.8, 0.5, 1.0
        d1 = centre**2 + 1.0 + centre**2 + 2 * centre * torch.cos(two) + 2 * inertia
        d2 = centre**2 + centre * torch.cos(two) + inertia
        phi2 = centre * g * torch.cos(one + two - math.pi / 2)
        swing = -centre * w2.square() * torch.sin(two) - 2 * centre * w2 * w1 * torch.sin(two)
        phi1 = swing + (centre + 1.0) * g * torch.cos(one - math.pi / 2) + phi2
        own = torque + d2 / d1 * phi1 - centre * w1.square() * torch.sin(two) - phi2
        a2 = own / (centre**2 + inertia - d2.square() / d1)
        return torch.stack([w1, w2, -(d2 * a2 + phi1) / d1, a2])


def _wrapped(angle: Number) -> Number:
    """In [-pi, pi], as often as it has to turn for that, at most a few times."""
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))


class Car(NamedTuple):
    """Position and velocity."""

    position: Number
    velocity: Number


class MountainCar:
    """MountainCar-v0 (Moore 1990): gain momentum between two hills until the right one can be climbed."""

    spec = EnvSpec((2,), 0, (), (), actions=3)
    limit = 200
    goal = 0.5

    def reset(self, key: rng.Key) -> Car:
        position = rng.uniform(key, (), -0.6, -0.4)
        return Car(position, _zero(position))

    def observe(self, state: Car) -> Float[Tensor, "2"]:
        return torch.stack(list(state))

    def _moved(self, state: Car, force: Number) -> Car:
        velocity = (state.velocity + force - 0.0025 * torch.cos(3 * state.position)).clamp(-0.07, 0.07)
        position = (state.position + velocity).clamp(-1.2, 0.6)
        stopped = (position <= -1.2) & (velocity < 0)
        return Car(position, torch.where(stopped, 0.0, velocity))

    def _there(self, state: Car) -> Tensor:
        return (state.position >= self.goal) & (state.velocity >= 0)

    def step(self, state: Car, action: Int[Tensor, ""], key: rng.Key) -> Outcome:
        after = self._moved(state, (action - 1) * 0.001)
        return Outcome(after, -torch.ones_like(after.position), self._there(after))


class MountainCarContinuous(MountainCar):
    """MountainCarContinuous-v0: with a force that costs, and a prize at the goal."""

    spec = EnvSpec((2,), 1, (-1.0,), (1.0,))
    limit = 999
    goal = 0.45

    def step(self, state: Car, action: Float[Tensor, "1"], key: rng.Key) -> Outcome:
        force = action[0]
        after = self._moved(state, force.clamp(-1.0, 1.0) * 0.0015)
        there = self._there(after)
        return Outcome(after, torch.where(there, 100.0, 0.0) - 0.1 * force.square(), there)
