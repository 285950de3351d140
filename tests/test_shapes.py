"""The shape checker is really on in this process, and finds the mistakes that broadcasting would hide."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from deeprl import nets
from deeprl.core import rng
from deeprl.core.spec import Batch, EnvSpec
from deeprl.online import sac


def test_key_of_three_words_raises() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        rng.normal(torch.zeros(3, dtype=torch.int64), (2,))


def test_float_key_raises() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        rng.normal(torch.zeros(4), (2,))


def test_log_prob_of_broadcastable_shapes_raises() -> None:
    # [3, 2], [1, 2] and [3, 2] broadcast: torch alone would not notice.
    with pytest.raises(jaxtyping.TypeCheckError):
        nets.tanh_normal_log_prob(torch.zeros(3, 2), torch.zeros(1, 2), torch.zeros(3, 2))


def test_critic_loss_with_target_of_b_by_1_raises() -> None:
    # [E, B] - [B, 1] broadcasts to [B, B] where E = 2 and B = 2: the loss would be a wrong finite number.
    net = sac.build_net(EnvSpec((1,), 1, (-1.0,), (1.0,)), sac.Config(hidden=(4,)))
    params = {k: p.detach() for k, p in net.critic.named_parameters()}
    batch = Batch(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.zeros(2, 1))
    sac.critic_loss(params, net, batch, torch.zeros(2))
    with pytest.raises(jaxtyping.TypeCheckError):
        sac.critic_loss(params, net, batch, torch.zeros(2, 1))


def test_wrong_shape_under_vmap_raises() -> None:
    # Inside vmap a function sees the shape of one agent: [3, 2, 1] is [2, 1] there, and mean [2, 2] does not fit.
    with pytest.raises(jaxtyping.TypeCheckError):
        torch.vmap(nets.tanh_normal_log_prob)(torch.zeros(3, 2, 1), torch.zeros(3, 2, 2), torch.zeros(3, 2, 2))
