"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from deeprl.nets.init import Start, start_layers


class Linear(nn.Linear):
    """`torch.nn.Linear`, whose single output, if it has but one, is a sum of products that autocast leaves in float32.

    Values differ between actions by far less than they are: bf16 would give those around 250 in steps of 1.
    """

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B J"]:
        if self.out_features > 1:
            return super().forward(x)
        return (x * self.weight[0]).sum(-1, keepdim=True) + self.bias


LayerNorm = Literal["none", "before", "after"]  # where layers are normalised: before or after their activation
NORM_EPS = 1e-6  # added to variances, as in flax


def normed(layer_norm: bool) -> LayerNorm:
    """Where layers are normalised in RLPD and WSRL, if they are."""
    return "before" if layer_norm else "none"


class MLP(nn.Sequential):
    """Linear layers with an activation after each hidden one: `in_dim -> hidden[0] -> ... -> out_dim`.

    Initialised as `torch.nn.Linear` is, weights and biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), or as `start` says.
    layer_norm: hidden layers are normalised `before` their activation, or `after` it.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        start: Start = "torch",
        layer_norm: LayerNorm = "none",
    ):
        dims = [in_dim, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(dims, hidden, strict=False):
            layers.append(nn.Linear(fan_in, fan_out))
            norm = [nn.LayerNorm(fan_out, NORM_EPS)] if layer_norm != "none" else []
            layers += [*norm, activation()] if layer_norm == "before" else [activation(), *norm]
        super().__init__(*layers, Linear(dims[-1], out_dim) if out_dim == 1 else nn.Linear(dims[-1], out_dim))
        self.start = start
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """What `start` adds to the layers' own."""
        start_layers((layer for layer in self if isinstance(layer, nn.Linear)), self.start)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B J"]:
        return super().forward(x)
