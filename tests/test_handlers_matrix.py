"""Handlers crossed with each other: three spellings, exceptions, order of nesting, threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sumprod

Program = Callable[..., Any]


def subject() -> Tensor:
    """A parameter, a latent, a plate and an observed site."""
    dist = sumprod.distributions
    scale = sumprod.param("scale", torch.tensor(2.0))
    z = sumprod.sample("z", dist.Normal(0.0, 1.0))
    with sumprod.plate("rows", 3):
        y = sumprod.sample("y", dist.Normal(z, scale))
        sumprod.sample("x", dist.Normal(y, 1.0), obs=torch.ones(3))
    return y


def fixed_trace() -> Any:
    with sumprod.poutine.seed(rng_seed=5):
        return sumprod.poutine.trace(subject).get_trace()


HANDLERS: dict[str, dict[str, Any]] = {
    "trace": {},
    "replay": {"trace": fixed_trace},
    "condition": {"data": {"z": torch.tensor(1.0)}},
    "uncondition": {},
    "do": {"data": {"z": torch.tensor(1.0)}},
    "block": {"hide": ["z"]},
    "scale": {"scale": 0.5},
    "mask": {"mask": torch.tensor([True, False, True])},
    "lift": {"prior": lambda: sumprod.distributions.Gamma(2.0, 1.0)},
    "infer_config": {"config_fn": lambda: lambda site: {"seen": site["name"]}},
    "broadcast": {},
    "substitute": {"data": {"scale": torch.tensor(3.0)}},
    "seed": {"rng_seed": 3},
    "escape": {"escape_fn": lambda: lambda site: False},
}


def options(name: str) -> dict[str, Any]:
    """Arguments of a handler; functions stand for values that are made afresh."""
    return {key: value() if callable(value) else value for key, value in HANDLERS[name].items()}


def snapshot(program: Program) -> dict[str, Any]:
    """A seeded run under an outer trace, reduced to comparable numbers."""
    torch.manual_seed(1)
    outer = sumprod.poutine.trace(program)
    value = outer()
    report: dict[str, Any] = {"value": value.tolist()}
    trace = outer.trace
    trace.compute_log_prob()
    for name, site in trace.nodes.items():
        if site["type"] in ("sample", "param"):
            infer = {key: site["infer"][key] for key in ("seen", "was_observed") if key in site["infer"]}
            report[name] = (site["type"], site["is_observed"], site["value"].tolist(), infer)
            if site["type"] == "sample":
                report[name] += (float(site["scale"]), torch.as_tensor(site["log_prob_sum"]).item())
    return report


@pytest.mark.parametrize("name", HANDLERS)
def test_three_spellings(name: str) -> None:
    """`h(fn, arg)`, `h(arg=...)` as decorator, and `with h(arg=...)` do the same."""
    handler = getattr(sumprod.poutine, name)
    assert handler is getattr(sumprod.handlers, name)

    given = options(name)

    def block() -> Tensor:
        with handler(**given):
            return subject()

    expected = snapshot(handler(subject, **given))
    assert snapshot(handler(**given)(subject)) == expected
    assert snapshot(block) == expected


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.parametrize("where", ["before", "inside a plate", "in a site"])
def test_stack_is_empty_after_an_exception(name: str, where: str) -> None:
    class Oops(Exception):
        def __init__(self, number: int, text: str) -> None:
            super().__init__(number, text)

    class Bad(sumprod.distributions.Normal):
        def sample(self, *args: Any, **kwargs: Any) -> Tensor:
            raise Oops(1, "in a site")

        rsample = sample

    def program() -> Tensor:
        if where == "before":
            raise Oops(1, where)
        with sumprod.plate("rows", 3):
            if where == "inside a plate":
                raise Oops(1, where)
            return sumprod.sample("bad", Bad(0.0, 1.0))

    handler = getattr(sumprod.poutine, name)
    with pytest.raises(Oops, match=where):
        handler(program, **options(name))()
    assert not sumprod.poutine.runtime.am_i_wrapped()
    with pytest.raises(Oops, match=where), handler(**options(name)):
        program()
    assert not sumprod.poutine.runtime.am_i_wrapped()
    assert snapshot(subject)["scale"][0] == "param", "plates and handlers work as before"


def test_stack_is_empty_after_an_exception_on_exit() -> None:
    class Late(sumprod.poutine.messenger.Messenger):
        def __exit__(self, *args: Any) -> Any:
            super().__exit__(*args)
            raise RuntimeError("late")

    with pytest.raises(RuntimeError, match="late"), sumprod.poutine.scale(scale=2.0), Late():
        subject()
    assert not sumprod.poutine.runtime.am_i_wrapped()


COMMUTING = ["condition", "scale", "mask", "infer_config", "substitute", "broadcast"]


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(COMMUTING, 2)])
def test_order_of_nesting_does_not_matter(first: str, second: str) -> None:
    def wrapped(outer: str, inner: str) -> Program:
        program = getattr(sumprod.poutine, inner)(subject, **options(inner))
        return getattr(sumprod.poutine, outer)(program, **options(outer))

    assert snapshot(wrapped(first, second)) == snapshot(wrapped(second, first))


def test_two_threads_run_different_programs() -> None:
    """Handlers of one thread do not see sites of another; each trace is as if it were alone."""
    rounds, barrier = 30, threading.Barrier(2)
    found: dict[str, list[list[str]]] = {"a": [], "b": []}

    def run(prefix: str, size: int) -> None:
        def program() -> None:
            with sumprod.plate("rows", size):
                for i in range(10):
                    site = sumprod.sample(f"{prefix}{i}", sumprod.distributions.Normal(0.0, 1.0))
                    assert site.shape == (size,)

        for _ in range(rounds):
            barrier.wait()
            scaled = sumprod.poutine.scale(program, scale=2.0)
            nodes = sumprod.poutine.trace(scaled).get_trace().nodes
            found[prefix].append([name for name, site in nodes.items() if site["type"] == "sample"])

    threads = [threading.Thread(target=run, args=(prefix, i + 3)) for i, prefix in enumerate(found)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prefix, traces in found.items():
        assert traces == [["rows", *(f"{prefix}{i}" for i in range(10))]] * rounds
