"""hmm_sample: exact posterior paths from given uniforms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import sumprod
from sumprod import ops
from tests import devices
from tests.goodness_of_fit import FAILURE_RATE, chi_square
from tests.ops.checks import check_compiled, uniforms_for
from tests.ops.hmm_cases import (
    INF,
    Case,
    Spec,
    build,
    impossible_at,
    indices,
    many_states,
    near_underflow,
    specs,
)
from tests.oracles import enumeration, recursion
from tests.oracles.model import Model


def draw(case: Case, uniforms: Tensor) -> Tensor:
    return ops.hmm_sample(*case.args, lengths=case.lengths, num_samples=len(uniforms), uniforms=uniforms)


def path_p_value(model: Model, draws: Tensor) -> float:
    """p-value of draws [n, T] of one sequence against the exact distribution over all its paths."""
    paths, probabilities = enumeration.path_distribution(model)
    weights = model.states ** np.arange(model.steps)[::-1]
    codes = draws[:, : model.steps].numpy() @ weights
    assert (paths @ weights == np.arange(len(paths))).all()
    return chi_square(np.bincount(codes, minlength=len(paths)).astype(float), probabilities)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "scale"), [("dense", 1.0), ("dense", 3.0), ("sparse", 1.0), ("left_right", 1.0), ("offset", 1.0)]
)
def test_paths_have_the_exact_distribution(
    kind: str, scale: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    spec = Spec(
        kind,
        (3, 2),
        4,
        3,
        scale,
        "BS",
        "BTSS" if kind == "dense" else "SS",
        "random" if kind == "dense" else "none",
        dtype=dtype,
        seed=1,
    )
    case = build(spec).alive()
    draws = draw(case, uniforms_for(case, generator, 20_000))
    tested = 0
    for n, index in enumerate(indices(case.batch)):
        model = case.model.one(n)
        if model.steps and (enumeration.path_distribution(model)[1] * 20_000 > 5).sum() > 1:
            tested += 1
            assert path_p_value(model, draws[(slice(None), *index)]) > FAILURE_RATE
    assert tested >= 3


@pytest.mark.parametrize("batch", [(), (1,), (40,)])
def test_every_batch_size_draws_exactly(batch: tuple[int, ...], generator: torch.Generator) -> None:
    # Different batch sizes may take different kernels.
    case = build(Spec(batch=batch, steps=3, states=4, initial_form="BS", seed=2))
    draws = draw(case, uniforms_for(case, generator, 5_000))
    for n, index in list(enumerate(indices(case.batch)))[:40:13]:
        assert path_p_value(case.model.one(n), draws[(slice(None), *index)]) > FAILURE_RATE


@pytest.mark.parametrize("states", [5, 17, 33])
def test_equally_spaced_uniforms_hit_every_state_in_proportion(states: int) -> None:
    # With one step a draw inverts a distribution function: n equal spacings give each state n p +- 1 draws.
    case = build(Spec(batch=(2,), steps=1, states=states, scale=2.0, seed=3))
    n = 4096
    uniforms = ((torch.arange(n) + 0.5) / n)[:, None, None].expand(n, 2, 1)
    draws = draw(case, uniforms)
    for b in range(2):
        wanted = np.exp(recursion.marginals(case.model)[b, 0]) * n
        counts = np.bincount(draws[:, b, 0].numpy(), minlength=states)
        assert np.abs(counts - wanted).max() <= 1.5


def test_long_sequences_have_the_smoothing_marginals(generator: torch.Generator) -> None:
    case = build(Spec("dense", batch=(2,), steps=60, states=7, seed=4))
    n = 4_000
    draws = draw(case, uniforms_for(case, generator, n))
    exact = np.exp(recursion.marginals(case.model))
    counts = torch.nn.functional.one_hot(draws, 7).double().mean(0).numpy()
    # 840 frequencies; a difference over 5 standard errors has probability 6e-7 each, 5e-4 in all.
    error = np.sqrt(exact * (1 - exact) / n)
    assert (np.abs(counts - exact) <= 5 * error + 1 / n).all()
    assert (error > 2e-3).sum() > 400  # far from certain in most entries


def test_draws_of_a_batch_are_independent(generator: torch.Generator) -> None:
    emission = torch.randn(1, 3, 3, generator=generator).expand(2, 3, 3)
    case = Case(torch.zeros(3), torch.zeros(3, 3), emission)
    draws = draw(case, uniforms_for(case, generator, 9_000))
    for first, second in ((draws[:, 0, 1], draws[:, 1, 1]), (draws[::2, 0, 1], draws[1::2, 0, 1])):
        table = np.zeros((3, 3))
        np.add.at(table, (first.numpy(), second.numpy()), 1)
        assert stats.chi2_contingency(table).pvalue > FAILURE_RATE


@given(specs(steps=st.integers(1, 20), scale=st.sampled_from([1.0, 30.0, 1e4])))
def test_draws_are_possible_states_and_padding_is_minus_one(spec: Spec) -> None:
    case = build(spec).alive()
    generator = torch.Generator().manual_seed(spec.seed)
    draws = draw(case, uniforms_for(case, generator))
    check_possible(case, draws)


def test_many_states(generator: torch.Generator) -> None:
    for case in many_states():
        check_possible(case, draw(case, uniforms_for(case, generator)))


def test_thousands_of_sequences_near_the_underflow_boundary(generator: torch.Generator) -> None:
    for case in near_underflow():
        alive = case.alive()
        check_possible(alive, draw(alive, uniforms_for(alive, generator)))


def check_possible(case: Case, draws: Tensor) -> None:
    """Every drawn path has positive probability (by the oracle), every padding entry is -1."""
    assert draws.dtype == torch.int64
    assert draws.shape[1:] == case.emission.shape[:-1]
    model = case.model
    real = np.arange(model.steps)[None, :] < model.lengths[:, None]
    for paths in draws.reshape(len(draws), model.sequences, model.steps).numpy():
        assert (paths[~real] == -1).all()
        assert ((paths[real] >= 0) & (paths[real] < model.states)).all()
        assert np.isfinite(recursion.path_score(model, np.where(real, paths, 0))).all()


def check_inverted(case: Case, uniforms: Tensor) -> None:
    """Each state is where the cumulative weights, given the state after it, exceed the uniform number."""
    draws = draw(case, uniforms)
    check_possible(case, draws)
    tolerance = 1e-4 if uniforms.dtype == torch.float32 else 1e-9
    model = case.model
    filtered = recursion.forward(model).filtered
    numbers = uniforms.double().reshape(len(uniforms), model.sequences, model.steps).numpy()
    for paths, thresholds in zip(draws.reshape(numbers.shape).numpy(), numbers, strict=True):
        for n, length in enumerate(model.lengths):
            t, states = np.arange(length), paths[n, :length]
            log_weights = filtered[n, :length].copy()
            log_weights[:-1] += model.transition[n, t[:-1], :, states[1:]]
            weights = np.exp(log_weights - log_weights.max(-1, initial=-INF, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            own, through = weights[t, states], weights.cumsum(-1)[t, states]
            assert (own > 0).all()
            assert (through > thresholds[n, :length] - tolerance).all()
            assert (through - own <= thresholds[n, :length] + tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["left_right", "sparse", "single", "peaked_500", "mask_min"])
@pytest.mark.parametrize("batch", [(2,), (21,)])
def test_extreme_uniforms_never_draw_an_impossible_state(
    kind: str, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    case = build(Spec(kind, batch, 12, 17, 1.0, lengths_form="random", dtype=dtype, seed=5)).alive()
    below_one = 1 - (2.0**-24 if dtype == torch.float32 else 2.0**-53)
    shape = (1, *case.emission.shape[:-1])
    uniforms = torch.cat([torch.full(shape, value, dtype=dtype) for value in (0.0, below_one, 0.5)])
    check_possible(case, draw(case, uniforms))


@pytest.mark.parametrize("batch", [(2,), (21,)])
def test_uniforms_of_a_wider_dtype_may_round_to_one(batch: tuple[int, ...]) -> None:
    case = build(Spec("left_right", batch, 12, 17, seed=5))
    uniforms = torch.full((1, *batch, 12), 1 - 2.0**-53, dtype=torch.float64)
    check_possible(case, draw(case, uniforms))


@pytest.mark.parametrize("value", [0.0, 1 - 2.0**-24])
def test_extreme_uniforms_at_impossible_first_and_last_states(value: float) -> None:
    # Only the middle state is possible at any step; both ends have probability zero.
    emission = torch.full((2, 5, 9), -INF)
    emission[..., 4] = -7.0
    draws = draw(Case(torch.zeros(9), torch.zeros(9, 9), emission), torch.full((1, 2, 5), value))
    assert (draws == 4).all()


def test_a_state_far_below_rounding_is_not_drawn_by_chance(generator: torch.Generator) -> None:
    # exp(-200) of the weight: possible, but 20000 draws must not see it.
    emission = torch.tensor([[0.0, -200.0, 0.0]]).expand(1, 4, 3)
    case = Case(torch.zeros(3), torch.zeros(3, 3), emission)
    assert (draw(case, uniforms_for(case, generator, 5_000)) != 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_impossible_sequence_raises_with_index_and_step(step: int, dtype: torch.dtype) -> None:
    case = impossible_at(step, dtype=dtype)
    with pytest.raises(sumprod.SupportError, match=rf"\b1\b.*\b{step}\b") as caught:
        ops.hmm_sample(*case.args)
    assert (caught.value.batch_index, caught.value.time) == (1, step)
    shorter = replace(case, lengths=torch.tensor([6, step, 6]))
    check_possible(shorter, ops.hmm_sample(*shorter.args, lengths=shorter.lengths))


def test_support_error_in_several_batch_dims() -> None:
    case = build(Spec(batch=(2, 3), steps=4))
    emission = case.emission.clone()
    emission[1, 2, 1] = emission[1, 1, 3] = -INF
    with pytest.raises(sumprod.SupportError) as caught:
        ops.hmm_sample(case.initial, case.transition, emission, num_samples=2)
    assert (caught.value.batch_index, caught.value.time) == ((1, 1), 3)


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("size", [3, 20])
def test_nan_gives_minus_one_for_its_sequence_only(
    size: int, value: float, generator: torch.Generator
) -> None:
    case = build(Spec(batch=(size,), states=5, seed=6))
    uniforms = uniforms_for(case, generator)
    clean = draw(case, uniforms)
    emission = case.emission.clone()
    emission[1, 2, 3] = value
    actual = draw(replace(case, emission=emission), uniforms)
    assert (actual[:, 1] == -1).all()
    others = torch.arange(size) != 1
    assert torch.equal(actual[:, others], clean[:, others])
    assert (clean >= 0).all()


@pytest.mark.parametrize("num_samples", [0, 1, 5])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
def test_shapes(batch: tuple[int, ...], num_samples: int) -> None:
    case = build(Spec(batch=batch, steps=6))
    draws = ops.hmm_sample(*case.args, num_samples=num_samples)
    assert draws.shape == (num_samples, *batch, 6)
    assert draws.dtype == torch.int64


def test_one_sample_is_the_default() -> None:
    case = build(Spec(batch=(2,), steps=6))
    assert ops.hmm_sample(*case.args).shape == (1, 2, 6)


def test_generators_make_draws_repeatable() -> None:
    case = build(Spec(batch=(3,), steps=30, states=6, scale=0.1))

    def drawn(seed: int) -> Tensor:
        return ops.hmm_sample(*case.args, num_samples=4, generator=devices.generator(seed))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    again = devices.generator(1)
    first = ops.hmm_sample(*case.args, num_samples=4, generator=again)
    second = ops.hmm_sample(*case.args, num_samples=4, generator=again)
    assert not torch.equal(first, second)


def test_the_default_generator_is_torchs() -> None:
    case = build(Spec(batch=(3,), steps=30, states=6, scale=0.1))
    results = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        results.append(ops.hmm_sample(*case.args))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    torch.manual_seed(7)
    assert torch.equal(draw(case, torch.rand(1, 3, 30, device=devices.device())), results[0])


def test_a_given_generator_leaves_the_default_one_alone() -> None:
    case = build(Spec(batch=(3,)))
    before = torch.get_rng_state()
    ops.hmm_sample(*case.args, generator=devices.generator(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_number_of_uniforms_depends_on_shapes_only() -> None:
    states = []
    for lengths in (None, torch.tensor([0, 1, 2])):
        generator = devices.generator(3)
        ops.hmm_sample(*build(Spec(batch=(3,))).args, lengths=lengths, num_samples=2, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])


def test_same_uniforms_same_draw_however_they_lie_in_memory(generator: torch.Generator) -> None:
    case = build(Spec(batch=(5,), steps=9, states=6, scale=0.1, seed=7))
    uniforms = uniforms_for(case, generator, 4)
    plain = draw(case, uniforms)
    assert torch.equal(draw(case, uniforms.permute(2, 1, 0).contiguous().permute(2, 1, 0)), plain)
    wide = torch.full((4, 5, 18), 0.5)
    wide[..., ::2] = uniforms
    assert torch.equal(draw(case, wide[..., ::2]), plain)
    for i in range(4):
        assert torch.equal(draw(case, uniforms[i : i + 1])[0], plain[i])
    one = uniforms[:1].expand(4, 5, 9)
    assert torch.equal(draw(case, one), plain[:1].expand(4, 5, 9))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(half: torch.dtype, generator: torch.Generator) -> None:
    case = build(Spec(batch=(5,), states=9, lengths_form="random", seed=4)).to(half)
    uniforms = uniforms_for(case, generator)
    assert uniforms.dtype == torch.float32
    assert torch.equal(draw(case, uniforms), draw(case.to(torch.float32), uniforms))


def test_draws_carry_no_gradient() -> None:
    case = build(Spec()).requires_grad()
    assert not ops.hmm_sample(*case.args).requires_grad


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"num_samples": -1}, ValueError, "num_samples.*-1"),
        ({"num_samples": 2.0}, TypeError, "num_samples.*float"),
        ({"num_samples": True}, TypeError, "num_samples.*bool"),
        ({"uniforms": torch.zeros(3, 7)}, ValueError, r"uniforms.*3, 7.*\[3, 7\]"),
        ({"uniforms": torch.zeros(1, 3, 6)}, ValueError, r"uniforms.*3, 7.*1, 3, 6"),
        ({"uniforms": torch.zeros(1, 3, 7).long()}, TypeError, "uniforms.*int64"),
        ({"uniforms": [0.5]}, TypeError, "uniforms.*list"),
        ({"uniforms": torch.zeros(1, 3, 7, device="meta")}, ValueError, "uniforms are on meta"),
    ],
)
def test_bad_arguments(keywords: dict[str, object], error: type[Exception], message: str) -> None:
    case = build(Spec(batch=(3,), steps=7))
    with pytest.raises(error, match=message):
        ops.hmm_sample(*case.args, **keywords)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_whole_with_dynamic_shapes(generator: torch.Generator) -> None:
    sets = []
    for batch, steps in ((3, 7), (5, 9)):
        case = build(Spec(batch=(batch,), steps=steps, lengths_form="random"))
        assert case.lengths is not None
        sets.append((*case.args, case.lengths, uniforms_for(case, generator, 2)))
    check_compiled(lambda i, t, e, n, u: ops.hmm_sample(i, t, e, lengths=n, num_samples=2, uniforms=u), *sets)
