"""Random HMMs and the loops in plain torch that serve as oracle and as peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Model:
    """Log-potentials of a batch of sequences: initial [S], transition [S, S], emission [B, T, S]."""

    initial: Tensor
    transition: Tensor
    emission: Tensor

    @classmethod
    def random(cls, batch: int, steps: int, states: int, seed: int = 0) -> Model:
        """Normalised initial and transition rows, emissions like log-likelihoods of a noisy observation."""
        draw = torch.Generator().manual_seed(seed)
        initial = torch.randn(states, generator=draw).log_softmax(-1)
        transition = torch.randn(states, states, generator=draw).log_softmax(-1)
        emission = torch.randn(batch, steps, states, generator=draw) - 1.0
        return cls(initial, transition, emission)

    def parameters(self, *, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The three tensors; with `grad`, as fresh leaves."""
        given = (self.initial, self.transition, self.emission)
        return tuple(x.clone().requires_grad_() for x in given) if grad else given  # type: ignore[return-value]

    def double(self) -> Model:
        return Model(*(x.double() for x in self.parameters()))

    @property
    def label(self) -> str:
        return str(tuple(self.emission.shape)).replace(" ", "")


def flops(model: Model) -> float:
    """Multiply-adds of one forward pass, times two."""
    batch, steps, states = model.emission.shape
    return 2.0 * batch * (steps - 1) * states**2


def log_loop(initial: Tensor, transition: Tensor, emission: Tensor) -> Tensor:
    """Forward algorithm as a loop of logsumexp."""
    alpha = initial + emission[:, 0]
    for step in range(1, emission.shape[1]):
        alpha = torch.logsumexp(alpha.unsqueeze(-1) + transition, -2) + emission[:, step]
    return alpha.logsumexp(-1)


def scaled_loop(initial: Tensor, transition: Tensor, emission: Tensor) -> Tensor:
    """Forward algorithm as a loop of matrix products, normalised at every step.  In float64: the oracle."""
    matrix = transition.exp()
    peak = emission.detach().amax(-1, keepdim=True)
    likelihood = (emission - peak).exp()
    alpha = initial.exp() * likelihood[:, 0]
    total = peak.sum((1, 2))
    for step in range(1, emission.shape[1]):
        norm = alpha.sum(-1, keepdim=True)
        total = total + norm.log().squeeze(-1)
        alpha = (alpha / norm).mm(matrix) * likelihood[:, step]
    return total + alpha.sum(-1).log()


def with_gradient(forward: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Values and the gradient of their sum with respect to `leaves`."""
    values = forward(*leaves)
    return (values.detach(), *torch.autograd.grad(values.sum(), leaves))
