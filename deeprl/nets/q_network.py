"""State-action values of discrete actions: a torso, and a plain or a dueling head."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from deeprl.nets.mlp import MLP


class QNetwork(nn.Module):
    """Q(s, a) for each of A actions, [*B, A]; with bins > 1 logits of K bins for each, [*B, A, K].

    torso: module from observations to features [*B, features] (`nn.Identity` for vectors). hidden: layers between the
    features and the values. dueling: two streams with those layers each, Q = V + A - mean_a A (Wang et al. 2016,
    Eq. 9); the gradient that enters the shared torso from them is scaled by 1/sqrt(2), as there (Sec. 4.2).
    """

    def __init__(
        self,
        torso: nn.Module,
        features: int,
        actions: int,
        hidden: Sequence[int] = (512,),
        bins: int = 1,
        dueling: bool = False,
    ):
        super().__init__()
        self.actions, self.bins = actions, bins
        self.torso = torso
        self.advantage = MLP(features, hidden, actions * bins)
        self.value = MLP(features, hidden, bins) if dueling else None

    def forward(self, obs: Shaped[Tensor, "..."]) -> Float[Tensor, "*B A"] | Float[Tensor, "*B A K"]:
        x = self.torso(obs)
        if self.value is not None:
            x = x.detach() + (x - x.detach()) / math.sqrt(2.0)
        q = self.advantage(x).unflatten(-1, (self.actions, self.bins))
        if self.value is not None:
            q = self.value(x).unsqueeze(-2) + q - q.mean(-2, keepdim=True)
        return q.squeeze(-1) if self.bins == 1 else q
