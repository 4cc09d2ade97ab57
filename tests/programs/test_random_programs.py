"""Programs drawn at random give the same traces, losses and gradients under both libraries."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import sumprod
from tests.programs.random_programs import draw_program, guide_of, model_of
from tests.programs.support import Program, assert_same, trace_of

peer = pytest.importorskip("pyro", reason="pyro-ppl is the peer; it comes with the test extra")

ESTIMATORS = {
    "trace": (lambda infer: infer.Trace_ELBO(num_particles=2), True, True),
    "mean field": (lambda infer: infer.TraceMeanField_ELBO(), False, True),
    "renyi": (lambda infer: infer.RenyiELBO(alpha=0.4, num_particles=3), False, False),
    "vectorised": (
        lambda infer: infer.Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2),
        True,
        True,
    ),
}
TOLERANCE = Program("random", lambda pyro: {}, 0, 1e-4, 1e-4, None)


def outcome(pyro: Any, seed: int, estimator: str) -> dict[str, Any]:
    make, discrete, subsample = ESTIMATORS[estimator]
    program = draw_program(seed, discrete=discrete, subsample=subsample)
    model, guide = model_of(pyro, program), guide_of(pyro, program)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide_trace = pyro.poutine.trace(guide).get_trace()
    model_trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace()
    elbo = make(pyro.infer)
    report = {
        "guide": trace_of(guide_trace),
        "model": trace_of(model_trace),
        "loss": elbo.loss(model, guide),
        "loss and gradient": elbo.loss_and_grads(model, guide),
    }
    leaves = dict(pyro.get_param_store().named_parameters())
    return {**report, "gradients": {n: x.grad for n, x in leaves.items() if x.grad is not None}}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("seed", range(25))
def test_random_program(seed: int, estimator: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = outcome(peer, seed, estimator)
        # Random programs also earn warnings (say, plates that only the model opens); see test_refused.py.
        actual = outcome(sumprod, seed, estimator)
    assert_same(actual, expected, TOLERANCE)
