"""Evidence and draws of programs with `vectorized_markov`, against all assignments.

Failure rate of a test of draws: 1e-6.
"""

import itertools
import math

import pytest
import torch

import sumprod
from sumprod.handlers import condition, trace
from sumprod.handlers.subsample import SubsampleIndices
from sumprod.infer import TraceEnum_ELBO, infer_discrete
from tests.goodness_of_fit import chi_square
from tests.infer.vectorized_plates import CASES
from tests.infer.vectorized_programs import at_once, one_by_one
from tests.infer.vectorized_runs import hidden, nothing, values_of

DRAWS = 6000
# Scales change the posterior; the others have too many assignments, or the structure of another one.
LEFT_OUT = {"scaled", "subsampled", "event_dims", "a_variable_of_each_sequence", "only_the_data_are_masked"}
SMALL = {name: case for name, case in CASES.items() if name not in LEFT_OUT}
EACH = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)


def repeated(case, loop, rows):
    """Independent runs along a dim of their own, left of all others."""

    def model():
        with sumprod.plate("rows", rows, dim=-1 - case.nesting):
            case.model(loop)()

    return model


class Exact:
    """All assignments of a case and their weights, by the loop."""

    def __init__(self, case, observed=True):
        self.case = case
        self.sites = hidden(trace(case.model(one_by_one)).get_trace().nodes)
        self.sizes = {
            name: len(one["fn"].enumerate_support(expand=False)) for name, one in self.sites.items()
        }
        ranges = [
            range(self.sizes[name]) for name, one in self.sites.items() for _ in range(one["value"].numel())
        ]
        rows = torch.tensor(list(itertools.product(*ranges)))
        values, start = {}, 0
        for name, one in self.sites.items():
            shape = one["value"].shape
            own = rows[:, start : start + one["value"].numel()]
            values[name] = own.reshape(-1, *(1,) * (case.nesting - len(shape)), *shape)
            start += one["value"].numel()
        given = trace(condition(repeated(case, one_by_one, len(rows)), data=values)).get_trace()
        given.compute_log_prob()
        total = torch.zeros(len(rows), dtype=torch.float64)
        for name, one in given.nodes.items():
            if one["type"] != "sample" or isinstance(one["fn"], SubsampleIndices):
                continue
            if name in values:  # masks are for data: states without any follow the prior
                total += one["fn"].log_prob(one["value"]).reshape(len(rows), -1).sum(1).detach()
            elif observed:
                total += one["log_prob"].reshape(len(rows), -1).sum(1).detach()
        assert math.prod(map(len, ranges)) == len(rows)
        self.log_weights, self.probabilities = total, total.softmax(0)

    def p_value(self, drawn):
        """Of draws by site, [draws, ...]."""
        drawn = self.case.step_by_step(drawn)
        codes = torch.zeros(DRAWS, dtype=torch.long)
        for name, one in self.sites.items():
            for cell in drawn[name].reshape(DRAWS, -1).expand(DRAWS, one["value"].numel()).unbind(1):
                codes = codes * self.sizes[name] + cell.long()
        counts = torch.bincount(codes, minlength=len(self.probabilities))
        return chi_square(counts.numpy(), self.probabilities.numpy())


@EACH
def test_evidence(case):
    loss = TraceEnum_ELBO(max_plate_nesting=case.nesting).loss(case.model(at_once), nothing)
    assert loss == pytest.approx(-Exact(case).log_weights.logsumexp(0).item(), rel=1e-12, abs=1e-13)


@EACH
def test_posterior(case):
    sumprod.set_rng_seed(0)
    exact, model = Exact(case), repeated(case, at_once, DRAWS)
    drawn = trace(infer_discrete(model, first_available_dim=-2 - case.nesting)).get_trace().nodes
    assert exact.p_value(values_of(drawn)) > 1e-6
    with trace() as seen:
        TraceEnum_ELBO(max_plate_nesting=1 + case.nesting).sample_posterior(model, nothing)
    assert exact.p_value(values_of(seen.trace.nodes)) > 1e-6


@EACH
def test_prior(case):
    """A plain run is the loop's."""
    sumprod.set_rng_seed(1)
    nodes = trace(repeated(case, at_once, DRAWS)).get_trace().nodes
    names = list(trace(case.model(one_by_one)).get_trace().nodes)
    assert [name for name in nodes if name not in ("rows", "_INPUT", "_RETURN")] == [
        name for name in names if name not in ("_INPUT", "_RETURN")
    ]
    assert Exact(case, observed=False).p_value(values_of(nodes)) > 1e-6
