"""Checks of models against guides and of sites against plates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import Trace_ELBO, _checks

AUXILIARY = {"is_auxiliary": True}


def normal(name: str, *shape: int, event_dims: int = 0, **kwargs: Any) -> torch.Tensor:
    value: torch.Tensor = sumprod.sample(
        name, dist.Normal(torch.zeros(shape), 1.0).to_event(event_dims), **kwargs
    )
    return value


def run(program: Callable[[], Any]) -> Any:
    return handlers.trace(program).get_trace()


def match(model: Callable[[], Any], guide: Callable[[], Any], max_plate_nesting: float = math.inf) -> None:
    _checks.check_model_guide_match(run(model), run(guide), max_plate_nesting)


def in_plate(name: str, *sizes: int, **kwargs: Any) -> Callable[[], None]:
    def program() -> None:
        with sumprod.plate_stack("plate", sizes):
            normal(name, **kwargs)

    return program


# ---- names


def test_equal_programs_match_silently() -> None:
    def guide() -> None:
        normal("z")
        with sumprod.plate("rows", 4, subsample_size=2):
            normal("y", 3, event_dims=1)

    def model() -> None:
        guide()
        normal("x", obs=torch.zeros(()))

    match(model, guide)


def test_site_missing_from_the_guide() -> None:
    with pytest.warns(UserWarning, match="Found vars in model but not guide: 'b', 'a'"):
        match(lambda: [normal("b"), normal("a"), normal("c")], lambda: normal("c"))


def test_site_missing_from_the_guide_is_counted_without_guide_density() -> None:
    """Trap 57: the loss is minus the log-density of a draw from the prior."""

    def model() -> None:
        normal("z")

    torch.manual_seed(7)
    with pytest.warns(UserWarning, match="Found vars in model but not guide: 'z'"):
        loss = Trace_ELBO().loss(model, lambda: None)
    torch.manual_seed(7)
    assert loss == pytest.approx(-dist.Normal(0.0, 1.0).log_prob(torch.randn(())).item())


def test_enumerated_and_observed_model_sites_need_no_guide() -> None:
    def model() -> None:
        sumprod.sample("z", dist.Bernoulli(0.5), infer={"_enumerate_dim": -1})
        normal("x", obs=torch.zeros(()))
        sumprod.deterministic("d", torch.zeros(()))

    match(model, lambda: None)


def test_guide_site_missing_from_the_model() -> None:
    with pytest.warns(
        UserWarning, match="Found non-auxiliary vars in guide but not model, consider marking these.*: 'w'"
    ):
        match(lambda: normal("z"), lambda: [normal("z"), normal("w")])


def test_guide_site_that_the_model_observes_is_not_a_latent_of_the_model() -> None:
    with pytest.warns(UserWarning, match="Found non-auxiliary vars in guide but not model"):
        match(lambda: normal("x", obs=torch.zeros(())), lambda: normal("x"))


def test_auxiliary_and_deterministic_guide_sites_are_fine() -> None:
    def guide() -> None:
        sumprod.deterministic("d", normal("w", infer=AUXILIARY))

    match(lambda: None, guide)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("has_rsample", [None, False, True])
def test_factor_in_the_guide_must_say_how_it_depends_on_draws(masked: bool, has_rsample: bool | None) -> None:
    def guide() -> None:
        with sumprod.plate("rows", 2), handlers.mask(mask=torch.tensor(not masked)):
            sumprod.factor("bonus", torch.zeros(2), has_rsample=has_rsample)

    if has_rsample is not None:
        match(lambda: sumprod.plate("rows", 2), guide)
        return
    with pytest.raises(
        ValueError,
        match=r"missing specification of has_rsample at guide site 'bonus' in plate 'rows' \(dim=-1",
    ):
        match(lambda: sumprod.plate("rows", 2), guide)


def test_auxiliary_site_in_the_model() -> None:
    def program() -> None:
        normal("z", infer=AUXILIARY)

    with pytest.warns(UserWarning, match="Found auxiliary vars in the model: 'z'"):
        match(program, program)


def test_plate_of_the_guide_alone() -> None:
    def guide() -> None:
        with sumprod.plate("other", 3):
            normal("z")

    with pytest.warns(UserWarning, match="Found plate statements in guide but not model: 'other'"):
        match(in_plate("z", 3), guide)


def test_a_warning_has_all_names_in_first_use_order() -> None:
    names = [f"z{i}" for i in (3, 1, 2, 9, 5)]
    with pytest.warns(UserWarning, match=", ".join(f"'{name}'" for name in names)):
        match(lambda: [normal(name) for name in names], lambda: None)


# ---- shapes


def test_event_dims_that_differ() -> None:
    with pytest.raises(
        ValueError,
        match=r"Model and guide event_dims disagree at site 'z' in plate 'plate_0' \(dim=-1, size=3\): 0 vs 1"
        r" .*add \.to_event\(1\) in the model",
    ) as caught:
        match(in_plate("z", 3), lambda: normal("z", 3, event_dims=1))
    assert caught.value.site == "z"
    assert [frame.name for frame in caught.value.plates] == ["plate_0"]


@pytest.mark.parametrize(("model", "guide"), [((3,), (2,)), ((2, 3), (3,)), ((3,), ())])
@pytest.mark.parametrize("event_dims", [0, 1])
def test_shapes_that_differ(model: tuple[int, ...], guide: tuple[int, ...], event_dims: int) -> None:
    event = (4,) * event_dims
    with pytest.raises(ValueError, match=r"Model and guide shapes disagree at site 'z'.*model vs guide"):
        match(
            lambda: normal("z", *model, *event, event_dims=event_dims),
            lambda: normal("z", *guide, *event, event_dims=event_dims),
        )


def test_event_sizes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"Model and guide shapes disagree at site 'z': \(3,\) vs \(2,\)"):
        match(lambda: normal("z", 3, event_dims=1), lambda: normal("z", 2, event_dims=1))


def test_dims_left_of_the_plates_may_broadcast() -> None:
    match(lambda: normal("z", 2, 3), lambda: normal("z", 3), max_plate_nesting=1)
    with pytest.raises(ValueError, match="Model and guide shapes disagree at site 'z'"):
        match(lambda: normal("z", 2, 3), lambda: normal("z", 4, 3), max_plate_nesting=1)


def test_check_traces_match() -> None:
    one = run(lambda: [normal("a", 2), normal("b")])
    _checks.check_traces_match(one, run(lambda: [normal("a", 2), normal("b")]))
    with pytest.warns(
        UserWarning, match="Model vars changed: only in the first run: 'b'; only in the second: 'c'"
    ):
        _checks.check_traces_match(one, run(lambda: [normal("a", 2), normal("c")]))
    with pytest.raises(ValueError, match=r"Site dims disagree at site 'a': \(2,\) vs \(3,\)"):
        _checks.check_traces_match(one, run(lambda: [normal("a", 3), normal("b")]))


# ---- sites against plates


def check_shapes(program: Callable[[], Any], max_plate_nesting: float = math.inf) -> None:
    trace = handlers.util.prune_subsample_sites(run(program))
    trace.compute_log_prob()
    for site in trace.nodes.values():
        if site["type"] == "sample":
            _checks.check_site_shape(site, max_plate_nesting)


@pytest.mark.parametrize("sizes", [(), (3,), (2, 3)])
@pytest.mark.parametrize("event_dims", [0, 2])
def test_sites_that_fit_their_plates(sizes: tuple[int, ...], event_dims: int) -> None:
    def program() -> None:
        with sumprod.plate_stack("plate", sizes):
            normal("z", *(4,) * event_dims, event_dims=event_dims)

    check_shapes(program, len(sizes))


def test_sites_in_sequential_and_sizeless_plates_fit() -> None:
    def program() -> None:
        for i in sumprod.plate("loop", 2):
            normal(f"z{i}")
        with sumprod.plate("open"):
            normal("y", 7)

    check_shapes(program)


def test_batch_dim_without_a_plate() -> None:
    def program() -> None:
        with sumprod.plate("rows", 2, dim=-2):
            for i in sumprod.plate("loop", 1):
                normal(f"z{i}")
        normal("y", 3)

    with pytest.raises(
        ValueError, match=r"(?s)at site 'y', invalid log_prob shape\n  Expected \[\], actual \[3\]"
    ) as caught:
        check_shapes(program)
    text = str(caught.value)
    assert "enclose the batched tensor in a with plate(...): context" in text
    assert ".to_event(...) the distribution being sampled" in text
    assert ".permute() data dimensions" in text
    assert "batch shape (3,), event shape ()" in text


def test_every_plate_is_named_with_a_wrong_shape() -> None:
    def program() -> None:
        with sumprod.plate("rows", 2, dim=-2), sumprod.plate("open", dim=-1):
            for _ in sumprod.plate("loop", 1):
                normal("z", 5, 2, 3)

    expected = (
        r"at site 'z' in plate 'rows' \(dim=-2, size=2\), 'open' \(dim=-1, size=unknown\),"
        r" 'loop' \(step 1 of 1\), invalid log_prob shape\n  Expected \[2, any\], actual \[5, 2, 3\]"
    )
    with pytest.raises(ValueError, match=expected):
        check_shapes(program)


def test_plate_left_of_max_plate_nesting() -> None:
    with pytest.raises(
        ValueError,
        match=r"(?s)at site 'z'.*plate stack overflow.*Try increasing max_plate_nesting to at least 2",
    ):
        check_shapes(in_plate("z", 2, 3), 1)


def test_dims_left_of_max_plate_nesting_belong_to_enumeration() -> None:
    def program() -> None:
        with sumprod.plate("rows", 3):
            normal("z", 5, 3)

    check_shapes(program, 1)
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        check_shapes(program, 2)


def test_two_plates_on_one_dim() -> None:
    frame = handlers.indep.CondIndepStackFrame
    site = {
        "name": "z",
        "cond_indep_stack": (frame("rows", -1, 2, 0), frame("columns", -1, 2, 0)),
        "log_prob": torch.zeros(2),
        "infer": {},
    }
    with pytest.raises(
        ValueError,
        match=r"""at site 'z' within plate\('columns', dim=-1\), dim collision with plate 'rows'""",
    ):
        _checks.check_site_shape(site, math.inf)


def test_enumeration_dim_that_is_taken() -> None:
    site = {
        "name": "z",
        "cond_indep_stack": (),
        "log_prob": torch.zeros(2, 1),
        "infer": {"_enumerate_dim": -2},
        "fn": dist.Bernoulli(torch.full((2, 1), 0.5)),
    }
    with pytest.raises(
        ValueError, match=r"(?s)Enumeration dim conflict.*'z'.*Try increasing pyro.markov history size"
    ):
        _checks.check_site_shape(site, 0)


# ---- enumeration marks, missing guide sites


def enumerated() -> None:
    sumprod.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})


def test_strict_enumeration_warning_governs_the_warning() -> None:
    """Trap 24, the half of the losses that do not enumerate."""
    with pytest.warns(
        UserWarning,
        match="Found sample sites configured for enumeration: z\n.*you need to use TraceEnum_ELBO instead.$",
    ):
        Trace_ELBO().loss(enumerated, enumerated)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trace_ELBO(strict_enumeration_warning=False).loss(enumerated, enumerated)


def test_missing_guide_site_error_is_a_key_error_and_a_value_error() -> None:
    error = _checks.missing_guide_site("z", run(lambda: [normal("a"), normal("b")]), "SomeELBO")
    assert isinstance(error, KeyError)
    assert isinstance(error, ValueError)
    assert error.site == "z"
    assert str(error).startswith("SomeELBO needs a guide site for every latent site")
    assert "'z' is not in the guide, which has 'a', 'b'" in str(error)


def test_checks_can_be_switched_off() -> None:
    def model() -> None:
        normal("z", 3)

    with sumprod.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(Trace_ELBO().loss(model, lambda: None), float)
