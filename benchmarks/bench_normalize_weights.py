"""normalize_weights against two torch compositions of the same three results."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sumprod
from _harness import Bench, Floor, Peer, guarded, require_close

CASES: tuple[tuple[tuple[int, ...], float | None], ...] = (
    ((10_000_000,), 2.0),
    ((1000, 10_000), None),
    ((100_000, 100), None),
    ((1000,), None),
)


def composition(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the definition says: two logsumexp, one subtraction."""
    total = torch.logsumexp(log_weights, -1, keepdim=True)
    normalised = log_weights - total
    evidence = total.squeeze(-1) - math.log(log_weights.shape[-1])
    return normalised, evidence, torch.exp(-torch.logsumexp(2 * normalised, -1))


def lean_composition(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The fastest way found in torch: fused log_softmax, then the sum of squared weights."""
    normalised = torch.log_softmax(log_weights, -1)
    evidence = log_weights[..., 0] - normalised[..., 0] - math.log(log_weights.shape[-1])
    weights = normalised.exp()
    squares = weights.square() if weights.requires_grad else weights.square_()
    return normalised, evidence, squares.sum(-1).reciprocal()


def backward(function: Callable[..., Any], leaf: Tensor, weight: Tensor) -> Tensor:
    outputs = tuple(function(leaf))
    ones = [torch.ones_like(x) for x in outputs[1:]]
    return torch.autograd.grad(outputs, leaf, (weight, *ones))[0]


def check(label: str, log_weights: Tensor, leaf: Tensor, weight: Tensor) -> None:
    expected = composition(log_weights.double())
    names = ("log_weights", "log_evidence", "ess")
    for source, function in (
        ("ours", sumprod.ops.normalize_weights),
        ("composition", composition),
        ("lean composition", lean_composition),
    ):
        for name, actual, wanted in zip(names, function(log_weights), expected, strict=True):
            # torch's log_softmax of 1e7 float32 terms is off by about 1e-3; ours is held to 1e-5.
            rtol = 1e-5 if source == "ours" else 5e-3
            require_close(f"{label} {source}, {name}", actual, wanted, rtol=rtol, atol=1e-4)
    gradient = backward(composition, leaf.detach().double().requires_grad_(), weight.double())
    actual = backward(sumprod.ops.normalize_weights, leaf, weight)
    require_close(f"{label} ours, gradient", actual, gradient, rtol=1e-4, atol=1e-4)


def add_case(bench: Bench, label: str, shape: tuple[int, ...], target: float | None) -> None:
    log_weights = 3 * torch.randn(shape)
    leaf = log_weights.clone().requires_grad_()
    weight = torch.randn(shape)
    check(label, log_weights, leaf, weight)
    peers = [
        Peer("torch composition", lambda: composition(log_weights), target),
        Peer("torch lean composition", lambda: lean_composition(log_weights), target),
    ]
    size = 4.0 * log_weights.numel()
    run = sumprod.ops.normalize_weights
    bench.case(f"{label} forward", lambda: run(log_weights), peers, Floor(bytes=2 * size))
    bench.case(
        f"{label} forward and backward",
        lambda: backward(run, leaf, weight),
        [
            Peer("torch composition", lambda: backward(composition, leaf, weight)),
            Peer("torch lean composition", lambda: backward(lean_composition, leaf, weight)),
        ],
        Floor(bytes=6 * size),
    )


def main() -> int:
    bench = Bench("normalize_weights", __doc__ or "")
    for shape, target in CASES:
        label = str(shape).replace(" ", "")
        if not bench.wants(label):
            continue
        add_case(bench, label, shape, target)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
