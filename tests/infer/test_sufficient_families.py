"""Each family's summed log-density, by matrix products, against the sum of its densities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import sumprod
import sumprod.distributions as dist
from sumprod.infer import _sufficient_lookup
from sumprod.infer._stacked_family import own_dims
from sumprod.infer._sufficient import gains_without_sum, has_statistics, summed_log_prob

DOUBLE = torch.float64
V = 4


def between(low, high):
    return lambda u: low + (high - low) * u


def counts(u):
    return (5 * u).floor()


def bits(u):
    return (u < 0.4).to(u.dtype)


def simplex(u):
    return u + 0.05


def one_hot(u):
    return torch.nn.functional.one_hot((V * u[..., 0]).long().clamp(max=V - 1), V).to(u.dtype)


def category(u):
    return (V * u).long()


# Of parameters as functions of uniforms, of the distribution, of data as functions of uniforms.
FAMILIES = {
    "bernoulli probs": ((between(0.1, 0.9),), dist.Bernoulli, bits),
    "bernoulli logits": ((between(-3, 3),), lambda x: dist.Bernoulli(logits=x), bits),
    "binomial probs": ((between(0.1, 0.9),), lambda x: dist.Binomial(6, x), counts),
    "binomial logits": ((between(-3, 3),), lambda x: dist.Binomial(6, logits=x), counts),
    "geometric probs": ((between(0.1, 0.9),), dist.Geometric, counts),
    "geometric logits": ((between(-3, 3),), lambda x: dist.Geometric(logits=x), counts),
    "poisson": ((between(0.1, 5),), dist.Poisson, counts),
    "exponential": ((between(0.1, 5),), dist.Exponential, between(0, 3)),
    "gamma": ((between(0.1, 5), between(0.1, 5)), dist.Gamma, between(0.01, 3)),
    "beta": ((between(0.1, 5), between(0.1, 5)), dist.Beta, between(0.01, 0.99)),
    "normal": ((between(-3, 3), between(0.2, 3)), dist.Normal, between(-4, 4)),
    "log normal": ((between(-1, 1), between(0.2, 3)), dist.LogNormal, between(0.1, 4)),
    "categorical probs": ((simplex,), dist.Categorical, category),
    "categorical logits": ((between(-3, 3),), lambda x: dist.Categorical(logits=x), category),
    "one-hot probs": ((simplex,), dist.OneHotCategorical, one_hot),
    "one-hot logits": ((between(-3, 3),), lambda x: dist.OneHotCategorical(logits=x), one_hot),
    "multinomial probs": ((simplex,), lambda x: dist.Multinomial(4 * V, x), counts),
    "multinomial logits": ((between(-3, 3),), lambda x: dist.Multinomial(4 * V, logits=x), counts),
}
NO_GRADIENT_OF_DATA = ("categorical", "one-hot")

# Shapes of parameters, data and mask (None: no mask), and the dims to sum.
LAYOUTS = {
    "states x elements": ((5, 1, 7), (1, 4, 7), None, [2]),
    "masked": ((5, 1, 7), (1, 4, 7), (1, 4, 7), [2]),
    "a table for all, masked": ((1, 5, 1, 7), (3, 1, 4, 7), (3, 1, 1, 7), [3]),
    "a table each": ((3, 5, 1, 7), (3, 1, 4, 7), None, [3]),
    "a table each, masked": ((3, 5, 1, 7), (3, 1, 4, 7), (3, 1, 4, 1), [3]),
    "two summed dims": ((5, 1, 2, 7), (1, 4, 2, 7), (1, 4, 2, 1), [2, 3]),
    "summed dim outside": ((6, 5, 1), (6, 1, 4), (6, 1, 4), [0]),
    "summed dims apart": ((2, 5, 1, 3), (2, 1, 4, 3), None, [0, 3]),
    "parameters alike": ((5, 1, 1), (1, 4, 7), None, [2]),
    "parameters alike, masked": ((3, 5, 1, 1), (3, 1, 4, 7), (1, 1, 4, 7), [3]),
    "parameters half alike": ((5, 1, 1, 3), (1, 4, 7, 3), None, [2, 3]),
    "data alike": ((5, 1, 7), (1, 4, 1), (1, 4, 7), [2]),
    "no dim of the data": ((5, 7), (1, 7), None, [1]),
    "data before states": ((1, 1, 5, 7), (4, 2, 1, 7), None, [3]),
    "nothing to sum": ((5, 1), (1, 4), None, []),
}


def problem(family, layout, seed=0, dtype=DOUBLE):
    """Parameters, what makes a distribution of them, data, mask and dims to sum."""
    generator = torch.Generator().manual_seed(seed)
    of_parameters, make, of_data = FAMILIES[family]
    parameter_shape, data_shape, mask_shape, summed = LAYOUTS[layout]
    example = make(*[draw(torch.full((V,), 0.5, dtype=dtype)) for draw in of_parameters])
    own, events = (V,) * own_dims(type(example)), tuple(example.event_shape)

    def uniform(*shape):
        return torch.rand(shape, dtype=dtype, generator=generator)

    parameters = [draw(uniform(*parameter_shape, *own)) for draw in of_parameters]
    value = of_data(uniform(*data_shape, *events))
    mask = None if mask_shape is None else uniform(*mask_shape) < 0.6
    return parameters, make, value, mask, summed


def plain(fn, value, mask, summed):
    log_prob = fn.log_prob(value)
    if mask is not None:
        log_prob = torch.where(mask, log_prob, 0.0)
    return log_prob.sum(summed, keepdim=True) if summed else log_prob


def derivatives(result, leaves):
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    loss = (weights * result + result.square() / 8).sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    weighted = [gradient * torch.linspace(2, -1, gradient.shape[-1], dtype=DOUBLE) for gradient in first]
    total = sum(gradient.sum() for gradient in weighted)
    second = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [result.detach(), *[gradient.detach() for gradient in first], *second]


def compare(family, layout, seed=0, of_data=True):
    parameters, make, value, mask, summed = problem(family, layout, seed)
    leaves = [parameter.requires_grad_() for parameter in parameters]
    if of_data and value.is_floating_point() and not family.startswith(NO_GRADIENT_OF_DATA):
        leaves.append(value.requires_grad_())
    ours = summed_log_prob(make(*parameters), value, mask, summed)
    assert ours is not None
    expected = derivatives(plain(make(*parameters), value, mask, summed), leaves)
    for found, wanted in zip(derivatives(ours, leaves), expected, strict=True):
        size = wanted.abs().max().item()  # of what is added up
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12 * max(size, 1.0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_value_and_derivatives(family, layout):
    compare(family, layout)


@pytest.mark.parametrize("layout", ["states x elements", "masked", "a table each"])
@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_by_parameters_alone(family, layout):
    compare(family, layout, of_data=False)


@pytest.mark.parametrize("wrong", [0.5, -1.0, 2.0, 1e-40, 1 - 2**-24, math.nan, math.inf])
def test_only_zeros_and_ones_are_bits(wrong):
    fn = dist.Bernoulli(torch.full((2, 1, 3), 0.5))
    bits = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]])
    assert summed_log_prob(fn, bits, None, [2]) is not None
    bits[0, 0, 1] = wrong
    assert summed_log_prob(fn, bits, None, [2]) is None
    cancelling = torch.tensor([[[2.0, (1 + 9**0.5) / 2, -1.0]]])
    assert summed_log_prob(fn, cancelling, None, [2]) is None


@given(
    family=st.sampled_from(list(FAMILIES)), layout=st.sampled_from(list(LAYOUTS)), seed=st.integers(0, 2**31)
)
def test_value_and_derivatives_of_other_numbers(family, layout, seed):
    compare(family, layout, seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_known(family):
    of_parameters, make, _ = FAMILIES[family]
    fn = make(*[draw(torch.full((V,), 0.5)) for draw in of_parameters])
    assert has_statistics(type(fn))
    assert gains_without_sum(type(fn)) == (own_dims(type(fn)) > 0)


class Largest(TorchDispatchMode):
    """The most entries of a tensor that an operator makes; views of smaller tensors do not count."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                entries = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.entries = max(self.entries, entries)
        return result


SORTING = [(family, False) for family in FAMILIES] + [
    (family, True) for family in FAMILIES if family.startswith(NO_GRADIENT_OF_DATA)
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("family", "sorting"), SORTING)
def test_no_tensor_of_states_x_elements_x_data_dims(family, masked, sorting, monkeypatch):
    monkeypatch.setattr(_sufficient_lookup, "_FEW", 0 if sorting else 24)
    states, elements, width = 16, 40, 30
    layout = ((states, 1, width), (1, elements, width), (1, elements, width) if masked else None, [2])
    monkeypatch.setitem(LAYOUTS, "large", layout)
    parameters, make, value, mask, summed = problem(family, "large")
    leaves = [parameter.requires_grad_() for parameter in parameters]
    events = value.shape[3:].numel()
    fn = make(*parameters)
    with Largest() as ours:
        total = summed_log_prob(fn, value, mask, summed)
        torch.autograd.grad(total.sum(), leaves)
    assert 0 < ours.entries <= max(elements * width * events, states * width * (V + 1), states * elements)
    fn = make(*parameters)
    with Largest() as direct:
        torch.autograd.grad(plain(fn, value, mask, summed).sum(), leaves)
    assert direct.entries >= states * elements * width


def test_a_category_of_few_states_needs_no_table_of_elements_and_categories(monkeypatch):
    monkeypatch.setitem(LAYOUTS, "mixture", ((16, 1), (1, 400), None, []))
    parameters, make, value, _, summed = problem("categorical probs", "mixture")
    leaf = parameters[0].requires_grad_()
    with Largest() as ours:
        torch.autograd.grad(summed_log_prob(make(leaf), value, None, summed).sum(), leaf)
    assert ours.entries == 16 * 400


@pytest.mark.parametrize("layout", ["masked", "a table each", "nothing to sum", "parameters alike, masked"])
@pytest.mark.parametrize("family", ["categorical probs", "one-hot logits"])
def test_gradients_of_many_categories(family, layout, monkeypatch):
    monkeypatch.setattr(_sufficient_lookup, "_FEW", 0)
    compare(family, layout)


INF = math.inf
# Parameters of states x data dims, and data of elements x data dims.
IMPOSSIBLE = {
    "poisson": (dist.Poisson, [[0, 2], [0, 0], [1, 0]], [[0, 3], [1, 0], [0, 0]]),
    "geometric": (dist.Geometric, [[1, 0.5], [1, 1], [0.3, 1]], [[0, 3], [1, 0], [0, 0]]),
    "counted": (
        lambda x: dist.Categorical(logits=x),
        [[[0, -INF, 1]], [[0, 0, -INF]]],
        [[0, 0, 1, 0], [1, 0, 0, 1], [2, 2, 0, 0]],
    ),
    "looked up": (
        lambda x: dist.Categorical(logits=x),
        [[[0, -INF], [1, 1]], [[-INF, 0], [-INF, 0]]],
        [[0, 0], [1, 1], [0, 1]],
    ),
    "multinomial": (
        lambda x: dist.Multinomial(9, logits=x, validate_args=False),
        [[[0, -INF]], [[1, 1]]],
        [[[2, 0], [3, 0]], [[2, 0], [1, 4]]],
    ),
    "one-hot": (
        lambda x: dist.OneHotCategorical(logits=x, validate_args=False),
        [[[0, -INF], [0, 1]], [[-INF, 1], [0, 1]]],
        [[[1, 0], [1, 0]], [[1, 0], [0, 1]]],
    ),
}


def no_mask(value, events):
    return None


def first_column(value, events):
    """Of the dims to sum, one element's first is left out."""
    mask = torch.ones(value.shape[: value.dim() - events], dtype=torch.bool)
    mask[0, -1, 0] = False
    return mask


@pytest.mark.parametrize("choose", [no_mask, first_column])
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_has_probability_zero_matters_only_where_it_occurs(case, choose):
    make, parameter, value = IMPOSSIBLE[case]
    leaf = torch.tensor(parameter, dtype=DOUBLE).unsqueeze(1).requires_grad_()
    value = torch.tensor(value, dtype=DOUBLE).unsqueeze(0)
    fn = make(leaf)
    mask = choose(value, len(fn.event_shape))
    results = []
    for total in (summed_log_prob(fn, value, mask, [2]), plain(fn, value, mask, [2])):
        possible = total.isfinite()
        (gradient,) = torch.autograd.grad(total[possible].sum(), leaf, retain_graph=True)
        # Where the parameter is at a bound the density has no derivative.
        results.append((total.detach(), gradient[leaf.isfinite() & (leaf != 0) & (leaf != 1)]))
    assert 0 < results[1][0].isinf().sum() < results[1][0].numel()
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_probabilities_that_are_exactly_zero():
    with sumprod.settings.context(exact_zeros=True):
        fn = dist.Categorical(torch.tensor([[[0.0, 0.5, 0.5]], [[0.2, 0.8, 0.0]]], dtype=DOUBLE))
    value = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [2, 1, 0, 1]]).unsqueeze(0)
    fn = fn.expand((2, 1))
    with_dims = dist.Categorical(logits=fn.logits.unsqueeze(1))
    torch.testing.assert_close(
        summed_log_prob(with_dims, value, None, [2]), plain(with_dims, value, None, [2])
    )


def exact_normal(loc, scale, value):
    """Summed log-densities (states, elements) in extended precision."""
    loc, scale, value = (x.detach().numpy().astype(np.longdouble) for x in (loc, scale, value))
    z = (value - loc) / scale
    terms = -z * z / 2 - np.log(scale) - np.log(2 * np.longdouble(np.pi)) / 2
    return torch.from_numpy(terms.sum(2).astype(np.float64))


@given(
    place=st.sampled_from([0.0, 1.0, -1e3, 1e6]),
    spread=st.sampled_from([1e-3, 1.0, 30.0, 1e3]),
    noise=st.sampled_from([1e-2, 1.0, 10.0]),
    seed=st.integers(0, 2**31),
)
def test_normal_density_in_float_is_as_good_as_float_can_be(place, spread, noise, seed):
    """Data around one state's means each, anywhere; means `spread` apart; each dim with another scale."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(4, 1, 6, generator=generator) + 0.5
    loc = place + spread * torch.randn(4, 1, 6, generator=generator)
    states = torch.randint(4, (9,), generator=generator)
    value = (loc[states, 0] + noise * torch.randn(9, 6, generator=generator)).unsqueeze(0)
    loc, scale = loc.requires_grad_(), scale.requires_grad_()
    total = summed_log_prob(dist.Normal(loc, scale), value, None, [2])
    assert total.dtype == torch.float32
    exact = exact_normal(loc, scale, value)
    error = (total.squeeze(2).double() - exact).abs()
    # Of the last step, to float, and 2^-25 for each of the six densities.
    assert (error <= 2**-24 * exact.abs() + 6 * 2**-25).all()
    leaves = [x.detach().double().requires_grad_() for x in (loc, scale)]
    direct = plain(dist.Normal(*leaves), value.double(), None, [2])
    weights = torch.linspace(0, 1, total.numel()).reshape(total.shape)
    ours = torch.autograd.grad((weights * total).sum(), (loc, scale))
    expected = torch.autograd.grad((weights * direct).sum(), leaves)
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@given(reach=st.floats(1, 60), place=st.sampled_from([0.0, -1e3, 1e6]), seed=st.integers(0, 2**31))
def test_normal_density_in_double(reach, place, seed):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(4, 9, 6, dtype=DOUBLE, generator=generator) - 0.5
    loc, value = place + reach / 2 * u[:, :1], place + reach / 2 * u[:1]
    fn = dist.Normal(loc, torch.ones(()).double())
    total = summed_log_prob(fn.expand(loc.shape), value, None, [2])
    error = (total.squeeze(2) - exact_normal(loc, fn.scale, value)).abs()
    # The place itself is rounded away before anything is computed, here and in the density.
    assert (error <= 6 * 5e-13).all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize(("far", "known"), [(True, False), (False, True)])
def test_normal_data_too_far_from_the_centre_are_left_to_the_density(dtype, far, known):
    limit = 64.0 if dtype == DOUBLE else 2.0**14
    loc = torch.tensor([[[-1.0, 0.0]], [[1.0, 0.0]]], dtype=dtype) * limit * (1.1 if far else 0.9) / 2
    fn = dist.Normal(loc, torch.ones_like(loc))
    assert (summed_log_prob(fn, loc[:1] + 0, None, [2]) is not None) is known
    assert (summed_log_prob(dist.Normal(loc, 2 * torch.ones_like(loc)), loc[:1] + 0, None, [2])) is not None


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_normal_data_that_are_not_finite_are_left_to_the_density(value):
    fn = dist.Normal(torch.zeros(2, 1, 3), torch.ones(2, 1, 3), validate_args=False)
    assert summed_log_prob(fn, torch.full((1, 4, 3), value), None, [2]) is None


def test_gamma_data_at_the_bound_are_left_to_the_density():
    fn = dist.Gamma(torch.ones(2, 1, 3), torch.ones(2, 1, 3))
    assert summed_log_prob(fn, torch.zeros(1, 4, 3), None, [2]) is None
    assert summed_log_prob(fn, torch.ones(1, 4, 3), None, [2]) is not None


def test_a_number_of_trials_that_depends_on_the_state_is_left_to_the_density():
    value = torch.ones(1, 4, 2)
    by_dim, by_state = torch.tensor([3.0, 5.0]), torch.tensor([3.0, 5.0])[:, None, None]
    probs = torch.full((2, 1, 2), 0.5)
    known = summed_log_prob(dist.Binomial(by_dim, probs), value, None, [2])
    torch.testing.assert_close(known, plain(dist.Binomial(by_dim, probs), value, None, [2]))
    assert summed_log_prob(dist.Binomial(by_state, probs), value, None, [2]) is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_derivatives_are_left_to_the_density():
    rate, value = torch.ones(2, 1, 3), torch.ones(1, 4, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(rate, torch.ones_like(rate))
        assert summed_log_prob(dist.Poisson(dual, validate_args=False), value, None, [2]) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_no_data(family, monkeypatch):
    monkeypatch.setitem(LAYOUTS, "empty", ((5, 1, 7), (1, 0, 7), None, [2]))
    parameters, make, value, _, summed = problem(family, "empty")
    assert summed_log_prob(make(*parameters), value, None, summed) is None
