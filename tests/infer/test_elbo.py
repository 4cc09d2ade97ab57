"""The base class of the losses: arguments, calling conventions, nesting of plates, particles, module form."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import ELBO, ELBOModule, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO, get_importance_trace
from sumprod.infer._calling import split_arguments

LOSSES = [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO]


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    sumprod.clear_param_store()
    yield
    sumprod.clear_param_store()


def model(x: Any = None) -> None:
    z = sumprod.sample("z", dist.Normal(0.0, 1.0))
    with sumprod.plate("rows", 3):
        y = sumprod.sample("y", dist.Normal(z, 1.0))
        sumprod.sample("x", dist.Normal(y, 1.0), obs=torch.ones(3) if x is None else x)


def guide(x: Any = None) -> None:
    sumprod.sample("z", dist.Normal(sumprod.param("loc", torch.tensor(0.3)), 1.0))
    with sumprod.plate("rows", 3):
        sumprod.sample("y", dist.Normal(0.0, 1.0))


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
    pairs.append(
        particles(max_plate_nesting=0)._get_vectorized_trace(takes_three, takes_three, *call, **keywords)
    )
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


# ---- nesting of plates


def deep(depth: int = 1) -> None:
    sumprod.sample("a", dist.Normal(0.0, 1.0))
    with sumprod.plate_stack("plate", (2,) * depth):
        sumprod.sample("z", dist.Normal(0.0, 1.0))


def particles(**kwargs: Any) -> Trace_ELBO:
    return Trace_ELBO(num_particles=4, vectorize_particles=True, **kwargs)


def test_guess_is_logged_and_hidden_from_outer_handlers(caplog: pytest.LogCaptureFixture) -> None:
    elbo = particles()
    with caplog.at_level(logging.INFO, logger="sumprod"), handlers.trace() as outer:
        elbo._guess_max_plate_nesting(model, guide)
    assert "Guessed max_plate_nesting = 1" in caplog.text
    assert len(outer.trace) == 0


def test_guess_does_not_consume_randomness() -> None:
    """Trap 6, first half."""
    sumprod.set_rng_seed(0)
    first = particles()
    losses = [first.loss(model, guide) for _ in range(3)]
    sumprod.set_rng_seed(0)
    known = particles(max_plate_nesting=1)
    assert [known.loss(model, guide) for _ in range(3)] == losses


def test_guess_is_made_once_per_pair_of_programs() -> None:
    """Trap 6, second half: a guess for one pair does not hold for another."""
    runs: list[str] = []

    def counted(name: str, depth: int) -> Callable[[], None]:
        def program() -> None:
            runs.append(name)
            deep(depth)

        return program

    shallow, deeper = counted("shallow", 1), counted("deeper", 3)
    elbo = particles()
    for program, nesting in ((shallow, 2), (deeper, 4), (shallow, 2), (deeper, 4)):
        elbo.loss(program, program)
        assert elbo.max_plate_nesting == nesting
    # Guide and model run once each in every loss, and once more in the first.
    assert runs.count("shallow") == runs.count("deeper") == 6


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("dim", [None, -2])
def test_guess_is_renewed_when_a_deeper_plate_shows_up(validate: bool, dim: int | None) -> None:
    """The same programs, with an argument that adds a plate; with dim -2 it collides with the old guess."""

    def program(extra: bool) -> None:
        rows = sumprod.plate("rows", 2, dim=-1)
        with rows:
            sumprod.sample("a", dist.Normal(0.0, 1.0))
            if extra:
                with sumprod.plate("columns", 3, dim=dim):
                    sumprod.sample("b", dist.Normal(0.0, 1.0))

    elbo = particles()
    with sumprod.validation_enabled(validate):
        assert elbo.loss(program, program, False) == 0.0
        assert elbo.max_plate_nesting == 2
        sumprod.set_rng_seed(5)
        ((model_trace, _),) = elbo._get_traces(program, program, True)
        assert elbo.max_plate_nesting == 3
        assert model_trace.nodes["b"]["value"].shape == (4, 3, 2)
        sumprod.set_rng_seed(5)
        ((again, _),) = particles(max_plate_nesting=2)._get_traces(program, program, True)
        assert torch.equal(again.nodes["b"]["value"], model_trace.nodes["b"]["value"])


def test_an_error_of_the_program_is_not_taken_for_a_deeper_plate() -> None:
    def program(fail: bool) -> None:
        deep(1)
        if fail:
            raise ValueError("broken")

    elbo = particles()
    elbo.loss(program, program, False)
    with pytest.raises(ValueError, match="broken"):
        elbo.loss(program, program, True)


def test_a_given_nesting_is_never_guessed() -> None:
    elbo = particles(max_plate_nesting=1)
    with pytest.raises(ValueError, match=r"collide at dim=-2|plate stack overflow"):
        elbo.loss(lambda: deep(2), lambda: deep(2))
    elbo.max_plate_nesting = 3
    elbo.loss(deep, deep)
    assert elbo.max_plate_nesting == 3


def test_too_small_a_nesting_is_an_error_and_too_large_a_one_harmless() -> None:
    with pytest.raises(ValueError, match=r"plate stack overflow.*max_plate_nesting=0") as caught:
        Trace_ELBO(max_plate_nesting=0).loss(deep, deep)
    assert "Try increasing max_plate_nesting to at least 1" in str(caught.value)
    assert Trace_ELBO(max_plate_nesting=7).loss(deep, deep) == 0.0
    assert particles(max_plate_nesting=7).loss(deep, deep) == 0.0


def test_guesses_do_not_keep_programs_alive() -> None:
    elbo = particles()

    def once() -> None:
        def program() -> None:
            deep(1)

        elbo.loss(program, program)
        assert len(elbo._guesses) == 1

    once()
    gc.collect()
    assert len(elbo._guesses) == 0


def test_guesses_are_shared_by_the_bound_methods_of_one_object() -> None:
    class Programs:
        runs = 0

        def program(self) -> None:
            self.runs += 1
            deep(1)

    elbo, programs = particles(), Programs()
    for _ in range(3):
        elbo.loss(programs.program, programs.program)
    assert programs.runs == 2 + 3 * 2


def test_losses_can_be_copied_and_pickled() -> None:
    elbo = particles()
    elbo.loss(deep, deep)
    for twin in (copy.deepcopy(elbo), pickle.loads(pickle.dumps(elbo))):
        assert twin.num_particles == 4
        assert len(twin._guesses) == 0
        assert twin.loss(deep, deep) == 0.0


# ---- vectorised particles


def test_one_particle_is_not_vectorised() -> None:
    runs: list[int] = []

    def program() -> None:
        runs.append(1)
        assert sumprod.sample("z", dist.Normal(0.0, 1.0)).shape == ()

    Trace_ELBO(vectorize_particles=True).loss(program, program)
    assert len(runs) == 2


def test_particles_are_the_outermost_plate() -> None:
    elbo = particles()
    ((model_trace, guide_trace),) = elbo._get_traces(model, guide)
    for trace in (model_trace, guide_trace):
        assert trace.nodes["z"]["value"].shape == (4, 1)
        assert trace.nodes["y"]["value"].shape == (4, 3)
        frame = trace.nodes["y"]["cond_indep_stack"][0]
        assert (frame.name, frame.dim, frame.size) == ("num_particles_vectorized", -2, 4)


@pytest.mark.parametrize("cls", LOSSES)
def test_vectorised_particles_agree_with_looped_ones_in_distribution(cls: Any) -> None:
    """Means of 400 losses of 5 particles; a difference of 5 standard errors comes once in 1.7e6."""
    torch.manual_seed(0)
    count = 400

    def losses(vectorize: bool) -> torch.Tensor:
        elbo = cls(num_particles=5, max_plate_nesting=1, vectorize_particles=vectorize)
        return torch.tensor([elbo.loss(model, guide) for _ in range(count)])

    looped, vectorised = losses(False), losses(True)
    error = math.sqrt((looped.var() + vectorised.var()).item() / count)
    assert abs(looped.mean() - vectorised.mean()) < 5 * error
    # The spread is that of a mean of five, not of one (F test on 400 each: 1.6 is beyond 1e-5).
    assert 1 / 1.6 < (looped.var() / vectorised.var()).item() < 1.6


@pytest.mark.parametrize(
    ("use", "error"),
    [(lambda z: z.item(), RuntimeError), (math.exp, ValueError), (lambda z: z[0, 0, 0], IndexError)],
    ids=["item", "float", "index"],
)
def test_a_program_that_cannot_be_vectorised_is_told_the_site(use: Any, error: type[Exception]) -> None:
    def program() -> None:
        use(sumprod.sample("height", dist.Normal(0.0, 1.0)))

    with pytest.raises(error) as caught:
        particles(max_plate_nesting=0).loss(program, program)
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    assert "after site 'height' (value of shape (4,)), while vectorize_particles=True" in text
    assert "needs vectorize_particles=False" in text
    assert text.count("needs vectorize_particles=False") == 1


def test_validation_does_not_change_a_result() -> None:
    results = []
    for validate in (True, False):
        with sumprod.validation_enabled(validate), warnings.catch_warnings():
            warnings.simplefilter("error")
            sumprod.set_rng_seed(1)
            sumprod.clear_param_store()
            loss = particles().loss_and_grads(model, guide)
            results.append((loss, sumprod.param("loc").unconstrained().grad.item(), torch.rand(()).item()))
    assert results[0] == results[1]
