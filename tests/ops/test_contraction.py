"""The contraction engine against enumeration of every assignment in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from sumprod.ops._plan import NotTreeStructured, make_plan
from sumprod.ops.contraction import contract, draw, sample
from tests import devices
from tests.ops.checks import check_compiled
from tests.oracles.plated import log_total, slices, variable_plates
from tests.planner.graphs import PLATES, graphs, tables_for

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-12}


def tensors_of(tables, dtype=torch.float64):
    return [torch.tensor(table, dtype=dtype) for table in tables]


def total_of(results):
    return sum(value.sum() for _, value in results)


def contracted(tensors, factors, **options):
    """The results, or no example where the graph is refused."""
    try:
        return contract(tensors, factors, PLATES, **options)
    except NotTreeStructured:
        assume(False)
    raise AssertionError("unreachable")


def exact(factors, tables, sizes):
    return log_total(list(zip(factors, tables, strict=True)), sizes, frozenset(PLATES))


def copies_of(factors, sizes):
    """Every copy of every variable: (variable, position in its plates)."""
    home = variable_plates([(dims, None) for dims in factors], frozenset(PLATES))
    return [(variable, where) for variable, plates in home.items() for where in slices(plates, sizes)], home


def scores(factors, tables, sizes):
    """The log-weight of every assignment: {values of all copies: score}."""
    copies, home = copies_of(factors, sizes)
    found = {}
    for values in itertools.product(*(range(sizes[variable]) for variable, _ in copies)):
        chosen = dict(zip(copies, values, strict=True))
        score = 0.0
        for dims, table in zip(factors, tables, strict=True):
            plates = [dim for dim in dims if dim in PLATES]
            for where in slices(plates, sizes):
                at = dict(zip(plates, where, strict=True))
                score += table[
                    tuple(
                        at[dim] if dim in PLATES else chosen[dim, tuple(at[plate] for plate in home[dim])]
                        for dim in dims
                    )
                ]
        found[values] = score
    return copies, home, found


def values_of(drawn, copies, home):
    """The values that `sample` returned, in the order of the copies."""
    result = []
    for variable, where in copies:
        plates, values = drawn[variable]
        at = dict(zip(home[variable], where, strict=True))
        result.append(int(values[tuple(at[plate] for plate in plates)]))
    return tuple(result)


# ---- totals


@pytest.mark.parametrize("dtype", DTYPES)
@given(graph=graphs(), spread=st.sampled_from([0.0, 1.0, 30.0, 3000.0]), common=st.booleans())
def test_totals(dtype, graph, spread, common):
    factors, sizes = graph
    tables = [np.float32(spread * table).astype(np.float64) for table in tables_for(factors, sizes)]
    results = contracted(tensors_of(tables, dtype), factors, keep_common_plates=common)
    assert all(value.dtype == dtype for _, value in results)
    # Rounding is relative to the largest intermediate sum, not to a total that may cancel.
    size = 1.0 + max(spread, 1.0) * 10
    expected = exact(factors, tables, sizes)
    assert float(total_of(results)) == pytest.approx(expected, abs=TOLERANCE[dtype] * size)


@pytest.mark.parametrize("dtype", DTYPES)
@given(graph=graphs(), chance=st.sampled_from([0.1, 0.4, 1.0]))
def test_impossible_assignments(dtype, graph, chance):
    factors, sizes = graph
    rng = np.random.default_rng(1)
    tables = [
        np.where(rng.random(table.shape) < chance, -np.inf, table) for table in tables_for(factors, sizes)
    ]
    leaves = [tensor.requires_grad_() for tensor in tensors_of(tables, dtype)]
    total = total_of(contracted(leaves, factors))
    with np.errstate(invalid="ignore"):
        expected = exact(factors, tables, sizes)
    if expected == -np.inf:
        assert total.item() == -np.inf
    else:
        assert total.item() == pytest.approx(expected, abs=TOLERANCE[dtype] * 50)
    total.backward()
    for leaf in leaves:
        assert leaf.grad is None or leaf.grad.isfinite().all()
        assert leaf.grad is None or (leaf.grad[leaf == -np.inf] == 0).all()


@given(graphs())
def test_maxima(graph):
    factors, sizes = graph
    tables = tables_for(factors, sizes)
    best = max(scores(factors, tables, sizes)[2].values())
    assert float(total_of(contracted(tensors_of(tables), factors, maximise=True))) == pytest.approx(best)


def test_kept_dims_by_hand():
    g, f = torch.randn(2, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    # What is kept connects nothing: the two factors come apart.
    results = contract([g, f], ["g", "gxp"], "p", kept="g")
    assert [dims for dims, _ in results] == [("g",), ("g",)]
    torch.testing.assert_close(results[0][1] + results[1][1], g + f.logsumexp(1).sum(-1))
    [(dims, value)] = contract([f], ["gxp"], "p", kept="xp")
    assert set(dims) == {"x", "p"}
    torch.testing.assert_close(value.permute([dims.index("x"), dims.index("p")]), f.logsumexp(0))


def test_half_types_are_computed_in_float32():
    f = torch.randn(4, 5).bfloat16()
    [(_, value)] = contract([f], ["ab"])
    assert value.dtype == torch.bfloat16
    assert torch.equal(value, f.float().logsumexp((0, 1)).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(dtype):
    g = torch.randn(3, dtype=dtype)
    f = torch.randn(4, 2, 3, dtype=dtype).permute(2, 1, 0)  # gxp
    h = torch.randn(3, 1, dtype=dtype).expand(3, 4)  # gp, constant in p
    assert 0 in h.stride()
    before = [tensor.clone() for tensor in (g, f, h)]
    for maximise in (False, True):
        [(_, views)] = contract([g, f, h], ["g", "gxp", "gp"], "p", maximise=maximise)
        [(_, copies)] = contract(
            [tensor.clone(memory_format=torch.contiguous_format) for tensor in (g, f, h)],
            ["g", "gxp", "gp"],
            "p",
            maximise=maximise,
        )
        assert torch.equal(views, copies)
    for tensor, old in zip((g, f, h), before, strict=True):
        assert torch.equal(tensor, old)


# ---- derivatives


@settings(max_examples=40)
@given(graphs())
def test_gradients_are_marginals(graph):
    factors, sizes = graph
    tables = tables_for(factors, sizes)
    leaves = [tensor.requires_grad_() for tensor in tensors_of(tables)]
    gradients = torch.autograd.grad(total_of(contracted(leaves, factors)), leaves)
    step = 1e-5
    for i, gradient in enumerate(gradients):
        for where in np.ndindex(tables[i].shape):
            moved = []
            for sign in (1, -1):
                other = [table.copy() for table in tables]
                other[i][where] += sign * step
                moved.append(exact(factors, other, sizes))
            assert gradient[where].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-8)
            break  # one element per factor: each costs two enumerations


PLATED = (["g", "gap", "abpq", "bpq"], {"g": 2, "a": 2, "b": 3, "p": 2, "q": 2})


def test_gradients_are_contiguous_tensors_of_their_own():
    scalar = torch.zeros((), requires_grad=True)
    turned = torch.randn(4, 3).t().requires_grad_()
    repeated = torch.randn(4).requires_grad_()
    spread = repeated.expand(3, 4)
    totals = contract([scalar, turned, spread], ["", "ab", "ab"])
    factors = [scalar, turned, spread]
    gradients = torch.autograd.grad(torch.stack([total for _, total in totals]).sum(), factors)
    for gradient, factor in zip(gradients, factors, strict=True):
        assert gradient.shape == factor.shape
        assert (gradient.dtype, gradient.device) == (factor.dtype, factor.device)
        assert gradient.is_contiguous()
        assert gradient.untyped_storage().nbytes() == 4 * factor.numel()
    torch.testing.assert_close(gradients[1], (turned + spread).detach().flatten().softmax(0).reshape(3, 4))
    assert gradients[1].data_ptr() != gradients[2].data_ptr()


def test_first_and_second_derivatives():
    factors, sizes = PLATED
    leaves = [tensor.requires_grad_() for tensor in tensors_of(tables_for(factors, sizes))]

    def run(*tensors):
        return total_of(contract(tensors, factors, "pq"))

    def kept(*tensors):
        return [value for _, value in contract(tensors, factors, "pq", kept="g")]

    for function in (run, kept):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


# ---- draws


@settings(max_examples=60)
@given(graphs())
def test_the_most_probable_assignment(graph):
    factors, sizes = graph
    tables = tables_for(factors, sizes)
    copies, home, found = scores(factors, tables, sizes)
    try:
        best = sample(tensors_of(tables), factors, PLATES, maximise=True)
    except NotTreeStructured:
        assume(False)
    assert found[values_of(best, copies, home)] == pytest.approx(max(found.values()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("factors", "plates"),
    [(["a", "ab", "bc"], ""), (["g", "gap", "gp"], "p"), (["ap", "p"], "p"), (["g", "gap", "abpq"], "pq")],
    ids=str,
)
def test_draws_have_the_posterior_frequencies(factors, plates, dtype):
    sizes = dict.fromkeys("abcgpq", 2)
    tables = tables_for(factors, sizes, seed=3)
    if factors[0] != "g":
        tables[0][(0,) * tables[0].ndim] = -np.inf
    copies, home, found = scores(factors, tables, sizes)
    count = 1500
    seen = dict.fromkeys(found, 0)
    generator = devices.generator(11)
    tensors = tensors_of(tables, dtype)
    for _ in range(count):
        seen[values_of(sample(tensors, factors, plates, generator=generator), copies, home)] += 1
    weights = np.exp(np.array(list(found.values())))
    expected = count * weights / weights.sum()
    observed = np.array(list(seen.values()), dtype=float)
    assert (observed[expected == 0] == 0).all()
    # Rare assignments together, so that chi-square holds; fails by chance once in 1,000,000.
    rare = expected < 5
    pooled = [np.append(part[~rare], part[rare].sum()) for part in (observed, expected)]
    if pooled[1][-1] == 0:
        pooled = [part[:-1] for part in pooled]
    if len(pooled[1]) > 1:
        assert stats.chisquare(*pooled).pvalue > 1e-6


def test_equal_uniforms_give_equal_draws():
    factors, sizes = PLATED
    tensors = tensors_of(tables_for(factors, sizes))
    count = make_plan(factors, sizes, "pq").uniforms
    uniforms = torch.rand(count, dtype=torch.float64)
    first, second = (sample(tensors, factors, "pq", uniforms=uniforms) for _ in range(2))
    for variable, (plates, values) in first.items():
        assert values.dtype == torch.int64
        assert list(values.shape) == [sizes[plate] for plate in plates]
        assert torch.equal(values, second[variable][1])
        assert values.min() >= 0
        assert values.max() < sizes[variable]
    with pytest.raises((ValueError, RuntimeError), match="uniforms"):
        sample(tensors, factors, "pq", uniforms=uniforms[:-1])


# ---- one result, whatever the number of threads


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_a_bit(dtype):
    factors = ["g", "gap", "abpq", "bcpq"]
    sizes = {"g": 3, "a": 7, "b": 9, "c": 5, "p": 33, "q": 17}
    tensors = tensors_of(tables_for(factors, sizes), dtype)
    uniforms = torch.rand(make_plan(factors, sizes, "pq").uniforms, dtype=torch.float64)
    outcomes = []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        [(_, total)] = contract(leaves, factors, "pq")
        gradients = torch.autograd.grad(total, leaves)
        draws = [values for _, values in sample(tensors, factors, "pq", uniforms=uniforms).values()]
        outcomes.append([total.detach(), *gradients, *draws])
    for outcome in outcomes[1:]:
        for value, first in zip(outcome, outcomes[0], strict=True):
            assert torch.equal(value, first)


# ---- errors


def test_errors():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="at least one, got 0 and 0"):
        contract([], [])
    with pytest.raises(ValueError, match="as many lists of dims as tensors"):
        contract([x], ["ab", "bc"])
    with pytest.raises(TypeError, match=r"factor 0 to be a floating-point tensor, got torch.int64"):
        contract([x.long()], ["ab"])
    with pytest.raises(TypeError, match="factor 1 to be a floating-point tensor, got float"):
        contract([x, 1.0], ["ab", ""])
    with pytest.raises(ValueError, match=r"factor 0 has shape \(2, 3\), but dims 'a'"):
        contract([x], ["a"])
    with pytest.raises(ValueError, match="Dimension size mismatch at dim 'b': 3 vs 2 in factor 1"):
        contract([x, x], ["ab", "bc"])
    with pytest.raises(ValueError, match=f"factor 1 is on meta, factor 0 on {x.device}"):
        contract([x, x.to("meta")], ["ab", "ab"])
    with pytest.raises(NotTreeStructured, match="Expected tree-structured plate nesting"):
        contract([torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2, 2, 2)], ["ap", "bq", "abpq"], "pq")
    with pytest.raises(ValueError, match="must be distinct"):
        contract([torch.zeros(2, 2)], ["aa"])


def test_second_derivative_with_a_component_of_constants() -> None:
    a = torch.randn(3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64)

    def total(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([value for _, value in contract([x, b], ["a", "b"])]).sum()

    assert torch.autograd.gradgradcheck(total, (a,))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_a_draw_comes_with_its_totals(dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in [(3,), (3, 2, 4), (5,)]]
    arguments = tensors, ["a", "abp", "c"], "p"
    uniforms = torch.rand(6, dtype=torch.float64, generator=generator)
    totals, values = draw(*arguments, uniforms=uniforms)
    for (dims, total), (expected_dims, expected) in zip(totals, contract(*arguments), strict=True):
        assert dims == expected_dims == ()
        assert total.dtype == dtype
        torch.testing.assert_close(total, expected)
    same = sample(*arguments, uniforms=uniforms)
    assert {name: plates for name, (plates, _) in values.items()} == {"a": (), "b": ("p",), "c": ()}
    assert all(torch.equal(values[name][1], same[name][1]) for name in "abc")
    best = draw(*arguments, maximise=True)
    a, b, c = (best.values[name][1] for name in "abc")
    score = tensors[0][a] + tensors[1][a, b, torch.arange(4)].sum()
    torch.testing.assert_close(best.totals[0][1], score.to(dtype))
    torch.testing.assert_close(best.totals[1][1], tensors[2][c])


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("maximise", [False, True])
def test_inside_a_compiled_program(maximise):
    """The plan is a constant of the program; one tensor in two places and missing dims included."""
    first, pair = torch.randn(4, 3), torch.randn(3, 3)

    def total(first, pair):
        tensors, dims = [first, pair, pair], [("p", "a"), ("p", "a", "b"), ("p", "b", "c")]
        [(_, value)] = contract(tensors, dims, ["p"], maximise=maximise)
        return 2 * value

    if maximise:
        compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(first, pair), total(first, pair))
    else:
        check_compiled(total, (first, pair))
