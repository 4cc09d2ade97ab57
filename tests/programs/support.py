"""How a program is registered, run under either library, and how two outcomes are compared.

A program is a function of the library it is to use, `def some_model(pyro)`, and touches only `pyro.*`.  It
returns what a user would look at: losses, parameters, traces, samples.  The table `PROGRAMS` has all of them.

Outcomes are nested dicts, lists and tuples of tensors, numbers and strings.  They must agree in structure,
order of keys, shape, dtype and value.  Where two correct libraries may draw different numbers, the outcome is
wrapped in `Draws` and compared in distribution.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

Outcome = Mapping[str, Any]

# Two-sample tests reject equal distributions with this probability, once per tested column.
FAILURE_RATE = 1e-6


@dataclass(frozen=True)
class Program:
    """One entry of the table: what to run, from which seed, and how close the outcomes must be.

    `warns` is a fragment of the warning that both libraries must give; any other warning of ours is an error.
    """

    name: str
    run: Callable[[Any], Outcome]
    seed: int
    rtol: float
    atol: float
    warns: str | None


PROGRAMS: dict[str, Program] = {}


def program(
    *, seed: int = 0, rtol: float = 1e-4, atol: float = 1e-5, warns: str | None = None
) -> Callable[[Callable[[Any], Outcome]], Callable[[Any], Outcome]]:
    """Add the decorated function to the table, named after its file and itself."""

    def register(run: Callable[[Any], Outcome]) -> Callable[[Any], Outcome]:
        name = f"{run.__module__.rpartition('.')[2]}-{run.__name__}"
        assert name not in PROGRAMS, name
        PROGRAMS[name] = Program(name, run, seed, rtol, atol, warns)
        return run

    return register


@dataclass(frozen=True)
class Draws:
    """Independent draws, [n, ...]; two of these agree when every column passes a two-sample test."""

    values: Tensor


def run_program(entry: Program, library: Any) -> tuple[Outcome, list[warnings.WarningMessage]]:
    """Run a program from an empty parameter store and its seed; also return the warnings it gave."""
    library.clear_param_store()
    library.set_rng_seed(entry.seed)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        outcome = entry.run(library)
    library.clear_param_store()
    return outcome, seen


# ---- what programs report --------------------------------------------------------------------


def params_of(pyro: Any) -> dict[str, Tensor]:
    """Constrained values of all parameters, in the order of the store."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def trace_of(trace: Any) -> dict[str, Any]:
    """Everything about a trace that both libraries must agree on, site by site."""
    trace.compute_log_prob()
    report: dict[str, Any] = {}
    # A plate's indices are a site too; what object draws them is the library's own affair.
    plates = {frame.name for node in trace.nodes.values() for frame in node.get("cond_indep_stack", ())}
    for name, node in trace.nodes.items():
        entry: dict[str, Any] = {"type": node["type"]}
        if isinstance(node.get("value"), Tensor):
            entry["value"] = node["value"].detach().clone()
        if node["type"] == "sample":
            entry["observed"] = bool(node["is_observed"])
            entry["plates"] = [(f.name, f.dim, int(f.size)) for f in node["cond_indep_stack"]]
            entry["scale"] = float(node["scale"])
            if hasattr(node["fn"], "batch_shape") and name not in plates:
                entry["fn"] = (tuple(node["fn"].batch_shape), tuple(node["fn"].event_shape))
            entry["log_prob"] = torch.as_tensor(node["log_prob"]).detach().clone()
            entry["log_prob_sum"] = torch.as_tensor(node["log_prob_sum"]).item()
        report[name] = entry
    report["log_prob_sum"] = {"value": torch.as_tensor(trace.log_prob_sum()).item()}
    return report


def fit(
    pyro: Any,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    steps: int = 15,
    optim: Any = None,
    loss: Any = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """The usual training loop; reports every loss, a final evaluation and the parameters."""
    optim = optim if optim is not None else pyro.optim.Adam({"lr": 0.02})
    loss = loss if loss is not None else pyro.infer.Trace_ELBO()
    svi = pyro.infer.SVI(model, guide, optim, loss=loss)
    losses = [svi.step(*args, **kwargs) for _ in range(steps)]
    evaluated = svi.evaluate_loss(*args, **kwargs)
    return {"losses": losses, "evaluated": evaluated, "params": params_of(pyro)}


def data_generator(seed: int = 7) -> torch.Generator:
    """A generator for data sets that leaves the global one alone."""
    return torch.Generator().manual_seed(seed)


# ---- comparing outcomes ----------------------------------------------------------------------


def assert_same(actual: Any, expected: Any, entry: Program, where: str = "") -> None:
    """Fail with the place of the first difference between two outcomes."""
    if isinstance(expected, Draws):
        assert isinstance(actual, Draws), where
        _assert_same_distribution(actual.values, expected.values, where)
    elif isinstance(expected, Mapping):
        assert isinstance(actual, Mapping), f"{where}: {type(actual).__name__} in place of a dict"
        assert list(actual) == list(expected), f"{where}: keys {list(actual)}, expected {list(expected)}"
        for key in expected:
            assert_same(actual[key], expected[key], entry, f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert isinstance(actual, (list, tuple)), f"{where}: {type(actual).__name__} in place of a sequence"
        assert len(actual) == len(expected), f"{where}: {len(actual)} entries, expected {len(expected)}"
        for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
            assert_same(ours, theirs, entry, f"{where}[{index}]")
    elif isinstance(expected, Tensor):
        _assert_same_tensor(actual, expected, entry, where)
    elif isinstance(expected, float):
        assert isinstance(actual, float), f"{where}: {actual!r} is {type(actual).__name__}, expected a float"
        same = math.isclose(actual, expected, rel_tol=entry.rtol, abs_tol=entry.atol)
        assert same or (math.isnan(actual) and math.isnan(expected)), (
            f"{where}: {actual}, expected {expected}"
        )
    else:
        assert type(actual) is type(expected), f"{where}: {actual!r}, expected {expected!r}"
        assert actual == expected, f"{where}: {actual!r}, expected {expected!r}"


def _assert_same_tensor(actual: Any, expected: Tensor, entry: Program, where: str) -> None:
    assert isinstance(actual, Tensor), f"{where}: {type(actual).__name__} in place of a tensor"
    assert actual.shape == expected.shape, f"{where}: {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{where}: {actual.dtype}, expected {expected.dtype}"
    torch.testing.assert_close(
        actual.detach(),
        expected.detach(),
        rtol=entry.rtol,
        atol=entry.atol,
        equal_nan=True,
        msg=lambda text: f"{where}: {text}",
    )


def _assert_same_distribution(actual: Tensor, expected: Tensor, where: str) -> None:
    assert actual.shape[1:] == expected.shape[1:], f"{where}: {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, f"{where}: {actual.dtype}, expected {expected.dtype}"
    assert actual.dim() > 0, f"{where}: draws have a leading dim"
    ours_by_column = actual.reshape(len(actual), -1).unbind(1)
    theirs_by_column = expected.reshape(len(expected), -1).unbind(1)
    for number, (ours, theirs) in enumerate(zip(ours_by_column, theirs_by_column, strict=True)):
        p_value = _two_sample_p(ours.detach().double(), theirs.detach().double())
        assert p_value > FAILURE_RATE, f"{where}: column {number} differs in distribution, p = {p_value:.1e}"


def _two_sample_p(ours: Tensor, theirs: Tensor) -> float:
    """Chi-square test when few values occur, Kolmogorov-Smirnov otherwise."""
    support = torch.cat([ours, theirs]).unique()
    if len(support) == 1:
        return 1.0
    if len(support) > 20:
        return float(stats.ks_2samp(ours.numpy(), theirs.numpy(), method="asymp").pvalue)
    counts = [[int((sample == value).sum()) for value in support] for sample in (ours, theirs)]
    return float(stats.chi2_contingency(counts).pvalue)


def numbers_in(outcome: Any) -> Iterable[float]:
    """All numbers of an outcome, to see that it says something."""
    if isinstance(outcome, Draws):
        yield from numbers_in(outcome.values)
    elif isinstance(outcome, Mapping):
        for value in outcome.values():
            yield from numbers_in(value)
    elif isinstance(outcome, (list, tuple)):
        for value in outcome:
            yield from numbers_in(value)
    elif isinstance(outcome, Tensor):
        yield from outcome.detach().double().flatten().tolist()
    elif isinstance(outcome, (int, float)):
        yield float(outcome)
