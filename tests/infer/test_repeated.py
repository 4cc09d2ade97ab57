"""Tensors that stand for each other."""

import pytest
import torch

from sumprod.infer._repeated import all_alike
from sumprod.ops.indexing import Vindex


@pytest.fixture
def table():
    torch.manual_seed(0)
    leaf = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    return leaf.exp()


def states(shape=(4, 1)):
    return torch.arange(4).reshape(shape)


def test_look_ups_with_equal_indices(table):
    assert all_alike([table[states()], table[states()], table[states()]])
    assert all_alike([table[states((1, 4)).squeeze(0)], table[states((4,))]])
    assert all_alike([table[:, torch.tensor([0, 2])], table[:, torch.tensor([0, 2])]])
    first, second = (Vindex(table)[states(), torch.arange(3)] for _ in range(2))
    assert all_alike([first, second])


def test_the_same_part_of_look_ups(table):
    def part(size, stride, offset):
        return table[states()].as_strided(size, stride, offset)

    assert all_alike([part((4, 1), (3, 0), 1), part((4, 1), (3, 0), 1)])
    first = torch.ones(4, 3, requires_grad=True)[states()].as_strided((4, 1), (3, 0), 1)
    leaf = torch.ones(4, 3, requires_grad=True)
    parts = [leaf[states()].as_strided((4, 1), (3, 0), offset) for offset in (1, 2)]
    assert torch.equal(first, parts[0])
    assert not all_alike([first, parts[0]])
    assert not all_alike(parts)


def test_different_look_ups(table):
    assert not all_alike([table[states()], table[states().flip(0)]])
    assert not all_alike([table[states()], (table * 1.0)[states()]])
    assert not all_alike([table[states()], table[states()] * 2.0])
    assert not all_alike([table[states()], table[states()].detach()])
    assert not all_alike([table[torch.tensor([0, 1])], table[:, torch.tensor([0, 1])].T])


def test_leaves_and_other_operations_are_not_compared(table):
    assert not all_alike([table * 2.0, table * 2.0])
    leaves = [torch.ones(3, requires_grad=True) for _ in range(2)]
    assert not all_alike(leaves)
    assert all_alike([leaves[0], leaves[0]])


def test_equal_look_ups_in_two_leaves():
    first, second = (torch.ones(4, 3, requires_grad=True) for _ in range(2))
    assert not all_alike([first[states()], second[states()]])
    assert all_alike([first[states()], first[states()]])


def test_tensors_without_gradients_are_compared_by_value():
    x = torch.rand(3)
    assert all_alike([x, x.clone()])
    assert not all_alike([x, x + 1])
    assert not all_alike([x, x.double()])


def test_writing_in_between_shows(table):
    first, second = table[states()], table[states()]
    second.mul_(2.0)
    assert not all_alike([first, second])
    leaf = torch.rand(4, 3, requires_grad=True)
    first = leaf[states()]
    with torch.no_grad():
        leaf.mul_(2.0)
    assert not all_alike([first, leaf[states()]])


def test_equal_values_of_different_entries(table):
    leaf = torch.ones(4, 3, requires_grad=True)
    assert not all_alike([leaf[states()], leaf[states().flip(0)]])


@pytest.mark.parametrize("watch", [lambda x: x.retain_grad(), lambda x: x.register_hook(lambda grad: None)])
def test_a_tensor_whose_gradient_is_watched_stands_for_itself(table, watch):
    first, second = table[states()], table[states()]
    watch(second)
    assert not all_alike([first, second])


def test_each_of_many_counts(table):
    x = torch.rand(3)
    for other in (x + 1, x.double(), x.unsqueeze(0), x[:2], x.clone().requires_grad_()):
        assert not all_alike([x, x.clone(), other])
        assert not all_alike([x, other, x.clone()])
    unknown = torch.tensor([0.0, torch.nan, 1.0])
    assert not all_alike([unknown, unknown.clone(), unknown.clone()])
    assert not all_alike([table[states()], table[states()], (table * 1.0)[states()]])
    assert not all_alike([table[states()], table[states()], table[states().flip(0)].flip(0)])
