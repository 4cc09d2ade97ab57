"""`contract` on a chain of 200 variables with 16 states each, under a plate of 64, against Pyro.

Every variable has a factor [64, 16], and every two neighbours have one of [16, 16], which the slices of the
plate share, or of [64, 16, 16]. "tree" is `contract_tensor_tree`, called as Pyro's is; "contract" is
`sumprod.ops.contraction.contract`, which is below it. With gradients: those of the sum over the plate with
respect to every factor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import sumprod.ops.contract
from _factors import Graph, gradients
from _harness import Bench, Peer, guarded, optional_import, require_close
from sumprod.ops.packed import symbol

STEPS, STATES, PLATE = 200, 16, 64
FORWARD_AT_LEAST, GRADIENTS_AT_LEAST = 50.0, 15.0
PACKAGES = ("pyro-ppl",)


def chain(*, shared: bool) -> Graph:
    """Factors in the order of time: of a variable, then of it and the one before."""
    draw = torch.Generator().manual_seed(0)
    plate, *names = (symbol(i) for i in range(STEPS + 1))
    tensors, dims = [], []
    for step, name in enumerate(names):
        tensors.append(torch.randn(PLATE, STATES, generator=draw))
        dims.append(plate + name)
        if step:
            shape = [STATES, STATES] if shared else [PLATE, STATES, STATES]
            tensors.append(torch.randn(shape, generator=draw).log_softmax(-1))
            dims.append(("" if shared else plate) + names[step - 1] + name)
    return Graph(tensors, dims, plate)


def log_loop(tensors: Sequence[Tensor]) -> Tensor:
    """The loop over time that serves as oracle, in float64."""
    first, *rest = (tensor.double() for tensor in tensors)
    message = first
    for own, pair in zip(rest[0::2], rest[1::2], strict=True):
        message = torch.logsumexp(message.unsqueeze(-1) + pair, -2) + own
    return message.logsumexp(-1)


def require_equal(
    what: str, total: Callable[[Sequence[Tensor]], Tensor], graph: Graph, leaves: Sequence[Tensor]
) -> None:
    """Stop unless totals and gradients are those of the loop."""
    found = gradients(total, leaves)
    expected = gradients(log_loop, leaves)
    require_close(f"{what}: totals", found[0], expected[0])
    for actual, gradient, dims in zip(found[1:], expected[1:], graph.dims, strict=True):
        require_close(f"{what}: gradient of {dims}", actual, gradient, rtol=1e-3)


def race(bench: Bench, kind: str, graph: Graph) -> None:
    """Check all implementations on one graph, then time forward and gradients of ours against Pyro's."""
    fixed, leaves = list(graph.tensors), graph.leaves()
    ours = {"tree": graph.by_tree(sumprod.ops.contract), "contract": graph.by_contract()}
    pyro = optional_import("pyro.ops.contract")
    theirs = None if pyro is None else graph.by_tree(pyro)
    for name, total in (*ours.items(), *([] if theirs is None else [("Pyro", theirs)])):
        require_equal(f"{kind}, {name}", total, graph, leaves)
    for name, total in ours.items():
        label = f"{name}, {kind}"
        peer = None if theirs is None else partial(theirs, fixed)
        bench.case(f"{label}, forward", partial(total, fixed), [Peer("Pyro", peer, FORWARD_AT_LEAST)])
        peer = None if theirs is None else partial(gradients, theirs, leaves)
        bench.case(
            f"{label}, gradients", partial(gradients, total, leaves), [Peer("Pyro", peer, GRADIENTS_AT_LEAST)]
        )


def main() -> int:
    bench = Bench("contract on a chain of 200 variables", __doc__ or "", PACKAGES)
    for shared, kind in ((True, "shared transitions"), (False, "transitions by slice")):
        if bench.wants(kind):
            race(bench, kind, chain(shared=shared))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
