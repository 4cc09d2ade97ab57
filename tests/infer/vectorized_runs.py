"""What the two forms of a chain are compared by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sumprod.handlers import condition, trace
from sumprod.infer import TraceEnum_ELBO, infer_discrete
from tests.infer.vectorized_programs import Case, Loop, one_by_one


def nothing(*args: Any) -> None:
    pass


def derivatives(case: Case, loop: Loop) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The loss, its gradient, and the gradient of that along a direction."""
    tables = case.tables()
    elbo = TraceEnum_ELBO(max_plate_nesting=case.nesting)
    loss = elbo.differentiable_loss(case.model(loop, tables), nothing)
    wrt, unused = list(tables.values()), {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(loss, wrt, create_graph=True, **unused)
    generator = torch.Generator().manual_seed(1)
    along = sum((g * torch.randn(g.shape, generator=generator, dtype=g.dtype)).sum() for g in first)
    second = torch.autograd.grad(along, wrt, **unused)
    return loss.detach(), [g.detach() for g in first], list(second)


def marginals(case: Case, loop: Loop) -> dict[str, Tensor]:
    """Probabilities by site of a loop."""
    elbo = TraceEnum_ELBO(max_plate_nesting=case.nesting)
    found = elbo.compute_marginals(case.model(loop), nothing)
    return case.step_by_step({name: fn.logits.softmax(-1) for name, fn in found.items()}, events=1)


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        pair = torch.broadcast_tensors(found[name], expected[name])
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


def hidden(nodes: dict[str, Any]) -> dict[str, Any]:
    """The sites that are marked for enumeration."""
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and site["infer"].get("enumerate") == "parallel"
    }


def values_of(nodes: dict[str, Any]) -> dict[str, Tensor]:
    return {name: site["value"] for name, site in hidden(nodes).items()}


def best_score(case: Case, loop: Loop) -> Tensor:
    """Log density of the most probable assignment, by the loop. States count where they are masked too."""
    decoded = infer_discrete(case.model(loop), first_available_dim=-1 - case.nesting, temperature=0)
    values = case.step_by_step(values_of(trace(decoded).get_trace().nodes))
    given = trace(condition(case.model(one_by_one), data=values)).get_trace()
    given.compute_log_prob()
    total = torch.zeros((), dtype=torch.float64)
    for name, site in given.nodes.items():
        if name in values:
            total = total + site["fn"].log_prob(site["value"]).sum().detach()
        elif site["type"] == "sample":
            total = total + site["log_prob_sum"].detach()
    return total
