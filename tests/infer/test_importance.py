"""Importance sampling: exact evidences and posteriors, Pyro's numbers, and weights that are not finite."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from pyro.infer import Importance as PyroImportance
from pyro.infer.importance import psis_diagnostic as pyro_psis_diagnostic
from pyro.infer.importance import vectorized_importance_weights as pyro_vectorized_weights
from torch import Tensor

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from sumprod.infer.abstract_infer import SavedPosterior
from sumprod.infer.importance import (
    Importance,
    LogWeightsMixin,
    psis_diagnostic,
    vectorized_importance_weights,
)
from sumprod.ops import stats
from tests.infer.posterior_cases import DATA, exact_guide, log_evidence, normal_model, normal_posterior

INF = math.inf
BOTH = pytest.mark.parametrize("vectorized", [False, True])


def wide_guide(data: Tensor | None = DATA, size: int = 4) -> None:
    sumprod.sample("loc", dist.Normal(0.5, 1.0))


# ---- exact answers


@BOTH
@pytest.mark.parametrize("guide", [None, wide_guide])
def test_conjugate_model(guide: Any, vectorized: bool) -> None:
    count = 20_000 if vectorized else 1000
    posterior = Importance(normal_model, guide, num_samples=count, vectorized=vectorized).run(DATA)
    weights = posterior.get_normalized_weights().double()
    # The relative standard error of the mean weight, from the weights themselves; five of them.
    error = 5 * math.sqrt((weights**2).sum().item() - 1 / count)
    assert posterior.get_log_normalizer().item() == pytest.approx(log_evidence(), abs=error)
    mean, variance = normal_posterior()
    effective = posterior.get_ESS().item()
    estimate = (weights * posterior.stack("loc")).sum().item()
    assert estimate == pytest.approx(mean, abs=5 * (variance / effective) ** 0.5)
    marginal = posterior.marginal("loc").empirical["loc"]
    assert marginal.mean.item() == pytest.approx(estimate, abs=1e-5)


@BOTH
def test_an_exact_proposal_has_equal_weights(vectorized: bool) -> None:
    posterior = Importance(normal_model, exact_guide, num_samples=50, vectorized=vectorized).run(DATA)
    assert posterior.get_ESS().item() == pytest.approx(50, rel=1e-5)
    assert posterior.get_log_normalizer().item() == pytest.approx(log_evidence(), abs=1e-5)
    torch.testing.assert_close(posterior.get_normalized_weights(), torch.full((50,), 0.02))
    log_weights = posterior.get_normalized_weights(log_scale=True)
    torch.testing.assert_close(log_weights, torch.full((50,), -math.log(50)))


def discrete_model() -> Tensor:
    """Two coins, the second depends on the first, with data on both."""
    a = sumprod.sample("a", dist.Bernoulli(0.3))
    b = sumprod.sample("b", dist.Categorical(torch.stack([0.2 + 0.6 * a, 0.5 - 0.3 * a, 0.3 - 0.3 * a], -1)))
    sumprod.sample("x", dist.Normal(a + b, 1.0), obs=torch.tensor(1.2))
    return a


@BOTH
def test_discrete_model_by_enumeration(vectorized: bool) -> None:
    log_joint = {}
    for a, b in itertools.product((0, 1), (0, 1, 2)):
        values = {"a": torch.tensor(float(a)), "b": torch.tensor(b)}
        conditioned = handlers.condition(discrete_model, data=values)
        log_joint[a, b] = handlers.trace(conditioned).get_trace().log_prob_sum().double()
    evidence = torch.stack(list(log_joint.values())).logsumexp(0).item()
    count = 10_000 if vectorized else 1000
    posterior = Importance(discrete_model, num_samples=count, vectorized=vectorized).run()
    weights = posterior.get_normalized_weights().double()
    error = math.sqrt((weights**2).sum().item() - 1 / count)
    assert posterior.get_log_normalizer().item() == pytest.approx(evidence, abs=5 * error)
    a, b = posterior.stack("a"), posterior.stack("b")
    for (first, second), value in log_joint.items():
        share = weights[(a == first) & (b == second)].sum().item()
        exact = (value - evidence).exp().item()
        assert share == pytest.approx(exact, abs=5 * math.sqrt(0.25 / posterior.get_ESS().item()))
    if not vectorized:
        assert posterior.stack("_RETURN").tolist() == a.tolist()


# ---- the numbers of Pyro


def program(library: Any, family: Any) -> tuple[Any, Any]:
    def model() -> None:
        m = library.sample("m", family.Normal(0.0, 1.0))
        library.sample("v", family.Normal(torch.zeros(2), 1.0).to_event(1))
        with library.plate("d", 3):
            z = library.sample("z", family.Normal(m, 1.0))
            library.sample("x", family.Normal(z, 1.0), obs=torch.tensor([0.5, 1.0, -0.3]))

    def guide() -> None:
        m = library.sample("m", family.Normal(0.3, 0.8))
        library.sample("v", family.Normal(torch.zeros(2), 1.1).to_event(1))
        with library.plate("d", 3):
            library.sample("z", family.Normal(m, 1.2))

    return model, guide


OURS, PYROS = program(sumprod, dist), program(pyro, pyro_dist)


@pytest.mark.parametrize("with_guide", [True, False])
def test_equals_pyro(with_guide: bool, seed: int) -> None:
    torch.manual_seed(seed)
    peer = PyroImportance(PYROS[0], PYROS[1] if with_guide else None, num_samples=40).run()
    torch.manual_seed(seed)
    posterior = Importance(OURS[0], OURS[1] if with_guide else None, num_samples=40).run()
    torch.testing.assert_close(torch.stack(posterior.log_weights), torch.stack(peer.log_weights))
    torch.testing.assert_close(posterior.get_log_normalizer(), peer.get_log_normalizer())
    torch.testing.assert_close(posterior.get_ESS(), peer.get_ESS())
    for log_scale in (False, True):
        torch.testing.assert_close(
            posterior.get_normalized_weights(log_scale=log_scale),
            peer.get_normalized_weights(log_scale=log_scale),
            rtol=1e-5,
            atol=1e-5,
        )
    for name in ("m", "v", "z"):
        expected = torch.stack([trace.nodes[name]["value"] for trace in peer.exec_traces])
        torch.testing.assert_close(posterior.stack(name), expected)


@pytest.mark.parametrize("nesting", [1, 3])
def test_vectorized_weights_equal_pyro(nesting: int, seed: int) -> None:
    torch.manual_seed(seed)
    expected, peer_model, _ = pyro_vectorized_weights(*PYROS, num_samples=7, max_plate_nesting=nesting)
    torch.manual_seed(seed)
    weights, model_trace, guide_trace = vectorized_importance_weights(
        *OURS, num_samples=7, max_plate_nesting=nesting
    )
    torch.testing.assert_close(weights, expected)
    for name in ("m", "v", "z"):
        for trace in (model_trace, guide_trace):
            torch.testing.assert_close(trace.nodes[name]["value"], peer_model.nodes[name]["value"])


@pytest.mark.parametrize("step", [1000, 250])
def test_psis_diagnostic_equals_pyro(step: int, seed: int) -> None:
    options = {"num_particles": 1000, "max_simultaneous_particles": step, "max_plate_nesting": 1}
    torch.manual_seed(seed)
    expected = pyro_psis_diagnostic(*PYROS, **options)
    torch.manual_seed(seed)
    actual = psis_diagnostic(*OURS, **options)
    assert isinstance(actual, float)
    assert actual == pytest.approx(expected, abs=1e-3)


# ---- one run for all samples


def test_a_vectorized_run_holds_ordinary_traces() -> None:
    posterior = Importance(*OURS, num_samples=30, vectorized=True).run()
    assert len(posterior.exec_traces) == len(posterior.log_weights) == len(posterior.chain_ids) == 30
    assert posterior.exec_traces != []
    for number in (0, 7, -1):
        trace = posterior.exec_traces[number]
        guide = handlers.trace(handlers.replay(OURS[1], trace=trace)).get_trace()
        weight = trace.log_prob_sum() - guide.log_prob_sum()
        torch.testing.assert_close(weight, posterior.log_weights[number])
        for name, shape in (("m", ()), ("v", (2,)), ("z", (3,)), ("x", (3,))):
            assert trace.nodes[name]["value"].shape == shape
            assert posterior.stack(name).shape == (30, *shape)
            assert torch.equal(posterior.stack(name)[number], trace.nodes[name]["value"])
    assert [t.nodes["m"]["value"].item() for t in posterior.exec_traces[3:5]] == posterior.stack("m")[
        3:5
    ].tolist()
    with pytest.raises(KeyError, match="no site 'w' in trace 0"):
        posterior.stack("w")


def test_reading_a_vectorized_run_draws_nothing() -> None:
    posterior = Importance(*OURS, num_samples=5, vectorized=True).run()
    before = torch.get_rng_state()
    assert posterior.exec_traces[2] is not None
    assert posterior.stack("x").shape == (5, 3)  # observed: one run of the model per sample
    assert posterior.log_likelihood() is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_the_trial_run_draws_nothing(seed: int) -> None:
    torch.manual_seed(seed)
    guessed = Importance(*OURS, num_samples=5, vectorized=True).run()
    torch.manual_seed(seed)
    given = Importance(*OURS, num_samples=5, vectorized=True, max_plate_nesting=1).run()
    assert torch.equal(guessed.stack("z"), given.stack("z"))


def test_both_ways_have_the_same_criterion() -> None:
    posterior = Importance(*OURS, num_samples=40, vectorized=True).run()
    x = torch.tensor([0.5, 1.0, -0.3])
    density = torch.distributions.Normal(posterior.stack("z"), 1.0).log_prob(x)
    weights = torch.stack(posterior.log_weights)
    waic, p_waic = stats.waic(density, weights, pointwise=True)
    criterion = posterior.information_criterion(pointwise=True)
    torch.testing.assert_close(criterion["waic"], waic)
    torch.testing.assert_close(criterion["p_waic"], p_waic)
    torch.testing.assert_close(posterior.log_likelihood()["x"], density)
    with pytest.raises(ValueError, match="site 'z' is not observed"):
        posterior.information_criterion(sites=["z"])


def test_a_vectorized_run_with_masks_subsamples_and_size_one_plates() -> None:
    mask = torch.tensor([True, False, True])

    def model() -> Tensor:
        loc = sumprod.sample("loc", dist.Normal(0.0, 1.0))
        with sumprod.plate("one", 1, dim=-2):
            w = sumprod.sample("w", dist.Normal(loc, 1.0))
            with sumprod.plate("rows", 3, dim=-1), handlers.mask(mask=mask):
                x = dist.Normal(w, 1.0, validate_args=False)
                sumprod.sample("x", x, obs=torch.tensor([1.0, math.nan, 2.0]))
        with sumprod.plate("part", 10, subsample_size=2, dim=-1) as index:
            sumprod.sample("y", dist.Normal(loc, 1.0), obs=torch.arange(10.0)[index])
        sumprod.deterministic("twice", loc * 2)
        return loc

    posterior = Importance(model, num_samples=6, vectorized=True).run()
    assert posterior.stack("w").shape == (6, 1, 1)
    assert posterior.stack("part").shape == (6, 2)
    torch.testing.assert_close(posterior.stack("twice"), posterior.stack("loc") * 2)
    assert posterior.exec_traces[3].nodes["w"]["value"].shape == (1, 1)
    assert posterior.stack("_RETURN").shape == (6,)
    x = posterior.log_likelihood("x")["x"]
    assert x.shape == (6, 1, 3)
    assert (x[..., 1] == 0).all()
    with pytest.raises(ValueError, match="site 'y' is in plate 'part', which uses 2 of 10"):
        posterior.log_likelihood("y")


def test_detach_false_gives_gradients_of_the_evidence() -> None:
    scale = torch.tensor(1.5, requires_grad=True)

    def model() -> None:
        loc = sumprod.sample("loc", dist.Normal(0.0, scale))
        sumprod.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        sumprod.sample("loc", dist.Normal(0.0, 2.0))

    evidence = torch.distributions.Normal(0.0, (scale**2 + 1).sqrt()).log_prob(torch.tensor(1.0))
    (exact,) = torch.autograd.grad(evidence, scale)
    for vectorized, count in ((True, 50_000), (False, 500)):
        posterior = Importance(model, guide, count, vectorized=vectorized, detach=False).run()
        (grad,) = torch.autograd.grad(posterior.get_log_normalizer(), scale, retain_graph=True)
        # The estimate has a standard error of about 1 / sqrt(count); five of them.
        assert grad.item() == pytest.approx(exact.item(), abs=5 / math.sqrt(count))
        assert posterior.get_ESS().requires_grad
        assert (
            posterior.exec_traces[0].nodes["x"]["fn"].loc.requires_grad is False
        )  # the guide has no parameter
    assert not Importance(model, guide, 3).run().log_weights[0].requires_grad


# ---- resampling and smoothing


@BOTH
def test_resample_gives_each_trace_its_share(vectorized: bool) -> None:
    posterior = Importance(*OURS, num_samples=50, vectorized=vectorized).run()
    resampled = posterior.resample(1000)
    share = posterior.get_normalized_weights().double() * 1000
    m = resampled.stack("m")
    for value, expected in zip(posterior.stack("m").tolist(), share.tolist(), strict=True):
        count = int((m == value).sum())
        assert math.floor(expected - 1e-6) <= count <= math.ceil(expected + 1e-6)
    assert resampled.log_weights == [0.0] * 1000
    assert len(resampled.exec_traces) == 1000
    assert resampled.exec_traces[17].nodes["m"]["value"] == m[17]
    assert resampled.exec_traces[-1].nodes["m"]["value"] == m[-1]
    assert len(resampled.exec_traces[5:8]) == 3
    expected = posterior.information_criterion()["waic"].item()
    assert resampled.information_criterion()["waic"].item() == pytest.approx(expected, rel=0.05)
    assert len(posterior.resample().exec_traces) == 50
    assert posterior.resample(0).exec_traces != posterior.exec_traces
    with pytest.raises(ValueError, match="num_samples must not be negative, got -1"):
        posterior.resample(-1)
    with pytest.raises(NotImplementedError, match="a resampled posterior cannot be run"):
        resampled.run()


def test_a_resampled_posterior_can_be_saved(tmp_path: Any) -> None:
    paths = iter(range(100))

    def model() -> None:
        z = sumprod.sample("z", dist.Normal(0.0, 1.0))
        if next(paths) % 2:
            sumprod.sample("extra", dist.Normal(0.0, 1.0))
        sumprod.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    resampled = Importance(model, lambda: sumprod.sample("z", dist.Normal(0.0, 1.0)), 10).run().resample(30)
    resampled.save(tmp_path / "file")
    read = SavedPosterior(tmp_path / "file")
    assert torch.equal(read.stack("z"), resampled.stack("z"))
    for stored, trace in zip(read.exec_traces, resampled.exec_traces, strict=True):
        assert ("extra" in stored) == ("extra" in trace)
        if "extra" in trace:
            assert stored.nodes["extra"]["value"] == trace.nodes["extra"]["value"]


def test_psis_smooths_the_weights() -> None:
    posterior = Importance(*OURS, num_samples=500, vectorized=True).run()
    expected = stats.psis(torch.stack(posterior.log_weights))
    smoothed = posterior.psis()
    torch.testing.assert_close(smoothed.log_weights, expected.log_weights)
    assert smoothed.pareto_k == expected.pareto_k
    torch.testing.assert_close(smoothed.log_weights.exp().sum(), torch.tensor(1.0))


def test_psis_diagnostic_grows_with_the_mismatch() -> None:
    def model(scale: float) -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))

    def guide(scale: float) -> None:
        sumprod.sample("z", dist.Normal(0.0, scale))

    # The weights' tail has shape 1 - scale^2: k = 0.75 at scale 0.5, 0 or less at scale 1.5. Estimates
    # from 20,000 weights have mean 0.68 and deviation 0.08 (100 simulations): four of them.
    narrow = psis_diagnostic(model, guide, scale=0.5, num_particles=20_000)
    assert narrow == pytest.approx(0.68, abs=0.32)
    assert psis_diagnostic(model, guide, 1.5, num_particles=20_000) < 0.2
    assert psis_diagnostic(model, guide, 1.0) == -INF


# ---- before a run, and weights that are not finite


def test_defaults() -> None:
    with pytest.warns(UserWarning, match="num_samples not provided, defaulting to 10"):
        posterior = Importance(normal_model)
    assert posterior.num_samples == 10
    trace = handlers.trace(posterior.guide).get_trace(DATA)
    assert list(trace.nodes) == ["_INPUT", "loc", "data", "_RETURN"]
    assert len(posterior.run(DATA).exec_traces) == 10
    with pytest.raises(ValueError, match="num_samples must not be negative, got -1"):
        Importance(normal_model, num_samples=-1)


def test_before_a_run_there_are_warnings() -> None:
    posterior = Importance(normal_model, num_samples=3)
    with pytest.warns(UserWarning, match=r"no log-weights.*call run\(\) first"):
        assert posterior.get_log_normalizer() is None
    with pytest.warns(UserWarning, match=r"no log-weights.*call run\(\) first"):
        assert posterior.get_normalized_weights() is None
    with pytest.warns(UserWarning, match=r"no log-weights.*call run\(\) first"):
        assert posterior.get_ESS() == 0
    with pytest.raises(ValueError, match=r"no log-weights: call run\(\) first"):
        posterior.psis()
    with pytest.raises(RuntimeError, match=r"call run\(\) first"):
        posterior.resample()


@BOTH
def test_no_samples(vectorized: bool) -> None:
    posterior = Importance(normal_model, num_samples=0, vectorized=vectorized).run(DATA)
    assert posterior.exec_traces == []
    with pytest.warns(UserWarning, match="effective sample size is zero"):
        assert posterior.get_ESS() == 0


def impossible_model() -> None:
    z = sumprod.sample("z", dist.Normal(0.0, 1.0))
    sumprod.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
    sumprod.factor("limit", torch.tensor(-INF))


@BOTH
def test_trap_41_impossible_data(vectorized: bool) -> None:
    posterior = Importance(impossible_model, num_samples=5, vectorized=vectorized).run()
    assert posterior.get_ESS() == 0
    assert posterior.get_log_normalizer() == -INF
    message = r"all 5 log-weights are -inf, because of the density at site 'limit' \(model\) in 5 samples"
    for use in (posterior.get_normalized_weights, posterior.psis, posterior.resample):
        with pytest.raises(ValueError, match=message):
            use()
    with pytest.raises(ValueError, match="cannot draw a trace: the largest log-weight is -inf"):
        posterior()


@BOTH
def test_some_impossible_samples_have_weight_zero(vectorized: bool) -> None:
    def model() -> None:
        z = sumprod.sample("z", dist.Bernoulli(0.5))
        sumprod.factor("even", torch.where(z == 0, 0.0, -INF))

    posterior = Importance(model, num_samples=40, vectorized=vectorized).run()
    even = posterior.stack("z") == 0
    weights = posterior.get_normalized_weights()
    torch.testing.assert_close(weights, even / even.sum())
    assert posterior.get_ESS().item() == pytest.approx(int(even.sum()), rel=1e-5)


@BOTH
def test_infinite_and_nan_weights_are_errors(vectorized: bool) -> None:
    def infinite() -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))
        sumprod.factor("boost", torch.tensor(INF))

    def undefined() -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))
        sumprod.factor("broken", torch.tensor(math.nan))

    def plain() -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))

    def hopeless() -> None:
        z = sumprod.sample("z", dist.Normal(0.0, 1.0))
        sumprod.factor("never", z * 0 - INF, has_rsample=False)

    cases = (
        (infinite, plain, r"3 of 3 log-weights are \+inf, because of the density at site 'boost' \(model\)"),
        (
            undefined,
            plain,
            r"a log-weight is NaN, because of the density at site 'broken' \(model\) in 3 samples",
        ),
        (plain, hopeless, r"log-weights are \+inf, because of the density at site 'never' \(guide\)"),
    )
    for model, guide, message in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the trace warns of NaN and +inf, too
            posterior = Importance(model, guide, 3, vectorized=vectorized).run()
        for use in (posterior.get_log_normalizer, posterior.get_normalized_weights, posterior.get_ESS):
            with pytest.raises(ValueError, match=message):
                use()


class Weights(LogWeightsMixin):
    def __init__(self, log_weights: Any) -> None:
        self.log_weights = log_weights


def test_estimates_are_summed_in_double() -> None:
    # In float32 a sum of a million equal weights, one after the other, loses its last digits.
    weights = Weights(torch.full((1_000_003,), -1234.5))
    assert weights.get_log_normalizer() == -1234.5
    assert weights.get_ESS() == 1_000_003
    assert weights.get_ESS().dtype == torch.float32
    spread = torch.randn(1000, dtype=torch.float64) * 3
    exact = spread.logsumexp(0) - math.log(1000)
    torch.testing.assert_close(Weights(spread).get_log_normalizer(), exact)
    assert Weights(spread.tolist()).get_log_normalizer().item() == pytest.approx(exact.item(), rel=1e-6)
    assert Weights(spread.half()).get_log_normalizer().dtype == torch.float16


# ---- arguments


def test_vectorized_weights_arguments() -> None:
    with pytest.raises(ValueError, match="must provide max_plate_nesting"):
        vectorized_importance_weights(*OURS, num_samples=3)
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        vectorized_importance_weights(*OURS, num_samples=0, max_plate_nesting=1)
    weights, _, _ = vectorized_importance_weights(*OURS, max_plate_nesting=1)
    assert weights.shape == (1,)
    weights, _, _ = vectorized_importance_weights(*OURS, num_samples=9, max_plate_nesting=1, normalized=True)
    torch.testing.assert_close(weights.exp().sum(), torch.tensor(1.0))
    weights, _, _ = vectorized_importance_weights(
        normal_model, exact_guide, DATA, num_samples=9, max_plate_nesting=1, size=4
    )
    torch.testing.assert_close(weights, torch.full((9,), log_evidence()))


def test_psis_diagnostic_arguments() -> None:
    with pytest.raises(ValueError, match="num_particles must be divisible by max_simultaneous_particles"):
        psis_diagnostic(*OURS, num_particles=10, max_simultaneous_particles=3)
    with pytest.warns(UserWarning, match="Not enough tail samples"):
        assert psis_diagnostic(*OURS, num_particles=20) == INF
    with pytest.raises(ValueError, match="the largest of 30 log-weights is -inf"):
        psis_diagnostic(
            impossible_model, lambda: sumprod.sample("z", dist.Normal(0.0, 1.0)), num_particles=30
        )


def test_outer_handlers_do_not_see_the_runs() -> None:
    with handlers.trace() as outer:
        Importance(*OURS, num_samples=2).run()
        Importance(*OURS, num_samples=2, vectorized=True).run().exec_traces[0]
        psis_diagnostic(*OURS, num_particles=100)
    assert list(outer.trace.nodes) == []
