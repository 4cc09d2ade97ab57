"""Checks that every operator shares: one calling form, derivatives, compilation, the raw operators."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sumprod
from sumprod import _native
from tests import devices
from tests.ops.hmm_cases import Case

Function = Callable[..., Tensor]
DRAWS = 3
HMM_OPERATORS = (
    "hmm_log_normalizer",
    "hmm_filter",
    "hmm_marginals",
    "hmm_pairwise",
    "hmm_viterbi",
    "hmm_sample",
)


def uses_cuda_kernels() -> bool:
    """Whether the operators under test are the CUDA kernels, on a GPU or emulated."""
    return devices.device().type == "cuda" or _native.build_info()["cuda"] == "emulated"


def assert_same(ours: Tensor, other: Tensor, what: str = "") -> None:
    """The same bits, on the CPU.

    CUDA kernels are chosen by sizes, those of the batch included: there numbers are equal up to rounding.
    """
    if not uses_cuda_kernels() or not ours.is_floating_point():
        assert torch.equal(ours, other), f"{what}: {(ours != other).sum()} entries differ"
        return
    tolerance = 1e-12 if ours.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(ours, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def uniforms_for(case: Case, generator: torch.Generator, draws: int = DRAWS) -> Tensor:
    """[n, *B, T] uniforms in the dtype the operator computes in."""
    dtype = torch.promote_types(case.emission.dtype, torch.float32)
    return torch.rand((draws, *case.emission.shape[:-1]), generator=generator, dtype=dtype)


def call(name: str, case: Case, uniforms: Tensor | None = None) -> dict[str, Tensor]:
    """The operator's outputs by name, batch dims in front and time next (draws, if any, last)."""
    function = getattr(sumprod.ops, name)
    if name == "hmm_sample":
        assert uniforms is not None
        draws = function(*case.args, lengths=case.lengths, num_samples=len(uniforms), uniforms=uniforms)
        return {"draws": draws.movedim(0, -1)}
    result = function(*case.args, lengths=case.lengths)
    if name == "hmm_viterbi":
        return {"path": result.path, "score": result.score}
    return {name: result}


def gradients(function: Callable[[Case], Tensor], case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum of `function`'s finite outputs for initial, transition and emission."""
    leaf = case.requires_grad()
    values = function(leaf)
    torch.where(values.detach().isfinite(), values, torch.zeros_like(values)).sum().backward()
    for part in leaf.args:
        assert part.grad is not None
        assert part.grad.dtype == part.dtype
        assert part.grad.shape == part.shape
    return tuple(part.grad for part in leaf.args)  # type: ignore[return-value]


def with_parts(case: Case, name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The HMM operator as a function of its three potentials, probabilities rather than logs of many."""
    function = getattr(sumprod.ops, name)

    def run(initial: Tensor, transition: Tensor, emission: Tensor) -> Tensor:
        out = function(initial, transition, emission, lengths=case.lengths)
        if name == "hmm_viterbi":
            return out.score
        # exp turns the -inf of impossible states into 0, which finite differences can subtract.
        return out if name == "hmm_log_normalizer" else out.exp()

    return run


def check_derivatives(name: str, case: Case, second: bool) -> None:
    """Gradcheck and, where a second derivative is promised, gradgradcheck, in float64."""
    case = case.to(torch.float64).requires_grad()
    function = with_parts(case, name)
    assert torch.autograd.gradcheck(function, case.args)
    if second:
        assert torch.autograd.gradgradcheck(function, case.args)


def results_of(
    function: Callable[..., object], arguments: tuple[Tensor, ...], differentiate: bool
) -> list[Tensor]:
    """Outputs and, where they exist, the gradients of the sum of their squares."""
    floating = [a.is_floating_point() and differentiate for a in arguments]
    leaves = [a.detach().requires_grad_(f) for a, f in zip(arguments, floating, strict=True)]
    with warnings.catch_warnings():
        # torch's compiler breaks this rule of torch's own when it traces autograd.Function.
        warnings.filterwarnings("ignore", ".*should not be instantiated.*", DeprecationWarning)
        outputs = function(*leaves)
    values = [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]
    smooth = [v for v in values if v.requires_grad]
    if smooth:
        torch.stack([(v * v).sum() for v in smooth]).sum().backward()
    return [v.detach() for v in values] + [leaf.grad for leaf in leaves if leaf.grad is not None]


def check_compiled(
    function: Callable[..., object], *argument_sets: tuple[Tensor, ...], gradients_equal: bool = True
) -> None:
    """Compiled without a graph break, equal to eager bit by bit, forward and backward.

    Later sets of arguments have other sizes, so that the compiler switches to dynamic shapes. Without
    `gradients_equal`, results with gradients come from another formula in a compiled graph (a long one,
    tried with one set only): a few float32 units apart.
    """
    for differentiate in (False, True):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for arguments in argument_sets[: None if gradients_equal or not differentiate else 1]:
            eager = results_of(function, arguments, differentiate)
            graph = results_of(compiled, arguments, differentiate)
            assert len(eager) == len(graph)
            for ours, other in zip(eager, graph, strict=True):
                if gradients_equal or not differentiate:
                    assert torch.equal(ours, other)
                else:
                    assert torch.allclose(ours, other, rtol=1e-4, atol=1e-5)


class Recorder(TorchDispatchMode):
    """Notes every call of a raw operator torch.ops.sumprod.*."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch._ops.OpOverload, tuple[object, ...], dict[str, object]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "sumprod":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def raw_operators() -> set[str]:
    """The names of all registered operators sumprod::* that take or return a tensor."""
    found = set()
    for schema in torch._C._jit_get_all_schemas():
        if schema.name.startswith("sumprod::"):
            kinds = [str(part.type) for part in (*schema.arguments, *schema.returns)]
            if any("Tensor" in kind for kind in kinds):
                found.add(schema.name)
    return found


def signature_of(function: Callable[..., object]) -> str:
    """Parameter names, kinds and defaults, without annotations."""
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return str(inspect.Signature(bare))


def padded(case: Case, extra: int, filler: float) -> Case:
    """The same sequences with `extra` further steps of padding that hold `filler`."""
    steps, states = case.emission.shape[-2:]
    lengths = torch.full(case.batch, steps) if case.lengths is None else case.lengths
    tail = torch.full((*case.batch, extra, states), filler, dtype=case.emission.dtype)
    matrix = case.transition
    if matrix.ndim > 2 and matrix.shape[-3] == steps - 1:
        more = torch.full((*matrix.shape[:-3], extra, states, states), filler, dtype=matrix.dtype)
        matrix = torch.cat([matrix, more], -3)
    return replace(case, transition=matrix, emission=torch.cat([case.emission, tail], -2), lengths=lengths)
