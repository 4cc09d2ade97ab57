"""Every raw operator torch.ops.sumprod.*: none forgotten, all pass opcheck, all compile together."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sumprod
from sumprod import ops
from sumprod.ops import contraction
from tests.ops.checks import HMM_OPERATORS, Recorder, call, gradients, raw_operators, uniforms_for
from tests.ops.hmm_cases import Case, Spec, build

PUBLIC = (*HMM_OPERATORS, "logsumexp", "logmatmulexp", "maxmatmul", "normalize_weights")
PER_OPERATOR = 6


def hmm_cases() -> list[Case]:
    forms = [("S", "SS", "none"), ("BS", "BTSS", "random"), ("1S", "1TSS", "full")]
    return [
        build(Spec("dense", (3,), 5, 4, 1.0, initial, transition, lengths, dtype=dtype, seed=1))
        for initial, transition, lengths in forms
        for dtype in (torch.float32, torch.float64)
    ]


def second_derivative(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    leaves = [value.detach().requires_grad_() for value in inputs]
    first = torch.autograd.grad(function(*leaves).sum(), leaves, create_graph=True)
    total = torch.stack([(g * g).sum() for g in first]).sum()
    torch.autograd.grad(total, leaves, allow_unused=True)


def use_everything() -> None:
    """Reach every raw operator through the public functions and their derivatives."""
    for case in hmm_cases():
        uniforms = uniforms_for(case, torch.Generator().manual_seed(1))
        for name in HMM_OPERATORS:
            call(name, case, uniforms)
            if name != "hmm_sample":
                last = "score" if name == "hmm_viterbi" else name
                gradients(lambda c, name=name, last=last: call(name, c)[last], case)
        second_derivative(
            lambda i, t, e, case=case: ops.hmm_log_normalizer(i, t, e, lengths=case.lengths), *case.args
        )
        hard = build(Spec("peaked_500", (2,), 5, 3, 1e3, dtype=case.emission.dtype))
        for name in HMM_OPERATORS:
            call(name, hard, uniforms_for(hard, torch.Generator().manual_seed(1)))
    for dtype in (torch.float32, torch.float64):
        x, y = torch.randn(2, 3, 4, dtype=dtype), torch.randn(2, 4, 5, dtype=dtype)
        for dim in (0, -1, (0, 1)):
            second_derivative(lambda v, dim=dim: sumprod.logsumexp(v, dim), x)
            sumprod.logsumexp(x, dim)
        ops.maxmatmul(x, y)
        ops.logmatmulexp(x, y)
        second_derivative(ops.logmatmulexp, x, y)
        ops.normalize_weights(x)
        for field in range(3):
            second_derivative(lambda v, field=field: ops.normalize_weights(v)[field], x)
        use_contractions(dtype)
    # Eager code raises by itself; only compiled graphs call this one.
    path, dead = torch.zeros(1, 3, 4, dtype=torch.int64), torch.full((3,), -1)
    torch.ops.sumprod.require_support(path, dead, "hmm_viterbi", [3])


def use_contractions(dtype: torch.dtype) -> None:
    factors, plates = ["g", "gap", "abpq"], "pq"
    sizes = {"g": 2, "a": 3, "b": 2, "p": 2, "q": 3}
    leaves = [torch.randn([sizes[d] for d in dims], dtype=dtype).requires_grad_() for dims in factors]
    for kept in ("", "g"):
        results = contraction.contract(leaves, factors, plates, kept=kept)
        torch.autograd.grad([value.sum() for _, value in results], leaves)
    second_derivative(lambda *values: contraction.contract(values, factors, plates)[0][1], *leaves)
    with torch.no_grad():
        contraction.contract(leaves, factors, plates, maximise=True)
    for maximise in (False, True):
        contraction.sample([leaf.detach() for leaf in leaves], factors, plates, maximise=maximise)


@functools.cache
def recorded() -> dict[str, list[tuple[torch._ops.OpOverload, tuple[object, ...], dict[str, object]]]]:
    """Raw calls by operator name, with different dtypes and arguments, gradients and aliases cut off."""
    with Recorder() as recorder:
        use_everything()

    def plain(value: object) -> object:
        if isinstance(value, Tensor):
            return value.detach().clone(memory_format=torch.preserve_format)
        if isinstance(value, list | tuple):
            return type(value)(plain(item) for item in value)
        return value

    def form(args: tuple[object, ...]) -> str:
        return str([(a.dtype, a.ndim) if isinstance(a, Tensor) else a for a in args])

    found: dict[str, dict[str, tuple[torch._ops.OpOverload, tuple[object, ...], dict[str, object]]]] = {}
    for func, args, kwargs in recorder.calls:
        arguments = tuple(plain(arg) for arg in args)
        keywords = {key: plain(value) for key, value in kwargs.items()}
        found.setdefault(func._schema.name, {}).setdefault(form(args), (func, arguments, keywords))
    return {name: list(forms.values())[:PER_OPERATOR] for name, forms in found.items()}


def test_there_are_raw_operators() -> None:
    assert len(raw_operators()) >= len(PUBLIC)


@pytest.mark.parametrize("name", sorted(raw_operators()))
def test_opcheck(name: str) -> None:
    calls = recorded().get(name, [])
    assert calls, f"{name} is not reached through the public functions"
    for func, args, kwargs in calls:
        result = torch.library.opcheck(func, args, kwargs)
        assert set(result.values()) == {"SUCCESS"}, result


def test_public_names() -> None:
    assert set(PUBLIC) <= set(ops.__all__)
    assert ops.logsumexp is sumprod.logsumexp
    for name in PUBLIC:
        function = getattr(ops, name)
        assert function.__doc__, name
        assert callable(function)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_inductor_compiles_the_operators_together() -> None:
    case = build(Spec("dense", (3,), 6, 4, lengths_form="random", seed=2))
    weights = torch.randn(4, 5)

    def program(initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor, w: Tensor) -> Tensor:
        log_z = ops.hmm_log_normalizer(initial.log_softmax(-1), transition, emission, lengths=lengths)
        score = ops.hmm_viterbi(initial, transition, emission, lengths=lengths).score
        rows = sumprod.logsumexp(ops.logmatmulexp(transition, w), 0)
        evidence = ops.normalize_weights(w, 0).log_evidence
        return log_z.sum() + score.sum() + (rows * evidence).sum()

    results = []
    compiled = torch.compile(program, fullgraph=True)
    for run in (program, compiled):
        leaf = case.requires_grad()
        w = weights.clone().requires_grad_()
        value = run(*leaf.args, leaf.lengths, w)
        results.append((value, *torch.autograd.grad(value, [*leaf.args, w])))
    for eager, graph in zip(*results, strict=True):
        # Inductor computes the elementwise parts in its own order: a few float32 units.
        assert torch.allclose(eager, graph, rtol=1e-5, atol=1e-5)
    assert results[0][0].isfinite()


def test_deepcopied_and_pickled_results_keep_their_names() -> None:
    import copy
    import pickle

    case = build(Spec(batch=(2,)))
    result = ops.hmm_viterbi(*case.args)
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert type(other) is type(result)
        assert torch.equal(other.path, result.path)


def test_warnings_are_not_part_of_ordinary_use() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use_everything()


def test_cases_cover_both_lengths_forms() -> None:
    # opcheck sees optional arguments both given and absent.
    assert {case.lengths is None for case in hmm_cases()} == {True, False}
    assert len({replace(case, lengths=None).emission.dtype for case in hmm_cases()}) == 2
