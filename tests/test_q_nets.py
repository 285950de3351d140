"""Convolutional torsos and Q networks: shapes, and numbers against torch's own layers and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from deeprl.core.spec import EnvSpec
from deeprl.nets import MinAtarCNN, NatureCNN, QNetwork, TanhActor, image_torso, init_params


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_nature_cnn_has_the_papers_parameters_and_features() -> None:
    torso = NatureCNN((4, 84, 84))
    assert torso.features == 3136
    # 4*32*64 + 32, 32*64*16 + 64, 64*64*9 + 64
    assert sum(p.numel() for p in torso.parameters()) == 8224 + 32832 + 36928
    assert torso(images(2, 4, 84, 84)).shape == (2, 3136)


def test_nature_cnn_divides_bytes_by_255() -> None:
    torso, x = NatureCNN((1, 36, 36)), images(3, 1, 36, 36)
    plain = x.to(torch.float32) / 255
    for layer in torso.layers:
        plain = torch.relu(nn.functional.conv2d(plain, layer.weight, layer.bias, layer.stride))
    torch.testing.assert_close(torso(x), plain.flatten(1))
    assert torso.features == 64


def test_channels_last_is_the_same_image_turned() -> None:
    first, last = NatureCNN((3, 64, 48)), NatureCNN((64, 48, 3), channels_last=True)
    last.load_state_dict(first.state_dict())
    x = images(2, 3, 64, 48)
    assert first.features == last.features
    torch.testing.assert_close(first(x), last(x.movedim(1, -1)))


def test_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 35, 84\) are too small: at least 36 x 36"):
        NatureCNN((1, 35, 84))


def test_minatar_cnn_is_a_convolution() -> None:
    torso = MinAtarCNN((10, 10, 4))
    x = images(5, 10, 10, 4) > 127
    # Linear weights [16, C * 3 * 3] are convolution weights [16, C, 3, 3]
    weight = torso.patches.weight.unflatten(1, (4, 3, 3))
    conv = nn.functional.conv2d(x.to(torch.float32).movedim(-1, 1), weight, torso.patches.bias)
    expected = torch.relu(conv).movedim(1, -1).flatten(1)  # features in the order row, column, filter
    torch.testing.assert_close(torso(x), expected)
    assert torso.features == expected.shape[1] == 1024


@pytest.mark.parametrize(("bins", "shape"), [(1, (2, 3)), (5, (2, 3, 5))])
@pytest.mark.parametrize("dueling", [False, True])
def test_q_network_shapes(bins: int, shape: tuple[int, ...], dueling: bool) -> None:
    assert QNetwork(nn.Identity(), 4, 3, (8,), bins, dueling)(randn(2, 4)).shape == shape


def test_dueling_by_hand() -> None:
    net = QNetwork(nn.Identity(), 1, 3, (), 1, dueling=True)
    params = {
        "advantage.0.weight": torch.tensor([[1.0], [2.0], [6.0]]), "advantage.0.bias": torch.zeros(3),
        "value.0.weight": torch.tensor([[10.0]]), "value.0.bias": torch.zeros(1),
    }  # fmt: skip
    # x = 1: A = 1, 2, 6 with mean 3 and V = 10: Q = 8, 9, 13
    torch.testing.assert_close(functional_call(net, params, (torch.ones(1, 1),)), torch.tensor([[8.0, 9.0, 13.0]]))


def test_dueling_of_distributions_takes_the_mean_over_actions_in_each_bin() -> None:
    net, x = QNetwork(nn.Identity(), 4, 3, (8,), 5, dueling=True), randn(2, 4)
    assert net.value is not None
    advantage, value = net.advantage(x).view(2, 3, 5), net.value(x).view(2, 1, 5)
    torch.testing.assert_close(net(x), value + advantage - advantage.mean(1, keepdim=True))


def test_dueling_scales_the_gradient_into_the_torso() -> None:
    torso = nn.Linear(4, 6)
    net, x = QNetwork(torso, 6, 3, (8,), 1, dueling=True), randn(2, 4)
    net(x).square().sum().backward()
    scaled = torso.weight.grad
    features = torso(x).detach().requires_grad_()
    assert net.value is not None
    advantage = net.advantage(features)
    (net.value(features) + advantage - advantage.mean(-1, keepdim=True)).square().sum().backward()
    assert features.grad is not None
    torch.testing.assert_close(scaled, features.grad.T @ x / math.sqrt(2.0), rtol=1e-4, atol=1e-5)


def test_init_params_makes_every_network_anew() -> None:
    for net in (QNetwork(MinAtarCNN((10, 10, 4)), 1024, 3, (128,)), TanhActor(3, 2), NatureCNN((4, 84, 84))):
        one, two = init_params(net, 1), init_params(net, 2)
        assert all(not torch.equal(one[k], two[k]) for k in one)


def test_tanh_actor_is_the_tanh_of_its_trunk() -> None:
    actor, obs = TanhActor(3, 2, (4,)), randn(5, 3)
    torch.testing.assert_close(actor(obs), torch.tanh(actor.trunk(obs)))


def image_spec(shape: tuple[int, ...], dtype: str = "uint8", frame_stack: int = 0) -> EnvSpec:
    return EnvSpec(shape, 0, (), (), dtype, 3, 0, frame_stack)


def test_minatar_cnn_divides_bytes_by_255_and_takes_channels_first() -> None:
    last, first = MinAtarCNN((7, 8, 3)), MinAtarCNN((3, 7, 8), channels_last=False)
    first.load_state_dict(last.state_dict())
    x = images(5, 7, 8, 3)
    assert torch.equal(last(x), last(x.to(torch.float32) / 255.0))
    torch.testing.assert_close(first(x.movedim(-1, 1)), last(x))
    assert first.features == last.features == 5 * 6 * 16


@pytest.mark.parametrize(
    ("spec", "kind", "channels_last", "features"),
    [
        (image_spec((84, 84, 3)), NatureCNN, True, 3136),
        (image_spec((3, 84, 84)), NatureCNN, False, 3136),
        (image_spec((4, 84, 84), frame_stack=4), NatureCNN, False, 3136),
        (image_spec((2, 84, 84), frame_stack=2), NatureCNN, False, 3136),
        (image_spec((1, 36, 36), "float32"), NatureCNN, False, 64),
        (image_spec((40, 36, 50)), NatureCNN, True, 64),
        (image_spec((7, 7, 3)), MinAtarCNN, True, 400),
        (image_spec((3, 7, 7)), MinAtarCNN, False, 400),
        (image_spec((4, 10, 10), frame_stack=4), MinAtarCNN, False, 1024),
        (image_spec((35, 84, 3)), MinAtarCNN, True, 33 * 82 * 16),
        (image_spec((8, 8, 119), "float32"), MinAtarCNN, True, 576),
        (image_spec((3, 3, 5), "float32"), MinAtarCNN, True, 16),
        (image_spec((10, 10, 4), "bool"), MinAtarCNN, True, 1024),
        (image_spec((3, 10, 10), "bool"), MinAtarCNN, True, 128),  # as ever: MinAtar's booleans have channels last
        (image_spec((84, 84, 4), "bool"), MinAtarCNN, True, 82 * 82 * 16),
    ],
)
def test_torso_fits_the_image(spec: EnvSpec, kind: type, channels_last: bool, features: int) -> None:
    torso = image_torso(spec)
    assert (type(torso), torso.channels_last, torso.features) == (kind, channels_last, features)
    assert torso(torch.zeros(2, *spec.obs_shape, dtype=getattr(torch, spec.obs_dtype))).shape == (2, features)


def test_vectors_need_no_torso() -> None:
    assert isinstance(image_torso(image_spec((7,), "float32")), nn.Identity)
