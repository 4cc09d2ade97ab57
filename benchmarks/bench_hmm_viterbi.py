"""hmm_viterbi (paths and scores) against hmmlearn, dynamax and a torch loop."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

import _peers
import sumprod
from _harness import Bench, Floor, Peer, guarded, require_close
from _models import Model, flops

CASES: tuple[tuple[tuple[int, int, int], dict[str, float]], ...] = (
    ((64, 256, 16), {"hmmlearn": 30, "dynamax": 20}),
    ((64, 1024, 32), {"hmmlearn": 30, "dynamax": 20}),
    ((64, 256, 128), {}),
    ((1, 4096, 16), {}),
)


def torch_viterbi(initial: Tensor, transition: Tensor, emission: Tensor) -> Tensor:
    """Max-plus loop with back-pointers."""
    alpha, pointers = initial + emission[:, 0], []
    for step in range(1, emission.shape[1]):
        best, origin = (alpha.unsqueeze(-1) + transition).max(-2)
        alpha = best + emission[:, step]
        pointers.append(origin)
    state = alpha.argmax(-1, keepdim=True)
    path = [state]
    for origin in reversed(pointers):
        state = origin.gather(-1, state)
        path.append(state)
    return torch.cat(path[::-1], -1)


def score(model: Model, path: Tensor) -> Tensor:
    """Log-potential of one path per sequence, in float64."""
    exact = model.double()
    emitted = exact.emission.gather(-1, path.unsqueeze(-1)).sum((1, 2))
    return exact.initial[path[:, 0]] + emitted + exact.transition[path[:, :-1], path[:, 1:]].sum(-1)


def paths_of(answer: object) -> Tensor:
    """The paths in whatever a peer returned."""
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, list):  # hmmlearn: (score, path) per sequence
        return torch.from_numpy(np.stack([path for _, path in answer])).long()
    return _peers.to_torch(answer).long()


def check(label: str, model: Model, contenders: list[Peer]) -> None:
    """All paths have the best score: paths may differ where two are equally good, scores may not."""
    result = sumprod.ops.hmm_viterbi(*model.parameters())
    best = score(model, torch_viterbi(*model.double().parameters()))
    require_close(f"{label} score of our path", score(model, result.path), best, rtol=1e-6, atol=1e-4)
    require_close(f"{label} our score", result.score, best, rtol=1e-5, atol=1e-4)
    for peer in contenders:
        if peer.run is not None:
            theirs = score(model, paths_of(peer.run()))
            require_close(f"{label} score of {peer.name}'s path", theirs, best, rtol=1e-5, atol=1e-3)


def add_case(bench: Bench, label: str, shape: tuple[int, int, int], targets: dict[str, float]) -> None:
    model = Model.random(*shape)
    contenders = [
        Peer("hmmlearn", _peers.hmmlearn_viterbi(model), targets.get("hmmlearn")),
        Peer("dynamax", _peers.dynamax_viterbi(model), targets.get("dynamax")),
        Peer("torch loop", lambda: torch_viterbi(*model.parameters())),
    ]
    check(label, model, contenders)
    # An add and a max in place of a multiply and an add; emissions in, int64 path out.
    floor = Floor(flops(model), 4.0 * model.emission.numel() + 8.0 * shape[0] * shape[1])
    bench.case(label, lambda: sumprod.ops.hmm_viterbi(*model.parameters()), contenders, floor)


def main() -> int:
    bench = Bench("hmm_viterbi", __doc__ or "", _peers.PACKAGES[:3])
    for shape, targets in CASES:
        label = str(shape).replace(" ", "")
        if not bench.wants(label, heavy=shape[2] >= 128):
            continue
        add_case(bench, label, shape, targets)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
