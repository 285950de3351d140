"""Networks and layers for one agent: ordinary `torch.nn.Module`s, usable without the rest of the library."""

from deeprl.nets.ensemble import CriticEnsemble, EnsembleLinear
from deeprl.nets.heads import TanhActor, TanhGaussianActor, bound_log_std, tanh_normal_log_prob
from deeprl.nets.init import init_params
from deeprl.nets.mlp import MLP
from deeprl.nets.norm import RunningNorm

__all__ = [
    "MLP",
    "CriticEnsemble",
    "EnsembleLinear",
    "RunningNorm",
    "TanhActor",
    "TanhGaussianActor",
    "bound_log_std",
    "init_params",
    "tanh_normal_log_prob",
]
