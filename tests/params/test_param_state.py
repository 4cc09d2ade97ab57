"""The parameter store: states, scopes, freezing, copies."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch.distributions import constraints

from sumprod import params
from sumprod.params import ParamStoreDict
from tests.params.cases import INITS


@pytest.fixture
def store() -> ParamStoreDict:
    return ParamStoreDict()


# States.


def test_state_keys_and_merging(store: ParamStoreDict) -> None:
    store.setdefault("a", torch.ones(1), constraints.positive)
    state = store.get_state()
    assert state.keys() == {"params", "constraints"}
    assert state["params"]["a"] is store["a"].unconstrained()
    assert state["constraints"] == {"a": constraints.positive}
    other = ParamStoreDict()
    other["a"] = torch.zeros(1)
    other["b"] = torch.zeros(1)
    other.set_state(state)
    assert list(other) == ["a", "b"]
    assert other["a"].item() == 1
    assert other["b"].item() == 0


def test_malformed_states(store: ParamStoreDict) -> None:
    for state in ({"params": {}}, {"params": {}, "constraints": {}, "more": {}}, []):
        with pytest.raises(AssertionError, match="malformed ParamStore"):
            store.set_state(state)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=r"malformed ParamStore: no constraint .*'a'"):
        store.set_state({"params": {"a": torch.ones(1)}, "constraints": {}})


def test_set_state_copies_what_is_no_leaf(store: ParamStoreDict) -> None:
    tensor = torch.ones(2)
    store.set_state({"params": {"a": tensor}, "constraints": {"a": constraints.real}})
    assert not tensor.requires_grad
    assert store["a"].requires_grad


def test_trap_52_unpickled_constraints_become_the_named_objects(store: ParamStoreDict) -> None:
    for index, (constraint, init) in enumerate(INITS):
        store.setdefault(str(index), init, constraint)
    copied = pickle.loads(pickle.dumps(store.get_state()))
    assert copied["constraints"]["0"] is not constraints.real
    other = ParamStoreDict()
    other.set_state(copied)
    named = {constraints.real, constraints.positive, constraints.simplex, constraints.unit_interval}
    for index, (constraint, _) in enumerate(INITS):
        if constraint in named:
            assert other._constraints[str(index)] is constraint
        assert other[str(index)].equal(store[str(index)])
    assert other["0"].unconstrained() is other["0"]


def test_pickle_and_deepcopy(store: ParamStoreDict) -> None:
    store.setdefault("a", torch.tensor([2.0]), constraints.positive)
    store["b"] = torch.ones(1)
    for other in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        assert list(other) == ["a", "b"]
        assert other["a"].equal(store["a"])
        other["b"].data.add_(1)
        assert store["b"].item() == 1
        assert other.param_name(other["b"]) == "b"


def test_values_can_be_saved_by_torch(store: ParamStoreDict) -> None:
    module = torch.nn.Linear(2, 1)
    store["weight"] = module.weight
    for value in (store["weight"], store.get_param("p", torch.ones(1), constraints.positive).detach()):
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        assert torch.load(file).equal(value)
    file = io.BytesIO()
    torch.save(module, file)
    assert copy.deepcopy(store["weight"]).equal(module.weight)


# Scopes.


def test_scope(store: ParamStoreDict) -> None:
    store["a"] = torch.zeros(1)
    leaf = store["a"]
    with store.scope() as state:
        assert len(store) == 0
        store.setdefault("a", torch.ones(2), constraints.positive)
        inner = store["a"].unconstrained()
    assert store["a"] is leaf
    assert state["params"]["a"] is inner
    with store.scope(state) as again:
        assert again is state
        assert store["a"].unconstrained() is inner
        assert store.param_name(inner) == "a"
        store["b"] = torch.ones(1)
    assert list(state["params"]) == ["a", "b"]
    assert list(store) == ["a"]
    assert store.param_name(leaf) == "a"


def test_nested_scopes_and_exceptions(store: ParamStoreDict) -> None:
    store["a"] = torch.zeros(1)
    states = []

    def nest() -> None:
        with store.scope() as outer:
            states.append(outer)
            store["b"] = torch.zeros(1)
            with store.scope() as inner:
                states.append(inner)
                store["c"] = torch.zeros(1)
                raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        nest()
    assert list(store) == ["a"]
    assert [list(state["params"]) for state in states] == [["b"], ["c"]]


def test_scope_with_a_malformed_state_changes_nothing(store: ParamStoreDict) -> None:
    store["a"] = torch.zeros(1)
    with pytest.raises(AssertionError, match="malformed"), store.scope({"params": {}}):
        pass
    assert list(store) == ["a"]


# Freezing.


def test_freeze(store: ParamStoreDict) -> None:
    store["a"] = torch.zeros(1)
    store.freeze()
    assert store.frozen
    creations: list[Callable[[], object]] = [
        lambda: store.get_param("b", torch.zeros(1)),
        lambda: store.__setitem__("b", torch.zeros(1)),
        lambda: store.setdefault("b", torch.zeros(1)),
        lambda: store.set_state(
            {
                "params": {"a": torch.ones(1), "b": torch.ones(1)},
                "constraints": {"a": constraints.real, "b": constraints.real},
            }
        ),
    ]
    for create in creations:
        with pytest.raises(RuntimeError, match="frozen, so 'b' cannot be added"):
            create()
    assert store["a"].item() == 0  # set_state is all or nothing
    store["a"] = torch.full((1,), 2.0)
    assert store.get_param("a").item() == 2
    with store.scope():
        store["b"] = torch.zeros(1)
    assert store.frozen
    store.unfreeze()
    store["b"] = torch.zeros(1)
    store.freeze()
    store.clear()
    store["c"] = torch.zeros(1)


# Deprecated and module-level names.


def test_deprecated_names_warn(store: ParamStoreDict) -> None:
    store["a"] = torch.zeros(1)
    with pytest.warns(DeprecationWarning, match="get_all_param_names"):
        assert list(store.get_all_param_names()) == ["a"]
    with pytest.warns(DeprecationWarning, match="replace_param"):
        store.replace_param("a", torch.ones(1), store["a"])
    assert store["a"].item() == 1


def test_names() -> None:
    assert params.param_with_module_name("net", "a.b") == "net$$$a.b"
    assert params.module_from_param_with_module_name("net$$$a.b") == "net"
    assert params.module_from_param_with_module_name("x") == "x"
    assert params.user_param_name("net$$$a.b") == "a.b"
    assert params.user_param_name("x") == "x"
    assert params.normalize_param_name("net$$$a.b") == "net.a.b"


def test_the_store_of_the_process() -> None:
    store = params.get_param_store()
    assert store is params.PARAM_STORE
    with store.scope():
        store["x"] = torch.zeros(1)
        params.clear_param_store()
        assert not store


def test_deleted_parameters_are_freed(store: ParamStoreDict) -> None:
    store["x"] = torch.zeros(1)
    leaf = weakref.ref(store["x"])
    del store["x"]
    assert leaf() is None
    assert not store._names
