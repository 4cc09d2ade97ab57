"""What hmm_filter, hmm_marginals and hmm_pairwise have in common: log-probabilities per step.

Each operator's test module inherits PosteriorContract and adds what is its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sumprod import ops
from tests.ops.checks import check_compiled, check_derivatives, gradients
from tests.ops.hmm_cases import (
    INF,
    KINDS,
    Case,
    Spec,
    assert_log_probabilities,
    build,
    impossible_at,
    many_states,
    near_underflow,
)
from tests.oracles.model import Floats, Model


class PosteriorContract:
    """Set `name`, `state_dims` (1, or 2 for pairs), and `oracle`."""

    name: str
    state_dims = 1

    @staticmethod
    def oracle(model: Model) -> Floats:
        raise NotImplementedError

    def run(self, case: Case) -> Tensor:
        function: Callable[..., Tensor] = getattr(ops, self.name)
        return function(*case.args, lengths=case.lengths)

    def shape(self, case: Case) -> tuple[int, ...]:
        *batch, steps, states = case.emission.shape
        rows = max(steps - 1, 0) if self.state_dims == 2 else steps
        return (*batch, rows, *([states] * self.state_dims))

    def check(self, case: Case) -> Tensor:
        actual = self.run(case)
        assert actual.dtype == case.emission.dtype
        assert actual.shape == self.shape(case)
        assert_log_probabilities(actual, self.oracle(case.model), case)
        return actual

    def rows(self, length: int) -> int:
        """Output rows of a sequence with that many steps."""
        return max(length - 1, 0) if self.state_dims == 2 else length

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("scale", [1.0, 1e4])
    @pytest.mark.parametrize("kind", sorted(KINDS))
    def test_every_structure_over_two_lane_groups(self, kind: str, scale: float, dtype: torch.dtype) -> None:
        spec = Spec(kind, (19,), 30, 17, scale, lengths_form="random", dtype=dtype, seed=3)
        self.check(build(spec))

    def test_many_states(self) -> None:
        for case in many_states():
            self.check(case)

    def test_thousands_of_sequences_near_the_underflow_boundary(self) -> None:
        for case in near_underflow():
            self.check(case)

    def test_rows_are_distributions(self) -> None:
        case = build(Spec(batch=(6,), steps=9, states=5, lengths_form="random", seed=1))
        actual = self.run(case)
        assert case.lengths is not None
        total = actual.exp().sum(tuple(range(-self.state_dims, 0)))
        for row, length in zip(total, case.lengths.tolist(), strict=True):
            real = self.rows(length)
            # 25 float32 probabilities added: 1e-5 is generous, a missing normalisation is far off.
            assert torch.allclose(row[:real], torch.ones(real), atol=1e-5)
            assert (row[real:] == 0).all()

    def test_padding_is_minus_infinity_and_never_read(self) -> None:
        case = replace(build(Spec(batch=(4,), seed=2)), lengths=torch.tensor([0, 1, 5, 7]))
        assert case.lengths is not None
        clean = self.run(case)
        padding = torch.arange(7) >= case.lengths[:, None]
        emission = case.emission.masked_fill(padding[..., None], math.nan)
        assert torch.equal(self.run(replace(case, emission=emission)), clean)
        for row, length in zip(clean, case.lengths.tolist(), strict=True):
            assert (row[self.rows(length) :] == -INF).all()
            assert row[: self.rows(length)].isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("step", [0, 3, 5])
    def test_impossible_sequence_leaves_its_neighbours_alone(self, step: int, dtype: torch.dtype) -> None:
        case = impossible_at(step, dtype=dtype)
        actual = self.check(case)
        without = self.run(Case(case.initial, case.transition, case.emission[[0, 2]]))
        assert torch.equal(actual[[0, 2]], without)
        assert without.isfinite().all()

    @pytest.mark.parametrize("value", [math.nan, INF])
    @pytest.mark.parametrize("part", ["initial", "transition", "emission"])
    @pytest.mark.parametrize("size", [3, 20])
    def test_nan_and_plus_infinity_stay_in_their_sequence(self, part: str, value: float, size: int) -> None:
        case = build(Spec(batch=(size,), initial_form="BS", transition_form="BTSS", states=5, seed=2))
        clean = self.run(case)
        spoilt = getattr(case, part).clone()
        spoilt[1, ..., 2] = value
        actual = self.run(replace(case, **{part: spoilt}))
        # The last row depends on everything; a causal filter may still know its first rows.
        assert actual[1, -1].isnan().all()
        others = torch.arange(size) != 1
        assert torch.equal(actual[others], clean[others])
        assert clean.isfinite().all()

    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_half_types_compute_in_float32(self, half: torch.dtype) -> None:
        case = build(Spec(batch=(5,), states=9, lengths_form="random", seed=4)).to(half)
        actual = self.run(case)
        assert actual.dtype == half
        assert torch.equal(actual, self.run(case.to(torch.float32)).to(half))

    def test_mixed_dtypes_are_promoted(self) -> None:
        case = build(Spec(seed=6))
        wide = case.to(torch.float64)
        mixed = Case(case.initial, wide.transition, case.emission)
        assert torch.equal(self.run(mixed), self.run(wide))

    @pytest.mark.parametrize("batch", [(0,), (3, 0)])
    @pytest.mark.parametrize("form", ["SS", "BTSS"])
    def test_empty_batches(self, batch: tuple[int, ...], form: str) -> None:
        case = build(Spec(batch=batch, transition_form=form, lengths_form="full"))
        assert self.run(case).shape == self.shape(case)

    @pytest.mark.parametrize("kind", ["dense", "left_right", "sparse"])
    @pytest.mark.parametrize(("initial_form", "transition_form"), [("S", "SS"), ("BS", "BTSS")])
    def test_gradcheck(self, kind: str, initial_form: str, transition_form: str) -> None:
        case = build(
            Spec(
                kind, (2,), 4, 3, 1.0, initial_form, transition_form, "random" if kind == "dense" else "none"
            )
        )
        check_derivatives(self.name, case.alive(), second=False)

    def test_gradcheck_with_short_lengths(self) -> None:
        case = replace(build(Spec(batch=(3,), steps=4, states=2)), lengths=torch.tensor([0, 1, 3]))
        check_derivatives(self.name, case, second=False)

    @pytest.mark.parametrize("kind", ["dense", "left_right", "peaked_100"])
    def test_float32_gradients_follow_float64(self, kind: str) -> None:
        case = build(Spec(kind, (3,), 8, 5, lengths_form="random", seed=5))

        def probabilities(inputs: Case) -> Tensor:
            weights = torch.linspace(-1, 1, self.run(inputs).numel(), dtype=torch.float64)
            out = self.run(inputs).exp()
            return out * weights.reshape(out.shape).to(out.dtype)

        wide = gradients(probabilities, case.to(torch.float64))
        for narrow, reference in zip(gradients(probabilities, case), wide, strict=True):
            # Sums of up to 24 covariances of order 1, each good to about 1e-6.
            assert torch.allclose(narrow, reference.float(), rtol=1e-4, atol=1e-4)
        assert max(reference.abs().max() for reference in wide) > 1e-3  # not trivially zero

    @pytest.mark.parametrize("step", [0, 3])
    def test_impossible_sequences_have_zero_gradients_and_no_nan(self, step: int) -> None:
        shared = build(Spec(batch=(3,), steps=6, initial_form="BS", transition_form="BTSS", seed=11))
        case = Case(shared.initial, shared.transition, impossible_at(step).emission)
        for grad in gradients(lambda inputs: self.run(inputs)[:, -1].exp() ** 2, case):
            assert (grad[1] == 0).all()
            assert grad.isfinite().all()
            assert grad[0].abs().max() > 0

    @pytest.mark.usefixtures("fresh_compiler")
    def test_compiles_whole_with_dynamic_shapes(self) -> None:
        sets = []
        for batch, steps in ((3, 3), (5, 9)):
            case = build(Spec(batch=(batch,), steps=steps, lengths_form="full"))
            assert case.lengths is not None
            sets.append((*case.args, case.lengths))
        function = getattr(ops, self.name)
        check_compiled(lambda i, t, e, n: function(i, t, e, lengths=n).exp(), *sets, gradients_equal=False)
