"""Files without pickled code: constraints by name, and what must be refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import ExpTransform, Transform

import sumprod.distributions.constraints
from sumprod.params import ParamStoreDict, constraint_codec, register_constraint
from tests.params.cases import IDS, INITS


class Unregistered(constraints.Constraint):
    event_dim = 0


class Registered(constraints.Constraint):
    event_dim = 0

    def __init__(self, factor: float) -> None:
        self.factor = factor


class Forgetful(constraints.Constraint):
    event_dim = 0

    def __init__(self, factor: float) -> None:
        self._factor = factor


@transform_to.register(Unregistered)
@transform_to.register(Registered)
@transform_to.register(Forgetful)
def _(constraint: constraints.Constraint) -> Transform:
    return ExpTransform()


def saved(store: ParamStoreDict, **options: bool) -> io.BytesIO:
    file = io.BytesIO()
    store.save(file, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize(("constraint", "init"), INITS, ids=IDS)
def test_round_trip(constraint: constraints.Constraint, init: torch.Tensor, tmp_path: Path) -> None:
    store = ParamStoreDict()
    store.setdefault("x", init, constraint)
    store.save(tmp_path / "params.pt")
    torch.load(tmp_path / "params.pt", weights_only=True)
    other = ParamStoreDict()
    other["kept"] = torch.zeros(1)
    other.load(tmp_path / "params.pt")
    assert list(other) == ["kept", "x"]
    assert other["x"].equal(store["x"])
    assert other["x"].unconstrained().equal(store["x"].unconstrained())
    assert other["x"].unconstrained().requires_grad
    assert type(other._constraints["x"]) is type(constraint)
    assert repr(other._constraints["x"]) == repr(constraint)


def test_every_constraint_of_torch_has_a_name() -> None:
    for name in constraints.__all__:
        value = getattr(constraints, name)
        if isinstance(value, constraints.Constraint) and value is not constraints.dependent:
            written = constraint_codec.encode(value)
            assert constraint_codec.decode(written) is value, name


def test_constraints_of_distributions_have_names() -> None:
    for name, value in vars(sumprod.distributions.constraints).items():
        if isinstance(value, constraints.Constraint) and value is not constraints.dependent:
            assert constraint_codec.decode(constraint_codec.encode(value)) is value, name


def test_nested_arguments_survive() -> None:
    nested = constraints.independent(
        constraints.cat(
            [constraints.interval(torch.tensor([0.0, 1.0]), 5.0), constraints.simplex], 0, [2, 3]
        ),
        1,
    )
    read = constraint_codec.decode(constraint_codec.encode(nested))
    inner = read.base_constraint
    assert read.reinterpreted_batch_ndims == 1
    assert inner.lengths == [2, 3]
    assert inner.cseq[1] is constraints.simplex
    assert inner.cseq[0].lower_bound.tolist() == [0.0, 1.0]
    assert biject_to(inner.cseq[0])(torch.zeros(2)).tolist() == [2.5, 3.0]


def test_map_location() -> None:
    store = ParamStoreDict()
    store["x"] = torch.ones(3)
    other = ParamStoreDict()
    other.load(saved(store), map_location="meta")
    assert other["x"].device.type == "meta"


def test_an_unregistered_constraint_needs_pickle() -> None:
    store = ParamStoreDict()
    store.setdefault("x", torch.tensor([2.0]), Unregistered())
    with pytest.raises(
        ValueError, match=r"parameter 'x' cannot be saved: .*Unregistered.*register_constraint"
    ):
        saved(store)
    file = saved(store, allow_pickle=True)
    other = ParamStoreDict()
    with pytest.raises(ValueError, match="allow_pickle=True"):
        other.load(file)
    assert not other
    file.seek(0)
    other.load(file, allow_pickle=True)
    assert isinstance(other._constraints["x"], Unregistered)
    assert other["x"].equal(store["x"])


def test_registered_constraints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint_codec, "_REGISTERED", {})
    store = ParamStoreDict()
    store.setdefault("x", torch.tensor([2.0]), Registered(3.0))
    register_constraint("tests.registered", Registered)
    register_constraint("tests.registered", Registered)
    file = saved(store)
    other = ParamStoreDict()
    other.load(file)
    assert other._constraints["x"].factor == 3.0
    monkeypatch.setattr(constraint_codec, "_REGISTERED", {})
    file.seek(0)
    with pytest.raises(ValueError, match=r"unknown constraint 'tests.registered'"):
        other.load(file)


def test_registration_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint_codec, "_REGISTERED", {})
    with pytest.raises(ValueError, match="'positive' already means"):
        register_constraint("positive", Registered)
    with pytest.raises(TypeError, match="expected a constraint"):
        register_constraint("mine", int)  # type: ignore[arg-type]
    register_constraint("tests.forgetful", Forgetful)
    with pytest.raises(ValueError, match="does not keep the argument 'factor'"):
        constraint_codec.encode(Forgetful(1.0))
    register_constraint("tests.registered", Registered)
    with pytest.raises(ValueError, match="type set cannot be written"):
        constraint_codec.encode(Registered({1}))  # type: ignore[arg-type]


def test_files_in_the_format_of_pyro() -> None:
    """Pyro pickles the state as it is."""
    store = ParamStoreDict()
    store.setdefault("x", torch.tensor([2.0]), constraints.positive)
    store["y"] = torch.zeros(2)
    file = io.BytesIO()
    torch.save(
        {"params": {k: v.detach() for k, v in store._params.items()}, "constraints": store._constraints}, file
    )
    file.seek(0)
    other = ParamStoreDict()
    with pytest.raises(ValueError, match="holds pickled objects"):
        other.load(file)
    file.seek(0)
    other.load(file, allow_pickle=True)
    assert other["x"].equal(store["x"])
    assert other._constraints == {"x": constraints.positive, "y": constraints.real}


def test_files_with_something_else() -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(1)}, file)
    file.seek(0)
    with pytest.raises(AssertionError, match="malformed ParamStore"):
        ParamStoreDict().load(file)
