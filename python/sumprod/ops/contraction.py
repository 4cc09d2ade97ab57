"""Contraction of plated factor graphs: totals, their gradients, and joint draws, in one call each.

    result = log sum over variables of exp( sum over factors and plate slices of the factor )

Factors are log-potentials with named dims. A dim is a variable, summed out, or a plate, along which
everything inside is repeated independently given what is outside. See `sumprod.ops._plan` for how the
order of operations is found. The plan is run by one native operator, whatever its length.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sumprod.ops._contract_shapes  # noqa: F401 (tells compilers the shapes of results)
from sumprod._native import ops as native
from sumprod.ops._devices import random_uniforms, require_kernels
from sumprod.ops._plan import Plan, check_budget, make_plan
from sumprod.ops.logsumexp import logsumexp

__all__ = ["Draw", "contract", "draw", "sample"]

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
    sizes: Mapping[Hashable, int] | None = None,
) -> list[tuple[tuple[Hashable, ...], Tensor]]:
    """Sum the variables out of a product of factors and multiply along its plates, in log space.

    Args:
        tensors: log-factors, float32 or float64 (half types are computed in float32), any strides. The same
            tensor may be several factors.
        dims: names of each factor's dims, in order. A factor has all plates that it is in as dims, also
            those along which it is constant. Tensors broadcast: they may have size 1 along any dim, and
            lack the first dims.
        plates: which names are plates; the others are variables.
        kept: dims of the result: variables not summed out, plates not multiplied along.
        keep_common_plates: of each connected component, also keep the plates that all its factors are in.
        maximise: take the largest term instead of the sum.
        sizes: of dims along which no tensor has more than size 1; others may be given too.

    Returns:
        One pair (dims, tensor) per connected component of the graph; their product is the total. Kept
        dims connect nothing: factors that share only these are components of their own. -inf where every
        assignment is impossible, with zero gradient.

    Differentiable any number of times, except with `maximise`. The gradient for a factor is its posterior
    marginal. First gradients are native; higher ones run step by step. Inside `torch.compile` sizes are
    constants of the program (`dynamic=False`), and first gradients the only ones.

    Raises:
        TypeError: a factor is not a floating-point tensor.
        ValueError: a tensor has more dims than named, or sizes or devices disagree.
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
    graph = _graph(tensors, dims, plates, kept, keep_common_plates, sizes)
    if not maximise and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in graph.tensors):
        results = _Contract.apply(graph.encoded, graph.again, *graph.tensors)  # type: ignore[no-untyped-call]
    else:
        results = native.contract(graph.tensors, graph.encoded, maximise)
    return graph.named(results)


def draw(
    tensors: Sequence[Tensor],
    dims: Sequence[Dims],
    plates: Iterable[Hashable] = (),
    *,
    maximise: bool = False,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
    sizes: Mapping[Hashable, int] | None = None,
) -> Draw:
    """Draw all variables together from their joint posterior, or find the most probable assignment.

    Args:
        tensors: as for `contract`.
        dims: as for `contract`.
        plates: as for `contract`.
        maximise: the most probable assignment; of equally probable values a step takes the lowest.
        uniforms: float64 in [0, 1), of shape [`make_plan(...).uniforms`]; equal ones give equal draws.
            Drawn from `generator` when None.
        generator: a torch generator of the factors' device; None: the default one.
        sizes: as for `contract`.

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
    graph = _graph(tensors, dims, plates, (), False, sizes)
    plan = graph.plan
    device = tensors[0].device
    if not maximise and uniforms is None:
        uniforms = random_uniforms("draw", (plan.uniforms,), torch.float64, device, generator)
    elif not maximise and uniforms is not None and uniforms.device != device:
        raise ValueError(f"draw: uniforms are on {uniforms.device}, the factors on {device}")
    totals, values = native.contract_draw(
        graph.tensors, graph.encoded, None if maximise else uniforms, maximise
    )
    found = {variable: (plates, value) for (variable, plates), value in zip(plan.drawn, values, strict=True)}
    return Draw(graph.named(totals), found)


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


class _Graph(NamedTuple):
    """What a native operator takes, and how its results are to be handed out."""

    tensors: list[Tensor]  # each once
    encoded: str
    dims: tuple[tuple[Hashable, ...], ...]  # of the results
    dtype: torch.dtype
    again: tuple[Plan, tuple[int, ...]] | None
    """the plan and, for each factor, the number of its tensor; None inside a compiled program"""

    @property
    def plan(self) -> Plan:
        assert self.again is not None
        return self.again[0]

    def named(self, results: Sequence[Tensor]) -> list[tuple[tuple[Hashable, ...], Tensor]]:
        """Results with their dims, in the dtype of the factors."""
        return [
            (names, value if value.dtype == self.dtype else value.to(self.dtype))
            for names, value in zip(self.dims, results, strict=True)
        ]


def _graph(
    tensors: Sequence[Tensor],
    dims: Sequence[Dims],
    plates: Iterable[Hashable],
    kept: Iterable[Hashable],
    common: bool,
    sizes: Mapping[Hashable, int] | None,
) -> _Graph:
    if not tensors or len(tensors) != len(dims):
        raise ValueError(
            f"Expected as many lists of dims as tensors, at least one, got {len(dims)} and {len(tensors)}"
        )
    compiling = torch.compiler.is_compiling()
    # One tensor in several places is handed over, and gets a gradient, once.
    unique, operands = list(tensors), tuple(range(len(tensors)))
    if compiling:
        unique, operands = _by_identity(unique)
    elif len(set(map(id, unique))) < len(unique):
        numbers: dict[int, int] = {}
        operands = tuple([numbers.setdefault(id(tensor), len(numbers)) for tensor in unique])
        unique = list({id(tensor): tensor for tensor in unique}.values())
    dtypes = _dtypes(unique)
    dtype = functools.reduce(torch.promote_types, dtypes)
    compute = torch.promote_types(dtype, torch.float32)
    if dtypes != {compute}:
        unique = [tensor.to(compute) for tensor in unique]
    structure = (
        tuple(dims) if {*map(type, dims)} <= {tuple, str} else tuple(map(tuple, dims)),
        tuple([tuple(map(int, tensor.shape)) if compiling else tensor.shape for tensor in tensors]),
        frozenset(plates),
        tuple(kept),
        common,
        tuple(sizes.items()) if sizes else (),
    )
    if compiling:
        # The plan depends on sizes alone, and is a constant of the program for these sizes.
        encoded, names = _constants(operands, compute.itemsize, *structure)
        return _Graph(unique, encoded, names, dtype, None)
    plan = _plan_of(*structure)
    check_budget(plan, compute.itemsize)
    return _Graph(unique, plan.encoded(operands), plan.result_dims, dtype, (plan, operands))


def _by_identity(tensors: list[Tensor]) -> tuple[list[Tensor], tuple[int, ...]]:
    """Each tensor once, and for each place its number; without `id`, which the compiler does not follow."""
    unique: list[Tensor] = []
    operands = []
    for tensor in tensors:
        number = len(unique)
        for i, known in enumerate(unique):
            if known is tensor:
                number = i
        if number == len(unique):
            unique.append(tensor)
        operands.append(number)
    return unique, tuple(operands)


@torch.compiler.assume_constant_result
def _constants(
    operands: tuple[int, ...], element_size: int, *structure: Any
) -> tuple[str, tuple[tuple[Hashable, ...], ...]]:
    plan = _plan_of(*structure)
    check_budget(plan, element_size)
    return plan.encoded(operands), plan.result_dims


def _dtypes(tensors: list[Tensor]) -> set[torch.dtype]:
    """The dtypes of tensors that are floating-point and on one device."""
    try:
        dtypes = {tensor.dtype for tensor in tensors}
        wrong = not all(dtype.is_floating_point for dtype in dtypes)
    except AttributeError:
        wrong = True
    if wrong:
        i, got = next(
            (i, getattr(tensor, "dtype", type(tensor).__name__))
            for i, tensor in enumerate(tensors)
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point()
        )
        raise TypeError(f"Expected factor {i} to be a floating-point tensor, got {got}")
    # Whether they are on the CPU is asked first: it makes no object of every tensor's device.
    if {tensor.is_cpu for tensor in tensors} != {True}:
        if len({tensor.device for tensor in tensors}) > 1:
            i = next(i for i, tensor in enumerate(tensors) if tensor.device != tensors[0].device)
            raise ValueError(f"factor {i} is on {tensors[i].device}, factor 0 on {tensors[0].device}")
        require_kernels("contract", tensors[0].device)
    return dtypes


@lru_cache(maxsize=1024)
def _plan_of(
    structure: tuple[Sequence[Hashable], ...],
    shapes: tuple[tuple[int, ...], ...],
    plates: frozenset[Hashable],
    kept: tuple[Hashable, ...],
    common: bool,
    given: tuple[tuple[Hashable, int], ...],
) -> Plan:
    """The plan of a graph whose tensors have these dims and shapes."""
    sizes: dict[Hashable, int] = dict(given)
    for i, (names, shape) in enumerate(zip(structure, shapes, strict=True)):
        missing = len(names) - len(shape)
        if missing < 0:
            raise ValueError(f"factor {i} has shape {tuple(shape)}, but dims {' '.join(map(str, names))!r}")
        for name, size in zip(names, (1,) * missing + tuple(shape), strict=True):
            known = sizes.get(name, 1)
            if size not in (1, known) and known != 1:
                raise ValueError(f"Dimension size mismatch at dim '{name}': {known} vs {size} in factor {i}")
            sizes[name] = known if known != 1 else size
    return make_plan(structure, sizes, plates, kept, common, element_size=0)


class _Contract(torch.autograd.Function):
    """Native both ways; a backward that must itself be differentiable runs the plan in torch operations."""

    @staticmethod
    def forward(
        ctx: Any, encoded: str, again: tuple[Plan, tuple[int, ...]] | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.encoded, ctx.again = encoded, again
        ctx.save_for_backward(*tensors)
        return tuple(native.contract(tensors, encoded, False))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if ctx.again is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            plan, operands = ctx.again
            return None, None, *_differentiable_gradients(plan, operands, tensors, grads)
        gradients = native.contract_backward(grads, tensors, ctx.encoded)
        if not all(ctx.needs_input_grad[2:]):
            gradients = [
                gradient if needed else None
                for gradient, needed in zip(gradients, ctx.needs_input_grad[2:], strict=True)
            ]
        return None, None, *gradients


def _differentiable_gradients(
    plan: Plan, operands: tuple[int, ...], tensors: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    # A component none of whose factors requires grad has no graph.
    factors = [tensors[number] for number in operands]
    pairs = [pair for pair in zip(_run_in_torch(plan, factors), grads, strict=True) if pair[0].requires_grad]
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
            value = values[number]
            value = value.reshape((1,) * (len(own) - value.dim()) + value.shape).permute(order)
            left = iter(value.shape)
            total = total + value.reshape([next(left) if dim in own else 1 for dim in scope])
        total = total.expand([plan.sizes[dim] for dim in scope])
        if step.variables:
            total = logsumexp(total, [scope.index(dim) for dim in step.variables])
        elif step.plates:
            total = total.sum([scope.index(dim) for dim in step.plates])
        rest = [dim for dim in scope if dim not in step.variables and dim not in step.plates]
        values.append(total.permute([rest.index(dim) for dim in step.dims]))
    return [values[n].expand([plan.sizes[dim] for dim in plan.dims(n)]) for n in plan.results]
