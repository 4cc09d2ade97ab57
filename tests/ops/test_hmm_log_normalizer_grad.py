"""hmm_log_normalizer: first and second derivatives, function transforms, compilation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sumprod import ops
from tests.ops.checks import check_compiled, check_derivatives, gradients
from tests.ops.hmm_cases import (
    INF,
    INITIAL_FORMS,
    TRANSITION_FORMS,
    Case,
    Spec,
    build,
    impossible_at,
    many_states,
    near_underflow,
    rounding,
    specs,
)
from tests.oracles import recursion
from tests.oracles.model import Floats


def log_normalizer(case: Case) -> Tensor:
    return ops.hmm_log_normalizer(*case.args, lengths=case.lengths)


def folded(values: Floats, case: Case, like: Tensor) -> Tensor:
    """Sum the per-sequence counts over every dim along which `like` was broadcast."""
    full = torch.as_tensor(values).reshape(*case.batch, *values.shape[1:])
    full = full.sum(tuple(range(full.ndim - like.ndim))) if full.ndim > like.ndim else full
    shared = [d for d in range(like.ndim) if like.shape[d] == 1 and full.shape[d] != 1]
    return full.sum(shared, keepdim=True) if shared else full


def check_gradients(case: Case) -> None:
    counts = recursion.expected_counts(case.model)
    # Each summand is a probability with the tolerance of hmm_marginals: 1e-4 in float32, 1e-9 in float64;
    # independent roundings of n summands add up like sqrt(n), and their total is rounded too.
    bound = 1e-9 if case.emission.dtype == torch.float64 else 1e-4
    each = float(min(bound, rounding(case).max(initial=0.0)))
    for ours, values, like in zip(gradients(log_normalizer, case), counts, case.args, strict=True):
        wanted = folded(values, case, like)
        assert not ours.isnan().any()
        assert ours.shape == wanted.shape
        summands = max(1.0, values.size / max(1, wanted.numel()))
        own = 16 * torch.finfo(ours.dtype).eps * wanted.abs()
        assert ((ours.double() - wanted).abs() <= each * math.sqrt(summands) + own).all()


@given(specs(steps=st.integers(1, 20)))
def test_gradients_are_the_oracles_marginals(spec: Spec) -> None:
    check_gradients(build(spec))


@pytest.mark.parametrize("transition_form", TRANSITION_FORMS)
@pytest.mark.parametrize("initial_form", INITIAL_FORMS)
def test_gradients_of_every_broadcast_form(initial_form: str, transition_form: str) -> None:
    spec = Spec(
        batch=(2, 3),
        steps=5,
        states=3,
        initial_form=initial_form,
        transition_form=transition_form,
        lengths_form="random",
        dtype=torch.float64,
        seed=1,
    )
    check_gradients(build(spec))


def test_gradients_of_many_states() -> None:
    for case in many_states():
        check_gradients(case)


def test_thousands_of_sequences_near_the_underflow_boundary() -> None:
    for case in near_underflow():
        check_gradients(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("transition_form", ["B1SS", "BTSS"])
def test_gradients_of_inputs_expanded_over_the_batch(
    transition_form: str, steps: int, dtype: torch.dtype
) -> None:
    # Stride 0 is not the same as shared: each sequence has a gradient of its own.
    spec = Spec("dense", (5,), steps, 3, 1.0, "BS", transition_form, layout="expanded", dtype=dtype)
    case = build(spec)
    plain = Case(*(part.clone(memory_format=torch.contiguous_format) for part in case.args))
    spoilt = torch.full((5, max(steps - 1, 1), 3, 3), math.nan, dtype=dtype)  # fresh memory may hold this
    del spoilt
    for ours, expected in zip(gradients(log_normalizer, case), gradients(log_normalizer, plain), strict=True):
        assert torch.allclose(ours, expected, rtol=1e-6, atol=1e-7)
    check_gradients(case)


@pytest.mark.parametrize("kind", ["dense", "left_right", "sparse", "peaked_50", "offset"])
@pytest.mark.parametrize(("initial_form", "transition_form"), [("S", "SS"), ("BS", "BTSS"), ("1S", "1TSS")])
def test_gradcheck_and_gradgradcheck(kind: str, initial_form: str, transition_form: str) -> None:
    spec = Spec(
        kind,
        batch=(2,),
        steps=4,
        states=3,
        initial_form=initial_form,
        transition_form=transition_form,
        lengths_form="random" if kind == "dense" else "none",
        seed=3,
    )
    check_derivatives("hmm_log_normalizer", build(spec).alive(), second=True)


@pytest.mark.parametrize("lengths", [[0, 1, 4], [4, 4, 2]])
@pytest.mark.parametrize("batch", [(3,), (3, 1)])
def test_gradgradcheck_with_lengths(lengths: list[int], batch: tuple[int, ...]) -> None:
    case = build(Spec(batch=batch, steps=4, states=2, transition_form="B1SS", initial_form="BS", seed=4))
    case = replace(case, lengths=torch.tensor(lengths).reshape(batch))
    check_derivatives("hmm_log_normalizer", case, second=True)


def test_gradgradcheck_without_batch_and_with_one_step() -> None:
    for steps in (1, 2):
        case = build(Spec(batch=(), steps=steps, states=3, transition_form="1TSS"))
        check_derivatives("hmm_log_normalizer", case, second=True)


def hessian_vector(case: Case, seed: int = 0) -> list[Tensor]:
    """The Hessian of the summed finite log normalisers times fixed random vectors."""
    leaf = case.requires_grad()
    value = log_normalizer(leaf)
    total = torch.where(value.detach().isfinite(), value, torch.zeros_like(value)).sum()
    grads = torch.autograd.grad(total, leaf.args, create_graph=True)
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g.dtype) for g in grads]
    inner = torch.stack([(g * v).sum() for g, v in zip(grads, vectors, strict=True)]).sum()
    return list(torch.autograd.grad(inner, leaf.args))


@pytest.mark.parametrize("kind", ["dense", "left_right", "peaked_100", "peaked_500"])
def test_float32_second_derivatives_follow_float64(kind: str) -> None:
    case = build(Spec(kind, batch=(3,), steps=8, states=5, lengths_form="random", seed=5))
    wide = [h.float() for h in hessian_vector(case.to(torch.float64))]
    for narrow, reference in zip(hessian_vector(case), wide, strict=True):
        # Sums of up to 24 covariances of order 1, each good to about 1e-6.
        assert torch.allclose(narrow, reference, rtol=1e-4, atol=1e-4)
    assert max(reference.abs().max() for reference in wide) > 1e-2  # not trivially zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_impossible_sequences_have_zero_gradients(step: int, dtype: torch.dtype) -> None:
    case = impossible_at(step, dtype=dtype)
    shared = build(Spec(batch=(3,), steps=6, initial_form="BS", transition_form="BTSS", dtype=dtype, seed=11))
    case = Case(shared.initial, shared.transition, case.emission).requires_grad()
    value = log_normalizer(case)
    assert value[1].item() == -INF
    grads = torch.autograd.grad(value.sum(), case.args, create_graph=True)
    for grad in grads:
        assert (grad[1] == 0).all()
        assert grad.isfinite().all()
    assert (grads[2][0].sum(-1) - 1).abs().max() < 1e-5  # the possible neighbour: one state per step
    second = torch.autograd.grad(torch.stack([(g * g).sum() for g in grads]).sum(), case.args)
    for grad in second:
        assert (grad[1] == 0).all()
        assert grad.isfinite().all()
    assert second[2][0].abs().max() > 0


def test_an_impossible_model_has_zero_gradients_everywhere() -> None:
    case = Case(torch.full((3,), -INF), torch.full((3, 3), -INF), torch.full((2, 4, 3), -INF))
    leaf = case.requires_grad()
    log_normalizer(leaf).sum().backward()
    for part in leaf.args:
        assert part.grad is not None
        assert (part.grad == 0).all()


def test_padding_has_exactly_zero_gradient_and_is_never_read() -> None:
    case = replace(build(Spec(batch=(3,), seed=7)), lengths=torch.tensor([0, 1, 5]))
    real = torch.arange(7) < case.lengths[:, None]  # type: ignore[index]
    spoilt = replace(case, emission=case.emission.masked_fill(~real[..., None], math.nan))
    assert torch.equal(log_normalizer(spoilt), log_normalizer(case))
    for clean_grad, grad in zip(
        gradients(log_normalizer, case), gradients(log_normalizer, spoilt), strict=True
    ):
        assert torch.equal(clean_grad, grad)
    assert (gradients(log_normalizer, spoilt)[2][~real] == 0).all()


def test_nan_in_one_sequence_leaves_the_other_gradients_alone() -> None:
    case = build(Spec(batch=(3,), initial_form="BS", transition_form="BTSS", seed=8))
    clean = gradients(log_normalizer, case)
    emission = case.emission.clone()
    emission[1, 2, 0] = math.nan
    spoilt = gradients(log_normalizer, replace(case, emission=emission))
    for before, after in zip(clean, spoilt, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_gradients_are_rounded_float32_gradients(half: torch.dtype) -> None:
    case = build(Spec(batch=(4,), steps=3, states=3, initial_form="BS", transition_form="BTSS")).to(half)
    reference = gradients(log_normalizer, case.to(torch.float32))
    for grad, wanted in zip(gradients(log_normalizer, case), reference, strict=True):
        assert grad.dtype == half
        # One rounding to the half type; float16 has 2^-11, bfloat16 2^-8.
        assert torch.allclose(grad.float(), wanted, rtol=0, atol=torch.finfo(half).eps)


def test_gradients_take_each_inputs_dtype() -> None:
    case = build(Spec())
    mixed = Case(case.initial.double(), case.transition, case.emission.bfloat16()).requires_grad()
    log_normalizer(mixed).sum().backward()
    assert [part.grad.dtype for part in mixed.args if part.grad is not None] == [
        torch.float64,
        torch.float32,
        torch.bfloat16,
    ]


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_wanted_gradients_are_made(needed: tuple[bool, bool, bool]) -> None:
    case = build(Spec(seed=9))
    everything = gradients(log_normalizer, case)
    parts = [part.clone().requires_grad_(wanted) for part, wanted in zip(case.args, needed, strict=True)]
    ops.hmm_log_normalizer(*parts).sum().backward()
    for part, wanted, full in zip(parts, needed, everything, strict=True):
        if wanted:
            assert part.grad is not None
            assert torch.equal(part.grad, full)
        else:
            assert part.grad is None


def test_the_incoming_gradient_scales_each_sequence() -> None:
    case = build(Spec(batch=(3,), seed=10)).requires_grad()
    weights = torch.tensor([2.0, 0.0, -1.0])
    (grad,) = torch.autograd.grad((log_normalizer(case) * weights).sum(), [case.emission])
    # Each step's marginals add up to one; 4 float32 roundings of numbers up to 2.
    assert torch.allclose(grad.sum(-1), weights[:, None].expand(3, 7), atol=1e-5)


@pytest.mark.transforms
def test_vmap_and_functional_gradients_equal_the_batched_call() -> None:
    case = build(Spec(batch=(5,), initial_form="BS", transition_form="BTSS", dtype=torch.float64, seed=11))
    batched = log_normalizer(case)
    mapped = torch.func.vmap(ops.hmm_log_normalizer)(*case.args)
    assert torch.allclose(mapped, batched, rtol=1e-14)
    shared = case.initial[0], case.transition[0, 0], case.emission
    over_emission = torch.func.vmap(ops.hmm_log_normalizer, in_dims=(None, None, 0))(*shared)
    assert torch.allclose(over_emission, ops.hmm_log_normalizer(*shared), rtol=1e-14)
    expected = gradients(log_normalizer, case)
    per_sequence = torch.func.vmap(torch.func.grad(ops.hmm_log_normalizer, argnums=(0, 1, 2)))(*case.args)
    whole = torch.func.grad(lambda *parts: ops.hmm_log_normalizer(*parts).sum(), argnums=(0, 1, 2))(
        *case.args
    )
    for wanted, one, all_at_once in zip(expected, per_sequence, whole, strict=True):
        assert torch.allclose(one, wanted, rtol=1e-12, atol=1e-14)
        assert torch.allclose(all_at_once, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.transforms
def test_vmap_over_another_dim_and_nested() -> None:
    case = build(Spec(batch=(2, 3), dtype=torch.float64, seed=12))
    batched = log_normalizer(case)
    outer = torch.func.vmap(ops.hmm_log_normalizer, in_dims=(None, None, 1), out_dims=1)
    assert torch.allclose(outer(*case.args), batched, rtol=1e-14)
    inner = torch.func.vmap(ops.hmm_log_normalizer, in_dims=(None, None, 0))
    nested = torch.func.vmap(inner, in_dims=(None, None, 0))
    assert torch.allclose(nested(*case.args), batched, rtol=1e-14)


@pytest.mark.transforms
def test_jacrev_and_hessian_by_transforms() -> None:
    case = build(Spec(batch=(), steps=3, states=3, dtype=torch.float64, seed=13))

    def value(emission: Tensor) -> Tensor:
        return ops.hmm_log_normalizer(case.initial, case.transition, emission)

    jacobian = torch.func.jacrev(value)(case.emission)
    assert torch.allclose(jacobian, gradients(log_normalizer, case)[2], rtol=1e-12)
    hessian = torch.func.jacrev(torch.func.grad(value))(case.emission).reshape(9, 9)
    by_autograd = torch.autograd.functional.hessian(value, case.emission).reshape(9, 9)
    assert torch.allclose(hessian, by_autograd, rtol=1e-10, atol=1e-13)
    assert torch.allclose(hessian, hessian.T, atol=1e-13)
    assert hessian.abs().max() > 1e-2


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_whole_with_dynamic_shapes() -> None:
    sets = [build(Spec(batch=(b,), steps=t, states=4, seed=14)).args for b, t in ((3, 7), (5, 9), (4, 6))]
    check_compiled(lambda i, t, e: ops.hmm_log_normalizer(i, t, e), *sets)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_whole_with_lengths_and_time_varying_transitions() -> None:
    sets = []
    for batch, steps in ((3, 7), (5, 9)):
        case = build(
            Spec(
                batch=(batch,), steps=steps, transition_form="BTSS", initial_form="BS", lengths_form="random"
            )
        )
        assert case.lengths is not None
        sets.append((*case.args, case.lengths))
    check_compiled(lambda i, t, e, n: ops.hmm_log_normalizer(i, t, e, lengths=n), *sets)
