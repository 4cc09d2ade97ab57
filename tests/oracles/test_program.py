"""The oracle of programs: by hand, against a plain loop over all copies, and by finite differences."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from tests.oracles.program import Program, Site, bound, evidence, joint, log_table, log_weight
from tests.oracles.program_cases import guides, programs

FEW = settings(max_examples=40)


def logits(*probs):
    return torch.tensor(probs, dtype=torch.float64).log()


def coin(name, *probs, parents=(), plates=(), **options):
    return Site(name, "categorical", 2, parents, plates, logits(*probs), **options)


FLIP = coin("z", 0.25, 0.75)
SEEN = Site(
    "x", "categorical", 1, ("z",), ("p",),
    logits([[0.9, 0.1], [0.8, 0.2]], [[0.4, 0.6], [0.3, 0.7]]), torch.tensor([0, 1]),
)  # fmt: skip


def test_by_hand():
    program = Program((FLIP, SEEN), {"p": 2})
    total = 0.25 * 0.9 * 0.2 + 0.75 * 0.4 * 0.7
    assert log_weight(program).item() == pytest.approx(math.log(total), abs=1e-14)
    expected = [0.25 * 0.9 * 0.2 / total, 0.75 * 0.4 * 0.7 / total]
    np.testing.assert_allclose(joint(program, [("z", ())]).numpy(), expected, rtol=1e-14)
    assert log_weight(program, maximise=True).item() == pytest.approx(math.log(0.75 * 0.4 * 0.7))
    assert evidence(replace(program, scale=3.0)).item() == pytest.approx(3 * math.log(total))


def test_masks_by_hand():
    observed = Program((FLIP, replace(SEEN, mask=torch.tensor([True, False]))), {"p": 2})
    assert log_weight(observed).item() == pytest.approx(math.log(0.25 * 0.9 + 0.75 * 0.4))
    latent = Program((replace(FLIP, mask=torch.tensor(False)), SEEN), {"p": 2})
    assert log_weight(latent) == log_weight(Program((FLIP, SEEN), {"p": 2}))


def test_bound_by_hand():
    program = Program((FLIP, SEEN), {"p": 2}, scale=2.0)
    guide = Program((coin("z", 0.5, 0.5),), {"p": 2}, scale=2.0)
    inside = [math.log(p / 0.5) for p in (0.25 * 0.9 * 0.2, 0.75 * 0.4 * 0.7)]
    assert bound(program, guide).item() == pytest.approx(sum(inside))
    hidden = torch.tensor(False)
    masked = replace(guide, sites=(replace(guide.sites[0], mask=hidden),))
    inside = [math.log(p) for p in (0.25 * 0.9 * 0.2, 0.75 * 0.4 * 0.7)]
    assert bound(program, masked).item() == pytest.approx(sum(inside))
    program = replace(program, sites=(replace(FLIP, mask=hidden), SEEN))
    inside = [math.log(p) for p in (0.9 * 0.2, 0.4 * 0.7)]
    assert bound(program, masked).item() == pytest.approx(sum(inside))


def test_scales_of_a_subsampled_plate():
    alone = Site("y", "normal", 1, (), (), torch.zeros(1, dtype=torch.float64), torch.tensor(0.0))
    flip = coin("z", [0.25, 0.75], [0.25, 0.75], plates=("p",))
    program = Program((alone, flip, SEEN), {"p": 2}, scale=3.0, subsampled="p")
    first, second = 0.25 * 0.9 + 0.75 * 0.4, 0.25 * 0.2 + 0.75 * 0.7
    expected = -0.5 * math.log(2 * math.pi) + 3 * math.log(first * second)
    assert evidence(program).item() == pytest.approx(expected)
    with pytest.raises(AssertionError, match="several scales"):
        evidence(replace(program, sites=(FLIP, SEEN)))


@pytest.mark.parametrize("family", ["categorical", "bernoulli", "binomial", "normal", "poisson"])
def test_densities(family):
    """Against torch's."""
    table = torch.tensor([[0.3, -1.2, 0.5], [1.0, 0.2, -0.7]], dtype=torch.float64)
    table = table if family == "categorical" else table[..., :1]
    dist = torch.distributions
    families = {
        "categorical": lambda: dist.Categorical(logits=table),
        "bernoulli": lambda: dist.Bernoulli(logits=table[..., 0]),
        "binomial": lambda: dist.Binomial(2, logits=table[..., 0]),
        "normal": lambda: dist.Normal(table[..., 0], torch.ones(2, dtype=torch.float64)),
        "poisson": lambda: dist.Poisson(table[..., 0].exp()),
    }
    if family in ("normal", "poisson"):
        value = torch.tensor([2, 3])
        site = Site("x", family, 1, (), ("p",), table, value)
        expected = families[family]().log_prob(value.double())
    else:
        size = 2 if family == "bernoulli" else 3
        site = Site("z", family, size, (), ("p",), table)
        values = torch.arange(size, dtype=torch.float64).unsqueeze(-1)
        expected = families[family]().log_prob(values).T
    np.testing.assert_allclose(log_table(site).numpy(), expected.numpy(), rtol=1e-13)


def unrolled(program):
    """Every assignment of all copies, in one loop: (assignment, log-weight)."""
    copies = program.copies(site.name for site in program.latent)
    tables = {site.name: log_table(site).tolist() for site in program.sites}
    for values in itertools.product(*(range(program[name].size) for name, _ in copies)):
        chosen = dict(zip(copies, values, strict=True))
        total = 0.0
        for name, index in program.copies(site.name for site in program.sites):
            site = program[name]
            if site.observed is not None and site.mask is not None and not site.mask[index]:
                continue
            entry = [chosen[parent, index[: len(program[parent].plates)]] for parent in site.parents]
            entry += [*index, *([chosen[name, index]] if site.observed is None else [])]
            density = tables[name]
            for i in entry:
                density = density[i]
            total += density
        yield chosen, total


def number_of_assignments(program):
    return math.prod(
        site.size ** math.prod(program.plates[plate] for plate in site.plates) for site in program.latent
    )


@FEW
@given(programs())
def test_against_a_plain_loop(program):
    assume(number_of_assignments(program) <= 2000)
    found = list(unrolled(program))
    weights = np.array([math.exp(weight) for _, weight in found])
    total = math.fsum(weights)
    assert log_weight(program).exp().item() == pytest.approx(total, rel=1e-12)
    assert log_weight(program, maximise=True).exp().item() == pytest.approx(weights.max(), rel=1e-12)
    copies = program.copies(site.name for site in program.latent)[-2:]
    if total and copies:
        table = np.zeros([program[name].size for name, _ in copies])
        for (chosen, _), weight in zip(found, weights, strict=True):
            table[tuple(chosen[copy] for copy in copies)] += weight / total
        np.testing.assert_allclose(joint(program, copies).numpy(), table, atol=1e-12)


@FEW
@given(programs().flatmap(lambda program: guides(program).map(lambda guide: (program, guide))))
def test_bound_is_below_the_evidence(pair):
    """By as much as the guide differs from the posterior."""
    program, guide = pair
    program = replace(program, scale=1.0, subsampled=None)
    program = replace(program, sites=tuple(replace(site, mask=None) for site in program.sites))
    guide = replace(guide, scale=1.0, sites=tuple(replace(site, mask=None) for site in guide.sites))
    copies = guide.copies(site.name for site in guide.sites)
    total = evidence(program)
    assume(len(copies) <= 6 and total > -math.inf)
    if not copies:
        assert bound(program, guide).item() == pytest.approx(total.item(), abs=1e-12)
        return
    q, p = joint(guide, copies).flatten(), joint(program, copies).flatten()
    divergence = torch.where(q > 0, q * (q.log() - p.log()), 0.0).sum().item()
    assert bound(program, guide).item() == pytest.approx(total.item() - divergence, rel=1e-9, abs=1e-9)


def test_gradients_against_finite_differences(generator):
    program = Program(
        (FLIP, coin("w", [0.3, 0.7], [0.6, 0.4], parents=("z",), plates=()), SEEN), {"p": 2}, scale=0.5
    )
    guide = Program((coin("w", 0.2, 0.8),), {"p": 2}, scale=0.5)

    def value(*tables):
        pairs = zip(program.sites, tables, strict=False)
        moved = program.with_tables({site.name: table for site, table in pairs})
        return bound(moved, guide.with_tables({"w": tables[-1]}))

    tables = [site.table.clone().requires_grad_() for site in (*program.sites, *guide.sites)]
    assert torch.autograd.gradcheck(value, tables)
    assert torch.autograd.gradgradcheck(value, tables)


def test_gradient_where_nothing_is_possible():
    table = logits(1.0, 0.0).requires_grad_()
    seen = coin("x", 1.0, 0.0, parents=(), observed=torch.tensor(1))
    total = log_weight(Program((replace(FLIP, table=table), replace(seen, size=1)), {}))
    assert total == -math.inf
    total.backward()
    assert torch.equal(table.grad, torch.zeros(2, dtype=torch.float64))
