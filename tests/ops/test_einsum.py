"""Einsum with one output, in a choice of rings: against dense sums, Pyro and by hand."""

from __future__ import annotations

import importlib

import pytest
import torch

from sumprod.ops.einsum import contract, contract_expression
from tests.ops.test_contract import operands_for

LOG, MAP, SAMPLE, MARGINAL = (f"sumprod.ops.einsum.torch_{n}" for n in ("log", "map", "sample", "marginal"))
BACKENDS = ["torch", LOG, MAP, SAMPLE, MARGINAL]
SIZES = {"a": 2, "b": 3, "c": 2, "d": 4, "p": 4, "q": 2}
INF = float("inf")


# ---- one output, no plates


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "equation", ["ab,bc->ac", "ab,bc->", "ab,bc", "ab->ba", "ab->ab", "ab,bc,ab->ca", ",ab->b", "a,b->ab"]
)
def test_against_dense_sums(equation, backend):
    inputs, _, output = equation.partition("->")
    output = output if "->" in equation else "ac"
    operands = operands_for(inputs.split(","), SIZES)
    before = [operand.clone() for operand in operands]
    result = contract(equation, *operands, backend=backend)
    linear = backend == "torch"
    weights = operands if linear else [operand.exp() for operand in operands]
    scope = output + "".join(sorted(set(inputs) - {",", *output}))
    joint = torch.einsum(f"{inputs}->{scope}", *weights).reshape([SIZES[dim] for dim in output] + [-1])
    expected = joint.amax(-1) if backend == MAP else joint.sum(-1)
    torch.testing.assert_close(result, expected if linear else expected.log())
    assert result._pyro_dims == output
    assert all(result is not operand for operand in operands)
    for operand, original in zip(operands, before, strict=True):
        assert torch.equal(operand, original)


def test_expressions():
    x, y = operands_for(["ab", "bc"], SIZES)
    product = contract_expression("ab, bc", (2, 3), (3, 2))
    assert repr(product) == "Expression('ab,bc->ac', [(2, 3), (3, 2)])"
    assert contract_expression("ab, bc", (2, 3), (3, 2), optimize="greedy") is not None
    assert contract_expression("ab, bc", (2, 3), (3, 2)) is product
    for backend in BACKENDS:
        assert torch.equal(product(x, y, backend=backend), contract("ab,bc->ac", x, y, backend=backend))
    with pytest.raises(
        ValueError, match=r"operands of shapes \[\(2, 3\), \(3, 2\)\], got \[\(3, 2\), \(2, 3\)\]"
    ):
        product(y, x)
    with pytest.raises(ValueError, match="operands of shapes"):
        product(x)
    with pytest.raises(TypeError, match="backend"):
        contract_expression("ab->a", (2, 3), backend=LOG)


def test_errors():
    x, y = torch.zeros(2, 3), torch.zeros(4, 2)
    with pytest.raises(ValueError, match="Expected one output, got 'ab->a,b'"):
        contract("ab->a,b", x)
    with pytest.raises(ValueError, match="Dimension size mismatch at dim 'b': 3 vs 4"):
        contract("ab,bc->", x, y, backend=LOG)
    with pytest.raises(NotImplementedError, match="ellipsis"):
        contract("...a->a", x)
    with pytest.raises(NotImplementedError, match="one of the backends"):
        contract("ab->", x, backend="numpy")
    with pytest.raises(ValueError, match="operands' dims, got 'c'"):
        contract("ab->c", x)
    with pytest.raises(ValueError, match="distinct symbols"):
        contract("aa->a", torch.zeros(2, 2))


# ---- backend modules


@pytest.mark.parametrize("name", ["log", "map", "sample", "marginal"])
def test_modules(name):
    module = importlib.import_module(f"sumprod.ops.einsum.torch_{name}")
    pyro_module = importlib.import_module(f"pyro.ops.einsum.torch_{name}")
    x, y = operands_for(["abc", "cbd"], SIZES)
    x._pyro_dims, y._pyro_dims = "abc", "cbd"  # Pyro's modules want names
    torch.testing.assert_close(module.transpose(x, (2, 0, 1)), x.permute(2, 0, 1))
    equal = module.einsum("abc,cbd->da", x, y)
    torch.testing.assert_close(equal, pyro_module.einsum("abc,cbd->da", x, y))
    assert equal._pyro_dims == "da"
    for axes in ([(1, 2), (1, 0)], [(-2, -1), (1, -3)]):
        torch.testing.assert_close(module.tensordot(x, y, axes=axes), equal.T)
    del x._pyro_dims, y._pyro_dims
    last = module.tensordot(x, y, 1)
    torch.testing.assert_close(last, module.tensordot(x, y, [(2,), (0,)]))
    torch.testing.assert_close(last, module.einsum("abc,cde->abde", x, y))
    with pytest.raises(ValueError, match="zip"):
        module.tensordot(x, y, [(0, 1), (0,)])


@pytest.mark.parametrize("backend", [LOG, SAMPLE, MARGINAL])
def test_the_gradient_of_an_impossible_total_is_zero(backend):
    x = torch.full((2, 3), -INF, requires_grad=True)
    (gradient,) = torch.autograd.grad(contract("ab->", x, backend=backend), x)
    assert gradient.tolist() == [[0.0] * 3] * 2
    y = torch.tensor([[0.0, -INF], [-INF, -INF]], requires_grad=True)
    result = contract("ab,bc->ac", y, y, backend=backend)
    (gradient,) = torch.autograd.grad(result[result > -INF].sum(), y)
    assert gradient.tolist() == [[2.0, 0.0], [0.0, 0.0]]
