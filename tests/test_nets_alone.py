"""Modules of `deeprl.nets` in somebody else's agent: any leading dimensions, also none, and the type of the weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from deeprl import nets
from deeprl.nets.mlp import Linear
from deeprl.nets.shapes import as_rows

BYTES, BOARD = torch.uint8, torch.bool
# name: module, its inputs' last dimensions, their types, axes in front of the leading dimensions of what it returns
Case = tuple[Callable[[], nn.Module], list[tuple[int, ...]], list[torch.dtype], int]
CASES: dict[str, Case] = {
    "Linear": (lambda: Linear(5, 1), [(5,)], [], 0),
    "MLP": (lambda: nets.MLP(5, (8,), 3), [(5,)], [], 0),
    "CriticEnsemble": (lambda: nets.CriticEnsemble(5, 2, (8, 8), 3), [(5,), (2,)], [], 1),
    "CriticEnsemble, normalised before": (
        lambda: nets.CriticEnsemble(5, 2, (8, 8), 3, layer_norm="before"),
        [(5,), (2,)],
        [],
        1,
    ),
    "CriticEnsemble, normalised after": (
        lambda: nets.CriticEnsemble(5, 2, (8, 8), 3, layer_norm="after"),
        [(5,), (2,)],
        [],
        1,
    ),
    "TanhGaussianActor": (lambda: nets.TanhGaussianActor(5, 2, (8,)), [(5,)], [], 0),
    "TanhGaussianActor, normalised": (lambda: nets.TanhGaussianActor(5, 2, (8,), layer_norm="before"), [(5,)], [], 0),
    "GRUCell": (lambda: nets.GRUCell(5, 4), [(5,), (4,)], [], 0),
    "SequenceActor": (lambda: nets.SequenceActor(5, 2, (8,), 4), [(5,), (2,), (3, 2)], [], 0),
    "Dynamics": (lambda: nets.Dynamics(5, 2, (8,)), [(5,), (2,)], [], 0),
    "FreeStdActor": (lambda: nets.FreeStdActor(nets.MLP(5, (8,), 2), 2, 0.5), [(5,)], [], 0),
    "GaussianActor": (lambda: nets.GaussianActor(5, 2, (8,)), [(5,)], [], 0),
    "TanhActor": (lambda: nets.TanhActor(5, 2, (8,)), [(5,)], [], 0),
    "NatureCNN": (lambda: nets.NatureCNN((4, 36, 36)), [(4, 36, 36)], [BYTES], 0),
    "NatureCNN, channels last": (lambda: nets.NatureCNN((36, 40, 3), True), [(36, 40, 3)], [BYTES], 0),
    "NatureCNN of floats": (lambda: nets.NatureCNN((1, 36, 36)), [(1, 36, 36)], [], 0),
    "MinAtarCNN": (lambda: nets.MinAtarCNN((5, 4, 3)), [(5, 4, 3)], [BOARD], 0),
    "MinAtarCNN of floats": (lambda: nets.MinAtarCNN((5, 4, 3)), [(5, 4, 3)], [], 0),
    "QNetwork": (lambda: nets.QNetwork(nn.Identity(), 5, 4, (8,)), [(5,)], [], 0),
    "QNetwork, dueling": (
        lambda: nets.QNetwork(nets.MinAtarCNN((5, 4, 3)), 96, 4, (8,), dueling=True),
        [(5, 4, 3)],
        [BOARD],
        0,
    ),
    "QNetwork of bins": (lambda: nets.QNetwork(nn.Identity(), 5, 4, (8,), 7, True), [(5,)], [], 0),
    "SimbaBlock": (lambda: nets.SimbaBlock(6), [(6,)], [], 0),
    "SimbaLinear": (lambda: nets.SimbaLinear(6, 3), [(6,)], [], 0),
    "SimbaEncoder": (lambda: nets.SimbaEncoder(5, 6), [(5,)], [], 0),
    "SimbaActor": (lambda: nets.SimbaActor(5, 2, 6), [(5,)], [], 0),
    "SimbaTanhActor": (lambda: nets.SimbaTanhActor(5, 2, 6), [(5,)], [], 0),
    "SimbaCritic": (lambda: nets.SimbaCritic(5, 2, 6, 1, 3), [(5,), (2,)], [], 1),
    "SimbaV2Embedding": (lambda: nets.SimbaV2Embedding(5, 6), [(5,)], [], 0),
    "SimbaV2Block": (lambda: nets.SimbaV2Block(6, 1), [(6,)], [], 0),
    "SimbaV2Encoder": (lambda: nets.SimbaV2Encoder(5, 6), [(5,)], [], 0),
    "SimbaV2Head": (lambda: nets.SimbaV2Head(6, 3), [(6,)], [], 0),
    "SimbaV2Actor": (lambda: nets.SimbaV2Actor(5, 2, 6), [(5,)], [], 0),
    "SimbaV2Critic": (lambda: nets.SimbaV2Critic(5, 2, 6, 1, 7, 3), [(5,), (2,)], [], 1),
    "HyperLinear": (lambda: nets.HyperLinear(5, 3), [(5,)], [], 0),
    "Scaler": (lambda: nets.Scaler(5, 0.5), [(5,)], [], 0),
    "Lerp": (lambda: nets.Lerp(5, 0.5, 0.1), [(5,), (5,)], [], 0),
    "RunningNorm": (lambda: nets.RunningNorm(5), [(5,)], [], 0),
    "RSNorm": (lambda: nets.RSNorm(5), [(5,)], [], 0),
    "FixedNorm": (lambda: nets.FixedNorm(torch.ones(5), torch.full((5,), 2.0)), [(5,)], [], 0),
    "ReturnScale": (lambda: nets.ReturnScale(3), [()], [], 0),
}
ELSEWHERE = {"EnsembleLinear", "EnsembleLayerNorm"}  # take a row for each of their layers; have tests of their own


def inputs(case: Case, *leading: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    types = case[2] or [torch.float32] * len(case[1])
    raw = [torch.rand((*leading, *dims), generator=generator) for dims in case[1]]
    full = {BYTES: 255.0, BOARD: 2.0}
    return [(x * full.get(t, 1.0)).to(t) if t != BOARD else x > 0.5 for x, t in zip(raw, types, strict=True)]


def outputs(module: nn.Module, *args: Tensor, **kwargs: Any) -> list[Tensor]:
    found = module(*args, **kwargs)
    return list(found) if isinstance(found, tuple) else [found]


def test_every_module_is_tried() -> None:
    modules = {n for n in nets.__all__ if inspect.isclass(kind := getattr(nets, n)) and issubclass(kind, nn.Module)}
    assert modules == ELSEWHERE | {type(case[0]()).__name__ for case in CASES.values()} - {"Linear"}


@pytest.mark.parametrize("leading", [(), (3,), (0,), (3, 2), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_leading_dimensions_are_those_of_the_same_rows_in_one_batch(name: str, leading: tuple[int, ...]) -> None:
    # (3, 2): also as many steps as the ensembles have critics
    module, front = CASES[name][0](), CASES[name][3]
    given = inputs(CASES[name], *leading)
    rows = [as_rows(x, len(dims)) for x, dims in zip(given, CASES[name][1], strict=True)]
    for found, flat in zip(outputs(module, *given), outputs(module, *rows), strict=True):
        free = flat.shape[front : front + 1] != rows[0].shape[:1]  # a log sigma that no observation changes
        expected = flat if free else flat.reshape((*flat.shape[:front], *leading, *flat.shape[front + 1 :]))
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_module_of_another_type_returns_that_type(name: str, dtype: torch.dtype) -> None:
    module = CASES[name][0]()
    cast = copy.deepcopy(module).to(dtype)
    given = inputs(CASES[name], 3, 2)
    theirs = [x.to(dtype) if x.is_floating_point() else x for x in given]
    for found, exact in zip(outputs(cast, *theirs), outputs(module, *given), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), exact, rtol=0.1, atol=0.1)
        if found.requires_grad:
            found.sum().backward(retain_graph=True)


@pytest.mark.parametrize("name", CASES)
def test_two_agents_in_one_call_are_each_alone(name: str) -> None:
    alone = [CASES[name][0]() for _ in range(2)]
    given = inputs(CASES[name], 2, 3)
    params, buffers = stack_module_state(alone)
    state = params | buffers
    together = vmap(lambda s, *x: functional_call(alone[0], s, x))(state, *given)
    for i, module in enumerate(alone):
        found = together if isinstance(together, tuple) else (together,)
        for ours, expected in zip(found, outputs(module, *(x[i] for x in given)), strict=True):
            torch.testing.assert_close(ours[i], expected, rtol=1e-4, atol=1e-5)


def test_images_are_taken_to_the_type_of_the_weights_and_only_bytes_are_divided() -> None:
    # A single bright pixel: 255 as a byte is 1, as is True, as is the number 1.
    cnn, board = nets.NatureCNN((1, 36, 36)).double(), nets.MinAtarCNN((3, 3, 1)).double()
    lit = torch.zeros(1, 36, 36, dtype=torch.float64)
    lit[0, 7, 7] = 1.0
    for same in ((lit * 255).to(torch.uint8), lit.bool(), lit.to(torch.int64)):
        assert torch.equal(cnn(same), cnn(lit))
    cells = torch.eye(3, dtype=torch.float64).unsqueeze(-1)
    for same in (cells.bool(), (cells * 255).to(torch.uint8), cells.to(torch.int32)):
        assert torch.equal(board(same), board(cells))


# --- ensembles ---


def test_ensemble_linear_gives_each_of_its_layers_rows_of_any_leading_dimensions() -> None:
    layer = nets.EnsembleLinear(2, 3, 4)
    flat = torch.randn(2, 6, 3)
    expected = torch.stack([flat[e] @ layer.weight[e] + layer.bias[e] for e in range(2)])
    torch.testing.assert_close(layer(flat), expected)
    torch.testing.assert_close(layer(flat.unflatten(1, (2, 3))), expected.unflatten(1, (2, 3)))
    torch.testing.assert_close(layer(flat[:, 0]), expected[:, 0])
    torch.testing.assert_close(layer(flat[:1], 1), expected[:1])
    torch.testing.assert_close(layer(flat[:1, 0], 1), expected[:1, 0])


@pytest.mark.parametrize("leading", [(), (7,), (2, 7)], ids=str)
def test_a_batch_for_each_critic_is_asked_for_by_name(leading: tuple[int, ...]) -> None:
    critic = nets.CriticEnsemble(5, 2, (8,), 2)
    obs, action = torch.randn(2, *leading, 5), torch.randn(2, *leading, 2)
    shared = critic(obs, action)
    assert shared.shape == (2, 2, *leading)  # 2 critics of 2 steps
    own = critic(obs, action, per_critic=True)
    assert own.shape == (2, *leading)
    for e in range(2):
        torch.testing.assert_close(own[e], shared[e, e])
    torch.testing.assert_close(critic(obs[:1], action[:1], 1, per_critic=True), own[:1])
    assert critic(obs, action, 1).shape == (1, 2, *leading)


class Written(nn.Module):
    """The products of `CriticEnsemble` for a batch [B, O] as they were written down at first."""

    def __init__(self, critic: nets.CriticEnsemble):
        super().__init__()
        self.layers = critic.layers

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], -1).expand(2, -1, -1)
        inner, outer = self.layers
        weight, bias = inner.weight[:None], inner.bias[:None].unsqueeze(-2)
        x = torch.relu(x @ weight + bias)
        weight, bias = outer.weight[:None], outer.bias[:None].unsqueeze(-2)
        return ((x * weight.transpose(-1, -2)).sum(-1, keepdim=True) + bias).squeeze(-1)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_plain_batch_costs_an_ensemble_no_operation_more(autocast: bool) -> None:
    critic = nets.CriticEnsemble(5, 2, (8,), 2)
    params, _ = stack_module_state([critic, nets.CriticEnsemble(5, 2, (8,), 2)])
    obs, action = torch.randn(2, 7, 5), torch.randn(2, 7, 2)

    def of(module: nn.Module) -> tuple[list[str], Tensor]:
        def population(params: dict[str, Tensor], obs: Tensor, action: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):
                return vmap(lambda p, o, a: functional_call(module, p, (o, a)))(params, obs, action)

        traced = make_fx(population)(params, obs, action)
        return [str(node.target) for node in traced.graph.nodes if node.op == "call_function"], traced(
            params, obs, action
        )

    (ours, values), (written, expected) = of(critic), of(Written(critic))
    assert ours == written
    assert values.dtype == torch.float32
    assert torch.equal(values, expected)


# --- statistics ---


@pytest.mark.parametrize("kind", [nets.RunningNorm, nets.RSNorm])
def test_statistics_take_sequences_and_single_observations(kind: type[nets.RunningNorm]) -> None:
    # (1, 2), (3, 4), (5, 6), then (7, 8) alone: mean (4, 5), variance 5
    by_rows, by_steps = kind(2), kind(2)
    rows = torch.arange(1.0, 9.0).reshape(4, 2)
    by_rows.update(rows[:3])
    by_rows.update(rows[3:])
    by_steps.update(rows[:3].unflatten(0, (3, 1)))
    by_steps.update(rows[3])
    for name, value in by_rows.named_buffers():
        assert torch.equal(value, dict(by_steps.named_buffers())[name]), name
    torch.testing.assert_close(by_steps.mean.float(), torch.tensor([4.0, 5.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(by_steps.var.float(), torch.tensor([5.0, 5.0]), rtol=1e-3, atol=0)


def test_projection_keeps_the_type_of_the_weights() -> None:
    # (3, 4) / 5 = (0.6, 0.8), in bf16 to three digits
    weights = {"weight": torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)}
    found = nets.projected(weights, {"weight"})["weight"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), torch.tensor([[0.6, 0.8]]), rtol=0.01, atol=0)
