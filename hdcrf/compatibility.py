"""Label compatibilities: the cost μ(a, b) of two similar points carrying the labels a and b."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxel.checks import check_count, check_finite, check_floating
from voxel.precision import full_precision

__all__ = ["Compatibility"]

_KINDS = ("potts", "diagonal", "full")


class Compatibility(nn.Module):
    """The matrix μ (K, K), fixed or learned.

    Args:
        num_labels: K.
        kind: "potts", μ = [a ≠ b]; "diagonal", μ = -diag(v), which rewards agreement for each label by its
            own amount, starting at v = 1 (the same model as Potts); "full", any matrix, starting at Potts;
            or a tensor (K,) for a diagonal of that v, or (K, K) for that matrix.
        learn: Whether the values are learned; "potts" has none.

    Attributes:
        values: (K,) or (K, K) parameter, or None for Potts.
    """

    values: nn.Parameter | None
    _like: Tensor

    def __init__(self, num_labels: int, kind: str | Tensor = "potts", *, learn: bool = False) -> None:
        super().__init__()
        self.num_labels = check_count("num_labels", num_labels, 1)
        # Tells the device and dtype, also where there is nothing to learn.
        self.register_buffer("_like", torch.empty(0), persistent=False)
        if isinstance(kind, Tensor):
            check_floating("compatibility", kind)
            check_finite("compatibility", kind)
            if kind.shape not in ((num_labels,), (num_labels, num_labels)):
                raise ValueError(
                    f"`compatibility` must have shape ({num_labels},) or ({num_labels}, {num_labels}), "
                    f"got {tuple(kind.shape)}"
                )
            start = kind.detach().clone()
        elif not isinstance(kind, str):
            raise TypeError(
                f"`compatibility` must be one of {', '.join(map(repr, _KINDS))} or a tensor, "
                f"got {type(kind).__name__}; convert it with torch.as_tensor"
            )
        elif kind == "diagonal":
            start = torch.ones(num_labels)
        elif kind == "full":
            start = 1 - torch.eye(num_labels)
        elif kind == "potts":
            if learn:
                raise ValueError("`compatibility='potts'` has nothing to learn; use 'diagonal' or 'full'")
            self.values = None
            return
        else:
            raise ValueError(
                f"`compatibility` must be one of {', '.join(map(repr, _KINDS))} or a tensor, got {kind!r}"
            )
        self.values = nn.Parameter(start, requires_grad=learn)

    def matrix(self) -> Tensor:
        """Return μ (K, K)."""
        if self.values is None:
            return 1 - torch.eye(self.num_labels).to(self._like)
        return self.values if self.values.dim() == 2 else -torch.diag(self.values)

    @full_precision
    def cost(self, message: Tensor) -> Tensor:
        """Return μ m, Σ_b μ(a, b) m_b, for a message m (P, K): (P, K)."""
        if self.values is None:
            return message.sum(1, keepdim=True) - message
        values = self.values.to(message.dtype)
        return message @ values.T if values.dim() == 2 else message * -values

    def reward(self, message: Tensor) -> Tensor:
        """Return -μ m up to a constant for each point, which no softmax sees: (P, K)."""
        return message if self.values is None else -self.cost(message)

    def extra_repr(self) -> str:
        """Describe the compatibility in `repr`."""
        kind = "potts" if self.values is None else ("full" if self.values.dim() == 2 else "diagonal")
        return f"{kind}, num_labels={self.num_labels}"
