"""`contract` on random factor graphs of 1,000 binary variables, treewidth at most 4, against Pyro.

A graph is part of a random k-tree: every variable after the first k joins k variables that are joined to
each other. Factors: one of every variable, and either one of every edge that is kept, half of them by chance
("edges"), or one of every new variable together with all k it joins ("cliques"). Forward and backward: the
total, and its gradients with respect to every factor. "tree" is `contract_tensor_tree`, called as Pyro's is;
"contract" is `sumprod.ops.contraction.contract`, which is below it. Flops are those of the plan; opt_einsum's
are those of its greedy order, which Pyro follows.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

import sumprod.ops.contract
from _factors import Graph, gradients
from _harness import Bench, Call, Peer, guarded, optional_import, require_close
from sumprod.ops._plan import make_plan
from sumprod.ops.packed import symbol

VARIABLES = 1000
AT_LEAST = 20.0
PACKAGES = ("pyro-ppl", "opt_einsum")


def random_graph(width: int, *, cliques: bool) -> Graph:
    """Part of a random k-tree, k = `width`, with standard normal log-factors."""
    choose = random.Random(0)
    ready = [list(range(width))]  # sets of `width` variables that are joined to each other
    scopes = [[variable] for variable in range(VARIABLES)]
    for new in range(width, VARIABLES):
        joined = choose.choice(ready)
        ready += [[other for other in joined if other != left] + [new] for left in joined]
        if cliques:
            scopes.append([*joined, new])
        else:
            kept = [other for other in joined if choose.random() < 0.5] or [choose.choice(joined)]
            scopes += [[other, new] for other in kept]
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn([2] * len(scope), generator=draw) for scope in scopes]
    return Graph(tensors, ["".join(map(symbol, scope)) for scope in scopes])


def one_by_one(graph: Graph, tensors: Sequence[Tensor]) -> Tensor:
    """The total, the last variable to join being summed out first: the oracle, in float64."""
    left = [(tensor.double(), dims) for tensor, dims in zip(tensors, graph.dims, strict=True)]
    for variable in map(symbol, reversed(range(VARIABLES))):
        touching = [factor for factor in left if variable in factor[1]]
        left = [factor for factor in left if variable not in factor[1]]
        scope = "".join(sorted({name for _, dims in touching for name in dims} - {variable})) + variable
        product: Tensor | float = 0.0
        for tensor, dims in touching:
            order = [dims.index(name) for name in scope if name in dims]
            product = product + tensor.permute(order).reshape([2 if name in dims else 1 for name in scope])
        assert isinstance(product, Tensor)
        left.append((product.expand([2] * len(scope)).logsumexp(-1), scope[:-1]))
    return torch.stack([tensor for tensor, _ in left]).sum()


def require_equal(what: str, found: Sequence[Tensor], expected: Sequence[Tensor], graph: Graph) -> None:
    """Stop unless total and gradients agree."""
    require_close(f"{what}: total", found[0], expected[0])
    for actual, gradient, dims in zip(found[1:], expected[1:], graph.dims, strict=True):
        require_close(f"{what}: gradient of {dims}", actual, gradient, rtol=1e-3)


def pyro_peer(
    pyro: ModuleType | None, graph: Graph, leaves: Sequence[Tensor], expected: Sequence[Tensor]
) -> Peer:
    """Pyro's `contract_tensor_tree`, where it can do this graph."""
    if pyro is None:
        return Peer("Pyro", None, AT_LEAST)
    call: Callable[[], Sequence[Tensor]] = partial(gradients, graph.by_tree(pyro), leaves)
    try:
        found = call()
    except (RuntimeError, IndexError) as error:  # its order can need tensors with more dims than it can name
        return Peer("Pyro", None, AT_LEAST, absent=f"fails: {type(error).__name__}")
    require_equal("Pyro", found, expected, graph)
    return Peer("Pyro", call, AT_LEAST)


def compare_flops(bench: Bench, label: str, graph: Graph) -> None:
    """A row with the flops of our plan and of opt_einsum's greedy order."""
    flops = make_plan(graph.dims, dict.fromkeys(graph.variables, 2)).flops
    row = {"case": f"{label}, plan", "flops": f"{flops:,.0f}"}
    opt_einsum = optional_import("opt_einsum")
    if opt_einsum is not None:
        shapes = [tuple(tensor.shape) for tensor in graph.tensors]
        equation = ",".join(graph.dims) + "->"
        _, found = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="greedy")
        ratio = float(found.opt_cost) / flops
        row["opt_einsum greedy / ours"] = f"{ratio:,.3g}x (>= 1x {bench.verdict(ratio >= 1)})"
    bench.add_row(row)


def main() -> int:
    bench = Bench("contract on random graphs of 1,000 variables", __doc__ or "", PACKAGES)
    pyro = optional_import("pyro.ops.contract")
    for width, cliques in ((1, False), (2, False), (3, False), (4, False), (2, True), (3, True), (4, True)):
        label = f"k={width}, {'cliques' if cliques else 'edges'}"
        if not bench.wants(label, heavy=width in (2, 3)):
            continue
        graph = random_graph(width, cliques=cliques)
        leaves = graph.leaves()
        expected = gradients(partial(one_by_one, graph), leaves)
        peer = pyro_peer(pyro, graph, leaves, expected)
        interfaces = {"tree": graph.by_tree(sumprod.ops.contract), "contract": graph.by_contract()}
        for name, total in interfaces.items():
            ours: Call = partial(gradients, total, leaves)
            require_equal(f"{label}, {name}", gradients(total, leaves), expected, graph)
            bench.case(f"{label}, {name}", ours, [peer])
        compare_flops(bench, label, graph)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
