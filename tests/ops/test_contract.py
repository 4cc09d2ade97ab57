"""Einsum with plates: against unrolled graphs, which are checked against enumeration, and against Pyro."""

from __future__ import annotations

import itertools
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyro.ops import contract as pyro_contract
from pyro.ops import packed as pyro_packed

from sumprod.ops import packed
from sumprod.ops.contract import (
    contract_tensor_tree,
    contract_to_tensor,
    einsum,
    naive_ubersum,
    ubersum,
)
from tests.oracles.plated import log_total

LOG, MAP, MARGINAL = (f"pyro.ops.einsum.torch_{name}" for name in ("log", "map", "marginal"))
BACKENDS = ["torch", LOG, MAP, MARGINAL]
PLATES = "pqr"


def operands_for(terms, sizes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn([sizes[dim] for dim in term], generator=generator, dtype=dtype) for term in terms]


@st.composite
def terms_and_sizes(draw, max_terms=5):
    """Input terms over up to four variables and three plates."""
    variables = "abcd"[: draw(st.integers(1, 4))]
    sizes = {dim: draw(st.integers(1, 3)) for dim in variables + PLATES}
    term = st.builds(
        lambda v, p: v + p,
        st.lists(st.sampled_from(variables), max_size=3, unique=True),
        st.lists(st.sampled_from(PLATES), max_size=2, unique=True),
    ).flatmap(st.permutations)
    return ["".join(t) for t in draw(st.lists(term, min_size=1, max_size=max_terms))], sizes


@st.composite
def equations(draw):
    """Equations whose outputs have, with each variable, its plates."""
    terms, sizes = draw(terms_and_sizes())
    dims = sorted(set("".join(terms)))
    outputs = []
    for _ in range(draw(st.integers(1, 2))):
        output = draw(st.lists(st.sampled_from(dims), unique=True, max_size=3)) if dims else []
        for variable in [dim for dim in output if dim not in PLATES]:
            home = set(PLATES).intersection(*(term for term in terms if variable in term))
            output += [plate for plate in sorted(home) if plate not in output]
        outputs.append("".join(draw(st.permutations(output))))
    return terms, outputs, sizes


def comparable(tensor, output, backend, always=False):
    """Up to a factor per slice of the output's plates, which `modulo_total` leaves open."""
    if not output or not (always or set(output) & set(PLATES)):
        return tensor
    dims = [i for i, dim in enumerate(output) if dim not in PLATES]
    if not dims:
        return torch.zeros_like(tensor)
    if backend == "torch":
        return tensor / tensor.sum(dims, keepdim=True)
    return tensor - tensor.amax(dims, keepdim=True)


def assert_same(actual, expected, outputs, backend, always=False):
    for output, ours, theirs in zip(outputs, actual, expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(
            comparable(ours, output, backend, always),
            comparable(theirs, output, backend, always),
            rtol=1e-8,
            atol=1e-8,
        )


# ---- the reference


@given(terms_and_sizes(max_terms=3))
def test_naive_against_enumeration(case):
    terms, sizes = case
    sizes = {dim: min(size, 2) for dim, size in sizes.items()}
    operands = operands_for(terms, sizes)
    expected = log_total(
        [(term, operand.numpy()) for term, operand in zip(terms, operands, strict=True)],
        sizes,
        frozenset(PLATES),
    )
    (actual,) = naive_ubersum(",".join(terms) + "->", *operands, plates=PLATES)
    assert actual.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_naive_outputs_by_hand():
    g, f = operands_for(["g", "gxp"], {"g": 2, "x": 3, "p": 2})
    marginal, joint = naive_ubersum("g,gxp->xp,pg", g, f, plates="p")
    for p in range(2):
        other = f[:, :, 1 - p].exp().sum(1)
        expected = (g.exp()[:, None] * f[:, :, p].exp() * other[:, None]).sum(0)
        torch.testing.assert_close(marginal[:, p].exp(), expected)
        torch.testing.assert_close(joint[p].exp(), g.exp() * f.exp().sum(1).prod(-1))


# ---- einsum


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(equations())
def test_against_naive(backend, case):
    terms, outputs, sizes = case
    equation = ",".join(terms) + "->" + ",".join(outputs)
    operands = operands_for(terms, sizes)
    try:
        actual = einsum(equation, *operands, plates=PLATES, backend=backend, modulo_total=True)
    except NotImplementedError:
        assume(False)
    expected = naive_ubersum(equation, *operands, plates=PLATES, backend=backend)
    assert_same(actual, expected, outputs, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(equations())
def test_against_pyro(backend, case):
    terms, outputs, sizes = case
    equation = ",".join(terms) + "->" + ",".join(outputs)
    operands = operands_for(terms, sizes)
    options = {"plates": PLATES, "backend": backend, "modulo_total": True}
    try:
        expected = pyro_contract.einsum(equation, *operands, **options)
    except (ValueError, NotImplementedError, KeyError, IndexError, AssertionError):
        assume(False)
    assert_same(einsum(equation, *operands, **options), expected, outputs, backend, always=True)


DEEP = [  # messages up and down several plates
    ("g,gap,gbq->abpq,gap,ap", "pq"),
    ("g,gap,abpq,bcpqr->cpqr,bpq,ap,g,gap,gcpqr", "pqr"),
    ("ap,bpq,abpq,cpr,apcr->bpq,crp,bcpqr", "pqr"),
    ("g,h,ghap,hbp->abp,ghp", "p"),
    ("g,gap,gp,axpq,gbq,gq->abpq,ap,gbpq", "pq"),  # x is in both plates, b in one
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("equation", "plates"), DEEP)
def test_nested_plates(equation, plates, backend):
    left, outputs = equation.split("->")
    operands = operands_for(left.split(","), dict.fromkeys("abcghxpqr", 2))
    expected = naive_ubersum(equation, *operands, plates=plates, backend=backend)
    actual = einsum(equation, *operands, plates=plates, backend=backend, modulo_total=True)
    assert_same(actual, expected, outputs.split(","), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtype(backend, dtype):
    (result,) = einsum(
        "ab,bc->", *operands_for(["ab", "bc"], dict.fromkeys("abc", 3), dtype=dtype), backend=backend
    )
    assert result.dtype == dtype


def test_numbers_may_be_negative():
    x, y = torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[-1.0, 4.0], [2.0, -5.0]])
    (total,) = einsum("ab,bc->", x, y)
    assert total.item() == (x @ y).sum().item()
    (plated,) = einsum("ab,bc->", x, y, plates="c")
    assert plated.item() == (x.sum(0) * y.prod(1)).sum().item()
    assert einsum("ab->", torch.tensor([[1, -2], [3, 4]]))[0].item() == 6


def test_backends_under_both_names():
    operands = operands_for(["ab", "bp"], dict.fromkeys("abp", 3))
    for name in ("torch_log", "torch_map", "torch_sample", "torch_marginal"):
        ours, theirs = (
            einsum("ab,bp->", *operands, plates="p", backend=f"{package}.ops.einsum.{name}")[0]
            for package in ("sumprod", "pyro")
        )
        assert torch.equal(ours, theirs)
    # Weighted counts: the total of the marginals is the number of factors.
    leaves = [operand.requires_grad_() for operand in operands]
    (total,) = einsum("ab,bp->", *leaves, plates="p", backend="sumprod.ops.einsum.torch_marginal")
    marginals = torch.autograd.grad(total, leaves)
    assert [round(m.sum().item(), 9) for m in marginals] == [1, 3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    operands = operands_for(["g", "gap", "abpq"], {"g": 2, "a": 3, "b": 2, "p": 2, "q": 3})
    leaves = [operand.requires_grad_() for operand in operands]

    def run(*values):
        return einsum("g,gap,abpq->,bpq,ap", *values, plates="pq", backend=backend, modulo_total=True)

    assert torch.autograd.gradcheck(run, leaves)
    if backend != MAP:
        assert torch.autograd.gradgradcheck(run, leaves)


def test_impossible_assignments():
    g, f = torch.tensor([0.0, -np.inf]), torch.tensor([[[0.0, 1.0]], [[-np.inf, 2.0]]])  # gxp
    g.requires_grad_()
    total, local = einsum("g,gxp->,gp", g, f, plates="p", backend=LOG, modulo_total=True)
    assert total.item() == 1.0
    assert local.tolist() == [[1.0, 1.0], [-np.inf, -np.inf]]
    (dead,) = einsum("g,gxp->", torch.full((2,), -np.inf), f, plates="p", backend=LOG)
    assert dead.item() == -np.inf
    dead_leaf = torch.full((2,), -np.inf, requires_grad=True)
    (total,) = einsum("g,gxp->", dead_leaf, f, plates="p", backend=LOG)
    (gradient,) = torch.autograd.grad(total, dead_leaf)
    assert gradient.tolist() == [0.0, 0.0]
    # In all slices but the first there is an impossible value: no NaN from leaving a slice out.
    h = torch.tensor([[[0.0, -np.inf, -np.inf]], [[1.0, -np.inf, 0.0]]])  # gxp with x of size 1
    (result,) = einsum("gxp->gxp", h, plates="p", backend=LOG, modulo_total=True)
    assert torch.equal(result, h)
    joined = einsum("g,gxp->gp", torch.zeros(2), h, plates="p", backend=LOG, modulo_total=True)[0]
    assert joined.tolist() == [[-np.inf] * 3] * 2


def test_plates_of_size_one():
    operands = operands_for(["g", "gap", "apq"], {"g": 2, "a": 2, "p": 1, "q": 1})
    flat = einsum(
        "g,ga,a->,a", operands[0], operands[1][..., 0], operands[2][..., 0, 0], backend=LOG, modulo_total=True
    )
    total, local = einsum("g,gap,apq->,ap", *operands, plates="pq", backend=LOG, modulo_total=True)
    torch.testing.assert_close(total, flat[0])
    torch.testing.assert_close(local, flat[1].unsqueeze(-1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_tensor_in_several_places(backend):
    (x,) = operands_for(["ab"], {"a": 3, "b": 3})
    actual = einsum("ab,bc,ab->a", x, x, x, backend=backend, modulo_total=True)
    expected = einsum("ab,bc,ab->a", x, x.clone(), x.clone(), backend=backend, modulo_total=True)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_operands_are_not_returned_or_changed(backend):
    (x,) = operands_for(["ab"], {"a": 3, "b": 2})
    before = x.clone()
    same, turned = einsum("ab->ab,ba", x, backend=backend, modulo_total=True)
    assert same is not x
    torch.testing.assert_close(same, x)
    torch.testing.assert_close(turned, x.T)
    assert torch.equal(x, before)


def test_more_symbols_than_letters():
    symbols = [packed.symbol(i) for i in range(120)]
    terms = [a + b for a, b in itertools.pairwise(symbols)]
    (x,) = operands_for(["ab"], {"a": 2, "b": 2})
    (actual,) = einsum(",".join(terms) + "->", *[x] * len(terms), backend=LOG)
    state = torch.zeros(2, dtype=torch.float64)
    for _ in terms:
        state = torch.logsumexp(state[:, None] + x, 0)
    torch.testing.assert_close(actual, state.logsumexp(0))


def test_ubersum_takes_plates_by_their_old_name():
    operands = operands_for(["ab", "bp"], dict.fromkeys("abp", 3))
    expected = einsum("ab,bp->", *operands, plates="p", backend=LOG)
    assert ubersum("ab,bp->", *operands, batch_dims="p") == expected
    assert ubersum("ab,bp->", *operands, plates="p", cache={}) == expected
    assert ubersum("ab,bp->", *operands) != expected
    with pytest.raises(ValueError, match="batch_dims is an old name of plates"):
        ubersum("ab,bp->", *operands, plates="p", batch_dims="a")


def test_errors():
    x, y = torch.zeros(2, 3), torch.zeros(4, 2)
    with pytest.raises(ValueError, match="Dimension size mismatch at dim 'b': 3 vs 4"):
        einsum("ab,bc->", x, y)
    with pytest.raises(NotImplementedError, match="ellipsis"):
        einsum("a...->", x)
    with pytest.raises(NotImplementedError, match=r"one of the backends torch, .*got 'numpy'"):
        einsum("ab->", x, backend="numpy")
    with pytest.raises(NotImplementedError, match="Try setting modulo_total=True"):
        einsum("ab->a", x)
    with pytest.raises(NotImplementedError, match="Expected tree-structured plate nesting"):
        einsum(
            "ap,bq,abpq->",
            *operands_for(["ap", "bq", "abpq"], dict.fromkeys("abpq", 2)),
            plates="pq",
            backend=LOG,
        )
    with pytest.raises(ValueError, match=r"Output \[a\] keeps dim 'a'.*per slice of plate 'p'"):
        einsum("ap->a", x, plates="p", modulo_total=True)
    with pytest.raises(ValueError, match="operands' dims, got 'c'"):
        einsum("ab->c", x, modulo_total=True)
    with pytest.raises(ValueError, match="Expected 2 operands"):
        einsum("ab,bc->", x)
    with pytest.raises(ValueError, match="Expected distinct symbols in each term, got 'aa'"):
        einsum("aa->", torch.zeros(2, 2))
    with pytest.raises(ValueError, match="outputs after '->'"):
        einsum("ab", x)
    with pytest.raises(ValueError, match=r"dims 'a' of an operand, got shape \(2, 3\)"):
        einsum("a->", x)
    with pytest.raises(ValueError, match="keeps 'x', of which there is one per slice of plate 'p'"):
        contract_tensor_tree(tree(packed), {"g"})
    with pytest.raises(TypeError, match="floating-point"):
        einsum("ab->", x.long(), backend=LOG)


# ---- trees of packed tensors


def pack(tensor, dims, module=packed):
    return module.pack(tensor.clone(), dict(zip(range(-len(dims), 0), dims, strict=True)))


TREE = [("", "g"), ("p", "gxp"), ("p", "gp"), ("pq", "ypq"), ("r", "zr")]
TREE_SIZES = {"g": 2, "x": 3, "y": 2, "z": 2, "p": 2, "q": 4, "r": 3}


def tree(module):
    result = OrderedDict()
    for (ordinal, dims), tensor in zip(TREE, operands_for([d for _, d in TREE], TREE_SIZES), strict=True):
        result.setdefault(frozenset(ordinal), []).append(pack(tensor, dims, module))
    return result


@pytest.mark.parametrize("sum_dims", ["gxyz", "xyz", "yz", ""])
def test_tensor_tree_against_pyro(sum_dims):
    expected = pyro_contract.contract_tensor_tree(tree(pyro_packed), set(sum_dims))
    actual = contract_tensor_tree(tree(packed), set(sum_dims))

    def summary(found):
        terms = []
        for ordinal, tensors in found.items():
            # Factors of one ordinal that share no summed dim may come multiplied or apart.
            total = 0.0
            for tensor in tensors:
                dims = tensor._pyro_dims
                shape = [tensor.shape[dims.index(d)] if d in dims else 1 for d in TREE_SIZES]
                order = [dims.index(d) for d in TREE_SIZES if d in dims]
                total = total + tensor.permute(order).reshape(shape)
            terms.append((sorted(ordinal), total))
        return dict(sorted(("".join(ordinal), total) for ordinal, total in terms))

    ours, theirs = summary(actual), summary(expected)
    assert list(ours) == list(theirs)
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key])


@pytest.mark.parametrize(
    ("ordinal", "dims"),
    [("", ""), ("p", ""), ("p", "x"), ("p", "gx"), ("", "g"), ("pq", "y"), ("r", "z"), ("pr", "xz")],
)
def test_tensor_against_pyro(ordinal, dims):
    arguments = [set("gxyz"), frozenset(ordinal), set(dims)]
    expected = pyro_contract.contract_to_tensor(tree(pyro_packed), *arguments)
    actual = contract_to_tensor(tree(packed), *arguments)
    assert actual._pyro_dims == "".join(sorted(ordinal + dims))
    assert sorted(expected._pyro_dims) == sorted(actual._pyro_dims)
    expected = expected.permute([expected._pyro_dims.index(dim) for dim in actual._pyro_dims])
    normal = [i for i, dim in enumerate(actual._pyro_dims) if dim in dims]
    if normal:
        actual, expected = (t - t.logsumexp(normal, keepdim=True) for t in (actual, expected))
        torch.testing.assert_close(actual, expected)
    elif not ordinal:
        torch.testing.assert_close(actual, expected)


def test_tensors_constant_along_a_plate_count_once_per_slice():
    x, y = operands_for(["x", "yp"], {"x": 2, "y": 3, "p": 4})
    grouped = {frozenset("p"): [pack(x, "x"), pack(y, "yp")]}
    total = contract_to_tensor(grouped, set("xy"))
    torch.testing.assert_close(total, 4 * x.logsumexp(0) + y.logsumexp(0).sum())
    found = contract_tensor_tree(grouped, set("xy"))
    assert list(found) == [frozenset("p")]
    assert [t._pyro_dims for t in found[frozenset("p")]] == ["p", "p"]


def test_a_plate_of_size_one_vanishes_from_tensors_but_not_from_their_group():
    (x,) = operands_for(["xp"], {"x": 2, "p": 1})
    found = contract_tensor_tree({frozenset("p"): [pack(x, "xp")]}, {"x"})
    [(ordinal, [tensor])] = found.items()
    assert ordinal == frozenset("p")
    assert tensor._pyro_dims == ""
    torch.testing.assert_close(tensor, x.logsumexp(0).squeeze())


def test_trees_leave_their_tensors_alone():
    tensor = pack(torch.randn(2, 3), "ab")
    [found] = contract_tensor_tree({frozenset(): [tensor]}, set())[frozenset()]
    assert found is not tensor
    torch.testing.assert_close(found, tensor)
    assert tensor._pyro_dims == "ab"
    best = contract_to_tensor({frozenset(): [tensor]}, set("ab"), ring=MAP)
    assert best.item() == tensor.max().item()
