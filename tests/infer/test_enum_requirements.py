"""Sites that leave the plates of enumerated ones."""

import warnings

import pytest

import sumprod
from sumprod import handlers
from sumprod.distributions import Bernoulli
from sumprod.infer import TraceEnum_ELBO
from sumprod.util import check_traceenum_requirements

PARALLEL = {"enumerate": "parallel"}


def nothing(lib):
    pass


def outside_after_inside(lib):
    dist = lib.distributions
    with lib.plate("rows", 3, dim=-1):
        lib.sample("a", dist.Bernoulli(0.5), infer=PARALLEL)
    lib.sample("b", dist.Bernoulli(0.5))


def outside_after_unmarked(lib):
    dist = lib.distributions
    with lib.plate("rows", 3, dim=-1):
        lib.sample("a", dist.Bernoulli(0.5))
    lib.sample("b", dist.Bernoulli(0.5), infer=PARALLEL)


def outside_before_inside(lib):
    dist = lib.distributions
    lib.sample("b", dist.Bernoulli(0.5), infer=PARALLEL)
    with lib.plate("rows", 3, dim=-1):
        lib.sample("a", dist.Bernoulli(0.5), infer=PARALLEL)


def in_and_out(lib):
    dist = lib.distributions
    rows, columns = lib.plate("rows", 3, dim=-1), lib.plate("columns", 2, dim=-2)
    with rows:
        lib.sample("a", dist.Bernoulli(0.5), infer=PARALLEL)
        with columns:
            lib.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
        lib.sample("d", dist.Bernoulli(0.5), infer=PARALLEL)


def siblings(lib):
    dist = lib.distributions
    rows, columns = lib.plate("rows", 3, dim=-1), lib.plate("columns", 2, dim=-1)
    with rows:
        lib.sample("a", dist.Bernoulli(0.5), infer=PARALLEL)
    with columns:
        lib.sample("b", dist.Bernoulli(0.5), infer=PARALLEL)


def sequential(lib):
    dist = lib.distributions
    rows = [lib.plate(f"rows{i}", 2, dim=-1) for i in range(2)]
    for i in lib.plate("loop", 2):
        with rows[i]:
            lib.sample(f"a{i}", dist.Bernoulli(0.5), infer=PARALLEL)
        lib.sample(f"b{i}", dist.Bernoulli(0.5), infer=PARALLEL)


def seen(lib, check, model, guide):
    """Warnings as (role and site, enumerated sites, plates)."""
    guide_trace = lib.poutine.trace(guide).get_trace(lib)
    model_trace = lib.poutine.trace(lib.poutine.replay(model, trace=guide_trace)).get_trace(lib)
    prune = lib.poutine.util.prune_subsample_sites
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(prune(model_trace), prune(guide_trace))
    assert all(issubclass(one.category, RuntimeWarning) for one in caught)
    return ["".join(str(one.message).split()) for one in caught]


PROGRAMS = [
    outside_after_inside,
    outside_after_unmarked,
    outside_before_inside,
    in_and_out,
    siblings,
    sequential,
]


@pytest.mark.parametrize("with_guide", [False, True])
@pytest.mark.parametrize("model", PROGRAMS)
def test_against_pyro(model, with_guide):
    """The same warnings, in the same words up to white space."""
    pyro = pytest.importorskip("pyro")
    from pyro.util import check_traceenum_requirements as peer

    guide = model if with_guide else nothing
    ours = seen(sumprod, check_traceenum_requirements, model, guide)
    assert ours == seen(pyro, peer, model, guide)
    assert bool(ours) == (guide in (outside_after_inside, in_and_out, sequential))


def test_message():
    one = handlers.trace(outside_after_inside).get_trace(sumprod)
    other = handlers.trace(nothing).get_trace(sumprod)
    with pytest.warns(RuntimeWarning) as caught:
        check_traceenum_requirements(other, one)
    [warning] = caught
    assert str(warning.message) == (
        'at guide site "b", possibly invalid dependency.\n'
        'Expected site "b" to precede sites "a"\n'
        'to avoid breaking independence of plates "rows"'
    )


def test_subsample_sites_do_not_count():
    def program():
        with sumprod.plate("rows", 3):
            sumprod.sample("a", Bernoulli(0.5), infer=PARALLEL)
        with sumprod.plate("columns", 3):
            pass

    one = handlers.trace(program).get_trace()
    assert "columns" in one
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_traceenum_requirements(one, one)


def test_loss_warns_of_guide_sites_that_are_depended_on_from_outside():
    def program(depends, marked):
        with sumprod.plate("rows", 3):
            a = sumprod.sample("a", Bernoulli(0.3), infer=PARALLEL if marked else {})
        probs = 0.2 + 0.5 * (a[..., :1] if depends else 0.0)
        sumprod.sample("b", Bernoulli(probs), infer=PARALLEL if marked else {})

    def loss(in_model, in_guide):
        TraceEnum_ELBO(max_plate_nesting=1).loss(
            lambda: program(in_model, False), lambda: program(in_guide, True)
        )

    match = "possibly invalid dependency: site 'b' depends on site 'a', which is inside plate 'rows'"
    with pytest.warns(RuntimeWarning, match=match):
        loss(True, False)
    with pytest.warns(RuntimeWarning, match=match):
        loss(False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(False, False)
        with sumprod.validation_enabled(False):
            loss(True, True)
