"""How deep plates are nested, and particles in a plate of their own."""

from __future__ import annotations

import copy
import gc
import logging
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import Trace_ELBO
from tests.infer.elbo_programs import LOSSES, guide, model

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


@pytest.mark.usefixtures("new_objects_only")
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
