"""Networks and layers for one agent: ordinary `torch.nn.Module`s, usable without the rest of the library."""

from deeprl.nets import categorical
from deeprl.nets.agent import Fixed, Remake, bound, functional_call, init_networks, init_params, put
from deeprl.nets.cnn import MinAtarCNN, NatureCNN
from deeprl.nets.ensemble import CriticEnsemble, EnsembleLinear
from deeprl.nets.heads import (
    GaussianActor,
    TanhActor,
    TanhGaussianActor,
    bound_log_std,
    normal_log_prob,
    tanh_normal_log_prob,
)
from deeprl.nets.init import Start, start_layers
from deeprl.nets.mlp import MLP
from deeprl.nets.norm import (
    FixedNorm,
    HyperLinear,
    Lerp,
    ReturnScale,
    RSNorm,
    RunningNorm,
    Scaler,
    hyper_weights,
    l2_normalize,
    project_,
    projected,
)
from deeprl.nets.q_network import QNetwork
from deeprl.nets.simba import SimbaActor, SimbaBlock, SimbaCritic, SimbaEncoder, SimbaLinear, SimbaTanhActor
from deeprl.nets.simba_v2 import (
    SimbaV2Actor,
    SimbaV2Block,
    SimbaV2Critic,
    SimbaV2Embedding,
    SimbaV2Encoder,
    SimbaV2Head,
)
from deeprl.nets.torso import image_torso

__all__ = [
    "MLP",
    "CriticEnsemble",
    "EnsembleLinear",
    "Fixed",
    "FixedNorm",
    "GaussianActor",
    "HyperLinear",
    "Lerp",
    "MinAtarCNN",
    "NatureCNN",
    "QNetwork",
    "RSNorm",
    "Remake",
    "ReturnScale",
    "RunningNorm",
    "Scaler",
    "SimbaActor",
    "SimbaBlock",
    "SimbaCritic",
    "SimbaEncoder",
    "SimbaLinear",
    "SimbaTanhActor",
    "SimbaV2Actor",
    "SimbaV2Block",
    "SimbaV2Critic",
    "SimbaV2Embedding",
    "SimbaV2Encoder",
    "SimbaV2Head",
    "Start",
    "TanhActor",
    "TanhGaussianActor",
    "bound",
    "bound_log_std",
    "categorical",
    "functional_call",
    "hyper_weights",
    "image_torso",
    "init_networks",
    "init_params",
    "l2_normalize",
    "normal_log_prob",
    "project_",
    "projected",
    "put",
    "start_layers",
    "tanh_normal_log_prob",
]
