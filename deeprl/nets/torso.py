"""Which torso fits an environment's observations, where a user names none."""

from __future__ import annotations

from torch import nn

from deeprl.core.spec import EnvSpec
from deeprl.nets.cnn import MinAtarCNN, NatureCNN

_LARGE = 36  # pixels of the shorter side that `NatureCNN` needs
_COLOURS = (1, 3, 4)  # gray, RGB, RGBA


def image_torso(spec: EnvSpec) -> NatureCNN | MinAtarCNN | nn.Identity:
    """The torso of DQN for images of at least 36 x 36, MinAtar's for booleans and smaller ones; vectors as they are.

    Channels are the first axis of a frame stack, and of images of numbers whose first axis is 1, 3 or 4 and shorter
    than the others; else the last one. Raises ValueError for images of other than three axes, or below 3 x 3.
    """
    shape = spec.obs_shape
    if not spec.image:
        return nn.Identity()
    if len(shape) == 3:
        colours_first = spec.obs_dtype != "bool" and shape[0] in _COLOURS and shape[0] < min(shape[1:])
        first = bool(spec.frame_stack) or colours_first
        height, width = shape[1:] if first else shape[:2]
        if spec.obs_dtype != "bool" and min(height, width) >= _LARGE:
            return NatureCNN(shape, channels_last=not first)
        if min(height, width) >= 3:
            return MinAtarCNN(shape, channels_last=not first)
    raise ValueError(
        f"no network for observations of shape {shape}: they must be vectors, or images of three axes and at least"
        " 3 x 3; try --wrappers gymnasium.wrappers:FlattenObservation, or --net with a network of your own"
    )
