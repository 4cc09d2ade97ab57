"""logmatmulexp against the torch broadcast form, an exp-bmm-log form, and torch.bmm as a lower bound."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sumprod
from _harness import Bench, Floor, Peer, guarded, require_close

# Batch, I, J, K; the targets against the broadcast form and torch.bmm (0.25 is "within 4x").
CASES: tuple[tuple[tuple[int, int, int, int], dict[str, float]], ...] = (
    ((64, 128, 128, 128), {"broadcast": 20.0, "bmm": 0.25}),
    ((1024, 16, 16, 16), {}),
    ((4096, 8, 8, 8), {}),
    ((1, 512, 512, 512), {}),
    ((64, 1, 128, 128), {}),
)


def broadcast(x: Tensor, y: Tensor) -> Tensor:
    return torch.logsumexp(x.unsqueeze(-1) + y.unsqueeze(-3), -2)


def shifted(x: Tensor, y: Tensor) -> Tensor:
    """exp, torch.bmm, log with one shift per row and column: fast, but loses terms far below the maxima."""
    high_x, high_y = x.amax(-1, keepdim=True), y.amax(-2, keepdim=True)
    return torch.matmul((x - high_x).exp(), (y - high_y).exp()).log() + high_x + high_y


def backward(function: Callable[..., Any], x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    value = function(x, y)
    return (value.detach(), *torch.autograd.grad(value, (x, y), weight))


def check(label: str, x: Tensor, y: Tensor, weight: Tensor) -> None:
    exact = backward(
        shifted, x.detach().double().requires_grad_(), y.detach().double().requires_grad_(), weight.double()
    )
    for name, function in (
        ("ours", sumprod.ops.logmatmulexp),
        ("broadcast", broadcast),
        ("shifted", shifted),
    ):
        for part, actual, wanted in zip(
            ("value", "dx", "dy"), backward(function, x, y, weight), exact, strict=True
        ):
            require_close(f"{label} {name}, {part}", actual, wanted, rtol=1e-4, atol=1e-4)


def add_case(bench: Bench, label: str, size: tuple[int, int, int, int], targets: dict[str, float]) -> None:
    batch, rows, inner, columns = size
    x, y = torch.randn(batch, rows, inner), torch.randn(batch, inner, columns)
    leaves = (x.clone().requires_grad_(), y.clone().requires_grad_())
    weight = torch.randn(batch, rows, columns)
    check(label, *leaves, weight)
    flops = 2.0 * batch * rows * inner * columns
    traffic = 4.0 * (x.numel() + y.numel() + weight.numel())
    peers = [
        Peer("torch broadcast", lambda: broadcast(x, y), targets.get("broadcast")),
        Peer("torch exp-bmm-log", lambda: shifted(x, y)),
        Peer("torch.bmm", lambda: torch.bmm(x, y), targets.get("bmm")),
    ]
    bench.case(f"{label} forward", lambda: sumprod.ops.logmatmulexp(x, y), peers, Floor(flops, traffic))
    bench.case(
        f"{label} forward and backward",
        lambda: backward(sumprod.ops.logmatmulexp, *leaves, weight),
        [
            Peer("torch broadcast", lambda: backward(broadcast, *leaves, weight)),
            Peer("torch exp-bmm-log", lambda: backward(shifted, *leaves, weight)),
        ],
        Floor(3 * flops, 2 * traffic),
    )


def main() -> int:
    bench = Bench("logmatmulexp", __doc__ or "")
    for size, targets in CASES:
        batch, rows, inner, columns = size
        label = f"{batch} x [{rows},{inner}] x [{inner},{columns}]"
        if not bench.wants(label, heavy=inner > 128):
            continue
        add_case(bench, label, size, targets)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
