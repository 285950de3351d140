"""SimbaV2's networks: the published sizes, unit features, numbers by hand; and their use in somebody's own agent."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from deeprl.nets import (
    HyperLinear,
    RSNorm,
    SimbaV2Actor,
    SimbaV2Block,
    SimbaV2Critic,
    SimbaV2Embedding,
    SimbaV2Encoder,
    SimbaV2Head,
    hyper_weights,
    init_params,
    project_,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("obs", "actions", "actor", "critic"), [(24, 6, 169_612, 4_530_277), (17, 6, 168_716, 4_526_693)]
)
def test_networks_have_the_published_number_of_parameters(
    obs: int, actions: int, actor: int, critic: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # walker-run and cheetah-run. Actor: embedding 25 * 128 + 128; block 2 * 128 * 512 + 512 + 128; each of two heads
    # 128 * 128 + 128 + 128 * 6 + 6. Critic: 31 * 512 + 512; twice 2 * 512 * 2048 + 2048 + 512; 512 * 512 + 512 +
    # 512 * 101 + 101. A second critic is as large.
    monkeypatch.setattr(HyperLinear, "reset_parameters", lambda self: None)  # orthogonal matrices take a while
    assert size(SimbaV2Actor(obs, actions)) == actor
    assert size(SimbaV2Critic(obs, actions)) == critic
    assert size(SimbaV2Critic(obs, actions, critics=2)) == 2 * critic


def test_shapes_and_what_lives_on_the_sphere() -> None:
    actor, critic = SimbaV2Actor(3, 2, 8, 2), SimbaV2Critic(3, 2, 8, 1, bins=5, critics=3)
    mean, log_std = actor(randn(7, 3))
    assert mean.shape == log_std.shape == (7, 2)
    assert actor(randn(3))[0].shape == (2,)
    logits = critic(randn(7, 3), randn(7, 2))
    assert logits.shape == (3, 7, 5)
    assert len(logits.unique(dim=0)) == 3
    # All matrices, output layers included, and nothing else.
    for module in (actor, critic):
        assert hyper_weights(module) == {k for k, p in module.named_parameters() if p.dim() == 2}
        assert all(p.dim() in (1, 2) for p in module.parameters())
        for name, p in init_params(module, 3).items():
            if name in hyper_weights(module):
                torch.testing.assert_close(p.norm(dim=1), torch.ones(len(p)))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("blocks", [1, 3])
def test_features_have_length_one(blocks: int, scale: float) -> None:
    encoder = SimbaV2Encoder(5, 16, blocks)
    h = encoder(scale * randn(32, 5))
    assert h.shape == (32, encoder.features)
    torch.testing.assert_close(h.norm(dim=-1), torch.ones(32))
    # also after steps that have moved everything
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.3 * randn(*p.shape, seed=1))
    project_(encoder)
    torch.testing.assert_close(encoder(scale * randn(32, 5)).norm(dim=-1), torch.ones(32))


def test_shift_keeps_the_length_of_the_input() -> None:
    # x and 2 x point in one direction: without the constant coordinate their features would be the same.
    x = randn(8, 3)
    shifted, unshifted = SimbaV2Embedding(3, 16), SimbaV2Embedding(3, 16, shift=0.0)
    assert not torch.allclose(shifted(x), shifted(2 * x), atol=0.01)
    torch.testing.assert_close(unshifted(x), unshifted(2 * x))


def test_embedding_by_hand() -> None:
    # [4, 3] has length 5: (0.8, 0.6). W = identity, swapped for the second unit; factors 1 and 2:
    # (0.8, 2 * 0.6) of length sqrt(0.64 + 1.44). What all factors share falls out.
    params = {"linear.weight": torch.eye(2), "scaler.weight": torch.tensor([1.0, 2.0])}
    out = functional_call(SimbaV2Embedding(1, 2), params, (torch.tensor([[4.0]]),))
    torch.testing.assert_close(out, torch.tensor([[0.8, 1.2]]) / math.sqrt(0.64 + 1.44))


def test_block_by_hand() -> None:
    # Width 1 is the sphere {-1, 1}; W1 = (1, -1, 1, -1), factors 1, 1, 2, 2, h = 1: relu (1, 0, 2, 0).
    # W2 = (0.5, 0.5, -0.5, 0.5): 0.5 - 1 < 0, so m = -1. alpha = w * init / scale with init = 1 / 2, scale = 1:
    # w = 0.5: 1 + 0.25 * -2 = 0.5 -> 1; w = 1.5: 1 + 0.75 * -2 = -0.5 -> -1.
    params = {
        "expand.weight": torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]),
        "scaler.weight": torch.tensor([1.0, 1.0, 2.0, 2.0]),
        "contract.weight": torch.tensor([[0.5, 0.5, -0.5, 0.5]]),
    }
    block = SimbaV2Block(1, blocks=1)
    for w, expected in ((0.5, 1.0), (1.5, -1.0)):
        out = functional_call(block, params | {"lerp.alpha.weight": torch.tensor([w])}, (torch.ones(1, 1),))
        assert out.item() == pytest.approx(expected)


def test_block_where_all_units_are_off_has_a_direction() -> None:
    # relu of negative numbers is 0 everywhere; 1e-8 is added: m = sum of the row of W2, normalised.
    block = SimbaV2Block(2, 1)
    with torch.no_grad():
        block.scaler.weight.zero_()
        block.contract.weight.copy_(torch.tensor([[0.35355339] * 8, [0.35355339] * 8]))
    h = torch.tensor([[1.0, 0.0]])
    # m = (1, 1) / sqrt 2, alpha = 1 / 2: (1 + 0.7071, 0.7071) / 2, normalised
    expected = torch.tensor([[1 + 0.5**0.5, 0.5**0.5]])
    torch.testing.assert_close(block(h), expected / expected.norm())


def test_initial_factors_are_the_published_ones() -> None:
    # d = 512, L = 2: scaler sqrt(2 / 512) = 1/16; in the block sqrt(2 / 2048) = 1/32; alpha 1 / (2 + 1), its parameter
    # 1 / sqrt(512); in the head 1.
    with torch.no_grad():
        embedding, block = SimbaV2Embedding(3, 512), SimbaV2Block(512, 2)
    for scaler, start, factor in (
        (embedding.scaler, 1 / 16, 1 / 16),
        (block.scaler, 1 / 32, 1 / 32),
        (block.lerp.alpha, 512**-0.5, 1 / 3),
        (SimbaV2Head(4, 1).scaler, 1.0, 1.0),
    ):
        torch.testing.assert_close(scaler.weight.detach(), torch.full_like(scaler.weight, start))
        out = scaler(torch.ones_like(scaler.weight))
        torch.testing.assert_close(out.detach(), torch.full_like(scaler.weight, factor))


def test_head_by_hand() -> None:
    # W_a = identity, factors 2, 3: h = (1, -1) -> (2, -3), no activation; W_b = (0.6, 0.8): 1.2 - 2.4, + 10.
    params = {
        "hidden.weight": torch.eye(2),
        "scaler.weight": torch.tensor([2.0, 3.0]),
        "out.weight": torch.tensor([[0.6, 0.8]]),
        "bias": torch.tensor([10.0]),
    }
    out = functional_call(SimbaV2Head(2, 1), params, (torch.tensor([[1.0, -1.0]]),))
    assert out.item() == pytest.approx(8.8)


@pytest.mark.parametrize(("bias", "expected"), [(0.0, -4.0), (20.0, 2.0), (-20.0, -10.0)])
def test_log_std_is_squashed_into_its_range(bias: float, expected: float) -> None:
    # -10 + 6 (1 + tanh(raw)); with W_b = 0 raw is the bias.
    actor = SimbaV2Actor(3, 2, 8)
    with torch.no_grad():
        actor.log_std.out.weight.zero_()
        actor.log_std.bias.fill_(bias)
    torch.testing.assert_close(actor(randn(4, 3))[1], torch.full((4, 2), expected))


def test_critics_and_seeds_begin_differently() -> None:
    critic = SimbaV2Critic(3, 2, 8, 1, bins=5, critics=2)
    one, same, other = (init_params(critic, s) for s in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    first, second = (f"critics.{i}.0.0.linear.weight" for i in range(2))
    assert not torch.equal(one[first], other[first])
    assert not torch.equal(one[first], one[second])


def test_encoder_learns_in_a_plain_loop_of_torch() -> None:
    # Parts of an agent of your own, without anything else of the library: normalise what comes in, step, project.
    x = 50 + 10 * randn(256, 2)
    y = torch.sin(x[:, :1] / 10) + 0.05 * (x[:, 1:] - 50)
    torch.manual_seed(0)
    norm, encoder = RSNorm(2), SimbaV2Encoder(2, width=32, blocks=1)
    model = nn.Sequential(norm, encoder, nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    norm.update(x)
    losses = []
    for _ in range(200):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        project_(model)
        losses.append(loss.item())
    assert losses[-1] < 0.03 * losses[0]
    assert losses[-1] < 0.02  # y has a variance of 0.7
    for name in hyper_weights(model):
        weight = model.get_parameter(name).detach()
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(len(weight)))
    # Saved and loaded like any other module, statistics included.
    copy = nn.Sequential(RSNorm(2), SimbaV2Encoder(2, width=32, blocks=1), nn.Linear(32, 1))
    copy.load_state_dict(model.state_dict())
    torch.testing.assert_close(copy(x), model(x), rtol=0, atol=0)
