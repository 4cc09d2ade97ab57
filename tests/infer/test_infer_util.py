"""The helpers that losses are written with."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.handlers.indep import CondIndepStackFrame
from sumprod.infer import util

ROWS = CondIndepStackFrame("rows", -2, 2, 0)
COLUMNS = CondIndepStackFrame("columns", -1, 3, 0)
LOOP = CondIndepStackFrame("loop", None, 4, 1)


# ---- numbers or tensors


def test_torch_item_of_tensors_and_numbers() -> None:
    assert util.torch_item(torch.tensor([2.5])) == 2.5
    assert isinstance(util.torch_item(torch.tensor(2.5)), float)
    assert util.torch_item(3.0) == 3.0


def test_torch_backward_is_nothing_without_a_graph() -> None:
    leaf = torch.ones(2, requires_grad=True)
    util.torch_backward(1.0)
    util.torch_backward(torch.ones(()))
    util.torch_backward((leaf * 3).sum())
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("keep", [True, False])
def test_torch_backward_passes_retain_graph(keep: bool) -> None:
    leaf = torch.ones(2, requires_grad=True)
    total = leaf.square().sum()
    util.torch_backward(total, retain_graph=keep)
    if keep:
        util.torch_backward(total)
        assert leaf.grad is not None
        assert leaf.grad.tolist() == [4.0, 4.0]
    else:
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            util.torch_backward(total)


def test_torch_exp() -> None:
    assert util.torch_exp(1.0) == math.e
    assert torch.equal(util.torch_exp(torch.zeros(2)), torch.ones(2))


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ([-1], [3.0, 3.0]),
        ([-2], [2.0, 2.0, 2.0]),
        ([-1, -2], 6.0),
        ([-3], [[1.0] * 3] * 2),
        ([-1, -4], [3.0, 3.0]),
    ],
)
def test_torch_sum_ignores_dims_that_are_not_there(dims: list[int], expected: object) -> None:
    assert util.torch_sum(torch.ones(2, 3), dims).tolist() == expected


def test_detach_iterable() -> None:
    leaf = torch.ones(2, requires_grad=True)
    assert not util.detach_iterable(leaf * 2).requires_grad
    one, two = util.detach_iterable([leaf * 2, leaf])
    assert not one.requires_grad
    assert not two.requires_grad


def test_zero_grads_leaves_zeros_and_none() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    used.sum().backward()
    util.zero_grads([used, unused])
    assert used.grad is not None
    assert used.grad.tolist() == [0.0, 0.0]
    assert unused.grad is None


def test_zero_grads_after_a_backward_that_kept_the_graph() -> None:
    leaf = torch.ones(2, requires_grad=True)
    (leaf.grad,) = torch.autograd.grad(leaf.pow(3).sum(), leaf, create_graph=True)
    util.zero_grads([leaf])
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0.0, 0.0]
    assert not leaf.grad.requires_grad


def test_clone_mixin_copies_tensors() -> None:
    @dataclasses.dataclass
    class State(util.CloneMixin):
        value: Tensor
        count: int

    state = State(torch.ones(2), 3)
    twin = state.clone()
    twin.value[0] = 5
    assert state.value.tolist() == [1.0, 1.0]
    assert (type(twin), twin.count) == (State, 3)


def test_validation_switch_is_restored_after_an_error() -> None:
    before = util.is_validation_enabled()

    def fail() -> None:
        with util.validation_enabled(not before):
            assert util.is_validation_enabled() is not before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert util.is_validation_enabled() is before
    util.enable_validation(not before)
    try:
        assert sumprod.infer.is_validation_enabled() is not before
    finally:
        util.enable_validation(before)


# ---- plates


def nested() -> None:
    with sumprod.plate("rows", 2, dim=-2):
        sumprod.sample("a", dist.Normal(0.0, 1.0))
        with sumprod.plate("columns", 3, dim=-1):
            sumprod.sample("b", dist.Normal(0.0, 1.0))


def test_plate_stacks_leave_out_subsample_sites_and_loops() -> None:
    def program() -> None:
        for _ in sumprod.plate("loop", 1):
            nested()

    stacks = util.get_plate_stacks(handlers.trace(program).get_trace())
    assert {name: [frame.name for frame in frames] for name, frames in stacks.items()} == {
        "a": ["rows"],
        "b": ["rows", "columns"],
    }


def test_dependent_plate_dims_are_those_not_around_every_site() -> None:
    def outside() -> None:
        sumprod.sample("c", dist.Normal(0.0, 1.0))
        nested()

    def dims(program: object) -> list[int]:
        return util.get_dependent_plate_dims(handlers.trace(program).get_trace().nodes.values())

    assert dims(nested) == [-1]
    assert dims(outside) == [-2, -1]
    assert dims(lambda: None) == []


def test_multi_frame_tensor_sums_over_the_plates_that_are_not_asked_for() -> None:
    terms = util.MultiFrameTensor(
        ((COLUMNS,), torch.tensor([1.0, 2.0, 3.0])),
        ((ROWS, COLUMNS), torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])),
        ((), torch.tensor(100.0)),
    )
    assert terms.sum_to([]) == 6 + 210 + 100
    assert terms.sum_to([COLUMNS]).tolist() == [151.0, 172.0, 193.0]
    assert terms.sum_to([ROWS]).tolist() == [[166.0], [256.0]]
    assert terms.sum_to([COLUMNS, ROWS]).tolist() == [[111.0, 122.0, 133.0], [141.0, 152.0, 163.0]]


def test_multi_frame_tensor_ignores_sequential_plates_and_adds_equal_ones() -> None:
    terms = util.MultiFrameTensor()
    assert terms.sum_to([ROWS]) == 0.0
    terms.add(((LOOP, COLUMNS), torch.ones(3)), ((COLUMNS,), torch.ones(3)))
    assert len(terms) == 1
    assert terms.sum_to([COLUMNS, LOOP]).tolist() == [2.0, 2.0, 2.0]
    assert "(columns): (3,)" in repr(terms)


def test_multi_frame_tensor_leaves_its_terms_alone() -> None:
    """A term of shape (1, 3) is squeezed for the sum, not in place."""
    term = torch.ones(1, 3)
    terms = util.MultiFrameTensor(((COLUMNS,), term))
    assert terms.sum_to([COLUMNS]).shape == (3,)
    assert term.shape == (1, 3)


def test_multi_frame_tensor_refuses_a_term_without_its_plates_dims() -> None:
    with pytest.raises(ValueError, match=r"plates columns, rows needs at least 2 dims, got shape \(3,\)"):
        util.MultiFrameTensor(((ROWS, COLUMNS), torch.ones(3)))


def test_plate_log_prob_sum_keeps_one_plate() -> None:
    def program() -> None:
        with sumprod.plate("rows", 2, dim=-2):
            sumprod.sample("a", dist.Normal(0.0, 1.0), obs=torch.tensor([[0.0], [1.0]]))
            with sumprod.plate("columns", 3, dim=-1):
                sumprod.sample("b", dist.Normal(0.0, 1.0), obs=torch.zeros(2, 3))

    trace = handlers.util.prune_subsample_sites(handlers.trace(program).get_trace())
    trace.compute_log_prob()
    trace.pack_tensors()
    zero = -0.5 * math.log(2 * math.pi)
    actual = util.plate_log_prob_sum(trace, trace.plate_to_symbol["rows"])
    assert actual.tolist() == pytest.approx([4 * zero, 4 * zero - 0.5])


# ---- reparameterisation


class PartlyReparametrized(dist.Normal):
    """A sampler whose draws carry only a part of the gradient, as rejection samplers have."""

    def score_parts(self, x: Tensor, *args: object, **kwargs: object) -> object:
        log_prob = self.log_prob(x)
        return dist.score_parts.ScoreParts(log_prob, log_prob, log_prob)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (dist.Normal(0.0, 1.0), True),
        (dist.Normal(torch.zeros(2), 1.0).to_event(1), True),
        (dist.Normal(0.0, 1.0).mask(False), True),
        (dist.Bernoulli(0.5), False),
        (dist.Normal(0.0, 1.0).has_rsample_(False), False),
        (PartlyReparametrized(0.0, 1.0), False),
    ],
    ids=["normal", "event", "masked", "bernoulli", "switched off", "partly"],
)
@pytest.mark.parametrize("parts", [False, True])
def test_fully_reparametrized(fn: object, expected: bool, parts: bool) -> None:
    trace = handlers.trace(lambda: sumprod.sample("z", fn)).get_trace()
    if parts:
        trace.compute_score_parts()
    site = trace.nodes["z"]
    assert util.is_fully_reparametrized(site) is expected
    if expected:
        util.check_fully_reparametrized(site)
    else:
        with pytest.raises(
            NotImplementedError,
            match=r"All distributions in the guide must be fully reparameterized\. Site 'z' draws from",
        ):
            util.check_fully_reparametrized(site)
