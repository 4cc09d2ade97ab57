"""Contraction of plated factor graphs: totals, their gradients, and joint draws, in one call each.

    result = log sum over variables of exp( sum over factors and plate slices of the factor )

Factors are log-potentials with named dims. A dim is a variable, summed out, or a plate, along which
everything inside is repeated independently given what is outside. See `sumprod.ops._plan` for how the
order of operations is found. The plan is run by one native operator, whatever its length.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sumprod._native import ops as native
from sumprod.ops._plan import Plan, Step, make_plan
from sumprod.ops.logsumexp import logsumexp

__all__ = ["Draw", "contract", "draw", "run_plan", "sample"]

Dims = Sequence[Hashable]


class Draw(NamedTuple):
    """Values of all variables, and the totals on the way to them."""

    totals: list[tuple[tuple[Hashable, ...], Tensor]]
    """what `contract` returns without `kept`: per connected component dims (none) and total"""
    values: dict[Hashable, tuple[tuple[Hashable, ...], Tensor]]
    """variable -> the plates it is in, and int64 values of their sizes; where the total is -inf or NaN, they
    mean nothing"""


def contract(
    tensors: Sequence[Tensor],
    dims: Sequence[Dims],
    plates: Iterable[Hashable] = (),
    *,
    kept: Iterable[Hashable] = (),
    keep_common_plates: bool = False,
    maximise: bool = False,
) -> list[tuple[tuple[Hashable, ...], Tensor]]:
    """Sum the variables out of a product of factors and multiply along its plates, in log space.

    Args:
        tensors: log-factors, float32 or float64 (half types are computed in float32), any strides.
        dims: names of each tensor's dims, in order. A factor has all plates that it is in as dims, also
            those along which it is constant (`Tensor.expand`).
        plates: which names are plates; the others are variables.
        kept: dims of the result: variables not summed out, plates not multiplied along.
        keep_common_plates: of each connected component, also keep the plates that all its factors are in.
        maximise: take the largest term instead of the sum.

    Returns:
        One pair (dims, tensor) per connected component of the graph; their product is the total. Kept
        dims connect nothing: factors that share only these are components of their own. -inf where every
        assignment is impossible, with zero gradient.

    Differentiable any number of times, except with `maximise`. The gradient for a factor is its posterior
    marginal. First gradients are native; higher ones run step by step.

    Raises:
        TypeError: a factor is not a floating-point tensor.
        ValueError: a tensor does not have the dims named, or sizes or devices disagree.
        NotTreeStructured: (a NotImplementedError) the cost would be exponential in a plate's size.
        MemoryBudgetError: (a MemoryError) it would take more memory than the setting `memory_budget` says.

    References:
        Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs".

    >>> import torch
    >>> prior, likelihood = torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.9, 0.8], [0.2, 0.3]]).log()
    >>> [(_, total)] = contract([prior, likelihood], [["z"], ["z", "data"]], plates=["data"])
    >>> round(total.exp().item(), 4)  # 0.5 * 0.9 * 0.8 + 0.5 * 0.2 * 0.3
    0.39
    """
    tensors, plan, dtype = _prepare(tensors, dims, plates, kept, keep_common_plates)
    return _named_results(plan, run_plan(plan, tensors, maximise), dtype)


def draw(
    tensors: Sequence[Tensor],
    dims: Sequence[Dims],
    plates: Iterable[Hashable] = (),
    *,
    maximise: bool = False,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Draw:
    """Draw all variables together from their joint posterior, or find the most probable assignment.

    Args:
        tensors: as for `contract`.
        dims: as for `contract`.
        plates: as for `contract`.
        maximise: the most probable assignment; of equally probable values a step takes the lowest.
        uniforms: float64 in [0, 1), of shape [`number_of_uniforms(plan)`]; equal ones give equal draws.
            Drawn from `generator` when None.
        generator: a torch generator; None: the default one.

    Returns:
        The values and the totals, in one pass. Not differentiable.

    Raises:
        As `contract`.

    >>> import torch
    >>> chain = [torch.tensor([0.0, 1.0]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])]
    >>> [(_, score)], values = draw(chain, ["a", "ab"], maximise=True)
    >>> score.item(), [int(values[name][1]) for name in "ab"]
    (3.0, [1, 1])
    """
    tensors, plan, dtype = _prepare(tensors, dims, plates, (), False)
    if not maximise and uniforms is None:
        uniforms = torch.rand(
            number_of_uniforms(plan), dtype=torch.float64, device=tensors[0].device, generator=generator
        )
    totals, values = native.contract_draw(tensors, plan.encoded, None if maximise else uniforms, maximise)
    remaining = iter(values)
    found = {
        variable: (plates_of(plan, step), next(remaining))
        for step in plan.steps
        for variable in step.variables
    }
    return Draw(_named_results(plan, totals, dtype), found)


def sample(
    tensors: Sequence[Tensor],
    dims: Sequence[Dims],
    plates: Iterable[Hashable] = (),
    *,
    maximise: bool = False,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> dict[Hashable, tuple[tuple[Hashable, ...], Tensor]]:
    """The values of `draw`, for those who know that some assignment is possible."""
    found = draw(tensors, dims, plates, maximise=maximise, uniforms=uniforms, generator=generator)
    return found.values


def _named_results(
    plan: Plan, results: Sequence[Tensor], dtype: torch.dtype
) -> list[tuple[tuple[Hashable, ...], Tensor]]:
    return [
        (plan.dims(number), value if value.dtype == dtype else value.to(dtype))
        for number, value in zip(plan.results, results, strict=True)
    ]


def plates_of(plan: Plan, step: Step) -> tuple[Hashable, ...]:
    """The plates of the variables that a step sums out."""
    return tuple(dim for dim in step.dims if dim in plan.plates)


def number_of_uniforms(plan: Plan) -> int:
    """How many uniforms a draw takes: one per step that sums, and per slice of its plates."""
    count = 0
    for step in plan.steps:
        if step.variables:
            slices = 1
            for plate in plates_of(plan, step):
                slices *= plan.sizes[plate]
            count += slices
    return count


def _prepare(
    tensors: Sequence[Tensor],
    dims: Sequence[Dims],
    plates: Iterable[Hashable],
    kept: Iterable[Hashable],
    common: bool,
) -> tuple[list[Tensor], Plan, torch.dtype]:
    """Tensors of one dtype that the operators take, their plan, and the dtype of the result."""
    if not tensors or len(tensors) != len(dims):
        raise ValueError(
            f"Expected as many lists of dims as tensors, at least one, got {len(dims)} and {len(tensors)}"
        )
    sizes: dict[Hashable, int] = {}
    dtype = None
    for i, (tensor, names) in enumerate(zip(tensors, dims, strict=True)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"Expected factor {i} to be a floating-point tensor, got {got}")
        if tensor.dim() != len(names):
            raise ValueError(
                f"factor {i} has shape {tuple(tensor.shape)}, but dims {' '.join(map(str, names))!r}"
            )
        if tensor.device != tensors[0].device:
            raise ValueError(f"factor {i} is on {tensor.device}, factor 0 on {tensors[0].device}")
        for name, size in zip(names, tensor.shape, strict=True):
            if sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"Dimension size mismatch at dim '{name}': {sizes[name]} vs {size} in factor {i}"
                )
        dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
    assert dtype is not None
    compute = torch.promote_types(dtype, torch.float32)
    plan = make_plan(dims, sizes, plates, kept, common, compute.itemsize)
    return [tensor if tensor.dtype == compute else tensor.to(compute) for tensor in tensors], plan, dtype


def run_plan(plan: Plan, tensors: Sequence[Tensor], maximise: bool = False) -> list[Tensor]:
    """The results of a plan, in the order of `plan.results`."""
    if not maximise and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return list(_Contract.apply(plan, *tensors))  # type: ignore[no-untyped-call]
    results: list[Tensor] = native.contract(list(tensors), plan.encoded, maximise)
    return results


class _Contract(torch.autograd.Function):
    """Native both ways; a backward that must itself be differentiable runs the plan in torch operations."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        return tuple(native.contract(list(tensors), plan.encoded, False))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return None, *_differentiable_gradients(ctx.plan, tensors, grads)
        gradients = native.contract_backward(list(grads), list(tensors), ctx.plan.encoded)
        return None, *(
            gradient if needed else None
            for gradient, needed in zip(gradients, ctx.needs_input_grad[1:], strict=True)
        )


def _differentiable_gradients(
    plan: Plan, tensors: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    # A component none of whose factors requires grad has no graph.
    pairs = [pair for pair in zip(_run_in_torch(plan, tensors), grads, strict=True) if pair[0].requires_grad]
    results, result_grads = zip(*pairs, strict=True)
    found = iter(
        torch.autograd.grad(results, wanted, result_grads, create_graph=True, materialize_grads=True)
    )
    return tuple(next(found) if tensor.requires_grad else None for tensor in tensors)


def _run_in_torch(plan: Plan, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The plan as torch operations, each differentiable any number of times."""
    values = list(tensors)
    for step in plan.steps:
        dims = [plan.dims(number) for number in step.inputs]
        scope = tuple(dict.fromkeys(dim for own in dims for dim in own))
        total: Any = 0.0
        for number, own in zip(step.inputs, dims, strict=True):
            order = [own.index(dim) for dim in scope if dim in own]
            shape = [plan.sizes[dim] if dim in own else 1 for dim in scope]
            total = total + values[number].permute(order).reshape(shape)
        total = total.expand([plan.sizes[dim] for dim in scope])
        if step.variables:
            total = logsumexp(total, [scope.index(dim) for dim in step.variables])
        elif step.plates:
            total = total.sum([scope.index(dim) for dim in step.plates])
        left = [dim for dim in scope if dim not in step.variables and dim not in step.plates]
        values.append(total.permute([left.index(dim) for dim in step.dims]))
    return [values[number] for number in plan.results]


# ---- shapes, for compilers

_Encoded = Sequence[int]


class _Reader:
    """Reads an encoded plan; its layout is described in csrc/ops/contract_program.h."""

    def __init__(self, numbers: _Encoded) -> None:
        self._numbers = iter(numbers)
        count = self.next()
        self.sizes = [self.next() for _ in range(count)]
        self.is_plate = [bool(self.next()) for _ in range(count)]
        self.slots = [self.list() for _ in range(self.next())]
        self.drawn: list[list[int]] = []  # shape of each variable's draws
        for _ in range(self.next()):
            self.list()
            variables = self.list()
            self.list()
            self.slots.append(self.list())
            shape = [self.sizes[dim] for dim in self.slots[-1] if self.is_plate[dim]]
            self.drawn += [shape] * len(variables)
        self.results = [[self.sizes[dim] for dim in self.slots[slot]] for slot in self.list()]

    def next(self) -> int:
        return next(self._numbers)

    def list(self) -> list[int]:
        return [self.next() for _ in range(self.next())]


@torch.library.register_fake("sumprod::contract")
def _fake_contract(factors: Sequence[Tensor], plan: _Encoded, max_plus: bool) -> list[Tensor]:
    return [factors[0].new_empty(shape) for shape in _Reader(plan).results]


@torch.library.register_fake("sumprod::contract_backward")
def _fake_backward(grads: Sequence[Tensor], factors: Sequence[Tensor], plan: _Encoded) -> list[Tensor]:
    return [factor.new_empty(factor.shape) for factor in factors]


@torch.library.register_fake("sumprod::contract_draw")
def _fake_draw(
    factors: Sequence[Tensor], plan: _Encoded, uniforms: Tensor | None, maximise: bool
) -> tuple[list[Tensor], list[Tensor]]:
    reader = _Reader(plan)
    return (
        [factors[0].new_empty(shape) for shape in reader.results],
        [factors[0].new_empty(shape, dtype=torch.int64) for shape in reader.drawn],
    )
