"""The base class of the losses: arguments, methods, module form, calling conventions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import sumprod
import sumprod.distributions as dist
from sumprod.infer import ELBO, ELBOModule, Trace_ELBO, TraceMeanField_ELBO, get_importance_trace
from sumprod.infer._calling import split_arguments
from tests.infer.elbo_programs import LOSSES, guide, model


def flat() -> None:
    sumprod.sample("z", dist.Normal(0.0, 1.0))


# ---- arguments


def test_arguments_and_their_order() -> None:
    expected = {
        "num_particles": 1,
        "max_plate_nesting": math.inf,
        "max_iarange_nesting": None,
        "vectorize_particles": False,
        "strict_enumeration_warning": True,
        "ignore_jit_warnings": False,
        "retain_graph": None,
        "jit_options": None,
        "tail_adaptive_beta": -1.0,
        "memory_budget": None,
    }
    for cls in (ELBO, Trace_ELBO, TraceMeanField_ELBO):
        parameters = inspect.signature(cls).parameters
        assert {name: p.default for name, p in parameters.items()} == expected
        assert list(parameters) == list(expected)


@pytest.mark.parametrize(
    ("positional", "retain_graph", "jit_options"),
    [
        ((), None, None),
        ((True,), True, None),
        ((False, {"check_trace": True}), False, {"check_trace": True}),
        (({"check_trace": True},), None, {"check_trace": True}),
        (({"check_trace": True}, True), True, {"check_trace": True}),
        ((None, True), True, None),
    ],
)
def test_seventh_and_eighth_argument_in_both_orders(
    positional: tuple[Any, ...], retain_graph: Any, jit_options: Any
) -> None:
    elbo = Trace_ELBO(1, math.inf, None, False, True, False, *positional)
    assert elbo.retain_graph is retain_graph
    assert elbo.jit_options == jit_options


def test_retain_graph_must_be_a_bool() -> None:
    with pytest.raises(TypeError, match="retain_graph must be True, False or None, got 3"):
        Trace_ELBO(retain_graph=3)


@pytest.mark.parametrize("cls", LOSSES)
@pytest.mark.parametrize("count", [0, -2])
def test_num_particles_must_be_positive(cls: Any, count: int) -> None:
    with pytest.raises(ValueError, match=f"num_particles must be at least 1, got {count}"):
        cls(num_particles=count)


def test_num_particles_must_be_an_integer() -> None:
    with pytest.raises(TypeError):
        Trace_ELBO(num_particles=1.5)


def test_max_iarange_nesting_is_the_deprecated_name() -> None:
    with pytest.warns(DeprecationWarning, match="max_iarange_nesting is deprecated") as caught:
        elbo = Trace_ELBO(max_plate_nesting=5, max_iarange_nesting=2)
    assert elbo.max_plate_nesting == 2
    assert caught[0].filename == __file__


def test_the_particle_plate_adds_one_to_the_nesting() -> None:
    """Trap 5: visible in the attribute, in the constructor and after guessing; nothing for one particle."""
    assert Trace_ELBO(num_particles=2, max_plate_nesting=1, vectorize_particles=True).max_plate_nesting == 2
    assert Trace_ELBO(num_particles=1, max_plate_nesting=1, vectorize_particles=True).max_plate_nesting == 1
    assert Trace_ELBO(num_particles=2, max_plate_nesting=1).max_plate_nesting == 1
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True)
    assert elbo.max_plate_nesting == math.inf
    elbo.loss(model, guide)
    assert elbo.max_plate_nesting == 2


def test_base_class_is_abstract() -> None:
    with pytest.raises(TypeError, match="_get_trace"):
        ELBO()  # type: ignore[abstract]


# ---- every loss has every method


@pytest.mark.parametrize("cls", LOSSES)
@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_methods_return_floats_or_tensors_and_agree(cls: Any, vectorize: bool, count: int) -> None:
    elbo = cls(num_particles=count, vectorize_particles=vectorize)
    sumprod.set_rng_seed(3)
    loss = elbo.loss(model, guide)
    assert type(loss) is float
    sumprod.set_rng_seed(3)
    differentiable = elbo.differentiable_loss(model, guide)
    assert differentiable.shape == ()
    assert differentiable.requires_grad
    assert differentiable.item() == pytest.approx(loss, rel=1e-6)
    leaf = sumprod.param("loc").unconstrained()
    (expected,) = torch.autograd.grad(differentiable, leaf)
    sumprod.set_rng_seed(3)
    assert elbo.loss_and_grads(model, guide) == pytest.approx(loss, rel=1e-6)
    assert leaf.grad.item() == pytest.approx(expected.item(), rel=1e-5)
    sumprod.set_rng_seed(3)
    assert elbo(model, guide)().item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("cls", LOSSES)
def test_programs_without_sites(cls: Any) -> None:
    elbo = cls()
    for loss in (elbo.loss(lambda: None, lambda: None), elbo.loss_and_grads(lambda: None, lambda: None)):
        assert type(loss) is float
        assert str(loss) == "0.0"
    assert str(elbo.differentiable_loss(lambda: None, lambda: None).item()) == "0.0"


@pytest.mark.parametrize("cls", LOSSES)
def test_a_zero_loss_has_no_sign(cls: Any) -> None:
    """Trap 19, the float half: guide and model agree, and the loss is -0.0 before normalisation."""
    elbo = cls()
    for loss in (elbo.loss(flat, flat), elbo.loss_and_grads(flat, flat)):
        assert str(loss) == "0.0"
    assert str(elbo.differentiable_loss(flat, flat).item()) == "0.0"


def test_double_precision_and_device_are_kept() -> None:
    def double() -> None:
        sumprod.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))

    for cls in LOSSES:
        assert cls().differentiable_loss(double, double).dtype == torch.float64


# ---- module form


@pytest.mark.parametrize("cls", LOSSES)
def test_module_form_has_the_parameters_of_modules(cls: Any) -> None:
    class Guide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x: torch.Tensor) -> None:
            sumprod.sample("z", dist.Normal(self.loc, 1.0))
            with sumprod.plate("rows", 3):
                sumprod.sample("y", dist.Normal(0.0, 1.0))

    guide_module = Guide()
    loss_module = cls()(model, guide_module)
    assert isinstance(loss_module, ELBOModule)
    assert [name for name, _ in loss_module.named_parameters()] == ["guide.loc"]
    loss_module(x=torch.ones(3)).backward()
    assert guide_module.loc.grad is not None
    assert guide_module.loc.grad.item() != 0


# ---- the two calling conventions


def test_split_arguments() -> None:
    assert split_arguments((1, 2), {}) == ((1, 2), {})
    assert split_arguments(((1,), {"a": 2}), {}) == ((1,), {"a": 2})
    assert split_arguments(((1,), {"a": 2}), {"b": 3}) == (((1,), {"a": 2}), {"b": 3})
    assert split_arguments(((1,), {"a": 2}, 3), {}) == (((1,), {"a": 2}, 3), {})


class Unpacked(Trace_ELBO):
    """Overrides in the older form."""

    seen: tuple[Any, ...] = ()

    def _get_trace(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen = (args, kwargs)
        return super()._get_trace(model, guide, *args, **kwargs)


class Packed(Trace_ELBO):
    """Overrides in the newer form."""

    seen: tuple[Any, ...] = ()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        self.seen = (args, kwargs)
        return super()._get_trace(model, guide, args, kwargs)


class Named(Trace_ELBO):
    """Overrides in the older form, for one model."""

    seen: tuple[Any, ...] = ()

    def _get_trace(self, model: Any, guide: Any, a: Any, b: Any, c: Any = 0) -> Any:
        self.seen = ((a, b), {"c": c})
        return super()._get_trace(model, guide, a, b, c=c)


def takes_three(a: Any, b: Any, c: Any = 0) -> None:
    sumprod.sample("z", dist.Normal(a + b + c, 1.0))


@pytest.mark.parametrize("cls", [Unpacked, Packed, Named])
@pytest.mark.parametrize("method", ["loss", "loss_and_grads", "differentiable_loss"])
@pytest.mark.parametrize("vectorize", [False, True])
def test_overrides_of_both_conventions(cls: Any, method: str, vectorize: bool) -> None:
    elbo = cls(num_particles=2, vectorize_particles=vectorize)
    assert getattr(elbo, method)(takes_three, takes_three, 1.0, 2.0, c=3.0) == 0.0
    assert elbo.seen == ((1.0, 2.0), {"c": 3.0})


@pytest.mark.parametrize("form", ["packed", "unpacked"])
def test_base_helpers_accept_both_conventions(form: str) -> None:
    elbo = Trace_ELBO(num_particles=3, max_plate_nesting=0)
    call = ((1.0, 2.0), {"c": 3.0}) if form == "packed" else (1.0, 2.0)
    keywords = {} if form == "packed" else {"c": 3.0}
    pairs = list(elbo._get_traces(takes_three, takes_three, *call, **keywords))
    pairs.append(elbo._get_trace(takes_three, takes_three, *call, **keywords))
    at_once = Trace_ELBO(num_particles=3, max_plate_nesting=0, vectorize_particles=True)
    pairs.append(at_once._get_vectorized_trace(takes_three, takes_three, *call, **keywords))
    for model_trace, guide_trace in pairs:
        assert model_trace.nodes["_INPUT"]["kwargs"] == {"c": 3.0}
        assert guide_trace.nodes["z"]["fn"].loc.unique().item() == 6.0
    elbo._guess_max_plate_nesting(takes_three, takes_three, *call, **keywords)
    assert elbo.max_plate_nesting == 0


def test_an_override_of_get_traces_decides_how_many_runs_are_averaged() -> None:
    class Twice(Trace_ELBO):
        def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Any]:
            for _ in range(2):
                yield self._get_trace(model, guide, args, kwargs)

    def shifted() -> None:
        sumprod.sample("z", dist.Delta(torch.tensor(1.0), log_density=-2.5))

    assert Twice().loss(shifted, lambda: sumprod.sample("z", dist.Delta(torch.tensor(1.0)))) == 5.0


def test_model_keywords_named_like_options_reach_the_model() -> None:
    """Trap 58."""

    def program(num_particles: float, retain_graph: float, *, args: float = 0, detach: float = 0) -> None:
        sumprod.sample("z", dist.Normal(num_particles + retain_graph + args + detach, 1.0))

    elbo = Trace_ELBO()
    for method in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
        assert method(program, program, num_particles=1.0, retain_graph=2.0, args=3.0, detach=4.0) == 0.0


@pytest.mark.parametrize(
    ("args", "kwargs", "detached"),
    [
        (((1.0, 2.0), {"c": 3.0}), {}, False),
        (((1.0, 2.0), {"c": 3.0}, True), {}, True),
        (((1.0, 2.0), {"c": 3.0}), {"detach": True}, True),
        ((), {"args": (1.0, 2.0), "kwargs": {"c": 3.0}}, False),
        ((), {"args": (1.0, 2.0), "kwargs": {"c": 3.0}, "detach": True}, True),
        ((1.0, 2.0), {"c": 3.0}, False),
    ],
)
def test_get_importance_trace_in_both_conventions(
    args: tuple[Any, ...], kwargs: dict[str, Any], detached: bool
) -> None:
    def with_param(a: Any, b: Any, c: Any = 0) -> None:
        takes_three(a, b, c + sumprod.param("shift", torch.tensor(1.0)))

    model_trace, guide_trace = get_importance_trace(
        "flat", math.inf, takes_three, with_param, *args, **kwargs
    )
    assert guide_trace.nodes["z"]["fn"].loc.item() == 7.0
    assert model_trace.nodes["z"]["value"].requires_grad is not detached
    assert "log_prob" in model_trace.nodes["z"]
    assert "score_parts" in guide_trace.nodes["z"]
