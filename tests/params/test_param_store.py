"""The parameter store: values, leaves, initial values."""

from __future__ import annotations

import gc
import threading
import time
import timeit

import pytest
import torch
from torch.distributions import constraints, transform_to

from sumprod.params import ParamStoreDict
from tests.params.cases import IDS, INITS


@pytest.fixture
def store() -> ParamStoreDict:
    return ParamStoreDict()


# Access.


@pytest.mark.parametrize(("constraint", "init"), INITS, ids=IDS)
def test_value_and_leaf(
    store: ParamStoreDict, constraint: constraints.Constraint, init: torch.Tensor
) -> None:
    value = store.get_param("x", init, constraint)
    leaf = value.unconstrained()
    torch.testing.assert_close(value.detach(), init, rtol=1e-5, atol=1e-6)
    expected = transform_to(constraint)(leaf)
    assert value.equal(expected)
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert leaf.is_contiguous()
    assert dict(store.named_parameters()) == {"x": leaf}
    assert store.param_name(leaf) == "x"
    again = store.get_param("x")
    assert again.equal(value)
    assert again.unconstrained() is leaf
    # Training the leaf moves the value.
    (again * torch.randn(again.shape)).sum().backward()
    assert leaf.grad is not None
    before = value.detach().clone()
    with torch.no_grad():
        leaf.add_(torch.rand(leaf.shape))
    assert not store["x"].equal(before)


@pytest.mark.parametrize("constraint", [constraints.simplex, constraints.independent(constraints.simplex, 1)])
def test_the_fast_simplex_is_the_transform(store: ParamStoreDict, constraint: constraints.Constraint) -> None:
    draw = torch.Generator().manual_seed(0)
    init = torch.rand(5, 7, 4, dtype=torch.float64, generator=draw)
    value = store.get_param("x", init / init.sum(-1, keepdim=True), constraint)
    leaf = value.unconstrained()
    with torch.no_grad():
        leaf.mul_(50)  # from 1e-40 to 1 - 1e-16
    weights = torch.randn(5, 7, 4, dtype=torch.float64, generator=draw)
    results = []
    for one in (store["x"], transform_to(constraint)(leaf)):
        (gradient,) = torch.autograd.grad((one * weights).sum(), leaf)
        results.append((one, gradient))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-15)


def test_the_fast_positive_has_the_bits_of_the_transform(store: ParamStoreDict) -> None:
    init = torch.rand(1000, dtype=torch.float64) * 10
    value = store.get_param("x", init, constraints.positive)
    leaf = value.unconstrained()
    assert value.equal(transform_to(constraints.positive)(leaf))
    value.sum().backward()
    assert leaf.grad.equal(value)  # exp is its own derivative


def test_real_values_are_the_leaf(store: ParamStoreDict) -> None:
    for constraint in (
        constraints.real,
        constraints.real_vector,
        constraints.independent(constraints.real, 0),
    ):
        value = store.get_param(f"x{constraint}", torch.zeros(2), constraint)
        assert value.unconstrained() is value
        assert value.is_leaf


def test_reading_is_fast(store: ParamStoreDict) -> None:
    """A tenth of one cheap torch operation; ten times the usual margin, for a busy machine."""
    store["x"] = torch.zeros(3)
    operand = torch.zeros(3)
    read = min(timeit.repeat(lambda: store.get_param("x"), number=2000, repeat=7))
    add = min(timeit.repeat(lambda: operand + operand, number=2000, repeat=7))
    assert read < add


def test_unconstrained_is_a_weak_reference(store: ParamStoreDict) -> None:
    value = store.get_param("x", torch.ones(2), constraints.positive)
    del store["x"]
    value = value.detach_()
    gc.collect()
    assert value.unconstrained() is None


def test_init_is_called_only_when_needed(store: ParamStoreDict) -> None:
    calls = []

    def init() -> torch.Tensor:
        calls.append(1)
        return torch.ones(2)

    store.get_param("x", init)
    store.get_param("x", init)
    store.setdefault("x", init, constraints.positive)
    assert calls == [1]
    assert store._constraints["x"] is constraints.real


def test_numbers_are_accepted(store: ParamStoreDict) -> None:
    assert store.get_param("x", 2, constraints.positive).item() == pytest.approx(2.0)
    store["y"] = 0.5
    assert store["y"].dtype == torch.get_default_dtype()


def test_dtype_is_kept(store: ParamStoreDict) -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.complex64):
        assert store.get_param(str(dtype), torch.ones(2, dtype=dtype)).dtype == dtype


def test_mapping(store: ParamStoreDict) -> None:
    assert not store
    for name in ("b", "a", "ab"):
        store.setdefault(name, torch.ones(1), constraints.positive)
    assert store
    assert len(store) == 3
    assert list(store) == list(store.keys()) == ["b", "a", "ab"]
    assert "a" in store
    assert "c" not in store
    assert [name for name, _ in store.items()] == ["b", "a", "ab"]
    assert all(value.item() == 1 for value in store.values())
    assert list(store.match("a")) == ["a", "ab"]
    assert list(store.match("b|x")) == ["b"]
    assert list(store.match(".*b$")) == ["b", "ab"]
    leaf = store["a"].unconstrained()
    del store["a"]
    assert "a" not in store
    assert store.param_name(leaf) is None
    # The constraint is forgotten, too.
    store["a"] = -torch.ones(1)
    assert store["a"].item() == -1
    store.clear()
    assert len(store) == 0


def test_assignment_keeps_the_constraint_and_makes_a_new_leaf(store: ParamStoreDict) -> None:
    old = store.get_param("x", torch.ones(2), constraints.positive).unconstrained()
    store["x"] = torch.tensor([3.0, 4.0, 5.0])
    new = store["x"].unconstrained()
    assert new is not old
    assert store.param_name(old) is None
    assert store.param_name(new) == "x"
    torch.testing.assert_close(new.exp().detach(), torch.tensor([3.0, 4.0, 5.0]))


def test_missing_names(store: ParamStoreDict) -> None:
    for read in (lambda: store["x"], lambda: store.get_param("x"), lambda: store.__delitem__("x")):
        with pytest.raises(KeyError, match="x"):
            read()


# Initial values.


def test_trap_51_init_tensors_are_copied_and_parameters_aliased(store: ParamStoreDict) -> None:
    tensor = torch.ones(2)
    leaf = store.get_param("tensor", tensor)
    with torch.no_grad():
        leaf.add_(1)
    assert tensor.tolist() == [1, 1]
    assert not tensor.requires_grad
    user_leaf = torch.ones(2, requires_grad=True)
    assert store.get_param("leaf", user_leaf) is not user_leaf
    parameter = torch.nn.Parameter(torch.ones(2))
    assert store.get_param("parameter", parameter) is parameter
    # Behind a transform there is no alias.
    positive = store.get_param("positive", parameter, constraints.positive)
    assert positive.unconstrained() is not parameter
    untrained = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    assert store.get_param("untrained", untrained) is not untrained
    assert not untrained.requires_grad


def test_leaves_are_contiguous_and_detached(store: ParamStoreDict) -> None:
    wide = torch.ones(1, requires_grad=True).expand(3, 4).t() * 2
    for index, constraint in enumerate((constraints.real, constraints.positive)):
        leaf = store.get_param(str(index), wide, constraint).unconstrained()
        assert leaf.is_contiguous()
        assert leaf.is_leaf
        assert leaf.storage_offset() == 0
        assert leaf.untyped_storage().nbytes() == 12 * 4


@pytest.mark.parametrize(
    ("constraint", "init"),
    [
        (constraints.positive, 0.0),
        (constraints.positive, -1.0),
        (constraints.greater_than(2.0), 2.0),
        (constraints.nonnegative, 0.0),
    ],
)
def test_boundary_values(store: ParamStoreDict, constraint: constraints.Constraint, init: float) -> None:
    with pytest.raises(ValueError, match=r"'x': the initial value .* on the boundary .* strictly inside"):
        store.get_param("x", torch.tensor([5.0, init]), constraint)
    assert "x" not in store
    store.get_param("x", torch.tensor([5.0]), constraint)


def test_boundary_of_a_matrix(store: ParamStoreDict) -> None:
    with pytest.raises(ValueError, match="parameter 'x'"):
        store.get_param("x", torch.zeros(2, 2), constraints.lower_cholesky)


def test_wrong_initial_values(store: ParamStoreDict) -> None:
    with pytest.raises(RuntimeError, match="'x': only Tensors of floating point dtype can require gradients"):
        store.get_param("x", torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="'x': expected as initial value"):
        store.get_param("x", "one")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got bool"):
        store.get_param("x", True)
    with pytest.raises(NotImplementedError, match="Dependent"):
        store.get_param("x", torch.ones(1), constraints.dependent)
    assert not store


def test_a_failing_assignment_keeps_the_old_value(store: ParamStoreDict) -> None:
    leaf = store.get_param("x", torch.ones(1), constraints.positive).unconstrained()
    with pytest.raises(ValueError, match="boundary"):
        store["x"] = torch.zeros(1)
    assert store["x"].unconstrained() is leaf


def test_created_under_inference_mode(store: ParamStoreDict) -> None:
    with torch.inference_mode():
        store.get_param("x", torch.ones(2), constraints.positive)
        store.get_param("y", lambda: torch.ones(2))
    (store["x"] * store["y"]).sum().backward()
    assert store["y"].grad.tolist() == [1, 1]


def test_transforms_that_cache_are_safe(store: ParamStoreDict) -> None:
    class Doubled(constraints.Constraint):
        event_dim = 0

    @transform_to.register(Doubled)
    def _(constraint: Doubled) -> torch.distributions.Transform:
        return torch.distributions.ComposeTransform(
            [torch.distributions.AffineTransform(0.0, 2.0, cache_size=1), torch.distributions.ExpTransform()]
        )

    store.get_param("x", torch.ones(1), Doubled())
    for _ in range(3):  # a cached result would carry a graph that is gone
        store["x"].sum().backward()


# One name, several threads; several names, one leaf.


def test_first_creation_is_thread_safe(store: ParamStoreDict) -> None:
    made: list[torch.Tensor] = []
    calls: list[int] = []
    start = threading.Barrier(8)

    def init() -> torch.Tensor:
        calls.append(1)
        time.sleep(0.01)
        return torch.zeros(1)

    def create() -> None:
        start.wait()
        made.append(store.get_param("x", init))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert all(value is made[0] for value in made)
    assert calls == [1]


def test_init_functions_may_use_other_parameters(store: ParamStoreDict) -> None:
    value = store.get_param("x", lambda: store.get_param("y", torch.ones(1)) + 1)
    assert value.item() == 2
    assert list(store) == ["y", "x"]


def test_tied_parameters(store: ParamStoreDict) -> None:
    shared = torch.nn.Parameter(torch.ones(1))
    store.setdefault("one", shared)
    store.setdefault("two", shared)
    assert store.param_name(shared) == "one"
    del store["one"]
    assert store.param_name(shared) == "two"
    store["two"] = torch.zeros(1)
    assert store.param_name(shared) is None
