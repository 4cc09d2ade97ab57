"""What flows back from a contraction to its operands: against enumeration, Pyro and the result itself."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import subprocess
import sys

import numpy as np
import opt_einsum
import pytest
import torch
from hypothesis import assume, given, settings
from pyro.ops import contract as pyro_contract
from pyro.ops.einsum import adjoint as pyro_adjoint
from scipy import stats

from sumprod.errors import SupportError
from sumprod.ops import packed
from sumprod.ops.contract import einsum, naive_ubersum
from sumprod.ops.einsum import adjoint as our_adjoint
from sumprod.ops.einsum import contract
from sumprod.ops.einsum.adjoint import SAMPLE_SYMBOL, require_backward
from tests.ops.test_contract import operands_for, terms_and_sizes
from tests.oracles.plated import log_total

LOG, MAP, SAMPLE, MARGINAL = (f"sumprod.ops.einsum.torch_{n}" for n in ("log", "map", "sample", "marginal"))
SIZES = {"a": 2, "b": 3, "c": 2, "d": 4, "p": 4, "q": 2}
INF = float("inf")


def told(equation, operands, backend, plates="", adjoint=our_adjoint):
    """The result of an equation with one output, and what flows back to all operands."""
    for operand in operands:
        adjoint.require_backward(operand)
    run = einsum if adjoint is our_adjoint else pyro_contract.einsum
    (result,) = run(equation, *operands, plates=plates, backend=backend, modulo_total=True)
    result._pyro_backward()
    return result, [operand._pyro_backward_result for operand in operands]


def score(terms, operands, values):
    """The log-weight of the assignment that the operands were told, total over all plate slices."""
    total = 0.0
    for term, operand, told_values in zip(terms, operands, values, strict=True):
        if told_values is None:
            total += operand.sum()
            continue
        slices = told_values._pyro_dims[1:]
        chosen = dict(zip(told_values._pyro_sample_dims, told_values, strict=True))
        grid = np.indices(told_values.shape[1:])
        chosen.update(zip(slices, map(torch.as_tensor, grid), strict=True))
        total += operand[tuple(chosen[dim] for dim in term)].sum()
    return total


CASES = [
    ("a,ab->", ""),
    ("a,ab,bc->", ""),
    ("a,abp->", "p"),
    ("a,ap,bp->", "p"),
    ("ap->", "p"),
    ("ap->p", "p"),
    ("a,abp->a", "p"),
    ("ab->a", ""),
    ("p->", "p"),
    ("a,abp,bcpq,cpq->", "pq"),
    ("a,abq,acpq->", "pq"),
]


@pytest.mark.parametrize("name", ["map", "sample", "marginal"])
@pytest.mark.parametrize(("equation", "plates"), CASES)
def test_backward_against_pyro(equation, plates, name):
    backend = f"pyro.ops.einsum.torch_{name}"
    terms = equation.split("->")[0].split(",")
    theirs = told(equation, operands_for(terms, SIZES), backend, plates, pyro_adjoint)
    ours = told(equation, operands_for(terms, SIZES), backend, plates)
    torch.testing.assert_close(ours[0], theirs[0])
    for term, found, expected in zip(terms, ours[1], theirs[1], strict=True):
        if name == "marginal":
            torch.testing.assert_close(found, expected)
            assert found._pyro_dims == term
        elif expected is None:
            assert found is None
        else:
            assert found._pyro_dims == expected._pyro_dims
            assert found.shape == expected.shape
            assert found.dtype == expected.dtype == torch.int64
            order = [found._pyro_sample_dims.index(dim) for dim in expected._pyro_sample_dims]
            if name == "map":
                assert torch.equal(found[order], expected)


def test_marginals_of_outputs_with_plated_variables_against_pyro():
    terms = ["a", "abp"]
    results = [
        told("a,abp->bp", operands_for(terms, SIZES), "pyro.ops.einsum.torch_marginal", "p", adjoint)[1]
        for adjoint in (our_adjoint, pyro_adjoint)
    ]
    torch.testing.assert_close(*results)


def test_draws_given_plated_variables_are_refused():
    for backend in (MAP, SAMPLE):
        with pytest.raises(
            NotImplementedError, match=r"keeps dim 'b'.* per slice of plate 'p', together with"
        ):
            told("a,abp->bp", operands_for(["a", "abp"], SIZES), backend, "p")
        # Where no variable is outside the plate, its slices are apart.
        _, [values, _] = told("abp,bp->bp", operands_for(["abp", "bp"], SIZES), backend, "p")
        assert values._pyro_dims == " bp"
        assert values._pyro_sample_dims == "a"


def plated_case(case):
    terms, sizes = case
    sizes = {dim: min(size, 2) for dim, size in sizes.items()}
    return terms, operands_for(terms, sizes), sizes


def without_refusal(function, *arguments):
    try:
        return function(*arguments)
    except NotImplementedError:
        assume(False)
    raise AssertionError("unreachable")


@settings(max_examples=60)
@given(terms_and_sizes(max_terms=4))
def test_log_and_marginals_against_enumeration(case):
    terms, operands, sizes = plated_case(case)
    equation = ",".join(terms) + "->"
    (log,) = without_refusal(lambda: einsum(equation, *operands, plates="pqr", backend=LOG))
    (linear,) = einsum(equation, *(operand.exp() for operand in operands), plates="pqr")
    total, marginals = told(equation, operands, MARGINAL, "pqr")
    tables = [operand.numpy() for operand in operands]
    exact = log_total(list(zip(terms, tables, strict=True)), sizes, frozenset("pqr"))
    for value in (log, linear.log(), total):
        assert value.item() == pytest.approx(exact, rel=1e-9, abs=1e-9)
    # One entry of one factor: all assignments that use another entry in this slice are ruled out.
    position = len(terms) - 1
    for cell in itertools.islice(np.ndindex(tables[position].shape), 6):
        table = tables[position].copy()
        rows = tuple(i if dim in "pqr" else slice(None) for i, dim in zip(cell, terms[position], strict=True))
        table[rows] = -np.inf
        table[cell] = tables[position][cell]
        factors = list(zip(terms, [*tables[:position], table], strict=True))
        expected = log_total(factors, sizes, frozenset("pqr"))
        assert marginals[position][cell].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=60)
@given(terms_and_sizes(max_terms=4))
def test_best_assignments_against_unrolled_maxima(case):
    terms, operands, _ = plated_case(case)
    equation = ",".join(terms) + "->"
    best, values = without_refusal(told, equation, operands, MAP, "pqr")
    (expected,) = naive_ubersum(equation, *operands, plates="pqr", backend=MAP)
    torch.testing.assert_close(best, expected)
    torch.testing.assert_close(score(terms, operands, values), best)


def test_marginals_of_any_size():
    # Chains whose unlikely states have probabilities that no float has.
    steps = [torch.tensor([[0.0, -3e3], [-3e3, 0.0]]) for _ in range(5)]
    symbols = "abcdef"
    terms = [x + y for x, y in itertools.pairwise(symbols)]
    prior = torch.tensor([0.0, -2e4])
    _, [found, *_] = told(",".join(["a", *terms]) + "->", [prior, *steps], MARGINAL)
    assert found.tolist() == [0.0, -2e4]
    # Impossible entries, and an impossible total.
    _, [g, f] = told("a,ab->", [torch.tensor([0.0, -INF]), torch.tensor([[0.0, -INF], [1.0, 2.0]])], MARGINAL)
    assert g.tolist() == [0.0, -INF]
    assert f.tolist() == [[0.0, -INF], [-INF, -INF]]
    _, [g, f] = told("a,ap->", [torch.tensor([0.0, -INF]), torch.tensor([[-INF], [0.0]])], MARGINAL, "p")
    assert g.tolist() == [-INF, -INF]
    assert f.tolist() == [[-INF], [-INF]]


def test_marginals_are_differentiable():
    x, y = operands_for(["a", "abp"], {"a": 2, "b": 2, "p": 2})

    def marginals(*values):
        return tuple(told("a,abp->", [value.view_as(value) for value in values], MARGINAL, "p")[1])

    assert torch.autograd.gradcheck(marginals, [x.requires_grad_(), y.requires_grad_()])


def test_draws_follow_the_posterior_in_each_slice():
    # 2 x 3 joint values in each of 3000 alike slices: one call is 3000 draws.
    (prior, slice_table) = operands_for(["b", "bc"], SIZES)
    tables = slice_table.unsqueeze(-1).repeat(1, 1, 3000)
    torch.manual_seed(0)
    _, [_, values] = told("bp,bcp->", [prior.unsqueeze(-1).repeat(1, 3000), tables], SAMPLE, "p")
    assert values._pyro_dims == " p"
    assert values._pyro_sample_dims == "bc"
    counts = torch.bincount(values[0] * 2 + values[1], minlength=6)
    probabilities = (prior[:, None] + slice_table).flatten().softmax(0)
    test = stats.chisquare(counts.numpy(), 3000 * probabilities.numpy())
    assert test.pvalue > 1e-4  # fails for one seed in 10^4
    # Neighbours are independent: the same for pairs of slices.
    pairs = (values[0] * 2 + values[1]).reshape(-1, 2)
    table = torch.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36).reshape(6, 6)
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-4


def test_draws_share_what_is_outside_the_plate():
    # Given a, all slices agree; a itself is a fair coin.
    agree = torch.tensor([[0.0, -INF], [-INF, 0.0]]).unsqueeze(-1).repeat(1, 1, 50)
    prior = torch.zeros(2)
    for operand in (prior, agree):
        require_backward(operand)
    (total,) = einsum("a,abp->", prior, agree, plates="p", backend=SAMPLE)
    drawn = []
    torch.manual_seed(0)
    for _ in range(200):
        total._pyro_backward()  # each call draws anew
        drawn.append(prior._pyro_backward_result.item())
        assert (agree._pyro_backward_result == drawn[-1]).all()
    assert stats.binomtest(sum(drawn), 200).pvalue > 1e-4  # fails for one seed in 10^4


def test_ties_go_to_the_lowest_value():
    _, values = told("ab,bc->", [torch.zeros(2, 3), torch.zeros(3, 2)], MAP)
    assert [value.tolist() for value in values] == [[0, 0], [0, 0]]
    tied = torch.tensor([[1.0, 3.0, 3.0], [3.0, 1.0, 3.0]])
    _, [values] = told("pb->", [tied], MAP, "p")
    assert values.tolist() == [[1, 0]]


def test_impossible_totals_have_no_draws():
    for backend in (MAP, SAMPLE):
        with pytest.raises(SupportError, match="No assignment is possible"):
            told("a,ab->", [torch.tensor([0.0, -INF]), torch.tensor([[-INF], [0.0]])], backend)


def test_impossible_cells_leave_the_others_alone():
    f = torch.tensor([[-INF, 0.0, -INF], [-INF, -INF, -INF], [-INF, -INF, 0.0]])
    g = torch.zeros(3, 4)
    for backend in (MAP, SAMPLE):
        result, [values, below] = told("ab,bc->a", [f, g], backend)
        assert (result == -INF).tolist() == [False, True, False]
        assert values[0, 0] == 1
        assert values[0, 2] == 2
        assert values.min() >= 0
        assert values.max() <= 2
        assert torch.equal(below[0], values[0])
        _, [values] = told("ap->p", [f], backend, "p")
        assert values[0, 1:].tolist() == [0, 2]


def test_results_as_operands():
    f, g = operands_for(["ap", "pb"], SIZES)
    for backend in (MAP, SAMPLE, MARGINAL):
        for operand in (f, g):
            require_backward(operand)
        (inner,) = einsum("ap->", f, plates="pqr", backend=backend)
        (total,) = einsum(",pb->", inner, g, plates="pq", backend=backend)
        total._pyro_backward()
        assert f._pyro_backward_result._pyro_dims == ("ap" if backend == MARGINAL else " p")
        if backend != SAMPLE:
            found = f._pyro_backward_result, g._pyro_backward_result
            torch.testing.assert_close(list(found), told("ap,pb->", [f, g], backend, "p")[1])
        (modulo,) = einsum("ap,b->p", f, g[0], plates="p", backend=backend, modulo_total=True)
        with pytest.raises(NotImplementedError, match="Contract all operands at once"):
            einsum("p->", modulo, backend=backend)


def test_only_what_was_asked_for():
    x, y = operands_for(["ab", "b"], SIZES)
    (total,) = einsum("ab,b->", x, y, backend=SAMPLE)
    assert not hasattr(total, "_pyro_backward")
    require_backward(y)
    (total,) = einsum("ab,b->", x, y, backend=SAMPLE)
    total._pyro_backward()
    assert vars(x) == {}
    assert y._pyro_backward_result._pyro_dims == SAMPLE_SYMBOL
    for backend in ("torch", LOG):
        assert not hasattr(einsum("ab,b->", x, y, backend=backend)[0], "_pyro_backward")


def test_one_tensor_in_several_places():
    (x,) = operands_for(["ab"], {"a": 3, "b": 3})
    _, [found] = told("ab->", [x.clone()], MAP)
    _, [same, _] = told("ab,ab->", [x, x], MAP)
    assert torch.equal(found, same)
    for backend in (MAP, SAMPLE, MARGINAL):
        (twice,) = einsum("ab,bc->", x, x, backend=backend)
        torch.testing.assert_close(twice, einsum("ab,bc->", x, x.clone(), backend=backend)[0])


@pytest.mark.parametrize("backend", [MAP, SAMPLE, MARGINAL])
def test_pair_by_pair_as_in_one_call(backend):
    terms = ["a", "ab", "bc", "cd", "d"]
    operands = operands_for(terms, SIZES)
    equation = ",".join(terms) + "->"
    whole, expected = told(equation, operands, backend)
    torch.manual_seed(0)
    for term, operand in zip(terms, operands, strict=True):
        require_backward(operand)
        operand._pyro_dims = term
    pairwise = opt_einsum.contract(equation, *operands, backend=backend)
    torch.testing.assert_close(pairwise, whole)
    pairwise._pyro_backward()
    found = [operand._pyro_backward_result for operand in operands]
    if backend == SAMPLE:  # all operands know the same draw
        chosen = {}
        for values in found:
            for dim, value in zip(values._pyro_sample_dims, values, strict=True):
                assert chosen.setdefault(dim, value) == value
    else:
        torch.testing.assert_close(found, expected)


# ---- traps


def test_more_symbols_than_letters():
    symbols = [packed.symbol(i) for i in range(120)]
    terms = [a + b for a, b in itertools.pairwise(symbols)]
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in terms]
    equation = ",".join(terms) + "->"
    state = torch.zeros(2, dtype=torch.float64)
    best = torch.zeros(2, dtype=torch.float64)
    for operand in operands:
        state = torch.logsumexp(state[:, None] + operand, 0)
        best = (best[:, None] + operand).amax(0)
    torch.testing.assert_close(contract(equation, *operands, backend=LOG), state.logsumexp(0))
    result, values = told(equation, operands, MAP)
    torch.testing.assert_close(result, best.max())
    torch.testing.assert_close(score(terms, operands, values), result)
    _, marginals = told(equation, operands, MARGINAL)
    torch.testing.assert_close(
        torch.stack([m.logsumexp((0, 1)) for m in marginals]), state.logsumexp(0).expand(119)
    )
    # A star of as many leaves, in one step.
    star = ",".join(symbols[0] + leaf for leaf in symbols[1:]) + "->"
    expected = sum(operand.logsumexp(1) for operand in operands).logsumexp(0)
    torch.testing.assert_close(contract(star, *operands, backend=LOG), expected)


SCRIPT = """
import torch
from sumprod.ops.contract import einsum
from sumprod.ops.einsum.adjoint import require_backward
torch.manual_seed(0)
terms = "g,gap,gbp,abp,bcpq,cpq,d,dr".split(",")
operands = [torch.randn([3] * len(term)) for term in terms]
for operand in operands:
    require_backward(operand)
(total,) = einsum(",".join(terms) + "->", *operands, plates="pqr", backend="sumprod.ops.einsum.torch_sample")
total._pyro_backward()
print(total.item().hex(), [operand._pyro_backward_result.tolist() for operand in operands])
"""


@pytest.mark.host("makes its tensors in another process")
def test_the_same_in_every_process():
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", SCRIPT]
    there = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(SCRIPT, {})
    assert there == here.getvalue() != ""
