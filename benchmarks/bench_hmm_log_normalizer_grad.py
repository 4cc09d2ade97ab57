"""hmm_log_normalizer with its gradient (initial, transition, emission), against dynamax and torch loops."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

import _peers
import sumprod
from _harness import Bench, Floor, Peer, guarded, require_close
from _models import Model, flops, log_loop, scaled_loop, with_gradient

SHAPES = ((64, 256, 16), (64, 1024, 32), (64, 512, 128), (64, 128, 512))
DYNAMAX_AT_LEAST = 6.0
LOG_LOOP_AT_LEAST = 15.0
# The log-space loop keeps T tensors of B x S x S for its backward pass.
LOG_LOOP_BYTES = 2**32


def ours(leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return with_gradient(sumprod.ops.hmm_log_normalizer, leaves)


def peers(model: Model, leaves: tuple[Tensor, ...]) -> list[Peer]:
    batch, steps, states = model.emission.shape
    fits = 4 * batch * steps * states**2 <= LOG_LOOP_BYTES
    looped = (lambda: with_gradient(log_loop, leaves)) if fits else None
    return [
        Peer("dynamax", _peers.dynamax_gradient(model), DYNAMAX_AT_LEAST),
        Peer("torch log loop", looped, LOG_LOOP_AT_LEAST, "" if fits else "needs > 10 GB"),
        Peer("torch scaled loop", lambda: with_gradient(scaled_loop, leaves)),
    ]


def check(label: str, model: Model, leaves: tuple[Tensor, ...], contenders: list[Peer]) -> None:
    """Values and all three gradients against float64; summed gradients get a relative tolerance."""
    expected = with_gradient(scaled_loop, model.double().parameters(grad=True))
    names = ("value", "d initial", "d transition", "d emission")
    for name, actual, wanted in zip(names, ours(leaves), expected, strict=True):
        require_close(f"{label} ours, {name}", actual, wanted, rtol=1e-4, atol=1e-4)
    for peer in contenders:
        if peer.run is None:
            continue
        answer: Any = peer.run()
        if peer.name == "dynamax":
            value, gradients = answer
            require_close(f"{label} dynamax, sum", _peers.to_torch(value), expected[0].sum(), rtol=1e-4)
            answer = (expected[0], *(_peers.to_torch(g) for g in gradients))
        for name, actual, wanted in zip(names, answer, expected, strict=True):
            require_close(f"{label} {peer.name}, {name}", actual, wanted, rtol=2e-3, atol=2e-3)


def add_case(bench: Bench, label: str, model: Model) -> None:
    leaves = model.parameters(grad=True)
    contenders = peers(model, leaves)
    check(label, model, leaves, contenders)
    # Forward, backward and transition counts are one matrix product each; emissions in, gradient out.
    floor = Floor(3 * flops(model), 8.0 * model.emission.numel())
    bench.case(label, lambda: ours(leaves), contenders, floor)


def main() -> int:
    bench = Bench("hmm_log_normalizer, forward and backward", __doc__ or "", _peers.PACKAGES[:2])
    for shape in SHAPES:
        label = str(shape).replace(" ", "")
        if not bench.wants(label, heavy=shape[2] >= 128):
            continue
        add_case(bench, label, Model.random(*shape))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
