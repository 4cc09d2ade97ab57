"""Random programs with discrete latent sites, against brute force over all assignments."""

import contextlib
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sumprod.errors import SupportError
from sumprod.infer import TraceEnum_ELBO, infer_discrete
from tests.infer.program_refusals import (
    GLOBAL,
    SCALES,
    SEQUENTIAL,
    perhaps_too_global,
    refused,
    several_scales,
    too_global,
)
from tests.infer.program_runs import DEPTH, Forced, numbers, place, run
from tests.oracles.program import Site, bound, evidence, joint, log_table, log_weight, touched
from tests.oracles.program_cases import guides, programs

PARALLEL = {"enumerate": "parallel"}


def examples(count):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )


def elbo(**options):
    return TraceEnum_ELBO(max_plate_nesting=DEPTH, strict_enumeration_warning=False, **options)


def empty():
    pass


def marks(program, mark=PARALLEL, expanded=0):
    """Marks for all latent sites; some are expanded, by the bits of a number."""
    return {
        site.name: {**mark, "expand": True} if expanded >> i & 1 else mark
        for i, site in enumerate(program.latent)
    }


def model_of(program, expanded=0, masks_of_distributions=False):
    return lambda: run(
        program, marks(program, expanded=expanded), masks_of_distributions=masks_of_distributions
    )


# ---- derivatives


def leaves(program):
    """The same program, with tables that require grad."""
    return program.with_tables(
        {site.name: site.table.detach().clone().requires_grad_() for site in program.sites}
    )


def gradients(value, *programs_):
    tables = [site.table for program in programs_ for site in program.sites]
    if not value.requires_grad:
        return [torch.zeros_like(table) for table in tables]
    found = torch.autograd.grad(value, tables, allow_unused=True, create_graph=True)
    return [torch.zeros_like(table) if one is None else one for table, one in zip(tables, found, strict=True)]


def assert_close(found, expected, tolerance=1e-9):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            one.detach().numpy(), other.detach().numpy(), rtol=tolerance, atol=tolerance
        )


# ---- everything is summed out in the model


def check_model_side(program, expanded, of_distributions):
    program = leaves(program)
    model = model_of(program, expanded, of_distributions)
    assume(program.sites)
    if refused(program, lambda: elbo().loss(model, empty)):
        return
    expected = evidence(program)
    assert elbo().loss(model, empty) == pytest.approx(-expected.item(), rel=1e-10, abs=1e-10)
    loss = elbo().differentiable_loss(model, empty)
    assert loss.item() == pytest.approx(-expected.item(), rel=1e-10, abs=1e-10)
    first, exact = gradients(loss, program), gradients(-expected, program)
    assert_close(first, exact)
    check_second_derivatives(first, exact, program)
    elbo().loss_and_grads(model, empty)
    assert_close(accumulated(program), exact)


def check_second_derivatives(first, exact, *programs_):
    """Of slopes along one direction."""
    generator = torch.Generator().manual_seed(0)
    slope, exact_slope = torch.zeros(()), torch.zeros(())
    for one, other in zip(first, exact, strict=True):
        direction = torch.randn(one.shape, generator=generator, dtype=torch.float64)
        slope, exact_slope = slope + (one * direction).sum(), exact_slope + (other * direction).sum()
    if exact_slope.requires_grad:
        assert_close(gradients(slope, *programs_), gradients(exact_slope, *programs_), 1e-8)


def accumulated(*programs_):
    """The gradients that `backward` left."""
    tables = [site.table for program in programs_ for site in program.sites]
    return [torch.zeros_like(table) if table.grad is None else table.grad for table in tables]


def check_marginals(program, expanded, of_distributions):
    model = model_of(program, expanded, of_distributions)
    if not program.latent or log_weight(program) == -math.inf:
        return
    found = elbo().compute_marginals(model, empty)
    assert list(found) == [site.name for site in program.latent]
    for site in program.latent:
        table = probabilities(site, found[site.name])
        for _, index in program.copies([site.name]):
            exact = joint(program, [(site.name, index)])
            np.testing.assert_allclose(place(site, table, index).numpy(), exact.numpy(), atol=1e-10)


def probabilities(site, fn):
    """[*batch, size]"""
    if site.family in ("categorical", "one_hot"):
        assert (
            type(fn).__name__ == {"categorical": "Categorical", "one_hot": "OneHotCategorical"}[site.family]
        )
        return fn.probs
    if site.family == "bernoulli":
        assert type(fn).__name__ == "Bernoulli"
        return torch.stack([1 - fn.probs, fn.probs], -1)
    values = torch.arange(site.size, dtype=torch.float64)
    return fn.log_prob(values.reshape(-1, *(1,) * len(fn.batch_shape))).exp().movedim(0, -1)


def check_best(program, expanded, of_distributions):
    best = infer_discrete(
        model_of(program, expanded, of_distributions),
        first_available_dim=-1 - DEPTH,
        temperature=0,
        strict_enumeration_warning=False,
    )
    total = log_weight(replace(program, sites=tuple(touched(program, ()))))
    if total == -math.inf:
        with pytest.raises(SupportError):
            best()
        return
    values = best()
    chosen = {
        copy: numbers(program, values, copy[0], 1)[(0, *copy[1])].reshape(1)
        for copy in program.copies(site.name for site in program.latent)
    }
    score, most = log_weight(program, chosen).item(), log_weight(program, maximise=True).item()
    assert score == pytest.approx(most, rel=1e-10, abs=1e-10)


# ---- some sites are in the guide


def check_guide_side(program, guide, sequential, expanded):
    """`sequential`: which of the guide's sites are, by the bits of a number."""
    program, guide = leaves(program), leaves(guide)
    if any(site.step is not None for site in guide.sites):
        # An expanded value of a chain's site has the dims of those before, which the guide may use again.
        expanded = 0
    in_guide = {
        site.name: SEQUENTIAL if sequential >> i & 1 else PARALLEL for i, site in enumerate(guide.sites)
    }

    def model():
        return run(program, {**marks(program, expanded=expanded), **in_guide})

    def guide_():
        return run(guide, in_guide)

    known = [site.name for site in guide.sites]
    messages = [SCALES] * several_scales(program, known)
    messages += [GLOBAL] * (too_global(program, guide) or perhaps_too_global(program, guide, in_guide))
    if messages:
        with pytest.raises(ValueError, match="|".join(messages)):
            elbo().loss(model, guide_)
        return
    expected = bound(program, guide)
    if expected == -math.inf:
        with contextlib.suppress(SupportError):
            assert elbo().loss(model, guide_) == math.inf
        return
    if not program.sites:
        return
    assert elbo().loss(model, guide_) == pytest.approx(-expected.item(), rel=1e-10, abs=1e-10)
    particles = elbo(vectorize_particles=True, num_particles=2)
    assert particles.loss(model, guide_) == pytest.approx(-expected.item(), rel=1e-10, abs=1e-10)
    loss = elbo().differentiable_loss(model, guide_)
    first, exact = gradients(loss, program, guide), gradients(-expected, program, guide)
    assert_close(first, exact)
    check_second_derivatives(first, exact, program, guide)
    elbo().loss_and_grads(model, guide_)
    assert_close(accumulated(program, guide), exact)


# ---- some sites of the guide are sampled: expectations over their draws, exactly


def check_sampled(program, guide, kinds):
    """`kinds`: of each site of the guide, whether it is enumerated, sampled once, or sampled twice."""
    program, guide = leaves(program), leaves(guide)
    in_guide, counts = strategies(guide, kinds)
    known = [site.name for site in guide.sites]
    exact_sites = [site for site in guide.sites if site.name not in counts or counts[site.name] > 1]
    if several_scales(program, known) or too_global(program, replace(guide, sites=tuple(exact_sites))):
        return
    copies = [(copy, i) for copy in guide.copies(counts) for i in range(counts[copy[0]])]
    ranges = [range(guide[name].size) for (name, _), _ in copies]
    expected = bound(program, guide)
    if math.prod(map(len, ranges)) > 64 or not copies or expected == -math.inf:
        return
    total, value = torch.zeros(()), 0.0
    for assignment in itertools.product(*ranges):
        chosen = dict(zip(copies, assignment, strict=True))
        weight = probability(guide, chosen)
        if weight == 0:
            continue
        draws = {
            name: torch.tensor(
                [[chosen[copy, i] for copy in guide.copies([name])] for i in range(count)]
            ).reshape(count, *(guide.plates[plate] for plate in guide[name].plates))
            for name, count in counts.items()
        }
        with Forced(guide, draws):
            loss = elbo().differentiable_loss(
                lambda: run(program, {**marks(program), **in_guide}), lambda: run(guide, in_guide)
            )
        value += weight * loss.item()
        total = total + weight * loss
    assert value == pytest.approx(-expected.item(), rel=1e-9, abs=1e-9)
    first, exact = gradients(total, program, guide), gradients(-expected, program, guide)
    assert_close(first, exact)
    check_second_derivatives(first, exact, program, guide)


def strategies(guide, kinds):
    """Marks of a guide's sites, and the number of draws of those that are sampled.

    A sampled site has only parents that are sampled once.
    """
    in_guide, counts = {}, {}
    for site in guide.sites:
        kind = kinds % 3
        kinds //= 3
        if kind == 0 or any(counts.get(name) != 1 for name in site.parents):
            in_guide[site.name] = PARALLEL
        else:
            in_guide[site.name] = {} if kind == 1 else {**PARALLEL, "num_samples": 2}
            counts[site.name] = kind
    return in_guide, counts


def probability(guide, chosen):
    """Of the draws of sampled sites."""
    logs = {site.name: log_table(site) for site in guide.sites}
    total = 0.0
    for ((name, index), _), value in chosen.items():
        site = guide[name]
        parents = [chosen[(one, index[: len(guide[one].plates)]), 0] for one in site.parents]
        total += logs[name][(*parents, *index, value)].item()
    return math.exp(total)


# ---- joint draws

DRAWS = 1000
UNLIKELY = 1e-7  # p-value; in 3,000 comparisons a sound sampler fails for one in 3,000 choices of seeds


def check_draws(program, pick, saved):
    """`pick`: which copies are compared. `saved`: by sample_posterior instead of infer_discrete."""
    if not program.latent or log_weight(program) == -math.inf:
        return

    def model():
        return run(program, marks(program), draws=DRAWS)

    torch.manual_seed(pick)
    if saved:
        losses = TraceEnum_ELBO(max_plate_nesting=DEPTH + 1, strict_enumeration_warning=False)
        values = losses.sample_posterior(model, empty)
    else:
        values = infer_discrete(model, first_available_dim=-2 - DEPTH)()
    copies = program.copies(site.name for site in program.latent)
    picked = np.random.default_rng(pick).permutation(len(copies))[:3]
    copies = [copies[i] for i in picked]
    columns = [numbers(program, values, name, DRAWS)[(slice(None), *index)] for name, index in copies]
    exact = joint(program, copies)
    cells = np.ravel_multi_index([column.numpy() for column in columns], exact.shape)
    found = np.bincount(cells, minlength=exact.numel())
    expected = exact.numpy().ravel() * DRAWS
    assert not found[expected < 1e-9].any()
    assert agree(found, expected) > UNLIKELY


def agree(found, expected):
    """The p-value of counts; rare cells are taken together."""
    rare = expected < 5
    found = np.append(found[~rare], found[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5:
        assert found[-1] < 40  # of a mean below 5: once in 10^21
        found, expected = found[:-1], expected[:-1]
    if len(found) < 2:
        return 1.0
    statistic = ((found - expected) ** 2 / expected).sum()
    return scipy.stats.chi2.sf(statistic, len(found) - 1)


# ---- the guide is the posterior


def check_exact_guide(program):
    """The bound is then the evidence: guide-side and model-side enumeration agree."""
    chosen = [site for site in program.latent if not site.plates and site.family != "binomial"]
    if several_scales(program) or not chosen:
        return
    sites = []
    for i, site in enumerate(chosen):
        parents = [one.name for one in chosen[:i]]
        logits = joint(program, [(name, ()) for name in (*parents, site.name)]).log()
        if site.family == "bernoulli":
            logits = logits[..., 1:] - logits[..., :1]
        sites.append(Site(site.name, site.family, site.size, tuple(parents), (), logits))
    guide = replace(program, sites=tuple(sites))
    program = replace(
        program,
        sites=tuple(replace(site, mask=None) if site in chosen else site for site in program.sites),
    )

    def model():
        return run(program, marks(program))

    for mark in (PARALLEL, SEQUENTIAL):
        loss = elbo().loss(model, lambda mark=mark: run(guide, marks(guide, mark)))
        assert loss == pytest.approx(elbo().loss(model, empty), rel=1e-9, abs=1e-9)


def with_guide(*others, most=512):
    """A program, a guide of some of its latent sites, and more."""
    return programs().flatmap(lambda program: st.tuples(st.just(program), guides(program, most), *others))


# ---- the runs: a few examples each time, thousands with --run-slow

SITES = st.integers(0, 63)
CHECKS = {
    check_model_side: (st.tuples(programs(), SITES, st.booleans()), 100),
    check_marginals: (st.tuples(programs(), SITES, st.booleans()), 50),
    check_best: (st.tuples(programs(), SITES, st.booleans()), 100),
    check_draws: (st.tuples(programs(), st.integers(0, 2**31), st.booleans()), 100),
    check_guide_side: (with_guide(SITES, SITES), 100),
    check_sampled: (with_guide(st.integers(0, 3**6 - 1), most=64), 60),
    check_exact_guide: (st.tuples(programs(zeros=False)), 30),
}


def with_names(check):
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", CHECKS, ids=with_names)
def test_against_brute_force(check):
    cases, count = CHECKS[check]
    examples(count)(given(cases)(lambda case: check(*case)))()


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=with_names)
def test_against_brute_force_at_length(check):
    cases, _ = CHECKS[check]
    examples(3000)(given(cases)(lambda case: check(*case)))()
