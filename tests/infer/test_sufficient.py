"""Log-densities summed over data dims by a matrix product, against the sum of densities."""

import pytest
import torch

from sumprod.distributions import Bernoulli, Laplace
from sumprod.infer._sufficient import has_statistics, summed_log_prob

DOUBLE = torch.float64
# Shapes of parameters, data and mask (None: no mask), and the dims to sum.
LAYOUTS = {
    "states x elements": ((5, 1, 7), (1, 4, 7), None, [2]),
    "stacked, one table": ((1, 5, 1, 7), (3, 1, 4, 7), (3, 1, 4, 1), [3]),
    "stacked, a table each": ((3, 5, 1, 7), (3, 1, 4, 7), (3, 1, 1, 7), [3]),
    "two summed dims": ((5, 1, 2, 7), (1, 4, 2, 7), (1, 4, 2, 1), [2, 3]),
    "summed dim outside": ((6, 5, 1), (6, 1, 4), (6, 1, 4), [0]),
    "parameters constant along the sum": ((5, 1, 1), (1, 4, 7), (1, 4, 7), [2]),
    "data constant along the sum": ((5, 1, 7), (1, 4, 1), (1, 4, 7), [2]),
    "nothing but the sum": ((7,), (7,), (7,), [0]),
    "no dim of the data": ((5, 7), (1, 7), None, [1]),
    "parameters of each element": ((5, 4, 7), (1, 4, 7), (1, 4, 7), [2]),
}


def plain(fn, value, mask, summed):
    log_prob = fn.log_prob(value)
    if mask is not None:
        log_prob = torch.where(mask, log_prob, 0.0)
    return log_prob.sum(summed, keepdim=True)


def problem(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters, data, mask_shape, summed = LAYOUTS[layout]
    probs = torch.rand(parameters, dtype=DOUBLE, generator=generator)
    value = (torch.rand(data, generator=generator) < 0.4).to(DOUBLE)
    mask = None if mask_shape is None else torch.rand(mask_shape, generator=generator) < 0.6
    return probs, value, mask, summed


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("by", ["probs", "logits"])
def test_value_and_gradient(layout, by):
    probs, value, mask, summed = problem(layout)
    parameter = probs if by == "probs" else torch.logit(probs)
    results = []
    for density in (summed_log_prob, plain):
        leaf = parameter.clone().requires_grad_()
        result = density(Bernoulli(**{by: leaf}), value, mask, summed)
        weights = torch.arange(1.0, result.numel() + 1, dtype=DOUBLE).reshape(result.shape)
        results.append((result.detach(), torch.autograd.grad((weights * result).sum(), leaf)[0]))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("by", ["probs", "logits"])
def test_derivatives(by):
    probs, value, mask, summed = problem("stacked, a table each")
    parameter = (probs * 0.8 + 0.1).requires_grad_()

    def density(parameter, value):
        return summed_log_prob(Bernoulli(**{by: parameter}, validate_args=False), value, mask, summed)

    relaxed = (0.8 * value + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(density, (parameter, relaxed))
    assert torch.autograd.gradgradcheck(density, (parameter, relaxed))


def test_infinite_logits_are_impossible_only_where_the_data_contradict():
    inf = torch.inf
    logits = torch.tensor([[inf, 0.0], [-inf, 0.0], [inf, -inf]], dtype=DOUBLE, requires_grad=True)
    value = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]], dtype=DOUBLE)
    total = summed_log_prob(Bernoulli(logits=logits[:, None]), value[None], None, [2]).squeeze(-1)
    half = torch.tensor(0.5, dtype=DOUBLE).log().item()
    expected = torch.tensor([[half, -inf, half], [-inf, half, -inf], [-inf, -inf, 0.0]], dtype=DOUBLE)
    torch.testing.assert_close(total.detach(), expected)
    (gradient,) = torch.autograd.grad(total[total > -inf].sum(), logits)
    assert not gradient.isnan().any()
    # d/dl log p(v; l) = v - 1/2 at l = 0, for the two pairs of the first row and one of the second.
    torch.testing.assert_close(gradient[:2, 1], torch.tensor([1.0 - 0.5 - 0.5 + 0.0, -0.5], dtype=DOUBLE))


def test_probabilities_of_zero_and_one_are_clamped_as_in_the_density():
    probs = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.5]])
    value = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    ours = summed_log_prob(Bernoulli(probs[:, None]), value[None], None, [2])
    expected = Bernoulli(probs[:, None].double().clamp(2**-23, 1 - 2**-23)).log_prob(value.double()[None])
    torch.testing.assert_close(ours, expected.sum(2, keepdim=True).float(), rtol=1e-6, atol=1e-9)


def test_no_cancellation_in_float32():
    """Where data are nearly certain, the small log-density keeps its relative accuracy."""
    logits = torch.full((3, 1, 200), 14.0)
    ours = summed_log_prob(Bernoulli(logits=logits), torch.ones(1, 2, 200), None, [2])
    expected = 200 * torch.nn.functional.logsigmoid(torch.tensor(14.0, dtype=DOUBLE))
    torch.testing.assert_close(ours, expected.float().expand(3, 2, 1), rtol=1e-5, atol=0.0)


def test_nan_parameters_and_masked_nan():
    probs = torch.tensor([[0.5, torch.nan], [0.5, 0.25]], dtype=DOUBLE)
    value = torch.tensor([[1.0, 1.0], [0.0, torch.nan]], dtype=DOUBLE)
    mask = ~value.isnan()
    fn = Bernoulli(probs[:, None], validate_args=False)
    total = summed_log_prob(fn, value[None], mask[None], [2]).squeeze(-1)
    assert total[0].isnan().all()
    torch.testing.assert_close(total[1].exp(), torch.tensor([0.125, 0.5], dtype=DOUBLE))


def test_families():
    assert has_statistics(Bernoulli)
    assert not has_statistics(Laplace)
    assert not has_statistics(torch.distributions.Bernoulli)
