"""hmm_log_normalizer, forward only, against dynamax, hmmlearn, Pyro and torch loops."""

from __future__ import annotations

import sys

import torch

import _peers
import sumprod
from _harness import Bench, Floor, Peer, guarded, require_close
from _models import Model, flops, log_loop, scaled_loop

# Shape, and the targets: dynamax, hmmlearn, Pyro, times the floor.
CASES: tuple[tuple[tuple[int, int, int], dict[str, float]], ...] = (
    ((64, 256, 16), {"dynamax": 10, "hmmlearn": 30, "Pyro": 200}),
    ((64, 1024, 32), {"dynamax": 8, "hmmlearn": 30, "Pyro": 500}),
    ((64, 512, 128), {"floor": 2}),
    ((64, 128, 512), {"floor": 2}),
    ((1, 4096, 16), {}),
    ((1024, 256, 8), {}),
)
TOO_BIG = "too big"


def peers(model: Model, targets: dict[str, float]) -> list[Peer]:
    """The peers that can run this shape in reasonable time and memory."""
    batch, steps, states = model.emission.shape
    # Pyro keeps the B x T x S x S tensor of all its factors several times; hmmlearn needs seconds at S=512.
    small = batch * steps * states**2 <= 2**27
    medium = batch * steps * states**2 <= 2**30
    calls = {
        "dynamax": _peers.dynamax_log_normalizer(model),
        "hmmlearn": _peers.hmmlearn_log_normalizer(model) if medium else None,
        "Pyro": _peers.pyro_log_normalizer(model) if small else None,
        "torch log loop": (lambda: log_loop(*model.parameters())) if medium else None,
        "torch scaled loop": lambda: scaled_loop(*model.parameters()),
    }
    skipped = {"hmmlearn": not medium, "Pyro": not small, "torch log loop": not medium}
    return [
        Peer(name, call, targets.get(name), TOO_BIG if skipped.get(name) else "")
        for name, call in calls.items()
    ]


def check(label: str, model: Model, contenders: list[Peer]) -> None:
    """Everybody against a float64 pass."""
    expected = scaled_loop(*model.double().parameters())
    ours = sumprod.ops.hmm_log_normalizer(*model.parameters())
    require_close(f"{label} ours", ours, expected, rtol=1e-5, atol=1e-5)
    for peer in contenders:
        if peer.run is not None:
            answer = peer.run()
            values = answer if isinstance(answer, torch.Tensor) else _peers.to_torch(answer)
            require_close(f"{label} {peer.name}", values, expected, rtol=2e-5, atol=1e-3)


def add_case(bench: Bench, label: str, model: Model, targets: dict[str, float]) -> None:
    contenders = peers(model, targets)
    check(label, model, contenders)
    floor = Floor(flops(model), 4.0 * model.emission.numel(), targets.get("floor"))
    bench.case(label, lambda: sumprod.ops.hmm_log_normalizer(*model.parameters()), contenders, floor)


def main() -> int:
    bench = Bench("hmm_log_normalizer", __doc__ or "", _peers.PACKAGES)
    for shape, targets in CASES:
        label = str(shape).replace(" ", "")
        if not bench.wants(label, heavy=shape[2] > 128):
            continue
        add_case(bench, label, Model.random(*shape), targets)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
