"""Arguments of all HMM operators: what is refused, with which message; what is accepted and left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sumprod
from sumprod import ops
from tests.ops.checks import HMM_OPERATORS, call, signature_of, uniforms_for
from tests.ops.hmm_cases import INITIAL_FORMS, TRANSITION_FORMS, Case, Spec, build

EVERY_OPERATOR = pytest.mark.parametrize("name", HMM_OPERATORS)


def shape(*sizes: int) -> str:
    """A regular expression for a shape in any usual spelling: (2, 3), [2, 3], torch.Size([2, 3])."""
    return r"[\[(]" + ", ".join(map(str, sizes)) + r",?[\])]"


def zeros(*sizes: int) -> Tensor:
    return torch.zeros(sizes)


GOOD = {"initial": zeros(4), "transition": zeros(4, 4), "emission": zeros(3, 7, 4), "lengths": None}

BAD: list[tuple[dict[str, object], type[Exception], str]] = [
    # Not tensors.
    ({"initial": [0.0] * 4}, TypeError, "initial.*list"),
    ({"transition": None}, TypeError, "transition.*NoneType"),
    ({"emission": zeros(3, 7, 4).numpy()}, TypeError, "emission.*ndarray"),
    ({"lengths": "777"}, TypeError, "lengths.*str"),
    ({"lengths": [7.0, 7.0, 7.0]}, TypeError, "lengths.*float"),
    # Dtypes.
    ({"initial": zeros(4).long()}, TypeError, "initial.*int64"),
    ({"transition": zeros(4, 4).bool()}, TypeError, "transition.*bool"),
    ({"emission": zeros(3, 7, 4).to(torch.complex64)}, TypeError, "emission.*complex64"),
    ({"emission": zeros(3, 7, 4).int()}, TypeError, "emission.*int32"),
    ({"lengths": zeros(3)}, TypeError, "lengths.*float32"),
    ({"lengths": zeros(3).bool()}, TypeError, "lengths.*bool"),
    # Emission shapes.
    ({"emission": zeros(4)}, ValueError, "emission.*" + shape(4)),
    ({"emission": torch.tensor(0.0)}, ValueError, r"emission.*(\[\]|\(\))"),
    # Initial shapes.
    ({"initial": zeros(5)}, ValueError, "initial.*" + shape(5)),
    ({"initial": zeros(1)}, ValueError, "initial.*" + shape(1)),
    ({"initial": torch.tensor(0.0)}, ValueError, r"initial.*(\[\]|\(\))"),
    ({"initial": zeros(2, 4)}, ValueError, "initial.*" + shape(2, 4)),
    ({"initial": zeros(3, 1)}, ValueError, "initial.*" + shape(3, 1)),
    ({"initial": zeros(5, 3, 4)}, ValueError, "initial.*" + shape(5, 3, 4)),
    # Transition shapes.
    ({"transition": zeros(4)}, ValueError, "transition.*" + shape(4)),
    ({"transition": zeros(4, 5)}, ValueError, "transition.*" + shape(4, 5)),
    ({"transition": zeros(5, 4)}, ValueError, "transition.*" + shape(5, 4)),
    ({"transition": zeros(5, 5)}, ValueError, "transition.*" + shape(5, 5)),
    ({"transition": zeros(1, 4)}, ValueError, "transition.*" + shape(1, 4)),
    ({"transition": zeros(3, 7, 4, 4)}, ValueError, "transition.*" + shape(3, 7, 4, 4)),
    ({"transition": zeros(2, 6, 4, 4)}, ValueError, "transition.*" + shape(2, 6, 4, 4)),
    ({"transition": zeros(2, 3, 6, 4, 4)}, ValueError, "transition.*" + shape(2, 3, 6, 4, 4)),
    # Lengths.
    ({"lengths": zeros(2).long()}, ValueError, "lengths.*" + shape(3) + ".*" + shape(2)),
    ({"lengths": zeros(3, 1).long()}, ValueError, "lengths.*" + shape(3) + ".*" + shape(3, 1)),
    ({"lengths": torch.tensor(7)}, ValueError, "lengths.*" + shape(3)),
    ({"lengths": torch.tensor([7, 8, 7])}, ValueError, "lengths.*7.*8"),
    ({"lengths": torch.tensor([7, -1, 7])}, ValueError, "lengths.*-1"),
    # Devices.
    ({"initial": zeros(4).to("meta")}, ValueError, "emission is on cpu, initial on meta"),
    ({"transition": zeros(4, 4).to("meta")}, ValueError, "emission is on cpu, transition on meta"),
    ({"lengths": zeros(3).long().to("meta")}, ValueError, "emission is on cpu, lengths on meta"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
@EVERY_OPERATOR
def test_bad_arguments_are_named(
    name: str, change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {**GOOD, **change}
    lengths = arguments.pop("lengths")
    with pytest.raises(error, match=rf"(?s){message}") as caught:
        getattr(ops, name)(*arguments.values(), lengths=lengths)
    assert type(caught.value) is error


@EVERY_OPERATOR
def test_the_good_arguments_of_those_tests_are_good(name: str) -> None:
    assert call(name, Case(zeros(4), zeros(4, 4), zeros(3, 7, 4)), torch.zeros(3, 3, 7))


@EVERY_OPERATOR
def test_lengths_may_be_a_list(name: str, generator: torch.Generator) -> None:
    case = build(Spec(batch=(3,), seed=1))
    uniforms = uniforms_for(case, generator)
    extra = {"num_samples": len(uniforms), "uniforms": uniforms} if name == "hmm_sample" else {}
    function = getattr(ops, name)
    by_tensor = function(*case.args, lengths=torch.tensor([5, 0, 7]), **extra)
    by_list = function(*case.args, lengths=[5, 0, 7], **extra)
    pairs = zip(by_tensor, by_list, strict=True) if isinstance(by_tensor, tuple) else [(by_tensor, by_list)]
    for one, other in pairs:
        assert torch.equal(one, other)


@EVERY_OPERATOR
def test_signature(name: str) -> None:
    extra = ", num_samples=1, generator=None, uniforms=None" if name == "hmm_sample" else ""
    expected = f"(initial, transition, emission, *, lengths=None{extra})"
    assert signature_of(getattr(ops, name)) == expected


@EVERY_OPERATOR
def test_lengths_are_keyword_only(name: str) -> None:
    with pytest.raises(TypeError, match="positional"):
        getattr(ops, name)(*GOOD.values(), torch.tensor([7, 7, 7]))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
@EVERY_OPERATOR
def test_every_integer_type_of_lengths(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    case = build(Spec(batch=(3,), seed=1))
    uniforms = uniforms_for(case, generator)
    lengths = torch.tensor([5, 0, 7])
    expected = call(name, replace(case, lengths=lengths), uniforms)
    actual = call(name, replace(case, lengths=lengths.to(dtype)), uniforms)
    strided = call(name, replace(case, lengths=lengths.repeat_interleave(2)[::2]), uniforms)
    for key, values in expected.items():
        assert torch.equal(actual[key], values)
        assert torch.equal(strided[key], values)


@pytest.mark.parametrize("transition_form", TRANSITION_FORMS)
@pytest.mark.parametrize("initial_form", INITIAL_FORMS)
@EVERY_OPERATOR
def test_broadcast_forms_equal_their_expansion(
    name: str, initial_form: str, transition_form: str, generator: torch.Generator
) -> None:
    case = build(
        Spec(
            batch=(2, 3),
            steps=5,
            states=3,
            initial_form=initial_form,
            transition_form=transition_form,
            lengths_form="random",
            dtype=torch.float64,
            seed=2,
        )
    )
    uniforms = uniforms_for(case, generator)
    full = Case(
        case.initial.expand(2, 3, 3).contiguous(),
        case.transition.expand(2, 3, 4, 3, 3).contiguous(),
        case.emission,
        case.lengths,
    )
    # Another kernel may serve a shared transition, with other rounding: 1e-12, draws and paths equal.
    for key, values in call(name, case, uniforms).items():
        assert torch.allclose(values.double(), call(name, full, uniforms)[key].double(), rtol=1e-12)


@EVERY_OPERATOR
def test_inputs_and_global_state_are_left_alone(name: str, generator: torch.Generator) -> None:
    case = build(
        Spec("sparse", batch=(5,), steps=9, states=6, lengths_form="random", layout="sliced")
    ).alive()
    uniforms = uniforms_for(case, generator)
    assert case.lengths is not None
    tensors = (*case.args, case.lengths, uniforms)
    before = [part.clone() for part in tensors]
    versions = [part._version for part in tensors]
    state = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    denormal = torch.tensor(1e-40)
    call(name, case, uniforms)
    for part, old, version in zip(tensors, before, versions, strict=True):
        assert torch.equal(part, old)
        assert part._version == version
        assert not part.requires_grad
    assert state == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    # Kernels may flush denormals on their threads, but must put the setting back.
    assert (denormal * 1).item() > 0
    assert (torch.full((100_000,), 1e-40) * 0.5 > 0).all()


@EVERY_OPERATOR
def test_outputs_do_not_require_grad_without_need(name: str, generator: torch.Generator) -> None:
    case = build(Spec()).requires_grad()
    uniforms = uniforms_for(case, generator)
    with torch.no_grad():
        assert not any(part.requires_grad for part in call(name, case, uniforms).values())
    differentiable = [part.requires_grad for part in call(name, case, uniforms).values()]
    assert differentiable == {"hmm_viterbi": [False, True], "hmm_sample": [False]}.get(name, [True])


@EVERY_OPERATOR
def test_results_are_fresh_tensors(name: str, generator: torch.Generator) -> None:
    case = build(Spec(batch=(3,), states=1, steps=1))
    uniforms = uniforms_for(case, generator)
    first = call(name, case, uniforms)
    copies = {key: values.clone() for key, values in first.items()}
    for values in call(name, case, uniforms).values():
        values.fill_(-5)
    for key, values in first.items():
        assert torch.equal(values, copies[key])


def test_support_error_is_a_value_error_with_fields() -> None:
    assert issubclass(sumprod.SupportError, ValueError)
    with pytest.raises(sumprod.SupportError) as caught:
        ops.hmm_viterbi(zeros(2), zeros(2, 2), torch.full((1, 3, 2), -torch.inf))
    error = caught.value
    assert (error.batch_index, error.time) == (0, 0)
    assert type(error.batch_index) is int
    assert type(error.time) is int


@pytest.mark.parametrize("name", ["hmm_viterbi", "hmm_sample"])
def test_nan_does_not_hide_an_impossible_neighbour(name: str) -> None:
    emission = torch.zeros(3, 4, 2)
    emission[0, 1, 0] = torch.nan
    emission[2, 2] = -torch.inf
    with pytest.raises(sumprod.SupportError) as caught:
        getattr(ops, name)(zeros(2), zeros(2, 2), emission)
    assert (caught.value.batch_index, caught.value.time) == (2, 2)
