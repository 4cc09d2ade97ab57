"""maxmatmul (values and argmax) against the torch broadcast form, and torch.bmm as a lower bound."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import sumprod
from _harness import Bench, Floor, Peer, guarded, require

CASES = ((64, 128, 128, 128), (1024, 16, 16, 16), (4096, 8, 8, 8), (1, 512, 512, 512), (64, 1, 128, 128))


def broadcast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = (x.unsqueeze(-1) + y.unsqueeze(-3)).max(-2)
    return values, indices


def check(label: str, x: Tensor, y: Tensor) -> None:
    """Same values to the last bit; an index may differ from torch's only where it attains the same value."""
    expected, _ = broadcast(x, y)
    result = sumprod.ops.maxmatmul(x, y)
    require(torch.equal(result.values, expected), f"{label}: values differ from torch's broadcast form")
    index = result.indices
    attained = x.gather(-1, index) + y.transpose(-1, -2).gather(-1, index.transpose(-1, -2)).transpose(-1, -2)
    require(torch.equal(attained, expected), f"{label}: the argmax does not attain the maximum")


def add_case(bench: Bench, label: str, shape: tuple[int, int, int, int]) -> None:
    batch, rows, inner, columns = shape
    x, y = torch.randn(batch, rows, inner), torch.randn(batch, inner, columns)
    check(label, x, y)
    peers = [
        Peer("torch broadcast", lambda: broadcast(x, y)),
        Peer("torch.bmm", lambda: torch.bmm(x, y)),
    ]
    # float32 values and int64 indices are written.
    size = 4.0 * (x.numel() + y.numel()) + 12.0 * batch * rows * columns
    floor = Floor(2.0 * batch * rows * inner * columns, size)
    bench.case(label, lambda: sumprod.ops.maxmatmul(x, y), peers, floor)


def main() -> int:
    bench = Bench("maxmatmul", __doc__ or "")
    for shape in CASES:
        batch, rows, inner, columns = shape
        label = f"{batch} x [{rows},{inner}] x [{inner},{columns}]"
        if not bench.wants(label, heavy=inner > 128):
            continue
        add_case(bench, label, shape)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
