"""What programs are refused or warned about: the same exception and the same words under Pyro 1.9.2.

Ours also names the site and its plates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sumprod

peer = pytest.importorskip("pyro", reason="pyro-ppl is the peer; it comes with the test extra")

Program = Callable[..., Any]


def normal(pyro: Any, *shape: int) -> Any:
    return pyro.distributions.Normal(torch.zeros(shape), torch.ones(shape))


def svi_step(pyro: Any, model: Program, guide: Program = lambda: None, loss: Any = None) -> float:
    optim = pyro.optim.Adam({"lr": 0.01})
    return pyro.infer.SVI(model, guide, optim, loss or pyro.infer.Trace_ELBO()).step()


def traced(pyro: Any, program: Program) -> Any:
    return pyro.poutine.trace(program).get_trace()


def in_plate(pyro: Any, shape: tuple[int, ...], **options: Any) -> Program:
    """A site "z" of this shape in a plate "rows" of five."""

    def model() -> None:
        with pyro.plate("rows", 5, **options):
            pyro.sample("z", normal(pyro, *shape))

    return model


def missing_plate(pyro: Any) -> Program:
    return lambda: pyro.sample("z", normal(pyro, 5))


def same_name_twice(pyro: Any) -> None:
    pyro.sample("z", normal(pyro))
    pyro.sample("z", normal(pyro))


def sample_after_param(pyro: Any) -> None:
    pyro.param("z", torch.zeros(()))
    pyro.sample("z", normal(pyro))


def both_ways(pyro: Any) -> None:
    plate = pyro.plate("rows", 3)
    with plate:
        pass
    for _ in plate:
        pass


def same_plate_inside(pyro: Any) -> None:
    with pyro.plate("rows", 3), pyro.plate("rows", 3):
        pyro.sample("z", normal(pyro, 3))


def same_dim_inside(pyro: Any) -> None:
    with pyro.plate("rows", 3, dim=-1), pyro.plate("columns", 2, dim=-1):
        pyro.sample("z", normal(pyro))


def wrong_param_in_plate(pyro: Any) -> None:
    with pyro.plate("rows", 5, subsample_size=2, dim=-1):
        pyro.param("loc", torch.zeros(4), event_dim=0)


def wrong_data_in_plate(pyro: Any) -> None:
    with pyro.plate("rows", 5, subsample_size=2, dim=-1):
        pyro.subsample(torch.zeros(4), event_dim=0)


def wrong_obs_mask(pyro: Any) -> None:
    with pyro.plate("rows", 5):
        mask = torch.ones(4, dtype=torch.bool)
        pyro.sample("z", normal(pyro, 5), obs=torch.zeros(5), obs_mask=mask)


def replay_of_observed(pyro: Any) -> None:
    def seen() -> None:
        pyro.sample("z", normal(pyro), obs=torch.tensor(1.0))

    recorded = pyro.poutine.trace(seen).get_trace()
    pyro.poutine.replay(lambda: pyro.sample("z", normal(pyro)), trace=recorded)()


def guide_factor(pyro: Any) -> None:
    svi_step(pyro, lambda: None, lambda: pyro.factor("bonus", torch.tensor(1.0)))


def installed_twice(pyro: Any) -> None:
    scale = pyro.poutine.scale(scale=2.0)
    with scale, scale:
        pass


def different_event_dims(pyro: Any) -> None:
    def site(event_dim: int) -> Program:
        return lambda: pyro.sample("z", normal(pyro, 3).to_event(event_dim))

    loss = pyro.infer.Trace_ELBO()
    with pyro.plate("outer", 3):
        svi_step(pyro, site(1), site(0), loss)


def different_shapes(pyro: Any) -> None:
    svi_step(pyro, lambda: pyro.sample("z", normal(pyro, 3)), lambda: pyro.sample("z", normal(pyro, 2)))


def not_reparameterised(pyro: Any) -> None:
    def site() -> None:
        pyro.sample("z", pyro.distributions.Bernoulli(pyro.param("p", torch.tensor(0.4))))

    svi_step(pyro, site, site, pyro.infer.TraceMeanField_ELBO())


def nesting_too_small(pyro: Any) -> None:
    loss = pyro.infer.Trace_ELBO(max_plate_nesting=0)
    svi_step(pyro, in_plate(pyro, (5,)), in_plate(pyro, (5,)), loss)


def clash_with_particles(pyro: Any) -> None:
    loss = pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=0)
    svi_step(pyro, in_plate(pyro, (5,), dim=-1), in_plate(pyro, (5,), dim=-1), loss)


# What is done, the exception, a fragment of its message, and names that our message contains.
REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception], str, tuple[str, ...]]] = {
    "data without a plate": (
        lambda p: svi_step(p, missing_plate(p), missing_plate(p)),
        ValueError,
        "invalid log_prob shape",
        ("z",),
    ),
    "plate without data": (
        lambda p: svi_step(p, in_plate(p, (4,)), in_plate(p, (4,))),
        ValueError,
        "Shape mismatch inside plate",
        ("z", "rows"),
    ),
    "extra batch dim": (
        lambda p: svi_step(p, in_plate(p, (2, 5)), in_plate(p, (2, 5))),
        ValueError,
        "invalid log_prob shape",
        ("z", "rows"),
    ),
    "name used twice": (
        lambda p: traced(p, lambda: same_name_twice(p)),
        RuntimeError,
        "Multiple sample sites named",
        ("z",),
    ),
    "sample after param": (
        lambda p: traced(p, lambda: sample_after_param(p)),
        RuntimeError,
        "is already in the trace as a",
        ("z",),
    ),
    "plate used both ways": (both_ways, ValueError, "cannot use plate", ("rows",)),
    "plate inside itself": (same_plate_inside, ValueError, "duplicate plate", ("rows",)),
    "two plates on one dim": (same_dim_inside, ValueError, "collide at dim=", ("rows", "columns")),
    "positive dim": (lambda p: in_plate(p, (5,), dim=1)(), ValueError, "Expected dim < 0", ("rows",)),
    "empty plate": (lambda p: p.plate("rows", 0), ZeroDivisionError, "", ("rows",)),
    "subset of another size": (
        lambda p: p.plate("rows", 5, subsample_size=2, subsample=[0, 1, 2]),
        ValueError,
        "subsample_size does not match len(subsample)",
        (),
    ),
    "parameter of another size": (
        wrong_param_in_plate,
        ValueError,
        "invalid shape of pyro.param",
        ("rows", "loc"),
    ),
    "data of another size": (wrong_data_in_plate, ValueError, "invalid shape of pyro.subsample", ("rows",)),
    "mask of another size": (wrong_obs_mask, ValueError, "Invalid obs_mask shape", ("z",)),
    "unknown parameter": (lambda p: p.param("nowhere"), KeyError, "nowhere", ()),
    "observed site in replay": (replay_of_observed, RuntimeError, "must be sampled in trace", ("z",)),
    "replay of nothing": (
        lambda p: p.poutine.replay(lambda: None),
        ValueError,
        "must provide trace or params",
        (),
    ),
    "hide and expose one name": (
        lambda p: p.poutine.block(lambda: None, hide=["z"], expose=["z"]),
        AssertionError,
        "cannot hide and expose a site",
        ("z",),
    ),
    "two predicates": (
        lambda p: p.poutine.block(lambda: None, hide_fn=lambda m: True, expose_fn=lambda m: True),
        ValueError,
        "Only specify one of hide_fn or expose_fn",
        (),
    ),
    "negative scale": (
        lambda p: p.poutine.scale(lambda: None, scale=-1.0),
        ValueError,
        "Expected scale > 0",
        (),
    ),
    "mask of floats": (
        lambda p: p.poutine.mask(lambda: None, mask=torch.ones(2)),
        ValueError,
        "Expected mask to be",
        (),
    ),
    "handler on a number": (
        lambda p: p.poutine.scale(scale=2.0)(3),
        ValueError,
        "is not callable, did you mean to pass it as a keyword arg?",
        (),
    ),
    "handler twice": (installed_twice, ValueError, "cannot install a Messenger instance twice", ()),
    "factor in a guide": (guide_factor, ValueError, "missing specification of has_rsample", ("bonus",)),
    "different shapes": (
        different_shapes,
        ValueError,
        "Model and guide shapes disagree at site",
        ("z",),
    ),
    "score in a mean field": (
        not_reparameterised,
        NotImplementedError,
        "All distributions in the guide must be fully reparameterized.",
        ("z",),
    ),
    "nesting too small": (nesting_too_small, ValueError, "plate stack overflow", ("z", "rows")),
    "plate on the particles' dim": (clash_with_particles, ValueError, "collide at dim=", ("rows",)),
    "torch optimiser": (
        lambda p: p.infer.SVI(
            lambda: None, lambda: None, torch.optim.SGD([torch.zeros(1)], 0.1), p.infer.Trace_ELBO()
        ),
        ValueError,
        "Optimizer should be an instance of",
        (),
    ),
    "order one": (
        lambda p: p.infer.RenyiELBO(alpha=1),
        ValueError,
        "The order alpha should not be equal to 1",
        (),
    ),
}


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_refused(row: Any, library: Any) -> None:
    act, kind, fragment, names = row
    with warnings.catch_warnings():
        if library is peer:
            warnings.simplefilter("ignore")
        with pytest.raises(kind) as caught:
            act(library)
    message = str(caught.value)
    assert fragment in message
    if library is sumprod:
        for name in names:
            assert name in message, f"{name!r} is not named in: {message}"
        assert not sumprod.poutine.runtime.am_i_wrapped()
    else:
        # Pyro leaves handlers on its stack after some of these.
        library.poutine.runtime._PYRO_STACK.clear()


# ---- warned about ----------------------------------------------------------------------------


def latent(pyro: Any, name: str, **infer: Any) -> Program:
    return lambda: pyro.sample(name, normal(pyro), infer=infer)


def both(*programs: Program) -> Program:
    def program() -> None:
        for part in programs:
            part()

    return program


def opened(pyro: Any, name: str) -> Program:
    def program() -> None:
        with pyro.plate(name, 3, dim=-1):
            pyro.sample(f"in_{name}", normal(pyro, 3), infer={"is_auxiliary": True})

    return program


def out_of_order(pyro: Any) -> None:
    a, b = latent(pyro, "a"), latent(pyro, "b")
    svi_step(pyro, both(a, b), both(b, a), pyro.infer.TraceMeanField_ELBO())


WARNED: dict[str, tuple[Callable[[Any], Any], str, tuple[str, ...]]] = {
    "latent without a guide": (
        lambda p: svi_step(p, both(latent(p, "a"), latent(p, "b")), latent(p, "a")),
        "Found vars in model but not guide",
        ("b",),
    ),
    "guide without a latent": (
        lambda p: svi_step(p, latent(p, "a"), both(latent(p, "a"), latent(p, "b"))),
        "Found non-auxiliary vars in guide but not model",
        ("b",),
    ),
    "auxiliary site in the model": (
        lambda p: svi_step(p, latent(p, "a", is_auxiliary=True), latent(p, "a", is_auxiliary=True)),
        "Found auxiliary vars in the model",
        ("a",),
    ),
    "plate in the guide only": (
        lambda p: svi_step(p, lambda: None, opened(p, "rows")),
        "Found plate statements in guide but not model",
        ("rows",),
    ),
    "order of sites in a mean field": (
        out_of_order,
        "Failed to verify mean field restriction on the guide",
        (),
    ),
    "observed outside inference": (
        lambda p: p.sample("x", normal(p), obs=torch.tensor(1.0)),
        "trying to observe a value outside of inference at",
        ("x",),
    ),
    "old name of the nesting": (
        lambda p: p.infer.Trace_ELBO(max_iarange_nesting=1),
        "max_iarange_nesting is deprecated",
        (),
    ),
}


@pytest.mark.parametrize("row", WARNED.values(), ids=WARNED)
def test_warned_about(row: Any, library: Any) -> None:
    act, fragment, names = row
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        act(library)
    texts = [str(entry.message) for entry in seen]
    matching = [text for text in texts if fragment in text]
    assert matching, texts
    for name in names:
        assert name in matching[0]
    if library is sumprod:
        assert texts == matching, "one warning, and no other"


def test_shape_checks_can_be_switched_off() -> None:
    """Without validation nobody looks for missing plates; the densities are summed as they are."""
    act, *_ = REFUSED["data without a plate"]
    with sumprod.validation_enabled(False):
        assert isinstance(act(sumprod), float)
