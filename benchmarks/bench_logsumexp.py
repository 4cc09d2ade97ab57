"""logsumexp against torch.logsumexp, with and without the backward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sumprod
from _harness import Bench, Floor, Peer, guarded, require_close

# Shape, dim, and the target for the forward pass; no shape may be slower than torch.
CASES: tuple[tuple[tuple[int, ...], int, float], ...] = (
    ((1000, 1000), -1, 2.0),
    ((64, 100_000), -1, 2.0),
    ((1000, 1000), 0, 1.0),
    ((64, 100_000), 0, 1.0),
    ((100_000, 64), 0, 1.0),
    ((100_000, 16), -1, 1.0),
    ((1_000_000, 4), -1, 1.0),
    ((64, 256, 16), -1, 1.0),
    ((256, 128, 64), 1, 1.0),
    ((10, 1000, 100), 1, 1.0),
    ((8, 8), -1, 1.0),
)


def forward_and_backward(
    function: Callable[..., Any], leaf: Tensor, dim: int, weight: Tensor
) -> tuple[Tensor, Tensor]:
    value = function(leaf, dim)
    return value.detach(), torch.autograd.grad(value, leaf, weight)[0]


def check(label: str, leaf: Tensor, dim: int, weight: Tensor) -> None:
    exact = leaf.detach().double().requires_grad_()
    expected = forward_and_backward(torch.logsumexp, exact, dim, weight.double())
    for name, function in (("ours", sumprod.logsumexp), ("torch", torch.logsumexp)):
        actual = forward_and_backward(function, leaf, dim, weight)
        require_close(f"{label} {name}, value", actual[0], expected[0], rtol=1e-5, atol=1e-5)
        require_close(f"{label} {name}, gradient", actual[1], expected[1], rtol=1e-4, atol=1e-6)


def add_case(bench: Bench, label: str, shape: tuple[int, ...], dim: int, target: float) -> None:
    values = torch.randn(shape)
    leaf = values.clone().requires_grad_()
    weight = torch.randn_like(torch.logsumexp(values, dim))
    check(label, leaf, dim, weight)
    size = 4.0 * values.numel()
    bench.case(
        f"{label} forward",
        lambda: sumprod.logsumexp(values, dim),
        [Peer("torch", lambda: torch.logsumexp(values, dim), target)],
        Floor(bytes=size + 4.0 * weight.numel()),
    )
    bench.case(
        f"{label} forward and backward",
        lambda: forward_and_backward(sumprod.logsumexp, leaf, dim, weight),
        [Peer("torch", lambda: forward_and_backward(torch.logsumexp, leaf, dim, weight), 1.0)],
        # Read for the forward pass, read again for the backward pass, gradient written.
        Floor(bytes=3.0 * size),
    )


def main() -> int:
    bench = Bench("logsumexp", __doc__ or "")
    for shape, dim, target in CASES:
        label = f"{str(shape).replace(' ', '')} dim {dim}"
        if not bench.wants(label):
            continue
        add_case(bench, label, shape, dim, target)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
