"""All of torch's families here: numbers against torch, Pyro and scipy; shapes, gradients, errors, copies."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re

import pyro.distributions as pyro_dist
import pytest
import torch
import torch.distributions as td
from hypothesis import given, settings
from hypothesis import strategies as st

import sumprod.distributions as dist
from sumprod.distributions.torch_distribution import TorchDistributionMixin
from tests.distributions.families import BATCHES, CASES, LABELS, LEAN, draw, make, peer_dtype

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}

# torch warns of samples that are positive definite all right.
pytestmark = pytest.mark.filterwarnings("ignore:Singular sample detected")

every_family = pytest.mark.parametrize("case", CASES, ids=LABELS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def test_no_family_of_torch_is_missing():
    families = {
        name
        for name in td.__all__
        if inspect.isclass(getattr(td, name)) and issubclass(getattr(td, name), td.Distribution)
    }
    for name in families - {"Distribution"}:
        ours = getattr(dist, name)
        assert issubclass(ours, TorchDistributionMixin), name
        assert name in dist.__all__
        assert ours.__doc__.split("\n")[0].strip(), name
        if name != "InverseGamma":
            assert issubclass(ours, getattr(td, name)), name
    tabulated = {case.name for case in CASES}
    wrappers = {"Independent", "TransformedDistribution", "MixtureSameFamily", "ExponentialFamily"}
    assert families - {"Distribution", "InverseGamma"} - wrappers == tabulated


@every_family
def test_constructor_has_torchs_signature(case):
    ours = inspect.signature(getattr(dist, case.name)).parameters
    theirs = inspect.signature(getattr(td, case.name)).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@every_family
@each_dtype
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_equals_pyro(case, batch, dtype):
    if dtype is torch.float64:
        dtype = peer_dtype(case)
    ours, theirs = make(dist, case, batch, dtype), make(pyro_dist, case, batch, dtype)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    assert ours.has_rsample == theirs.has_rsample
    assert ours.has_enumerate_support == theirs.has_enumerate_support
    for sample_shape in [(), (5,), (2, 3)]:
        value, expected = draw(ours, sample_shape), draw(theirs, sample_shape)
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert value.shape == ours.shape(sample_shape) == theirs.shape(sample_shape)
        log_prob, wanted = ours.log_prob(expected), theirs.log_prob(expected)
        assert log_prob.dtype == wanted.dtype
        torch.testing.assert_close(log_prob, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    if ours.has_rsample:
        torch.manual_seed(3)
        value = ours.rsample()
        torch.manual_seed(3)
        torch.testing.assert_close(value, theirs.rsample(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.reference], ids=[c.label for c in CASES if c.reference]
)
def test_equals_scipy(case):
    d = make(dist, case, (4,))
    value = draw(d, (20,))
    arguments = {
        name: a.expand(value.shape[:1] + a.shape) if isinstance(a, torch.Tensor) else a
        for name, a in case.arguments((4,), torch.float64).items()
    }
    expected = torch.as_tensor(case.reference(arguments, value))
    # torch's Bessel functions have the precision of float32.
    tolerance = 1e-6 if case.name == "VonMises" else 1e-9
    torch.testing.assert_close(d.log_prob(value), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", [c for c in CASES if c.bad], ids=[c.label for c in CASES if c.bad])
@pytest.mark.parametrize("batch", [(), (4,)], ids=str)
def test_refuses_bad_parameters_in_torchs_words(case, batch):
    (name, number), *_ = case.bad.items()
    arguments = case.arguments(batch, torch.float64)
    arguments[name] = arguments[name].clone()
    arguments[name].view(-1)[-1] = number
    with pytest.raises(ValueError, match="Expected parameter") as theirs:
        getattr(td, case.name)(**arguments)
    with pytest.raises(ValueError, match="Expected parameter") as ours:
        getattr(dist, case.name)(**arguments)
    if case.name == "Beta":
        assert "Expected parameter concentration1" in str(ours.value)  # torch blames a Dirichlet
    else:
        assert _complaint(ours.value) == _complaint(theirs.value)
    if case in LEAN:  # others ask a torch distribution inside, which does not hear of it
        getattr(dist, case.name)(**arguments, validate_args=False)
    with dist.validation_enabled(False):
        getattr(dist, case.name)(**arguments)


def _complaint(error):
    """torch's text without the distribution: ours also shows lazily made parameters."""
    found = re.fullmatch(
        r"(Expected (?:parameter|value).*?) of (?:the )?distribution .*?"
        r"(?:to satisfy (.*)|\), (but found.*))",
        str(error),
        re.DOTALL,
    )
    assert found, error
    return found.groups()


@every_family
@pytest.mark.parametrize("number", ["outside", torch.nan], ids=str)
def test_refuses_values_outside_the_support_in_torchs_words(case, number):
    ours, theirs = make(dist, case, (4,)), make(td, case, (4,))
    value = draw(theirs)
    if not value.is_floating_point() and number is torch.nan:
        number = "outside"
    value.view(-1)[-1] = case.outside if number == "outside" else number
    with pytest.raises(ValueError, match=r"within the support") as expected:
        theirs.log_prob(value)
    with pytest.raises(ValueError, match=r"within the support") as error:
        ours.log_prob(value)
    assert _complaint(error.value) == _complaint(expected.value)
    unchecked = make(dist, case, (4,), validate_args=False)
    assert unchecked._validate_args is False


@every_family
def test_refuses_values_of_other_shapes(case):
    d = make(dist, case, (4,))
    with pytest.raises(ValueError, match=r"not broadcastable|right-most size"):
        d.log_prob(draw(make(dist, case, (3,))))
    if case.name not in ("Gamma", "Chi2"):  # they convert first, as in torch
        with pytest.raises(ValueError, match="must be a Tensor"):
            make(dist, case, ()).log_prob("1.0")


@every_family
@pytest.mark.parametrize("validate_args", [None, False, True])
def test_expand_keeps_class_settings_and_storage(case, validate_args):
    for batch in [(1, 2), (5, 2), (3, 5, 2)]:
        d = make(dist, case, (1, 2), validate_args=validate_args)
        if d.has_rsample and not isinstance(type(d).has_rsample, property):
            d.has_rsample_(False)
        wide = d.expand(batch)
        theirs = make(pyro_dist, case, (1, 2)).expand(batch)
        assert type(wide) is type(d)
        assert wide.batch_shape == theirs.batch_shape == torch.Size(batch)
        assert wide.event_shape == theirs.event_shape
        assert wide._validate_args == d._validate_args
        assert wide.has_rsample == d.has_rsample
        for name in d.arg_constraints:
            if isinstance(vars(d).get(name), torch.Tensor) and name in vars(wide):
                assert vars(wide)[name].data_ptr() == vars(d)[name].data_ptr(), name
        value = draw(wide)
        assert value.shape == wide.shape()
        torch.testing.assert_close(wide.log_prob(value), d.log_prob(value), rtol=0, atol=0)


@every_family
def test_expand_by_and_to_event_like_pyro(case):
    dtype = peer_dtype(case)
    ours, theirs = make(dist, case, (3, 2), dtype), make(pyro_dist, case, (3, 2), dtype)
    for sample_shape in [(), (4,), torch.Size((5, 1))]:
        wide, wanted = ours.expand_by(sample_shape), theirs.expand_by(sample_shape)
        assert (wide.batch_shape, wide.event_shape) == (wanted.batch_shape, wanted.event_shape)
    for count in (0, 1, 2, None):
        event, wanted = ours.to_event(count), theirs.to_event(count)
        assert (event.batch_shape, event.event_shape) == (wanted.batch_shape, wanted.event_shape)
        assert event.event_dim == len(event.event_shape)
        value = draw(event, (2,))
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(
            event.log_prob(value), wanted.log_prob(value), rtol=tolerance, atol=tolerance
        )


@every_family
def test_copies_and_pickles(case):
    d = make(dist, case, (3,)).expand((2, 3))
    value = draw(d)
    d.log_prob(value)  # fills lazily computed members, which must survive too
    for twin in (copy.deepcopy(d), copy.copy(d), pickle.loads(pickle.dumps(d))):
        assert type(twin) is type(d)
        assert twin.batch_shape == d.batch_shape
        torch.testing.assert_close(twin.log_prob(value), d.log_prob(value), rtol=0, atol=0)
    assert type(d).__module__ == "sumprod.distributions.torch"
    buffer = io.BytesIO()
    torch.save(d, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=False).event_shape == d.event_shape


@every_family
def test_moments_and_entropy_are_torchs(case):
    ours, theirs = make(dist, case, (3,)), make(td, case, (3,))
    for moment in ("mean", "variance", "stddev", "mode"):
        try:
            expected = getattr(theirs, moment)
        except NotImplementedError:
            continue
        torch.testing.assert_close(getattr(ours, moment), expected, equal_nan=True)
    try:
        expected = theirs.entropy()
    except NotImplementedError:
        return
    torch.testing.assert_close(ours.entropy(), expected)


def has_cdf(case):
    return getattr(td, case.name).cdf not in (td.Distribution.cdf, td.TransformedDistribution.cdf) or (
        case.name in ("LogNormal", "Gumbel", "Pareto", "Weibull", "Kumaraswamy")
    )


WITH_CDF = [case for case in CASES if has_cdf(case)]


@pytest.mark.parametrize("case", WITH_CDF, ids=[case.label for case in WITH_CDF])
def test_cdf_and_icdf_are_torchs(case):
    dtype = peer_dtype(case)
    ours, theirs = make(dist, case, (3,), dtype), make(td, case, (3,), dtype)
    value = draw(theirs)
    torch.testing.assert_close(ours.cdf(value), theirs.cdf(value), equal_nan=True)
    try:
        expected = theirs.icdf(torch.tensor([0.1, 0.5, 0.8], dtype=dtype))
    except NotImplementedError:
        return
    torch.testing.assert_close(ours.icdf(torch.tensor([0.1, 0.5, 0.8], dtype=dtype)), expected)


sizes = st.lists(st.sampled_from([1, 2, 3]), max_size=3).map(tuple)


def broadcastable(shape, keep):
    """A shape that broadcasts with `shape`: some dims shrunk to 1, some leading ones left out."""
    kept = tuple(n if k else 1 for n, k in zip(shape, keep, strict=False))
    return kept[sum(keep) % (len(kept) + 1) :] if kept else ()


@settings(max_examples=60, deadline=None)
@given(shape=sizes, keep=st.lists(st.booleans(), min_size=6, max_size=6), samples=sizes)
def test_random_shapes_broadcast_like_torch(shape, keep, samples):
    first, second = broadcastable(shape, keep), broadcastable(shape, keep[3:])
    for name in ("Normal", "Gamma", "Beta", "Uniform", "LogNormal"):
        a = torch.rand(first, dtype=torch.float64) + 0.1
        b = torch.rand(second, dtype=torch.float64) + 1.2
        ours, theirs = getattr(dist, name)(a, b), getattr(td, name)(a, b)
        assert ours.batch_shape == theirs.batch_shape
        value = draw(theirs, samples)
        assert draw(ours, samples).shape == value.shape
        torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
        part = value[(0,) * len(samples)]
        torch.testing.assert_close(ours.log_prob(part), theirs.log_prob(part))


@settings(max_examples=40, deadline=None)
@given(batch=sizes, count=st.integers(0, 3), sample_shape=sizes)
def test_random_to_event_shapes(batch, count, sample_shape):
    d = dist.Dirichlet(torch.rand((*batch, 2)) + 0.5)
    if count > len(batch):
        with pytest.raises(ValueError, match=r"Expected reinterpreted_batch_ndims <= .* actual"):
            d.to_event(count)
        return
    event = d.to_event(count)
    assert event.batch_shape == batch[: len(batch) - count]
    assert event.event_shape == (*batch[len(batch) - count :], 2)
    value = event(sample_shape)
    assert value.shape == event.shape(sample_shape) == (*sample_shape, *batch, 2)
    summed = d.log_prob(value).sum(tuple(range(-count, 0))) if count else d.log_prob(value)
    torch.testing.assert_close(event.log_prob(value), summed)
    assert event.to_event(-count) is d
