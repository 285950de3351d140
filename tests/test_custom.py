"""Networks of the user's own: what is taken, and what is refused in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deeprl.core.spec import EnvSpec
from deeprl.errors import DeeprlError
from deeprl.online import dqn, sac, td3
from deeprl.run.own_networks import make_modules, name_of, output_shape

BOX = EnvSpec((3,), 2, (-1.0,) * 2, (1.0,) * 2)
DISCRETE = EnvSpec((3,), 0, (), (), actions=2)


def made(make: Callable[..., Any], wanted: str = "Q network") -> tuple[nn.Module, ...]:
    return make_modules(make, BOX, dqn.Config(), None, wanted)[0]


def test_modules_come_back_as_a_tuple() -> None:
    layer = nn.Linear(3, 2)
    assert [type(m) for m in made(lambda spec, config: layer)] == [nn.Linear]
    two = (layer, nn.Linear(3, 2))
    assert [type(m) for m in made(lambda spec, config: two, "actor, critic")] == [nn.Linear] * 2


class Maker:
    """A callable object."""

    def __call__(self, spec: EnvSpec, config: Any) -> nn.Module:
        return nn.Linear(3, 2)


def test_functions_partial_ones_and_objects_have_a_name() -> None:
    assert name_of(dqn.make_net) == "deeprl.online.dqn:make_net"
    assert name_of(functools.partial(dqn.make_net, config=None)) == "deeprl.online.dqn:make_net"
    assert name_of(Maker()) == "test_custom:Maker"


def test_the_users_own_modules_stay_as_they_are() -> None:
    # A rehearsal moves modules to a device without memory, in place.
    layer = nn.Linear(3, 2)
    (copied,) = made(lambda spec, config: layer)
    copied.to("meta")
    assert layer.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda spec, config: (nn.Linear(1, 1), nn.Linear(1, 1)),
            "must return Q network as torch modules, not 2",
        ),
        (lambda spec, config: "net", "must return Q network as torch modules, not str"),
        (lambda spec: nn.Linear(1, 1), "too many positional arguments"),
        (lambda spec, config: nn.BatchNorm1d(3), "BatchNorm1d keeps state"),
        (lambda spec, config: nn.Sequential(nn.Linear(3, 3), nn.Dropout()), "Dropout keeps state or draws"),
        (lambda spec, config: nn.RReLU(), "RReLU keeps state or draws"),
    ],
)
def test_what_is_no_pure_network_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DeeprlError, match=rf"^net: .*{message}"):
        made(make)


def test_a_name_of_something_else_is_refused() -> None:
    with pytest.raises(DeeprlError, match=r"^net: 3.14.* is not a callable object"):
        make_modules(dqn.make_net, DISCRETE, dqn.Config(net="math:pi"), None, "Q network")


def test_normalisation_without_running_statistics_is_taken() -> None:
    assert len(made(lambda spec, config: nn.Sequential(nn.LayerNorm(3), nn.InstanceNorm1d(3)))) == 1


def test_output_shape_names_what_it_is() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x[0]

    class Text(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "x"

    x = torch.zeros(4, 3)
    assert output_shape(nn.Linear(3, 2), x) == (4, 2)
    assert output_shape(Two(), x) == [(4, 3), (3,)]
    assert output_shape(Text(), x) == "a str"
    with pytest.raises(DeeprlError, match=r"^net: Linear cannot take \(4, 3\): mat1 and mat2"):
        output_shape(nn.Linear(7, 2), x)


@pytest.mark.parametrize(
    ("algorithm", "spec", "make"),
    [
        (dqn, DISCRETE, lambda spec, config: nn.Linear(9, 2)),
        (td3, BOX, lambda spec, config: (nn.Linear(9, 2), nn.Linear(5, 1))),
        (sac, BOX, lambda spec, config: (nn.Linear(9, 2), nn.Linear(5, 1))),
    ],
)
def test_networks_for_other_observations_are_refused(algorithm: Any, spec: EnvSpec, make: Any) -> None:
    with pytest.raises(DeeprlError, match=r"^net: Linear cannot take \(3, 3\)"):
        algorithm.build_net(spec, algorithm.Config(), make)
