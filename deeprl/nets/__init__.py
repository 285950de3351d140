"""Networks and layers for one agent: ordinary `torch.nn.Module`s, usable without the rest of the library."""

from deeprl.nets import categorical
from deeprl.nets.cnn import MinAtarCNN, NatureCNN
from deeprl.nets.ensemble import CriticEnsemble, EnsembleLinear
from deeprl.nets.heads import TanhActor, TanhGaussianActor, bound_log_std, tanh_normal_log_prob
from deeprl.nets.init import init_params
from deeprl.nets.mlp import MLP
from deeprl.nets.norm import RunningNorm
from deeprl.nets.q_network import QNetwork

__all__ = [
    "MLP",
    "CriticEnsemble",
    "EnsembleLinear",
    "MinAtarCNN",
    "NatureCNN",
    "QNetwork",
    "RunningNorm",
    "TanhActor",
    "TanhGaussianActor",
    "bound_log_std",
    "categorical",
    "init_params",
    "tanh_normal_log_prob",
]
