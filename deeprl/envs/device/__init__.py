"""Environments as pure functions of tensors, which step on the device together with the agents (`DeviceEnv`)."""

from deeprl.envs.device.base import DeviceEnv, Now, Outcome, Played, begin, step

__all__ = ["DeviceEnv", "Now", "Outcome", "Played", "begin", "step"]
