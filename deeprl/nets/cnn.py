"""Convolutional torsos: an image in, a flat vector of features out.

What is no float (bytes, booleans) is taken to the type of the weights; floats must have it already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from deeprl.nets.shapes import as_rows


class NatureCNN(nn.Module):
    """The torso of DQN (Mnih et al. 2015): 32 8x8 stride 4, 64 4x4 stride 2, 64 3x3 stride 1, each with a ReLU.

    Takes images [*B, C, H, W] (or [*B, H, W, C] with channels_last). Bytes are divided by 255 here, so that replay can
    hold bytes; floats are taken as they are. 84 x 84 gives 3136 `features`; the image must be at least 36 x 36.
    """

    def __init__(self, shape: Sequence[int], channels_last: bool = False):
        super().__init__()
        self.channels_last = channels_last
        _require_three_axes(shape)
        channels, height, width = (shape[-1], *shape[:-1]) if channels_last else shape
        self.layers = nn.ModuleList(
            nn.Conv2d(*sizes) for sizes in ((channels, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1))
        )
        for kernel, stride in ((8, 4), (4, 2), (3, 1)):
            height, width = ((side - kernel) // stride + 1 for side in (height, width))
        if min(height, width) < 1:
            raise ValueError(f"images of shape {tuple(shape)} are too small: at least 36 x 36 is needed")
        self.features = 64 * height * width

    def forward(self, x: Shaped[Tensor, "*B _ _ _"]) -> Float[Tensor, "*B F"]:
        leading, x = x.shape[:-3], as_rows(_as_floats(x, self.layers[0]), 3)
        if self.channels_last:
            x = x.movedim(-1, 1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.reshape(*leading, self.features)


class MinAtarCNN(nn.Module):
    """The torso of MinAtar's DQN (Young & Tian 2019): 16 filters of 3x3, stride 1, and a ReLU.

    Takes images [*B, H, W, C] (or [*B, C, H, W] without channels_last). Bytes are divided by 255, as in `NatureCNN`;
    booleans and floats are taken as they are. The image must be at least 3 x 3. Written as one matrix product over the
    patches, which a vmap over agents turns into one batched product: 20 % faster there than a grouped convolution.
    weight: that of a convolution, as [16, C * 3 * 3]. 10 x 10 gives 1024 `features`.
    """

    def __init__(self, shape: Sequence[int], filters: int = 16, channels_last: bool = True):
        super().__init__()
        self.channels_last = channels_last
        _require_three_axes(shape)
        height, width, channels = shape if channels_last else (*shape[1:], shape[0])
        if min(height, width) < 3:
            raise ValueError(f"images of shape {tuple(shape)} are too small: at least 3 x 3 is needed")
        self.patches = nn.Linear(9 * channels, filters)
        self.features = (height - 2) * (width - 2) * filters

    def forward(self, x: Shaped[Tensor, "*B _ _ _"]) -> Float[Tensor, "*B F"]:
        x = _as_floats(x, self.patches)
        if not self.channels_last:
            x = x.movedim(-3, -1)
        patches = x.unfold(-3, 3, 1).unfold(-3, 3, 1).movedim(-3, -1)  # [*B, H - 2, W - 2, 3, 3, C], as it lies there
        weight = self.patches.weight.unflatten(1, (-1, 3, 3)).movedim(1, -1).flatten(1)
        return torch.relu(nn.functional.linear(patches.flatten(-3), weight, self.patches.bias)).flatten(-3)


def _as_floats(x: Shaped[Tensor, "*B"], layer: Any) -> Float[Tensor, "*B"]:
    """Pixels of the type of a layer's weights: bytes divided by 255, booleans; floats as they are."""
    if x.is_floating_point():
        return x
    values = x.to(layer.weight.dtype)
    return values / 255.0 if x.dtype == torch.uint8 else values


def _require_three_axes(shape: Sequence[int]) -> None:
    if len(shape) != 3:
        raise ValueError(f"images of shape {tuple(shape)}: three axes are needed, channels among them")
