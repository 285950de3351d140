"""DQN: targets and losses against numbers by hand, and twenty updates against a plain independent implementation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from helpers import assert_equal, cast
from torch import Tensor, nn

from deeprl import nets
from deeprl.config import build
from deeprl.core import rng
from deeprl.core.optim import global_norm
from deeprl.core.population import stack
from deeprl.core.spec import Batch, EnvSpec
from deeprl.core.tree import tree_leaves
from deeprl.errors import DeeprlError
from deeprl.online import dqn

METRICS = ("loss", "q", "td_error", "grad_norm", "epsilon")
TWO = EnvSpec((2,), 0, (), (), actions=2)
SPEC = EnvSpec((3,), 0, (), (), actions=4)
SMALL = {"bins": 3, "v_min": -1.0, "v_max": 1.0}  # atoms -1, 0, 1
LOW, HIGH = (0.5, 0.3, 0.2), (0.2, 0.3, 0.5)  # over them: means -0.3 and 0.3
FLAT = (1 / 3, 1 / 3, 1 / 3)
VALUES = ("scalar", "c51", "hl_gauss", "two_hot")


class Table(nn.Module):
    """Q of two actions in two states, which are observed as (1, 0) and (0, 1): a number each, or logits."""

    def __init__(self, bins: int = 1):
        super().__init__()
        self.bins, self.layer = bins, nn.Linear(2, 2 * bins, bias=False)

    def forward(self, obs: Tensor) -> Tensor:
        q = self.layer(obs).unflatten(-1, (2, self.bins))
        return q.squeeze(-1) if self.bins == 1 else q


def table_net(config: dqn.Config) -> dqn.Net:
    return dqn.build_net(TWO, config, lambda spec, c: Table(1 if c.value == "scalar" else c.bins))


def table(values: Any) -> dict[str, Tensor]:
    """Parameters of `Table` from entries [state][action], or [state][action][bin]."""
    return {"layer.weight": torch.tensor(values).flatten(1).T.contiguous()}


def table_state(config: dqn.Config, online: Any, target: Any) -> dqn.State:
    state = dqn.init(table_net(config), config, rng.key(0, "init"))
    return state._replace(params=table(online), target=table(target))


def steps_to_1(*rows: tuple[int, float, float]) -> Batch:
    """Transitions from state 0 to state 1: action, reward, discount of each."""
    action, reward, discount = (torch.tensor(x) for x in zip(*rows, strict=True))
    one_hot = torch.eye(2)[[0] * len(rows)], torch.eye(2)[[1] * len(rows)]
    return Batch(one_hot[0], action, reward, discount, one_hot[1])


def logs(values: Any) -> Any:
    return torch.log(torch.tensor(values)).tolist()


def batch_of(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, rows, 3, generator=generator)
    action = torch.randint(4, (rows,), generator=generator)
    discount = 0.9 * (torch.rand(rows, generator=generator) > 0.2)
    return cast(Batch(obs, action, torch.rand(rows, generator=generator) * 2 - 1, discount, next_obs), dtype)


# --- targets by hand ---

BATCH = steps_to_1((0, 1.0, 0.9), (1, 1.0, 0.0), (1, 2.71, 0.729))


@pytest.mark.parametrize(
    ("double", "expected"),
    # Q' of state 1 is 5 and 3: 1 + 0.9 * 5; terminated; a 3-step row's reward and discount as they are: + 0.729 * 5.
    # Online, action 1 is the best there: its target value 3 counts instead, not the online one 2.
    [(False, (5.5, 1.0, 6.355)), (True, (3.7, 1.0, 4.897))],
)
def test_scalar_target_by_hand(double: bool, expected: tuple[float, ...]) -> None:
    config = dqn.Config(double=double)
    state = table_state(config, [[9.0, 9.0], [1.0, 2.0]], [[7.0, 7.0], [5.0, 3.0]])
    assert dqn.td_target(table_net(config), config, state, BATCH).tolist() == pytest.approx(expected)


# Of state 1 the target network prefers action 1 (HIGH), the online network action 0 (LOW).
ONLINE, TARGET = logs([[FLAT, FLAT], [HIGH, LOW]]), logs([[FLAT, FLAT], [LOW, HIGH]])


@pytest.mark.parametrize(
    ("value", "double", "reward", "discount", "expected"),
    [
        # Atoms move to 0, 0.5, 1: HIGH's 0.2 to the middle, 0.3 half and half, 0.5 to the upper end.
        ("c51", False, 0.5, 0.5, (0.0, 0.35, 0.65)),
        # The same with LOW, which the online network chooses.
        ("c51", True, 0.5, 0.5, (0.0, 0.65, 0.35)),
        # Atoms move to -0.5, 0, 0.5: 0.1, then 0.1 + 0.3 + 0.25, then 0.25.
        ("c51", False, 0.0, 0.5, (0.1, 0.65, 0.25)),
        # Beyond the ends: 0, 1, 2 -> 0, 1, 1.
        ("c51", False, 1.0, 1.0, (0.0, 0.2, 0.8)),
        ("c51", False, 0.25, 0.0, (0.0, 0.75, 0.25)),
        # The mean alone: 0 + 0.5 * 0.3, or -0.3 with double; clipped to 1.
        ("two_hot", False, 0.0, 0.5, (0.0, 0.85, 0.15)),
        ("two_hot", True, 0.0, 0.5, (0.15, 0.85, 0.0)),
        ("two_hot", False, 3.0, 0.5, (0.0, 0.0, 1.0)),
        ("two_hot", False, -0.25, 0.0, (0.25, 0.75, 0.0)),
    ],
)
def test_distributional_target_by_hand(
    value: Any, double: bool, reward: float, discount: float, expected: tuple[float, ...]
) -> None:
    config = dqn.Config(value=value, double=double, **SMALL)
    batch = steps_to_1((0, reward, discount))
    target = dqn.td_target(table_net(config), config, table_state(config, ONLINE, TARGET), batch)
    assert target[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("double", "reward"), [(False, -0.15), (True, 0.15)])
def test_hl_gauss_target_by_hand(double: bool, reward: float) -> None:
    # Bins of width 1 from -1.5 to 1.5 have the centres -1, 0, 1; the value is reward +- 0.5 * 0.3 = 0, sigma is 0.75.
    # Mass within 0.5 of 0 over that within 1.5: erf(2 / 3 / sqrt 2) / erf(2 / sqrt 2) = 0.495015 / 0.954500.
    config = dqn.Config(value="hl_gauss", double=double, bins=3, v_min=-1.5, v_max=1.5)
    state = table_state(config, ONLINE, TARGET)
    target = dqn.td_target(table_net(config), config, state, steps_to_1((0, reward, 0.5)))
    middle = 0.495015 / 0.954500
    assert target[0].tolist() == pytest.approx([(1 - middle) / 2, middle, (1 - middle) / 2], abs=1e-5)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("value", ["c51", "two_hot"])
def test_mean_of_a_distribution_inside_the_support_is_the_scalar_target(value: Any, double: bool) -> None:
    # |reward| <= 1 and discount 0.9 keep every atom of -10 .. 10 inside.
    config = dqn.Config(value=value, double=double, hidden=(8,))
    net = dqn.build_net(SPEC, config)
    state = dqn.init(net, config, rng.key(0, "init"))
    state = state._replace(target=dqn.init(net, config, rng.key(1, "init")).params)
    batch, rows = batch_of(64), torch.arange(64)
    target = dqn.td_target(net, config, state, batch)
    after, online = (dqn.values(config, dqn.outputs(net, p, batch.next_obs)) for p in (state.target, state.params))
    expected = batch.reward + batch.discount * after[rows, (online if double else after).argmax(-1)]
    torch.testing.assert_close(target.sum(-1), torch.ones(64))
    torch.testing.assert_close((target * torch.linspace(-10, 10, 51)).sum(-1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", VALUES)
def test_terminated_row_ignores_what_follows(value: Any) -> None:
    config = dqn.Config(value=value, double=True, hidden=(8,))
    net = dqn.build_net(SPEC, config)
    state, batch = dqn.init(net, config, rng.key(0, "init")), batch_of(16)
    ends = batch.discount == 0
    assert 0 < int(ends.sum()) < 16
    elsewhere = (batch.next_obs, torch.where(ends[:, None], -77.0, batch.next_obs), batch.next_obs + 1.0)
    here, there, moved = (dqn.td_target(net, config, state, batch._replace(next_obs=x)) for x in elsewhere)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-6)  # C51: probabilities add up to 1 but for rounding
    changed = ((here - moved).abs() > 1e-5).reshape(16, -1).any(-1)
    assert torch.equal(changed, ~ends)  # while all other rows bootstrap


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    # Centres: the ends themselves, or the middles of three bins between them.
    [("c51", -1.0, 1.0, 0.3), ("two_hot", -1.0, 1.0, 0.3), ("hl_gauss", -1.0, 1.0, 0.2), ("hl_gauss", 0.0, 6.0, 3.6)],
)
def test_value_is_the_mean_over_the_centres(value: Any, low: float, high: float, expected: float) -> None:
    config = dqn.Config(value=value, bins=3, v_min=low, v_max=high)
    assert dqn.values(config, torch.tensor(logs([[HIGH]]))).item() == pytest.approx(expected)


# --- losses, priorities, clipping by hand ---

# Q(0, 0) = 1 and Q(0, 1) = 2; targets without bootstrap 1.5 and 5: errors -0.5 and -3.
ERRORS = steps_to_1((0, 1.5, 0.0), (1, 5.0, 0.0))
Q = [[1.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("loss", "weight", "expected"),
    [
        ("mse", None, (0.25 + 9.0) / 2),
        ("huber", None, (0.125 + 2.5) / 2),  # 0.5 * 0.25 and 3 - 0.5
        ("mse", (0.5, 1.0), (0.125 + 9.0) / 2),
        ("huber", (0.5, 1.0), (0.0625 + 2.5) / 2),
    ],
)
def test_loss_and_priorities_by_hand(loss: Any, weight: Any, expected: float) -> None:
    config = dqn.Config(loss=loss, priority_alpha=0.5)
    weights = None if weight is None else torch.tensor(weight)
    _, metrics, priority = dqn.update(table_net(config), config, table_state(config, Q, Q), ERRORS, weights)
    assert tuple(metrics) == METRICS
    assert float(metrics["loss"]) == pytest.approx(expected)
    assert float(metrics["q"]) == pytest.approx(1.5)
    assert float(metrics["td_error"]) == pytest.approx(1.75)
    # (|error| + 1e-6)^0.5, untouched by the weights
    assert priority.tolist() == pytest.approx([0.5000010**0.5, 3.0000010**0.5])


@pytest.mark.parametrize("value", ["c51", "two_hot"])
def test_cross_entropy_and_divergence_by_hand(value: Any) -> None:
    # Target (0, 0.5, 0.5) against HIGH: -0.5 ln 0.3 - 0.5 ln 0.5 = 0.948560; its own entropy is ln 2.
    # Target (0, 1, 0) against LOW: -ln 0.3 = 1.203973, and no entropy. |0.3 - 0.5| and |-0.3 - 0|.
    config = dqn.Config(value=value, priority_alpha=1.0, **SMALL)
    state = table_state(config, logs([[HIGH, LOW], [FLAT, FLAT]]), TARGET)
    batch, weight = steps_to_1((0, 0.5, 0.0), (1, 0.0, 0.0)), torch.tensor([1.0, 0.5])
    for weights, expected in ((None, 1.076267), (weight, (0.948560 + 0.6019865) / 2)):
        _, metrics, priority = dqn.update(table_net(config), config, state, batch, weights)
        assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-5)
        assert float(metrics["q"]) == pytest.approx(0.0, abs=1e-6)
        assert float(metrics["td_error"]) == pytest.approx(0.25, abs=1e-6)
        assert priority.tolist() == pytest.approx([0.948560 - math.log(2), 1.203973], abs=1e-5)


def test_priority_is_least_where_the_network_is_the_target_already() -> None:
    # State 1 has the distribution that state 0 is given: reward 0, discount 1. Nothing but (1e-6)^0.5 is left.
    config = dqn.Config(value="c51", priority_alpha=0.5, **SMALL)
    state = table_state(config, logs([[HIGH, HIGH], [HIGH, LOW]]), logs([[HIGH, HIGH], [HIGH, LOW]]))
    _, metrics, priority = dqn.update(table_net(config), config, state, steps_to_1((0, 0.0, 1.0)))
    assert float(priority) == pytest.approx(1e-3, rel=0.1)
    assert float(metrics["grad_norm"]) < 1e-6


@pytest.mark.parametrize(("limit", "norm"), [(0.0, 9.25**0.5), (10.0, 9.25**0.5), (1.0, 1.0)])
def test_gradient_is_clipped_by_its_norm_and_reported_before(limit: float, norm: float) -> None:
    # dLoss/dQ = 2 * error / 2: the two entries of the table get -0.5 and -3. Adam's first m is a tenth of the gradient.
    config = dqn.Config(max_grad_norm=limit)
    new, metrics, _ = dqn.update(table_net(config), config, table_state(config, Q, Q), ERRORS)
    assert float(metrics["grad_norm"]) == pytest.approx(9.25**0.5)
    assert 10 * float(global_norm(new.moments.m)) == pytest.approx(norm, rel=1e-5)
    assert bool((new.params["layer.weight"][:, 0] > torch.tensor(Q[0])).all())


def test_update_counts_and_touches_its_own_part_alone() -> None:
    config = dqn.Config(hidden=(8,))
    net = dqn.build_net(SPEC, config)
    state, batch, weight = dqn.init(net, config, rng.key(0, "init")), batch_of(16), torch.rand(16)
    before = cast((state, batch, weight), torch.float32)
    new, _, _ = dqn.update(net, config, state, batch, weight)
    assert_equal((state, batch, weight), before)
    assert int(new.step) == 1
    assert_equal((new.target, new.epsilon, new.hparams), (state.target, state.epsilon, state.hparams))
    assert all(not torch.equal(new.params[k], state.params[k]) for k in state.params)


# --- exploration ---


def test_epsilon_schedule_by_hand() -> None:
    # 1 until step 100, then linear over 200 steps to 0.1; the second agent over 400 steps to 0.5.
    config = dqn.Config(
        seeds=(0, 1), learning_starts=100, epsilon_end=(0.1, 0.5), epsilon_steps=(200.0, 400.0), hidden=(4,)
    )
    net = dqn.build_net(SPEC, config)
    states = [dqn.init(net, config.member(i), rng.key(i, "init")) for i in (0, 1)]
    assert float(states[0].epsilon) == 1.0
    both = stack(states)
    for step, expected in ((0, (1, 1)), (100, (1, 1)), (200, (0.55, 0.875)), (300, (0.1, 0.75)), (9999, (0.1, 0.5))):
        assert dqn.with_epsilon(config, both, step).epsilon.tolist() == pytest.approx(expected)
        assert float(dqn.with_epsilon(config, states[1], step).epsilon) == pytest.approx(expected[1])
    moved = dqn.with_epsilon(config, both, 200)
    assert_equal(moved._replace(epsilon=both.epsilon), both)


@pytest.mark.parametrize(
    ("epsilon", "eval_epsilon", "explore", "random"),
    [
        (0.0, 1.0, True, 0.0),
        (1.0, 0.0, True, 1.0),
        (0.4, 0.0, True, 0.4),
        (1.0, 0.0, False, 0.0),
        (0.0, 0.4, False, 0.4),
    ],
)
def test_share_of_random_actions(epsilon: float, eval_epsilon: float, explore: bool, random: float) -> None:
    config = dqn.Config(hidden=(8,), eval_epsilon=eval_epsilon)
    net = dqn.build_net(SPEC, config)
    state = dqn.init(net, config, rng.key(0, "init"))._replace(epsilon=torch.tensor(epsilon))
    n = 8000
    obs, first = torch.randn(1, 3).expand(n, 3), torch.zeros(n, dtype=torch.bool)
    action, carry = dqn.act(net, config, state, (), obs, first, rng.key(1, "explore"), explore=explore)
    greedy = int(dqn.values(config, dqn.outputs(net, state.params, obs[:1])).argmax())
    # Each of the four actions gets a quarter of the random part, the greedy one the rest: within four deviations.
    shares = torch.bincount(action, minlength=4) / n
    for a, share in enumerate(shares.tolist()):
        expected = random / 4 + (1 - random) * (a == greedy)
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n)), a
    assert carry == ()
    again, _ = dqn.act(net, config, state, (), obs, first, rng.key(1, "explore"), explore=explore)
    assert torch.equal(action, again)


# --- networks ---


def test_dueling_network_by_hand() -> None:
    # Torso: identity weights. V = x1 + x2 + 1 = 4; A = (x1, x2, 0) = (1, 2, 0) with mean 1: Q = (4, 5, 3).
    net = nets.QNetwork(nn.Linear(2, 2, bias=False), 2, 3, hidden=(), dueling=True)
    params = {
        "torso.weight": torch.eye(2),
        "advantage.0.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
        "advantage.0.bias": torch.zeros(3),
        "value.0.weight": torch.ones(1, 2),
        "value.0.bias": torch.ones(1),
    }
    x = torch.tensor([[1.0, 2.0]])
    grads, q = torch.func.grad_and_value(lambda p: torch.func.functional_call(net, p, (x,))[0, 0])(params)
    assert float(q) == pytest.approx(4.0)
    assert torch.func.functional_call(net, params, (x,))[0].tolist() == pytest.approx([4.0, 5.0, 3.0])
    # Q_1 = V + 2 / 3 A_1 - A_2 / 3 - A_3 / 3. By the features: (1 + 2 / 3, 1 - 1 / 3), scaled by 1 / sqrt 2; times x.
    scaled = torch.tensor([5 / 3, 2 / 3])[:, None] * x / math.sqrt(2)
    torch.testing.assert_close(grads["torso.weight"], scaled)
    torch.testing.assert_close(grads["value.0.weight"], x)
    torch.testing.assert_close(grads["advantage.0.bias"], torch.tensor([2.0, -1.0, -1.0]) / 3)


def test_initial_states_differ_between_seeds_and_targets_are_copies() -> None:
    config = dqn.Config(hidden=(8,), dueling=True)
    net = dqn.build_net(SPEC, config)
    one, two = (dqn.init(net, config, rng.key(seed, "init")) for seed in (3, 4))
    assert_equal(one.params, one.target)
    assert all(one.params[k] is not one.target[k] and not torch.equal(one.params[k], two.params[k]) for k in one.params)
    assert not any(leaf.requires_grad for leaf in tree_leaves(one))


@pytest.mark.parametrize(
    ("spec", "settings", "make", "message"),
    [
        (TWO, {}, lambda s, c: nn.Linear(2, 3), r"must return \(3, 2\) for scalar values, not \(3, 3\)"),
        (TWO, {"value": "c51"}, lambda s, c: nn.Linear(2, 2), r"must return \(3, 2, 51\) for c51 values"),
        (TWO, {}, lambda s, c: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "BatchNorm1d keeps state"),
        (TWO, {}, lambda s, c: 3, "net: must return Q network as torch modules, not int"),
        (EnvSpec((2,), 1, (-1.0,), (1.0,)), {}, None, "dqn needs discrete actions, not 1 continuous"),
        (EnvSpec((1, 2, 40), 0, (), (), "uint8", 2, 0, 1), {}, None, r"net: .*\(1, 2, 40\): .*at least 3 x 3; try"),
        (EnvSpec((2, 9, 3), 0, (), (), "bool", 2), {}, None, r"net: .*\(2, 9, 3\): .*at least 3 x 3; try"),
        (EnvSpec((84, 84), 0, (), (), "uint8", 2), {}, None, r"net: .*\(84, 84\): .*three axes .*FlattenObservation"),
        (EnvSpec((9, 9), 0, (), (), "bool", 2), {}, None, r"net: .*\(9, 9\): .*three axes .*FlattenObservation"),
        (EnvSpec((10, 4), 0, (), (), "float32", 2, 0, 10), {}, None, r"net: .*\(10, 4\): .*FlattenObservation"),
        (EnvSpec((4, 84, 84, 3), 0, (), (), "uint8", 2, 0, 4), {}, None, r"net: .*84, 3\): .*three axes"),
    ],
)
def test_unfit_networks_and_environments_raise_in_one_line(
    spec: EnvSpec, settings: dict[str, Any], make: Any, message: str
) -> None:
    with pytest.raises(DeeprlError, match=message) as caught:
        dqn.build_net(spec, dqn.Config(**settings), make)
    assert "\n" not in str(caught.value)


# --- against an independent implementation ---


class PlainDqn:
    """The usual script: a module, torch.optim, backward; C51's projection by floor, ceiling and scatter."""

    def __init__(self, config: dqn.Config, state: dqn.State, dtype: torch.dtype):
        self.config, self.atoms = config, config.bins if config.value == "c51" else 1
        sizes = (3, 16, 16, 4 * self.atoms)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).to(dtype)
        self.net.load_state_dict({k.removeprefix("advantage."): p for k, p in state.params.items()})
        self.target = nn.Sequential(*[type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear) else nn.ReLU()
                                      for m in self.net]).to(dtype)  # fmt: skip
        self.copy()
        rate, eps = float(state.hparams["lr"]), float(state.hparams["adam_eps"])
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=rate, eps=eps)
        self.z = torch.linspace(config.v_min, config.v_max, config.bins, dtype=dtype)

    def copy(self) -> None:
        self.target.load_state_dict(self.net.state_dict())

    def projected(self, p: Tensor, batch: Batch) -> Tensor:
        width = (self.config.v_max - self.config.v_min) / (self.config.bins - 1)
        z = batch.reward.unsqueeze(1) + batch.discount.unsqueeze(1) * self.z.unsqueeze(0)
        place = (z.clamp(self.config.v_min, self.config.v_max) - self.config.v_min) / width
        below, above = place.floor(), place.ceil()
        mass = torch.zeros_like(p)
        mass.scatter_add_(1, below.long(), p * torch.where(above == below, 1.0, above - place))
        return mass.scatter_add_(1, above.long(), p * (place - below))

    def update(self, batch: Batch, weight: Tensor) -> tuple[float, Tensor]:
        rows, c51 = torch.arange(len(batch.action)), self.config.value == "c51"
        with torch.no_grad():
            after = self.target(batch.next_obs).view(len(rows), 4, self.atoms)
            choosing = self.net(batch.next_obs).view_as(after) if self.config.double else after
            scores = (choosing.softmax(2) * self.z).sum(2) if c51 else choosing[:, :, 0]
            after = after[rows, scores.max(1).indices]
        now = self.net(batch.obs).view(len(rows), 4, self.atoms)[rows, batch.action]
        if c51:
            target = self.projected(after.softmax(1), batch)
            losses = nn.functional.cross_entropy(now, target, reduction="none")
            surprise = nn.functional.kl_div(now.log_softmax(1), target, reduction="none").sum(1)
        else:
            target = batch.reward + batch.discount * after[:, 0]
            kind = nn.functional.mse_loss if self.config.loss == "mse" else nn.functional.smooth_l1_loss
            losses = kind(now[:, 0], target, reduction="none")
            surprise = (now[:, 0] - target).abs()
        loss = (losses * weight).mean()
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.max_grad_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return loss.item(), surprise.detach()


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "huber", "double": True, "max_grad_norm": 0.05, "adam_eps": 1e-3},
        {"value": "c51", "double": True, "bins": 9, "v_min": -2.0, "v_max": 2.0},
    ],
)
def test_twenty_updates_equal_a_plain_implementation(settings: dict[str, Any], dtype: torch.dtype, bar: float) -> None:
    # float32: rounding of 1e-7 per update, amplified by Adam where a gradient is near zero.
    config = dqn.Config(hidden=(16, 16), lr=3e-3, priority_alpha=0.5, **settings)
    net = dqn.build_net(SPEC, config)
    state = cast(dqn.init(net, config, rng.key(1, "init")), dtype)
    plain = PlainDqn(config, state, dtype)
    for t in range(20):
        batch = batch_of(32, t, dtype)
        weight = batch.obs[:, 0].abs().clamp(max=1.0) if settings else None
        loss, surprise = plain.update(batch, torch.ones(32, dtype=dtype) if weight is None else weight)
        state, metrics, priority = dqn.update(net, config, state, batch, weight)
        assert float(metrics["loss"]) == pytest.approx(loss, rel=bar, abs=bar), t
        torch.testing.assert_close(priority**2, surprise + 1e-6, rtol=bar, atol=bar)
        if t == 9:
            plain.copy()
            state = state._replace(target={k: p.clone() for k, p in state.params.items()})
    for ours, theirs in ((state.params, plain.net), (state.target, plain.target)):
        for name, p in theirs.named_parameters():
            torch.testing.assert_close(ours[f"advantage.{name}"], p.detach(), rtol=bar, atol=bar)


# --- settings ---


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_starts": 0},
        {"utd": 0.0},
        {"train_every": 0},
        {"target_every": 0},
        {"batch_size": -1},
        {"buffer_size": 0},
        {"n_step": 0},
        {"learning_starts": 100, "steps": 100},
        {"n_step": 5, "buffer_size": 19},
        {"n_step": 5, "envs_per_agent": 4, "learning_starts": 19},
        {"lr": -1.0},
        {"lr": (0.1, 2.0), "seeds": (0, 1)},
        {"adam_eps": 0.0},
        {"discount": 1.5},
        {"max_grad_norm": -1.0},
        {"reward_clip": -1.0},
        {"epsilon_end": 1.1},
        {"epsilon_steps": 0.0},
        {"eval_epsilon": -0.1},
        {"v_min": 10.0},
        {"priority_alpha": 1.5},
        {"priority_beta": (0.4,), "seeds": (0, 1)},
        {"hidden": (0,)},
    ],
)
def test_wrong_settings_raise(settings: dict[str, Any]) -> None:
    with pytest.raises(DeeprlError, match=f"^{next(iter(settings))}"):
        dqn.Config(**settings)


@pytest.mark.parametrize("values", [{"value": "quantile"}, {"loss": "l1"}, {"n_step": 1.5}, {"duelling": True}])
def test_wrong_plain_values_raise(values: dict[str, Any]) -> None:
    with pytest.raises(DeeprlError, match=f"^{next(iter(values))}"):
        build(dqn.Config, values)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5)])
def test_the_outputs_of_an_action_are_picked_without_rounding(shape: tuple[int, ...]) -> None:
    predicted = 100.0 + torch.randn(shape, generator=torch.Generator().manual_seed(0))
    action = torch.tensor([2, 0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        chosen = dqn.of_action(predicted, action)
    assert torch.equal(chosen, predicted[torch.arange(4), action])


@pytest.mark.parametrize(
    "settings",
    [
        {"v_max": float("inf")}, {"v_min": float("nan")}, {"utd": float("inf")}, {"steps": 3, "envs_per_agent": 4},
        {"seeds": (0, 1), "priority_beta": (0.4, 0.6)}, {"n_step": 10, "learning_starts": 10, "steps": 11},
    ],
)  # fmt: skip
def test_settings_without_sense_raise_by_name(settings: dict[str, Any]) -> None:
    name = list(settings)[-1] if "seeds" in settings else next(iter(settings))
    with pytest.raises(DeeprlError, match=f"^{name}"):
        dqn.Config(**settings)
