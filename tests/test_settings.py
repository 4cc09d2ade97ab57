"""Settings: reading, writing, validation, restoration."""

from __future__ import annotations

import logging
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from sumprod import settings
from sumprod.errors import MemoryBudgetError
from sumprod.ops._plan import Plan, make_plan, memory_budget
from sumprod.ops.contraction import contract

TOLERANCE = 1.0


class Holder:
    inner = 3


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    before = settings.get()
    yield
    settings.set(**before)


def test_defaults() -> None:
    assert settings.get() == {
        "binomial_approx_log_prob_tol": 0.0,
        "binomial_approx_sample_thresh": math.inf,
        "cholesky_relative_jitter": 4.0,
        "deterministic": False,
        "exact_zeros": False,
        "memory_budget": None,
        "module_local_params": False,
        "native": True,
        "plan_log": False,
        "validate_distributions_pyro": True,
        "validate_distributions_torch": True,
        "validate_infer": True,
        "validate_poutine": True,
    }


def test_validation_is_off_under_optimisation() -> None:
    program = (
        "from sumprod import settings\n"
        "print([value for name, value in settings.get().items() if name.startswith('validate')])"
    )
    shown = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[False, False, False, False]"


def test_set_is_seen_by_attribute_and_get() -> None:
    settings.set(validate_infer=False, cholesky_relative_jitter=8.0)
    assert settings.state.validate_infer is False
    assert settings.get("cholesky_relative_jitter") == settings.state.cholesky_relative_jitter == 8.0


def test_validation_switches_accept_what_is_true_or_false() -> None:
    settings.set(validate_poutine=0)
    assert settings.get("validate_poutine") is False


def test_torch_validation_is_kept_by_torch() -> None:
    settings.set(validate_distributions_torch=False)
    torch.distributions.Normal(0.0, -1.0)
    torch.distributions.Distribution.set_default_validate_args(True)
    assert settings.state.validate_distributions_torch is True
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


def test_context_restores_after_an_exception() -> None:
    seen = []

    @settings.context(native=False, memory_budget=10)
    def read_and_fail() -> None:
        seen.append((settings.state.native, settings.state.memory_budget))
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        read_and_fail()
    assert seen == [(False, 10)]
    assert (settings.state.native, settings.state.memory_budget) == (True, None)


def test_context_decorates() -> None:
    @settings.context(exact_zeros=True)
    def read() -> bool:
        return settings.state.exact_zeros

    assert [read(), read(), settings.state.exact_zeros] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("native", 1, TypeError),
        ("exact_zeros", "yes", TypeError),
        ("module_local_params", "x", TypeError),
        ("cholesky_relative_jitter", -1.0, ValueError),
        ("cholesky_relative_jitter", 0, ValueError),
        ("binomial_approx_log_prob_tol", -0.1, ValueError),
        ("binomial_approx_sample_thresh", math.nan, ValueError),
        ("memory_budget", 0, ValueError),
        ("memory_budget", 1.5, ValueError),
        ("plan_log", "yes", TypeError),
    ],
)
def test_wrong_values_change_nothing(name: str, value: object, error: type[Exception]) -> None:
    before = settings.get()
    with pytest.raises(error, match=f"setting '{name}': expected"):
        settings.set(validate_infer=False, **{name: value})
    assert settings.get() == before


def test_unknown_names() -> None:
    with pytest.raises(KeyError, match="did you mean 'validate_infer'"):
        settings.get("validate_infr")
    with pytest.raises(KeyError, match=r"known settings: .*native"):
        settings.set(qqqq=1)
    with pytest.raises(KeyError, match="qqqq"), settings.context(qqqq=1):
        pass


def test_register() -> None:
    settings.register("test_inner", __name__, "Holder.inner")
    with settings.context(test_inner=5):
        assert Holder.inner == 5
    assert Holder.inner == 3

    @settings.register("test_tolerance", __name__, "TOLERANCE")
    def check(value: float) -> None:
        if value <= 0:
            raise ValueError("expected more than 0")

    with settings.context(test_tolerance=2.0):
        assert TOLERANCE == 2.0
    with pytest.raises(ValueError, match="setting 'test_tolerance': expected more than 0"):
        settings.set(test_tolerance=-1.0)
    with pytest.raises(ValueError, match="already exists"):
        settings.register("test_tolerance", __name__, "Holder.inner")
    settings._PLACES.pop("test_inner")
    settings._PLACES.pop("test_tolerance")


# ---- settings of contraction plans


def a_plan(size: int) -> Plan:
    """A structure that no other test plans."""
    return make_plan(["ab", "bc", "ca"], {"a": size, "b": 3, "c": 5})


def test_plan_log_calls_a_function_once_per_structure() -> None:
    seen: list[Plan] = []
    with settings.context(plan_log=seen.append):
        plans = [a_plan(101), a_plan(101), a_plan(102)]
    a_plan(103)
    assert len(seen) == 2
    assert seen == [plans[0], plans[2]]


def test_plan_log_writes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sumprod"):
        a_plan(111)
        assert not caplog.records
        with settings.context(plan_log=True):
            plan = a_plan(112)
    assert [record.getMessage() for record in caplog.records] == [f"new contraction plan\n{plan!r}"]


def test_memory_budget_stops_a_plan_above_it() -> None:
    plan = a_plan(121)
    with settings.context(memory_budget=8 * plan.peak_elements):
        assert a_plan(121) is plan
    with settings.context(memory_budget=8 * plan.peak_elements - 1):
        with pytest.raises(MemoryBudgetError, match=r"with dims 'b' \(3\), 'c' \(5\)\. Split") as caught:
            a_plan(121)
        with memory_budget(8 * plan.peak_elements):  # a block overrides the setting
            assert a_plan(121) is plan
    assert caught.value.variables == ("b", "c")
    assert caught.value.needed == caught.value.budget + 1
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (str(copied), copied.variables) == (str(caught.value), ("b", "c"))


@pytest.mark.parametrize(
    ("dtype", "bytes_each"), [(torch.float64, 8), (torch.float32, 4), (torch.float16, 4)]
)
def test_memory_budget_counts_bytes_of_the_dtype(dtype: torch.dtype, bytes_each: int) -> None:
    factors = [torch.zeros(shape, dtype=dtype) for shape in ((101, 3), (3, 5), (5, 101))]
    needed = bytes_each * a_plan(101).peak_elements
    with settings.context(memory_budget=needed):
        contract(factors, ["ab", "bc", "ca"])
    with (
        settings.context(memory_budget=needed - 1),
        pytest.raises(MemoryBudgetError, match=f"{needed:,} bytes"),
    ):
        contract(factors, ["ab", "bc", "ca"])
