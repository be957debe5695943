# SPDX-License-Identifier: Apache-2.0
"""Muon for convolutions: kernels move by orthogonal steps, everything else by Adam's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon"]

POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # of the singular values, from (0, 1] to about [0.7, 1.2] (Jordan)
ITERATIONS = 5
RMS = 0.2  # of a step, of the learning rate: about that of Adam (Liu)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal steps for kernels; Adam for biases, norm layers and all else with one axis.

    A kernel (out, in, *size) is a matrix, out x in * size. Its step is the mean of its gradients with all
    singular values made about equal: every direction is learnt equally fast, where a few lead the steps of
    Adam. ``torch.optim.Muon`` takes matrices alone. Steps are as long as Adam's, so that learning rates for
    AdamW hold. The state of a kernel is one tensor of its shape, where Adam has two.

    Args:
        params: Parameters, or groups of them, such as ``net.parameters()``.
        lr: Learning rate, > 0.
        weight_decay: Share of the learning rate by which weights decay, >= 0; as in AdamW.
        momentum: Share of the mean of the gradients that a step keeps, in [0, 1); Nesterov's form.
        betas: The two shares of Adam, in [0, 1).
        eps: What Adam adds to the root of the mean square, > 0.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        K. Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024).
        The length of a step: J. Liu et al., Muon is scalable for LLM training (arXiv 2502.16982, 2025).

    Example:
        >>> conv = torch.nn.Conv2d(2, 4, 3)
        >>> optimizer = Muon(conv.parameters(), lr=0.003)
        >>> conv(torch.rand(1, 2, 8, 8)).mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        for name, value, such in (("lr", lr, 0.003), ("eps", eps, 1e-8)):
            if not value > 0:
                raise ValueError(f"{name} must be greater than 0, such as {such}, got {value}.")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must be 0 or greater, such as 1e-5, got {weight_decay}.")
        for name, share in {"momentum": momentum, "betas[0]": betas[0], "betas[1]": betas[1]}.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be in [0, 1), such as 0.9, got {share}.")
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the parameters that have a gradient; returns what ``closure`` does, which computes it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = _muon if parameter.ndim > 1 else _adam
                    step = direction(parameter.grad, self.state[parameter], group)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(step, alpha=-group["lr"])
        return loss


def _muon(grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    if not state:
        state["momentum"] = torch.zeros_like(grad)
    mean = state["momentum"].lerp_(grad, 1 - group["momentum"])
    matrix = grad.lerp(mean, group["momentum"]).reshape(len(grad), -1)
    length = RMS * math.sqrt(max(matrix.shape))
    return length * _orthogonal(matrix.float()).to(grad.dtype).reshape(grad.shape)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix with singular values of about 1.

    Each iteration multiplies by a polynomial in the Gram matrix. These commute, so that the small square
    matrices are multiplied first, and the long one once.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return _orthogonal(matrix.T).T
    a, b, c = POLYNOMIAL
    smallest = torch.finfo(torch.float32).tiny
    matrix = matrix / matrix.abs().amax().clamp(min=smallest)  # or squares would be 0, or infinite
    matrix = matrix / matrix.norm().clamp(min=smallest)
    gram, product = matrix @ matrix.T, torch.eye(len(matrix), device=matrix.device)
    for _ in range(ITERATIONS):
        factor = b * gram + c * (gram @ gram)
        factor.diagonal().add_(a)
        gram, product = factor @ gram @ factor, factor @ product
    return product @ matrix


def _adam(grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    if not state:
        state["step"] = torch.zeros(())
        state["mean"], state["square"] = torch.zeros_like(grad), torch.zeros_like(grad)
    state["step"] += 1
    steps, (first, second) = float(state["step"]), group["betas"]
    mean = state["mean"].lerp_(grad, 1 - first) / (1 - first**steps)
    square = state["square"].lerp_(grad * grad, 1 - second) / (1 - second**steps)
    return mean / (square.sqrt() + group["eps"])
