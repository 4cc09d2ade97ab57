"""Contraction plans: right for every graph, cheap, repeatable, and honest about what they refuse."""

from __future__ import annotations

import random

import numpy as np
import opt_einsum
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sumprod.ops._plan import NotTreeStructured, Plan, make_plan
from tests.oracles.plated import log_total, variable_plates
from tests.planner.graphs import PLATES, graphs, tables_for


def run(plan: Plan, tables: list[np.ndarray]) -> list[tuple[tuple, np.ndarray]]:
    """Execute a plan on log-tables, step by step; (dims, table) of each result."""
    values = [
        (dims, np.asarray(table, dtype=np.float64)) for dims, table in zip(plan.factors, tables, strict=True)
    ]
    for step in plan.steps:
        scope = list(dict.fromkeys(dim for number in step.inputs for dim in values[number][0]))
        total = np.zeros([plan.sizes[dim] for dim in scope])
        for number in step.inputs:
            dims, table = values[number]
            order = sorted(range(len(dims)), key=lambda i, dims=dims: scope.index(dims[i]))
            shape = [plan.sizes[dim] if dim in dims else 1 for dim in scope]
            total = total + table.transpose(order).reshape(shape)
        for dim in step.variables:
            total = np.logaddexp.reduce(total, axis=scope.index(dim))
            scope.remove(dim)
        for dim in step.plates:
            total = total.sum(axis=scope.index(dim))
            scope.remove(dim)
        order = [scope.index(dim) for dim in step.dims]
        values.append((step.dims, total.transpose(order)))
    return [values[number] for number in plan.results]


@given(graphs(), st.booleans())
def test_against_enumeration(graph, keep_common_plates):
    factors, sizes = graph
    try:
        plan = make_plan(factors, sizes, PLATES, keep_common_plates=keep_common_plates)
    except NotTreeStructured:
        assume(False)
    tables = tables_for(factors, sizes)
    expected = log_total(list(zip(factors, tables, strict=True)), sizes, frozenset(PLATES))
    results = run(plan, tables)
    for dims, _ in results:
        assert set(dims) <= set(PLATES)
        assert keep_common_plates or not dims
    assert sum(table.sum() for _, table in results) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(graphs(), st.data())
def test_kept_variables(graph, data):
    factors, sizes = graph
    home = variable_plates([(dims, None) for dims in factors], frozenset(PLATES))
    unplated = [variable for variable, plates in home.items() if not plates]
    assume(unplated)
    kept = data.draw(st.lists(st.sampled_from(unplated), unique=True, min_size=1))
    try:
        plan = make_plan(factors, sizes, PLATES, kept=kept)
    except NotTreeStructured:
        assume(False)
    tables = tables_for(factors, sizes)
    results = run(plan, tables)
    for values in np.ndindex(*(sizes[dim] for dim in kept)):
        fixed = dict(zip(kept, values, strict=True))
        expected = log_total(list(zip(factors, tables, strict=True)), sizes, frozenset(PLATES), fixed)
        actual = sum(table[tuple(fixed[dim] for dim in dims)] for dims, table in results)
        assert actual == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(graphs())
def test_numbers_of_a_plan(graph):
    factors, sizes = graph
    try:
        plan = make_plan(factors, sizes, PLATES)
    except NotTreeStructured:
        assume(False)
    assert make_plan(factors, sizes, PLATES) is plan
    used = [number for step in plan.steps for number in step.inputs] + list(plan.results)
    # Every factor and every output is used exactly once, after it is there.
    assert sorted(used) == list(range(len(factors) + len(plan.steps)))
    for i, step in enumerate(plan.steps):
        assert all(number < len(factors) + i for number in step.inputs)
    assert plan.flops >= 0
    assert plan.peak_elements >= 0


def test_components_come_apart():
    plan = make_plan(["ab", "c", "bd", "p"], dict.fromkeys("abcdp", 2), "p")
    assert len(plan.results) == 3


def test_common_plates_are_kept_on_request():
    plan = make_plan(["ap", "abpq", "cq"], dict.fromkeys("abcpq", 2), "pq", keep_common_plates=True)
    assert [set(plan.dims(number)) for number in plan.results] == [{"p"}, {"q"}]


def test_crossed_plates_are_refused_with_their_names():
    with pytest.raises(
        NotTreeStructured, match=r"plates 'p', 'q'.*'x' lives in plate 'p'; 'y' lives in plate 'q'"
    ):
        make_plan(["xp", "yq", "xypq"], dict.fromkeys("xypq", 2), "pq")


def test_errors():
    with pytest.raises(ValueError, match="positive size of dim 'b', got none"):
        make_plan(["ab"], {"a": 2})
    with pytest.raises(ValueError, match="must be distinct, got a a"):
        make_plan(["aa"], {"a": 2})
    with pytest.raises(ValueError, match="keeps 'a', of which there is one per slice of plate 'p'"):
        make_plan(["ap"], {"a": 2, "p": 3}, "p", kept="a")


def test_table():
    plan = make_plan(["a", "abp"], {"a": 2, "b": 3, "p": 4}, "p")
    assert repr(plan).splitlines() == [
        "Plan: 2 factors, 3 steps, 36 flops, 80 bytes in float64",
        "step  inputs       sum  reduce  result  flops",
        "#2    #1[a b p]    b    -       [a p]   24",
        "#3    #2[a p]      -    p       [a]     8",
        "#4    #0[a] #3[a]  a    -       []      4",
        "results: #4[]",
    ]


def test_long_plans_are_shown_in_part():
    plan = make_plan([(i, i + 1) for i in range(500)], dict.fromkeys(range(501), 2))
    lines = repr(plan).splitlines()
    assert len(lines) == 2 + 40 + 1 + 1
    assert lines[22] == "... 460 more steps: see table()"
    assert len(plan.table().splitlines()) == 2 + 500 + 1


def test_work_of_the_steps_adds_up():
    chain = [(0,), *((i, i + 1) for i in range(30)), *((i, "p") for i in range(31))]
    plan = make_plan(chain, {**dict.fromkeys(range(31), 3), "p": 7}, "p")
    assert sum(map(plan.work, plan.steps)) == plan.flops


# ---- cost


def greedy_cost(factors, sizes):
    letters = {dim: opt_einsum.get_symbol(i) for i, dim in enumerate(sizes)}
    equation = ",".join("".join(letters[dim] for dim in dims) for dims in factors) + "->"
    shapes = [tuple(sizes[dim] for dim in dims) for dims in factors]
    _, info = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="greedy")
    return float(info.opt_cost)


def k_tree(n, k, seed):
    """Random factors with up to k + 1 binary variables on a graph of treewidth k."""
    rng = random.Random(seed)
    cliques = [tuple(range(k + 1))]
    for vertex in range(k + 1, n):
        cliques.append((*rng.sample(rng.choice(cliques), k), vertex))
    factors = [tuple(rng.sample(clique, rng.randint(2, k + 1))) for clique in cliques]
    return factors, {vertex: 2 for dims in factors for vertex in dims}


CHAIN = [(t, t + 1) for t in range(200)]
GRID = [
    ((i, j), (i + di, j + dj))
    for i in range(6)
    for j in range(12)
    for di, dj in [(0, 1), (1, 0)]
    if i + di < 6 and j + dj < 12
]
BENCHMARK_GRAPHS = {
    "chain": (CHAIN, dict.fromkeys(range(201), 16)),
    "hmm": (CHAIN + [(t,) for t in range(201)], dict.fromkeys(range(201), 16)),
    "second order": ([(t, t + 1, t + 2) for t in range(100)], dict.fromkeys(range(102), 8)),
    "factorial": (
        [(("a", t), ("a", t + 1)) for t in range(60)]
        + [(("b", t), ("b", t + 1)) for t in range(60)]
        + [(("a", t), ("b", t)) for t in range(61)],
        {(c, t): 4 for c in "ab" for t in range(61)},
    ),
    "tree": ([(i, (i - 1) // 2) for i in range(1, 255)], dict.fromkeys(range(255), 8)),
    "star": ([("z", i) for i in range(300)], {"z": 5, **dict.fromkeys(range(300), 3)}),
    "grid": (GRID, {node: 2 for dims in GRID for node in dims}),
    **{f"treewidth {k}, {n}": k_tree(n, k, seed=k) for n in (50, 300) for k in (2, 3, 4)},
}


@pytest.mark.parametrize("name", BENCHMARK_GRAPHS)
def test_not_more_work_than_the_greedy_order_of_opt_einsum(name):
    factors, sizes = BENCHMARK_GRAPHS[name]
    assert make_plan(factors, sizes).flops <= greedy_cost(factors, sizes)


def test_a_long_chain_is_planned_with_linear_work():
    plan = make_plan([(t, t + 1) for t in range(10_000)], dict.fromkeys(range(10_001), 8))
    assert plan.flops <= 10_000 * 2 * 64
    assert plan.peak_elements <= 8 * 10_001
