"""Rings of packed tensors, against Pyro's and by hand."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict

import pytest
import torch
from pyro.ops import contract as pyro_contract
from pyro.ops import rings as pyro_rings
from pyro.ops.einsum import adjoint as pyro_adjoint

from sumprod.ops import rings
from sumprod.ops.contract import contract_tensor_tree, contract_to_tensor
from sumprod.ops.einsum import adjoint as our_adjoint
from sumprod.ops.einsum.adjoint import require_backward
from sumprod.ops.rings import LinearRing, LogRing, MapRing, MarginalRing, Ring, SampleRing

NAMES = ["LinearRing", "LogRing", "MapRing", "SampleRing", "MarginalRing"]
LOGS = NAMES[1:]
SIZES = {"a": 2, "b": 3, "c": 2, "p": 4, "q": 2}
INF = float("inf")


def packed(dims, seed=0, positive=False):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn([SIZES[dim] for dim in dims], generator=generator, dtype=torch.float64)
    return named(tensor.exp() if positive else tensor, dims)


def named(tensor, dims):
    tensor._pyro_dims = dims
    return tensor


def assert_same(ours, theirs):
    assert ours._pyro_dims == theirs._pyro_dims
    torch.testing.assert_close(ours, theirs)


OPERATIONS = {
    "sum of a product": lambda ring, x, y: ring.sumproduct([x, y], "ab"),
    "dims as a set": lambda ring, x, y: ring.sumproduct([y, x], {"b"}),
    "nothing summed": lambda ring, x, y: ring.sumproduct([y, x], ()),
    "one term": lambda ring, x, y: ring.sumproduct([y], ""),
    "a term twice": lambda ring, x, y: ring.sumproduct([x, x], "q"),
    "a dim that no term has": lambda ring, x, y: ring.sumproduct([x], "az"),
    "product": lambda ring, x, y: ring.product(x, frozenset("q")),
    "product along two": lambda ring, x, y: ring.product(x, frozenset("aqz")),
    "product along none": lambda ring, x, y: ring.product(y, frozenset("p")),
    "broadcast": lambda ring, x, y: ring.broadcast(y, frozenset("qp")),
    "broadcast of a part": lambda ring, x, y: ring.broadcast(x, frozenset("qp")),
    "inverse": lambda ring, x, y: ring.inv(x),
    "global": lambda ring, x, y: ring.global_local(x, frozenset("ab"), frozenset("q"))[0],
    "local": lambda ring, x, y: ring.global_local(x, frozenset("b"), frozenset("q"))[1],
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_against_pyro(name, operation):
    x, y = packed("abq", positive=name == "LinearRing"), packed("b", 1)
    ours, theirs = (
        OPERATIONS[operation](getattr(module, name)(cache={}, dim_to_size=SIZES), x, y)
        for module in (rings, pyro_rings)
    )
    assert_same(ours, theirs)
    assert ours is not x
    assert ours is not y


@pytest.mark.parametrize("name", NAMES)
def test_the_same_classes_as_pyro(name):
    ours, theirs = getattr(rings, name), getattr(pyro_rings, name)
    assert [c.__name__ for c in theirs.__mro__[:-1]] == [
        c.__name__ for c in ours.__mro__ if c.__module__ == rings.__name__ and c is not rings.SemiringRing
    ]
    assert {key: ring.__name__ for key, ring in rings.BACKEND_TO_RING.items() if "sumprod" not in key} == {
        key: ring.__name__ for key, ring in pyro_rings.BACKEND_TO_RING.items()
    }
    with pytest.raises(TypeError, match="abstract"):
        Ring()


# ---- zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_of_zero(dtype):
    largest = torch.finfo(dtype).max
    zero = named(torch.tensor([-INF, 0.0, 2.0], dtype=dtype), "b")
    assert LogRing().inv(zero).tolist() == [largest, 0.0, -2.0]
    linear = named(torch.tensor([0.0, -0.0, 2.0, -4.0], dtype=dtype, requires_grad=True), "b")
    inverse = LinearRing().inv(linear)
    assert inverse.tolist() == [largest, largest, 0.5, -0.25]
    inverse.sum().backward()
    assert linear.grad.tolist() == [0.0, 0.0, -0.25, -0.0625]


@pytest.mark.parametrize("name", NAMES)
def test_split_of_a_term_with_zeros(name):
    ring = getattr(rings, name)()
    term = packed("abp")
    term = term.exp() if name == "LinearRing" else term
    zero = 0.0 if name == "LinearRing" else -INF
    term[0, :, 1] = zero  # this slice is zero as a whole
    term[1, 2, 0] = zero
    named(term.requires_grad_(), "abp")
    outside, inside = ring.global_local(term, frozenset("b"), frozenset("p"))
    assert (inside == zero).sum() == 4
    assert inside[0, :, 1].tolist() == [zero] * 3
    assert outside[0] == zero
    assert torch.isfinite(outside[1])
    # Together they are the term again.
    total = ring.sumproduct([term], "b")
    torch.testing.assert_close(ring.sumproduct([inside, total], ""), named(term.detach(), "abp"))
    finite = inside[inside > zero].sum()
    (gradient,) = torch.autograd.grad(finite, term)
    assert torch.isfinite(gradient).all()
    assert gradient[0, :, 1].tolist() == [0.0] * 3


# ---- caches


def test_results_are_remembered():
    cache = {}
    x = packed("ab")
    first = LogRing(cache=cache).sumproduct([x], "a")
    assert LogRing(cache=cache).sumproduct([x], {"a"}) is first
    # Another ring, other dims, another cache.
    assert MapRing(cache=cache).sumproduct([x], "a") is not first
    assert LogRing(cache=cache).sumproduct([x], "b") is not first
    assert LogRing().sumproduct([x], "a") is not first
    assert (
        LogRing(cache, {"p": 2}).broadcast(x, "p").shape != LogRing(cache, {"p": 3}).broadcast(x, "p").shape
    )


def test_remembered_results_are_never_stale():
    cache = {}
    ring = LogRing(cache=cache)
    for value in range(50):  # each tensor would get the memory, and the id, of the one before
        assert ring.sumproduct([named(torch.full((1,), float(value)), "a")], "a").item() == value
    assert len(cache) == 50
    x = named(torch.zeros(3), "a")
    assert ring.product(x, "a").item() == 0.0
    x += 1
    assert ring.product(x, "a").item() == 3.0
    x._pyro_dims = "b"
    assert ring.product(x, "a").shape == (3,)
    y = packed("ab").requires_grad_()
    with torch.no_grad():
        ring.sumproduct([named(y, "ab")], "a")
    assert ring.sumproduct([y], "a").requires_grad
    z = packed("ab")
    assert not hasattr(SampleRing(cache).sumproduct([z], "a"), "_pyro_backward")
    require_backward(z)
    assert hasattr(SampleRing(cache).sumproduct([z], "a"), "_pyro_backward")
    with torch.inference_mode():
        assert ring.product(named(torch.ones(3), "a"), "a").item() == 3.0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_alive_by_itself(name):
    ring = getattr(rings, name)(dim_to_size=SIZES)
    term = packed("abp")
    require_backward(term)
    results = [ring.sumproduct([term], ""), ring.product(term, ""), ring.broadcast(term, "p"), ring.inv(term)]
    alive = [weakref.ref(term), *(weakref.ref(result) for result in results)]
    gc.disable()
    try:
        del term, results
        assert all(reference() is not None for reference in alive)  # the cache holds them
        del ring
        assert all(reference() is None for reference in alive)
    finally:
        gc.enable()


# ---- what flows back


def tell(name, module, adjoint, build):
    """What flows back to the terms `build` contracts, per dims of the term."""
    ring = getattr(module, name)(cache={}, dim_to_size=SIZES)
    terms = [packed("a"), packed("abp", 1), packed("cp", 2)]
    for term in terms:
        adjoint.require_backward(term)
    for result in build(ring, *terms):
        result._pyro_backward()
    return {term._pyro_dims: term._pyro_backward_result for term in terms}


def step_by_step(ring, f, g, h):
    messages = [ring.product(ring.sumproduct([term], dim), "p") for term, dim in ((g, "b"), (h, "c"))]
    return [ring.sumproduct([f, *messages], "a")]


def tree_of(f, g, h):
    return OrderedDict({frozenset(): [f], frozenset("p"): [g, h]})


BUILDS = {
    "step by step": (step_by_step, step_by_step),
    "tree": tuple(
        lambda ring, *terms, contract=contract: [
            result for group in contract(tree_of(*terms), set("abc"), ring=ring).values() for result in group
        ]
        for contract in (contract_tensor_tree, pyro_contract.contract_tensor_tree)
    ),
    "tensor": tuple(
        lambda ring, *terms, contract=contract: [contract(tree_of(*terms), set("abc"), ring=ring)]
        for contract in (contract_to_tensor, pyro_contract.contract_to_tensor)
    ),
}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", ["MapRing", "SampleRing", "MarginalRing"])
def test_backward_against_pyro(name, build):
    torch.manual_seed(0)
    ours = tell(name, rings, our_adjoint, BUILDS[build][0])
    theirs = tell(name, pyro_rings, pyro_adjoint, BUILDS[build][1])
    for dims, expected in theirs.items():
        if name == "MarginalRing":
            assert_same(ours[dims], named(expected, dims))
            continue
        assert ours[dims]._pyro_dims == expected._pyro_dims
        assert ours[dims].dtype == torch.int64
        assert ours[dims].shape == expected.shape
        order = [ours[dims]._pyro_sample_dims.index(dim) for dim in expected._pyro_sample_dims]
        if name == "MapRing":
            assert torch.equal(ours[dims][order], expected)
    if name == "SampleRing":  # both factors saw the same draw of a
        assert ours["abp"]._pyro_sample_dims == "ab"
        assert torch.equal(ours["abp"][0], ours["a"].expand(4))


def test_each_cell_of_a_result_has_draws_of_its_own():
    # Given b, the sum over a is of one term only: the draw says which.
    table = torch.full((2, 3), -INF).scatter(0, torch.tensor([[1, 0, 1]]), 0.0)
    x, y = named(table, "ab"), named(torch.zeros(3, 4), "bp")
    for ring in (SampleRing(), MapRing()):
        require_backward(x)
        ring.sumproduct([x, y], "a")._pyro_backward()
        assert x._pyro_backward_result._pyro_dims == " b"
        assert x._pyro_backward_result._pyro_sample_dims == "a"
        assert x._pyro_backward_result.tolist() == [[1, 0, 1]]
        ring.product(ring.broadcast(ring.sumproduct([x], "a"), "b"), "b")._pyro_backward()
        assert x._pyro_backward_result.tolist() == [[1, 0, 1]]


def test_a_broadcast_term_is_drawn_in_each_slice():
    torch.manual_seed(0)
    x = named(torch.zeros(2), "a")
    require_backward(x)
    ring = SampleRing(dim_to_size={"p": 64})
    ring.product(ring.broadcast(ring.sumproduct([x], "a"), "p"), "p")._pyro_backward()
    assert x._pyro_backward_result._pyro_dims == " p"
    assert 16 < x._pyro_backward_result.sum() < 48  # fails once in 10^4 seeds


# ---- errors


def test_errors():
    ring = LogRing(dim_to_size={"p": 2})
    with pytest.raises(ValueError, match="at least one term"):
        ring.sumproduct([], "a")
    with pytest.raises(KeyError, match=r"sizes of plates \['q'\] in dim_to_size, got {'p': 2}"):
        ring.broadcast(packed("a"), frozenset("pq"))
    for operation in (ring.inv, lambda x: ring.product(x, "p"), lambda x: ring.sumproduct([x], "a")):
        with pytest.raises(TypeError, match=r"Expected packed tensors.*got shape \(3,\) without"):
            operation(torch.zeros(3))
    x = packed("a")
    require_backward(x)
    with pytest.raises(ValueError, match="call it on a result"):
        x._pyro_backward()


def test_the_engine_refuses_rings_it_does_not_know():
    class Noisy(LogRing):
        def sumproduct(self, terms, dims):
            return super().sumproduct(terms, dims) + 1

    with pytest.raises(TypeError, match=r"Expected a ring of sumprod\.ops\.rings itself, got a Noisy"):
        contract_tensor_tree({frozenset(): [packed("a")]}, {"a"}, ring=Noisy())
    with pytest.raises(NotImplementedError, match="one of the backends"):
        contract_to_tensor({frozenset(): [packed("a")]}, {"a"}, ring="LogRing")


@pytest.mark.parametrize("ring", [LogRing, MarginalRing, SampleRing, MapRing, LinearRing])
def test_ring_instances_in_tree_contractions(ring):
    tree = {frozenset(): [packed("a", positive=True)], frozenset("p"): [packed("abp", 1, positive=True)]}
    (total,) = contract_tensor_tree(tree, set("ab"), ring=ring())[frozenset()]
    expected = pyro_contract.contract_to_tensor(
        OrderedDict(tree), set("ab"), ring=getattr(pyro_rings, ring.__name__)()
    )
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(contract_to_tensor(tree, set("ab"), ring=ring()), expected)
