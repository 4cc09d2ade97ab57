"""The density of data under few parameters, which has gradients of its own, against the formula."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import sumprod.distributions as dist
from sumprod.distributions._real_line import _LARGE, _is_data, _NormalOfData

# torch's own forward mode loads its decompositions through torch.jit.script at the first use.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

SHAPES = [
    ((_LARGE,), (3, 1), (3, 1)),
    ((_LARGE,), (), (2, 1)),
    ((_LARGE // 8, 8), (3, 1, 8), (8,)),
    ((_LARGE // 8, 8), (8,), (3, 1, 1)),
    ((64, 64), (64, 1), (64,)),  # together they have all dims of the data
]


def log_density(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return -((value - loc) ** 2) / (2 * scale**2) - scale.log() - math.log(2 * math.pi) / 2


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    loc, scale = (torch.randn(shape, dtype=dtype, generator=draw) for shape in shapes)
    return [loc.requires_grad_(), scale.exp().requires_grad_()]


def data(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("shape", "of_loc", "of_scale"), SHAPES)
def test_densities_and_gradients_are_those_of_the_formula(
    shape: tuple[int, ...], of_loc: tuple[int, ...], of_scale: tuple[int, ...]
) -> None:
    value, leaves = data(shape), parameters(of_loc, of_scale)
    found = _NormalOfData.apply(value, *leaves)
    expected = log_density(value, *leaves)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for wanted in ([0, 1], [0], [1]):
        some = [leaves[i] for i in wanted]
        torch.testing.assert_close(
            torch.autograd.grad(found, some, weights, retain_graph=True),
            torch.autograd.grad(expected, some, weights, retain_graph=True),
        )


def test_derivatives_of_first_and_second_order() -> None:
    value = data((5, 2))
    for shapes in (((3, 1, 2), (2,)), ((), (3, 1, 1))):
        leaves = parameters(*shapes)
        torch.autograd.gradcheck(lambda *own: _NormalOfData.apply(value, *own), leaves)
        torch.autograd.gradgradcheck(lambda *own: _NormalOfData.apply(value, *own), leaves)


def test_log_prob_takes_the_short_way_for_data() -> None:
    loc, scale = parameters((3, 1), (3, 1))
    found = dist.Normal(loc, scale).log_prob(data((_LARGE,)))
    assert type(found.grad_fn).__name__ == "_NormalOfDataBackward"
    assert found.is_contiguous()


def test_where_the_short_way_would_be_wrong_or_slow() -> None:
    value, (loc, scale) = data((_LARGE,)), parameters((3, 1), (3, 1))
    assert _is_data(value, loc, scale)
    assert not _is_data(1.0, loc, scale)
    assert not _is_data(value[:-1], loc, scale)  # small
    assert not _is_data(value, loc.expand(3, _LARGE), scale)  # as many parameters as data
    assert not _is_data(value.clone().requires_grad_(), loc, scale)
    assert not _is_data(value.float(), loc, scale)
    assert not _is_data(value, loc, scale.float())
    assert not _is_data(value, loc.detach(), scale.detach())
    with torch.no_grad():
        assert not _is_data(value, loc, scale)


def test_value_with_gradient_gets_one() -> None:
    value, (loc, scale) = data((_LARGE,)).requires_grad_(), parameters((3, 1), (3, 1))
    [found] = torch.autograd.grad(dist.Normal(loc, scale).log_prob(value).sum(), value)
    [expected] = torch.autograd.grad(log_density(value, loc, scale).sum(), value)
    torch.testing.assert_close(found, expected)


def test_mixed_dtypes_are_promoted() -> None:
    value, (loc, scale) = data((_LARGE,), torch.float32), parameters((3, 1), (3, 1))
    found = dist.Normal(loc, scale).log_prob(value)
    torch.testing.assert_close(found, log_density(value, loc, scale))
    assert found.dtype == torch.float64


def test_forward_derivatives_and_transforms() -> None:
    value, (loc, scale) = data((_LARGE,)), parameters((3, 1), (3, 1))
    direction = torch.ones_like(loc)
    with forward_ad.dual_level():
        found = dist.Normal(forward_ad.make_dual(loc, direction), scale).log_prob(value)
        slope = forward_ad.unpack_dual(found).tangent
    torch.testing.assert_close(slope, (value - loc) / scale**2)

    def total(own: Tensor) -> Tensor:
        return dist.Normal(own, scale.detach(), validate_args=False).log_prob(value).sum()

    torch.testing.assert_close(torch.func.grad(total)(loc.detach()), slope.sum(-1, keepdim=True).detach())


def test_infinite_data() -> None:
    leaves = parameters((2, 1), (2, 1), dtype=torch.float32)
    value = data((_LARGE,), torch.float32)
    value[0] = math.inf
    found = dist.Normal(*leaves, validate_args=False).log_prob(value)
    expected = log_density(value, *leaves)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert bool((found[:, 0] == -math.inf).all())
    # Left out of the sum, and even with weight 0, an infinite deviation has no finite derivative.
    weights = torch.ones_like(found)
    weights[:, 0] = 0.0
    assert all(g.isnan().all() for g in torch.autograd.grad(found, leaves, weights))


def test_scales_whose_square_underflows() -> None:
    tiny = torch.full((1,), 1e-30, requires_grad=True)
    value = torch.linspace(-2e-30, 2e-30, _LARGE)
    found = dist.Normal(torch.zeros(1), tiny).log_prob(value)
    expected = log_density(value.double() * 1e30, torch.zeros(1).double(), torch.ones(1).double())
    torch.testing.assert_close(found.double(), expected + 30 * math.log(10), rtol=1e-5, atol=1e-5)
    [slope] = torch.autograd.grad(found.sum(), tiny)
    z = value.double() * 1e30
    torch.testing.assert_close(
        slope.double() * 1e-30, (z.square() - 1).sum().reshape(1), rtol=1e-4, atol=0.01
    )
