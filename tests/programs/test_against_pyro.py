"""Every program gives under sumprod what it gives under Pyro 1.9.2."""

from __future__ import annotations

import importlib
import math
import pkgutil
import warnings

import pytest

import sumprod
import tests.programs as package
from tests.programs.support import PROGRAMS, Program, assert_same, numbers_in, run_program

pyro = pytest.importorskip("pyro", reason="pyro-ppl is the peer; it comes with the test extra")

for module in pkgutil.iter_modules(package.__path__):
    if not module.name.startswith("test_"):
        importlib.import_module(f"tests.programs.{module.name}")


def messages(seen: list[warnings.WarningMessage]) -> list[str]:
    return [f"{entry.category.__name__}: {entry.message}" for entry in seen]


@pytest.mark.parametrize("entry", PROGRAMS.values(), ids=PROGRAMS)
def test_program(entry: Program) -> None:
    expected, pyro_warnings = run_program(entry, pyro)
    numbers = list(numbers_in(expected))
    assert numbers, "a program that reports no number shows nothing"
    assert all(math.isfinite(number) for number in numbers), "the peer's own numbers are not finite"
    actual, our_warnings = run_program(entry, sumprod)
    assert_same(actual, expected, entry)
    if entry.warns is None:
        assert not messages(our_warnings)
    else:
        assert any(entry.warns in text for text in messages(pyro_warnings)), messages(pyro_warnings)
        assert all(entry.warns in text for text in messages(our_warnings)), messages(our_warnings)
        assert our_warnings


def test_enough_programs() -> None:
    """The table covers what it promises: many programs, in every family."""
    assert len(PROGRAMS) >= 35
    families = {name.partition("-")[0] for name in PROGRAMS}
    assert len(families) >= 10, families
