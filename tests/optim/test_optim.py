"""`PyroOptim` steps as one torch optimiser per parameter would."""

from __future__ import annotations

import functools
import timeit
import weakref
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import sumprod.optim
from sumprod.optim import PyroOptim
from sumprod.optim._kernels import implementation
from sumprod.params import PARAM_STORE
from tests.optim.reference import Reference, parameter, run

SHAPES = [(), (3,), (2, 5)]

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ASGD", {"lambd": 0.1}),
    ("Adadelta", {}),
    ("Adafactor", {"lr": 0.1}),
    ("Adagrad", {"lr_decay": 0.1}),
    ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.1, "foreach": False}),
    ("AdamW", {"lr": 0.1, "maximize": True}),
    ("Adamax", {"lr": 0.1}),
    ("Muon", {"lr": 0.1}),
    ("NAdam", {"lr": 0.1}),
    ("RAdam", {"lr": 0.1}),
    ("RMSprop", {"momentum": 0.5, "centered": True}),
    ("Rprop", {}),
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("SparseAdam", {"lr": 0.1}),
]
IDS = [f"{name}-{'-'.join(options)}" for name, options in CASES]


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_one_optimizer_equals_many(name: str, options: dict[str, Any], generator: torch.Generator) -> None:
    """Bit for bit with the same implementation; the default one (a loop) differs by rounding."""
    shapes = [(2, 5), (4, 3)] if name == "Muon" else SHAPES[1:] if name == "SparseAdam" else SHAPES
    constructor = getattr(torch.optim, name)
    sparse = name == "SparseAdam"
    extra = {} if sparse else implementation(constructor, options, torch.zeros(3, requires_grad=True))
    start = generator.get_state()
    for chosen, tolerance in ((extra, 0.0), ({}, 8.0)):
        PARAM_STORE.clear()
        generator.set_state(start)
        reference = Reference(lambda _, leaf, chosen=chosen: constructor([leaf], **options, **chosen))
        optim = getattr(sumprod.optim, name)(options)
        assert run(optim, reference, generator, shapes, sparse=sparse) <= tolerance
        assert len({id(made) for made in optim.optim_objs.values()}) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, generator: torch.Generator) -> None:
    extra = {"fused": True} if dtype == torch.float64 else {}
    reference = Reference(lambda _, leaf: torch.optim.Adam([leaf], lr=0.1, **extra))
    assert run(sumprod.optim.Adam({"lr": 0.1}), reference, generator, SHAPES, dtype=dtype) == 0


def test_only_given_parameters_change() -> None:
    """Also when Adam's momentum would carry them on."""
    first, second = parameter("a", torch.zeros(2)), parameter("b", torch.zeros(2))
    optim = sumprod.optim.Adam({"lr": 0.1})
    for leaf in (first, second):
        leaf.grad = torch.ones(2)
    optim([first, second])
    before = second.detach().clone()
    for _ in range(3):
        optim([first])
    assert second.equal(before)
    assert first.equal(before) is False
    second.grad = None
    optim([first, second])
    assert second.equal(before)


def test_an_iterable_of_parameters_and_repetitions() -> None:
    leaf = parameter("a", torch.zeros(1))
    leaf.grad = torch.ones(1)
    optim = sumprod.optim.SGD({"lr": 1.0})
    optim(iter([leaf, leaf]))
    assert leaf.item() == -1
    optim([])
    assert leaf.item() == -1


def test_options_by_dotted_name(generator: torch.Generator) -> None:
    seen = []

    def options(name: str) -> dict[str, float]:
        seen.append(name)
        return {"lr": 0.1 if name.endswith("0") else 0.3}

    reference = Reference(lambda name, leaf: torch.optim.Adam([leaf], **options(name), fused=True))
    optim = sumprod.optim.Adam(options)
    assert run(optim, reference, generator, SHAPES) == 0
    assert sorted(seen) == sorted([*reference.leaves] * 2)  # once per parameter and side
    assert len({id(made) for made in optim.optim_objs.values()}) == 2


def test_names_given_to_functions() -> None:
    seen: list[Any] = []
    leaves = [parameter("net$$$fc.weight", torch.zeros(1)), parameter("x", torch.zeros(1))]
    for function in (
        lambda name: seen.append(name) or {},
        lambda module, name: seen.append((module, name)) or {},
        lambda *names: seen.append(names) or {},
        lambda name, lr=0.1: seen.append(name) or {"lr": lr},
    ):
        sumprod.optim.Adam(function)(leaves)
    two = [("net", "fc.weight"), ("x", "x")]
    assert seen == ["net.fc.weight", "x", *two, *two, "net.fc.weight", "x"]


def test_constructors_that_are_no_classes(generator: torch.Generator) -> None:
    """A partial uses the fused kernel, a function the default one; both share one optimiser."""
    for constructor, extra in (
        (functools.partial(torch.optim.Adam, amsgrad=True), {"fused": True}),
        (lambda leaves, lr: torch.optim.Adam(leaves, lr=lr, amsgrad=True), {}),
    ):
        PARAM_STORE.clear()
        reference = Reference(
            lambda _, leaf, extra=extra: torch.optim.Adam([leaf], 0.1, amsgrad=True, **extra)
        )
        optim = PyroOptim(constructor, {"lr": 0.1})
        assert run(optim, reference, generator, SHAPES) == 0
        assert len({id(made) for made in optim.optim_objs.values()}) == 1


class Total(torch.optim.Optimizer):
    """Divides by the number of its steps so far: nothing that parameters can share."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            for leaf in group["params"]:
                if leaf.grad is not None:
                    leaf.data.sub_(group["lr"] / self.steps * leaf.grad)


def test_unknown_classes_get_one_optimizer_per_parameter(generator: torch.Generator) -> None:
    reference = Reference(lambda _, leaf: Total([leaf], lr=0.1))
    optim = PyroOptim(Total, {"lr": 0.1})
    assert run(optim, reference, generator, SHAPES) == 0
    assert len({id(made) for made in optim.optim_objs.values()}) == 9


def test_options_changed_by_hand() -> None:
    """As programs do to anneal; a parameter that comes later starts with the given options."""
    first = parameter("a", torch.zeros(1))
    first.grad = torch.ones(1)
    optim = sumprod.optim.SGD({"lr": 1.0})
    optim([first])
    for made in optim.optim_objs.values():
        made.param_groups[0]["lr"] = 0.25
    second = parameter("b", torch.zeros(1))
    second.grad = torch.ones(1)
    optim([first, second])
    assert (first.item(), second.item()) == (-1.25, -1.0)


def test_closure_is_passed_on() -> None:
    leaf = parameter("a", torch.ones(1))
    calls = []

    def closure() -> torch.Tensor:
        calls.append(1)
        leaf.grad = None
        loss = (leaf**2).sum()
        loss.backward()
        return loss

    sumprod.optim.SGD({"lr": 0.5})([leaf], closure)
    assert calls == [1]
    assert leaf.item() == 0


# Clipping.


@pytest.mark.parametrize("by_name", [False, True])
def test_clipping_per_parameter(by_name: bool, generator: torch.Generator) -> None:
    clip: dict[str, float] = {"clip_norm": 0.7, "clip_value": 0.4}

    class Clipped(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            (leaf,) = self.param_groups[0]["params"]
            if leaf.grad is not None:
                clip_grad_norm_(leaf, 0.7)
                clip_grad_value_(leaf, 0.4)
            super().step()

    arguments = (lambda module, name: clip) if by_name else clip
    reference = Reference(lambda _, leaf: Clipped([leaf], lr=0.1, fused=True))
    assert run(sumprod.optim.SGD({"lr": 0.1}, arguments), reference, generator, SHAPES) == 0


def test_clipping_by_total_norm(generator: torch.Generator) -> None:
    leaves = [parameter(str(index), torch.zeros(shape)) for index, shape in enumerate(SHAPES)]
    for leaf in leaves:
        leaf.grad = torch.randn(leaf.shape, generator=generator)
    expected = [leaf.grad.clone() for leaf in leaves]
    total = torch.cat([grad.flatten() for grad in expected]).norm()
    sumprod.optim.SGD({"lr": 1.0}, {"clip_norm": 0.5, "clip_global": True})(leaves)
    for leaf, grad in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.detach(), -grad * 0.5 / total)


def test_different_clipping_by_name() -> None:
    leaves = [parameter(name, torch.zeros(2)) for name in "ab"]
    for leaf in leaves:
        leaf.grad = torch.tensor([3.0, 4.0])
    sumprod.optim.SGD({"lr": 1.0}, lambda name: {"clip_norm": 1.0} if name == "a" else {})(leaves)
    torch.testing.assert_close(leaves[0].detach(), torch.tensor([-0.6, -0.8]))
    assert leaves[1].tolist() == [-3, -4]


def test_clipping_sparse_and_mixed_gradients() -> None:
    sparse, dense, double = (parameter(name, torch.zeros(2)) for name in "abc")
    double = parameter("c", torch.zeros(2, dtype=torch.float64))
    sparse.grad = torch.tensor([3.0, 4.0]).to_sparse()
    dense.grad = torch.tensor([3.0, 4.0])
    double.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    sumprod.optim.SGD({"lr": 1.0}, {"clip_norm": 1.0})([sparse, dense, double])
    for leaf in (sparse, dense, double):
        torch.testing.assert_close(leaf.detach(), torch.tensor([-0.6, -0.8], dtype=leaf.dtype))


# Errors.


def test_wrong_arguments() -> None:
    leaf = parameter("a", torch.zeros(1))
    with pytest.raises(AssertionError, match="optim_args must be function that returns defaults"):
        sumprod.optim.Adam(3)
    with pytest.raises(AssertionError, match="optim_args must be function that returns defaults"):
        sumprod.optim.Adam(None)
    with pytest.raises(AssertionError, match="per-param optim arg must return defaults dictionary"):
        sumprod.optim.Adam(lambda name: 3)([leaf])
    with pytest.raises(AssertionError, match="clip_args must be function"):
        sumprod.optim.Adam({}, 3)
    with pytest.raises(TypeError, match=r"clip_args: unknown \['clip_nrom'\]"):
        sumprod.optim.Adam({}, {"clip_nrom": 1.0})
    with pytest.raises(TypeError, match="clip_args for 'a': expected a dict"):
        sumprod.optim.Adam({}, lambda name: 1.0)([leaf])
    with pytest.raises(TypeError, match="learning_rate"):
        sumprod.optim.Adam({"learning_rate": 1.0})([leaf])
    with pytest.raises(TypeError, match=r"must make a torch.optim.Optimizer, but .* made list"):
        PyroOptim(list, {})([leaf])
    with pytest.raises(ValueError, match="shape \\(2,\\) is not in the parameter store"):
        sumprod.optim.Adam(lambda name: {})([torch.zeros(2, requires_grad=True)])


def test_lbfgs_is_refused() -> None:
    made_late = PyroOptim(lambda leaves: torch.optim.LBFGS(leaves), {})
    for make in (
        lambda: sumprod.optim.LBFGS({}),
        lambda: PyroOptim(torch.optim.LBFGS, {}),
        lambda: PyroOptim(functools.partial(torch.optim.LBFGS, lr=1.0), {}),
        lambda: made_late([parameter("a", torch.zeros(1))]),
    ):
        with pytest.raises(NotImplementedError, match="LBFGS needs all parameters at once"):
            make()


# Cost.


def test_nothing_keeps_old_leaves_alive() -> None:
    optim = sumprod.optim.Adam({"lr": 0.1})
    leaf = parameter("a", torch.zeros(1))
    leaf.grad = torch.ones(1)
    optim([leaf])
    gone = weakref.ref(leaf)
    del leaf
    PARAM_STORE.clear()
    leaf = parameter("a", torch.zeros(1))
    leaf.grad = torch.ones(1)
    optim([leaf])
    assert gone() is None
    assert len(optim._slots) == 1


def test_many_parameters_cost_little_more_than_one_torch_optimizer() -> None:
    leaves = [parameter(str(index), torch.zeros(())) for index in range(400)]
    for leaf in leaves:
        leaf.grad = torch.ones(())
    optim = sumprod.optim.Adam({"lr": 0.1})
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    for copy in copies:
        copy.grad = torch.ones(())
    together = torch.optim.Adam(copies, lr=0.1, fused=True)
    each = [torch.optim.Adam([copy], lr=0.1) for copy in copies]

    def step_each() -> None:
        for made in each:
            made.step()

    times = [
        min(timeit.repeat(step, number=1, repeat=15))
        for step in (lambda: optim(leaves), together.step, step_each)
    ]
    assert times[0] < 2 * times[1]
    assert 3 * times[0] < times[2]
