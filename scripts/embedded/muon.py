"""Muon: momentum whose matrices are made orthogonal before they are applied; here the time to a given loss
is what counts.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers" (polynomial, coefficients and the 0.2
sqrt(max) scaling of Liu et al. 2025, arXiv:2502.16982). Hidden matrices and convolutions (as out x
everything else) take this path; embeddings, norms, biases, first and last layers take AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# odd polynomial a x + b x^3 + c x^5 that drives singular values in (0, 1] towards 1 in five rounds
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly (singular values in about 0.7 .. 1.2): [m, n] -> [m, n]."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with AdamW's update size (RMS 0.2) so that both share one learning
    rate.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                update = orthogonal(update).view_as(p) * (0.2 * max(update.shape) ** 0.5)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"])


def optimizers(
    model: nn.Module, lr: float, weight_decay: float, adam_only: tuple[str, ...]
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices of `model`, AdamW for the rest and for names starting with one of
    `adam_only`.
    """
    matrices, others = [], []
    for name, p in model.named_parameters():
        hidden = p.ndim >= 2 and not name.startswith(adam_only)
        (matrices if hidden else others).append(p)
    return [
        Muon(matrices, lr=lr, weight_decay=weight_decay),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]
