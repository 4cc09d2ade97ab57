"""Ragged batches: time per real step against the same batch with every sequence at full length.

Lengths are uniform in [T/10, T].  1.00 means that padding costs nothing; the target is at most 1.20.
"16-lane groups" is what sorting alone gives: sixteen sequences at a time, each group as long as its longest.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import sumprod
from _harness import Bench, guarded, race, require, require_close, spread
from _models import Model, scaled_loop, with_gradient

SHAPES = ((64, 256, 16), (256, 256, 16), (64, 1024, 32), (256, 1024, 32))
AT_MOST = 1.2
Operator = Callable[[Model, Tensor | None], object]


def gradient(model: Model, lengths: Tensor | None) -> object:
    return with_gradient(
        lambda *leaves: sumprod.ops.hmm_log_normalizer(*leaves, lengths=lengths), model.parameters(grad=True)
    )


OPERATORS: dict[str, Operator] = {
    "log_normalizer": lambda m, n: sumprod.ops.hmm_log_normalizer(*m.parameters(), lengths=n),
    "forward and backward": gradient,
    "marginals": lambda m, n: sumprod.ops.hmm_marginals(*m.parameters(), lengths=n),
    "viterbi": lambda m, n: sumprod.ops.hmm_viterbi(*m.parameters(), lengths=n),
    "sample": lambda m, n: sumprod.ops.hmm_sample(*m.parameters(), lengths=n),
}


def check(label: str, model: Model, lengths: Tensor) -> None:
    """A few sequences on their own: same bits as in the batch, and right."""
    together = sumprod.ops.hmm_log_normalizer(*model.parameters(), lengths=lengths)
    paths = sumprod.ops.hmm_viterbi(*model.parameters(), lengths=lengths).path
    for row in (0, 1, lengths.shape[0] // 2, lengths.shape[0] - 1):
        length = int(lengths[row])
        alone = Model(model.initial, model.transition, model.emission[row : row + 1, :length])
        value = sumprod.ops.hmm_log_normalizer(*alone.parameters())
        require(torch.equal(value[0], together[row]), f"{label} sequence {row}: other bits than alone")
        expected = scaled_loop(*alone.double().parameters())
        require_close(f"{label} sequence {row}", value, expected, rtol=1e-5, atol=1e-5)
        path = sumprod.ops.hmm_viterbi(*alone.parameters()).path
        require(torch.equal(path[0], paths[row, :length]), f"{label} sequence {row}: other path than alone")
        require(bool((paths[row, length:] == -1).all()), f"{label} sequence {row}: padding is not -1")


def whole_groups(lengths: Tensor, lanes: int = 16) -> float:
    """Cost per real step if sorted sequences run in groups of `lanes` until the longest of each ends."""
    ordered: list[int] = sorted(lengths.tolist())
    groups = [ordered[start : start + lanes] for start in range(0, len(ordered), lanes)]
    return sum(group[-1] * len(group) for group in groups) / sum(ordered)


def add_case(bench: Bench, label: str, run: Operator, model: Model, lengths: Tensor) -> None:
    calls = {"ragged": lambda: run(model, lengths), "dense": lambda: run(model, None)}
    times = race(calls, bench.options.budget / 2, 5)
    batch, steps, _ = model.emission.shape
    share = float(lengths.sum()) / (batch * steps)
    costs = [a / b / share for a, b in zip(times["ragged"], times["dense"], strict=False)]
    cost = statistics.median(costs)
    bench.add_row(
        {
            "case": label,
            "ragged ms": f"{1e3 * statistics.median(times['ragged']):.3f}",
            "dense ms": f"{1e3 * statistics.median(times['dense']):.3f}",
            "real steps": f"{share:.0%}",
            "16-lane groups": f"{whole_groups(lengths):.2f}",
            "per real step, ragged / dense": f"{cost:.2f} +-{spread(costs):.0f}% "
            f"(<= {AT_MOST} {bench.verdict(cost <= AT_MOST)})",
        }
    )


def main() -> int:
    bench = Bench("hmm operators, ragged batches", __doc__ or "")
    for shape in SHAPES:
        model = Model.random(*shape)
        draw = torch.Generator().manual_seed(2)
        lengths = torch.randint(shape[1] // 10, shape[1] + 1, (shape[0],), generator=draw)
        size = str(shape).replace(" ", "")
        if not any(bench.wants(f"{name} {size}", heavy=shape[1] > 256) for name in OPERATORS):
            continue
        check(size, model, lengths)
        for name, run in OPERATORS.items():
            if bench.wants(f"{name} {size}"):
                add_case(bench, f"{name} {size}", run, model, lengths)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
