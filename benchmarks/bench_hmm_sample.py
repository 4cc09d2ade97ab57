"""hmm_sample (one exact posterior path per sequence, random numbers included) against dynamax's sampler."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import _peers
import sumprod
from _harness import Bench, Floor, Peer, guarded, require
from _models import Model, flops, scaled_loop, with_gradient

CASES: tuple[tuple[tuple[int, int, int], float | None], ...] = (
    ((64, 256, 16), 8.0),
    ((64, 1024, 32), None),
    ((64, 256, 128), None),
)
DRAWS = 100
# With ~1e6 cells compared per shape a correct sampler fails this about once in 1e6 programs.
SIGMAS = 7.0


def exact_marginals(model: Model) -> tuple[Tensor, Tensor]:
    """State marginals [B, T, S] and expected transition counts [S, S], float64."""
    _, _, counts, states = with_gradient(scaled_loop, model.double().parameters(grad=True))
    return states, counts


def check_paths(what: str, paths: Tensor, marginals: Tensor, counts: Tensor) -> None:
    """State frequencies and transition counts of `paths` [n, B, T] are what the posterior says."""
    draws, size = paths.shape[0], marginals.shape[-1]
    frequency = torch.stack([(paths == state).double().mean(0) for state in range(size)], -1)
    # The constant covers rare states, where a binomial is not yet normal.
    allowed = SIGMAS * (marginals * (1 - marginals) / draws).sqrt() + SIGMAS**2 / draws
    require(bool(((frequency - marginals).abs() <= allowed).all()), f"{what}: wrong state frequencies")
    pairs = (paths[..., :-1] * size + paths[..., 1:]).flatten()
    found = torch.bincount(pairs, minlength=size * size).view(size, size).double() / draws
    slack = 2 * SIGMAS * (counts / draws).sqrt() + SIGMAS**2 / draws
    require(bool(((found - counts).abs() <= slack).all()), f"{what}: wrong transition counts")


def check(label: str, model: Model, theirs: Peer) -> None:
    marginals, counts = exact_marginals(model)
    generator = torch.Generator().manual_seed(1)
    paths = sumprod.ops.hmm_sample(*model.parameters(), num_samples=DRAWS, generator=generator)
    check_paths(f"{label} ours", paths, marginals, counts)
    if theirs.run is not None:
        run = theirs.run
        drawn = torch.stack([_peers.to_torch(run()).long() for _ in range(DRAWS // 4)])
        check_paths(f"{label} dynamax", drawn, marginals, counts)


def add_case(bench: Bench, label: str, shape: tuple[int, int, int], target: float | None) -> None:
    model = Model.random(*shape)
    theirs = Peer("dynamax posterior sampler", _peers.dynamax_sample(model), target)
    check(label, model, theirs)
    floor = Floor(flops(model), 4.0 * model.emission.numel() + 8.0 * shape[0] * shape[1])
    bench.case(label, lambda: sumprod.ops.hmm_sample(*model.parameters()), [theirs], floor)


def main() -> int:
    bench = Bench("hmm_sample", __doc__ or "", _peers.PACKAGES[:2])
    for shape, target in CASES:
        label = str(shape).replace(" ", "")
        if not bench.wants(label, heavy=shape[2] >= 128):
            continue
        add_case(bench, label, shape, target)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
