"""Exact expectations of a gradient estimator: every value the guide can draw, weighted by its probability.

`loss_and_grads` is run once per joint value of the guide's discrete sites (given by replay, so nothing is
random) and the gradients are averaged under the guide.  An estimator is unbiased when this average is the
gradient of the exact objective.  For a Normal site the values are the nodes of a Gauss-Hermite rule, which
integrates the polynomials that occur in Gaussian models without error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Values = Mapping[str, Tensor]
Build = Callable[..., tuple[Callable[..., Any], Callable[..., Any]]]


@dataclass(frozen=True)
class Case:
    """A model and guide, the parameters' start, the guide's discrete sites, and the objective in plain torch.

    `build(pyro)` returns model and guide; both read parameters only through `pyro.param`.  `support` has for
    each discrete site all its joint values.  `elbo(params, values)` is log p - log q at one joint value, and
    `log_q(params, values)` the guide's log-probability of it; both are written without either library.
    """

    name: str
    build: Build
    params: Mapping[str, Sequence[float]]
    support: Mapping[str, Sequence[Tensor]]
    elbo: Callable[[Values, Values], Tensor]
    log_q: Callable[[Values, Values], Tensor]
    args: Sequence[tuple[Any, ...]] = field(default=((),))

    def leaves(self) -> dict[str, Tensor]:
        return {name: torch.tensor(value, requires_grad=True) for name, value in self.params.items()}

    def joint_values(self) -> Iterator[dict[str, Tensor]]:
        for values in itertools.product(*self.support.values()):
            yield dict(zip(self.support, values, strict=True))


def number(value: float) -> Tensor:
    """A scalar tensor of the default dtype."""
    return torch.tensor(value)


def all_bits(*shape: int) -> list[Tensor]:
    """All tensors of zeros and ones with this shape."""
    count = int(np.prod(shape))
    return [
        torch.tensor(bits, dtype=torch.get_default_dtype()).reshape(shape)
        for bits in itertools.product([0.0, 1.0], repeat=count)
    ]


def exact_gradient(case: Case) -> tuple[float, dict[str, Tensor]]:
    """Minus the exact objective and its gradient, by summing over all joint values."""
    params = case.leaves()
    total = torch.zeros(())
    for values in case.joint_values():
        total = total - case.log_q(params, values).exp() * case.elbo(params, values)
    gradients = torch.autograd.grad(total, list(params.values()))
    return total.item(), dict(zip(params, gradients, strict=True))


def expected_gradient(pyro: Any, case: Case, elbo: Any) -> tuple[float, dict[str, Tensor]]:
    """Mean loss and mean gradient of the estimator `elbo` under the guide, without sampling."""
    pyro.clear_param_store()
    model, guide = case.build(pyro)
    for name, value in case.params.items():
        pyro.param(name, torch.tensor(value))
    leaves = dict(pyro.get_param_store().named_parameters())
    loss, gradients = 0.0, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for args, values in itertools.product(case.args, case.joint_values()):
        weight = case.log_q(case.leaves(), values).exp().item() / len(case.args)
        fixed = pyro.poutine.trace(guide).get_trace(*args)
        for name, value in values.items():
            assert fixed.nodes[name]["value"].shape == value.shape, name
            fixed.nodes[name]["value"] = value
        for leaf in leaves.values():
            leaf.grad = None
        loss += weight * elbo.loss_and_grads(model, pyro.poutine.replay(guide, trace=fixed), *args)
        for name, leaf in leaves.items():
            if leaf.grad is not None:
                gradients[name] += weight * leaf.grad
    return loss, gradients


def hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for the expectation of a function of one standard normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def normal_at_fixed_noise(pyro: Any) -> tuple[Any, list[Tensor]]:
    """A Normal whose reparameterised draws take their noise from the front of a list, and that list."""
    noise: list[Tensor] = []

    class FixedNoise(pyro.distributions.Normal):  # type: ignore[misc,name-defined]
        def rsample(self, sample_shape: Any = ()) -> Tensor:
            return self.loc + self.scale * noise.pop(0)

    return FixedNoise, noise


def quadrature_gradient(
    pyro: Any, build: Build, params: Mapping[str, float], elbo: Any, draws: int, count: int
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss and mean gradient of `elbo` over the noise of `draws` standard normal variables.

    `build(pyro, normal)` returns model and guide; the guide draws from `normal`, `draws` times in all.
    """
    pyro.clear_param_store()
    normal, noise = normal_at_fixed_noise(pyro)
    model, guide = build(pyro, normal)
    leaves = {name: pyro.param(name, torch.tensor(value)).unconstrained() for name, value in params.items()}
    loss, gradients = 0.0, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for nodes in itertools.product(zip(*hermite(count), strict=True), repeat=draws):
        weight = float(np.prod([w.item() for _, w in nodes]))
        noise[:] = [node for node, _ in nodes]
        for leaf in leaves.values():
            leaf.grad = None
        loss += weight * elbo.loss_and_grads(model, guide)
        assert not noise, "the guide draws less often than expected"
        for name, leaf in leaves.items():
            gradients[name] += weight * leaf.grad
    return loss, gradients


def assert_gradients_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, wanted in expected.items():
        assert actual[name].shape == wanted.shape, name
        assert torch.allclose(actual[name], wanted, rtol=1e-9, atol=1e-9), (name, actual[name], wanted)
