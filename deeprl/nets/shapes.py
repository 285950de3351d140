"""Leading dimensions: what modules that need exactly one of them do with none, or with several."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor


def as_rows(x: Shaped[Tensor, "..."], axes: int) -> Shaped[Tensor, "N ..."]:
    """`x` with all but its last `axes` dimensions as one, [N, ...]; `x` itself if that is so already."""
    return x.flatten(0, -axes - 1) if x.dim() > axes else x.unsqueeze(0)
