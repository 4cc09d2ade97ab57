"""Parameters as they were before expansion."""

import pytest
import torch

from sumprod.infer._stacked_family import before_expansion

DOUBLE = torch.float64


def table():
    return torch.rand(3, 1, 4, 2, dtype=DOUBLE, requires_grad=True)


VIEWS = {
    "expanded": (lambda x: x.expand(3, 5, 4, 2), (3, 1, 4, 2)),
    "with new dims": (lambda x: x.expand(6, 3, 5, 4, 2), (3, 1, 4, 2)),
    "an index": (lambda x: x[..., 1].expand(3, 5, 4), (3, 1, 4)),
    "a slice": (lambda x: x[1:, :, ::2].expand(7, 2, 5, 2, 2), (1, 2, 1, 2, 2)),
    "squeezed": (lambda x: x.squeeze(1)[..., 0].unsqueeze(-2).expand(3, 5, 4), (3, 1, 4)),
    "transposed": (lambda x: x.transpose(0, 2).expand(4, 5, 3, 2), (4, 1, 3, 2)),
    "expanded twice": (lambda x: x[..., 1].expand(3, 5, 4).expand(2, 3, 5, 4), (1, 3, 1, 4)),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("of_leaf", [False, True])
def test_values_shapes_and_gradients(name, of_leaf):
    view, shape = VIEWS[name]
    leaf = table()
    whole = leaf if of_leaf else leaf.exp()
    expanded = view(whole)
    small = before_expansion(expanded)
    assert small.shape == shape
    assert torch.equal(small.expand(expanded.shape), expanded)
    weights = torch.rand(expanded.shape, dtype=DOUBLE)
    gradients = [
        torch.autograd.grad((weights * x.expand(expanded.shape)).sum(), leaf, retain_graph=True)[0]
        for x in (small, expanded)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", VIEWS)
def test_without_gradients(name):
    view, shape = VIEWS[name]
    whole = table().detach()
    small = before_expansion(view(whole))
    assert small.shape == shape
    assert torch.equal(small.expand(view(whole).shape), view(whole))


def test_what_is_no_expansion_is_returned_itself():
    leaf = table()
    with torch.no_grad():
        hidden, also_hidden = leaf[..., 0].expand(2, 3, 1, 4), leaf.expand(2, 3, 1, 4, 2)
        assert before_expansion(also_hidden).shape == (3, 1, 4, 2)
    for tensor in (leaf, leaf[..., 0], leaf.exp(), hidden, also_hidden):
        assert before_expansion(tensor) is tensor


def test_a_view_written_to_is_returned_itself():
    """Its entries are no longer functions of the whole alone."""
    whole = table().exp()
    part = whole[..., 0]
    part.mul_(torch.full((), 2.0, dtype=DOUBLE, requires_grad=True))
    expanded = part.expand(3, 5, 4)
    small = before_expansion(expanded)
    (gradient,) = torch.autograd.grad(small.expand(3, 5, 4).sum(), whole)
    torch.testing.assert_close(gradient, torch.autograd.grad(expanded.sum(), whole)[0])


def test_a_view_through_another_type_is_returned_itself():
    numbers = torch.view_as_real(torch.ones(3, 1, dtype=torch.complex128, requires_grad=True) * 1)
    expanded = numbers.expand(4, 3, 1, 2)
    assert before_expansion(expanded) is expanded
