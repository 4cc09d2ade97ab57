"""Whether sites depend on enumerated variables that are out of their sight.

Along a chain, dims are used again: a density that varies along the dim of an old variable looks as if it
depended on the variable that has the dim now. So in the first runs of a program dims are *spread*: each
new variable gets a dim that has not been in use for long. A dependence on a variable out of sight then
varies along a dim that belongs to no visible variable. The results are the same. Arguments of another
structure start this again; so does a site that is met for the first time, from the next run on.

This always finds a dependence on one of the last 11 variables, and one on older variables that happens
again and again; a single dependence on an older variable escapes one run with a probability of about 1 in
8, and the first three runs with 1 in 500.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sumprod._program_memory import ProgramMemory
from sumprod.handlers.messenger import BoundHandler

__all__ = ["ScopeCheck", "check_dependence", "scope_check"]

# Runs with spread dims, counted from the last one that met anything new.
CHECKED_RUNS = 3
# Different structures of arguments, and sites of one structure, that are remembered.
MOST_STRUCTURES = 64
MOST_SITES = 1 << 16

Sight = tuple[str, tuple[int, ...]]  # a site, and the ids of the variables that it may depend on


class ScopeCheck:
    """What is known of a program's sites, and whether its next run is to have its dims spread."""

    def __init__(self) -> None:
        self._left = CHECKED_RUNS  # so many more runs with spread dims
        self._runs = 0
        self._known: set[Sight] = set()

    def is_known(self, sight: Sight) -> bool:
        """Whether the site has been checked with just these variables in sight."""
        return sight in self._known

    def begin(self) -> int | None:
        """The number of the run that begins, if its dims are to be spread; else None."""
        if not self._left:
            return None
        self._left -= 1
        self._runs += 1
        return self._runs

    def end(self, new: list[Sight], spread: bool) -> None:
        """A run has succeeded, and met sites in situations that were not known."""
        if not new:
            return
        if not spread:
            self._left = CHECKED_RUNS
            return
        self._left = max(self._left, CHECKED_RUNS - 1)
        if len(self._known) + len(new) > MOST_SITES:
            self._known.clear()
        self._known.update(new)

    def fail(self) -> None:
        """A run has ended in an error: the same program may be tried again."""
        self._left = CHECKED_RUNS


_CHECKS: ProgramMemory[dict[Any, ScopeCheck]] = ProgramMemory()


def scope_check(program: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ScopeCheck:
    """The record of a program called with arguments of this structure."""
    while isinstance(program, BoundHandler):
        program = program.args[0]
    checks = _CHECKS.get(program)
    if checks is None:
        checks = {}
        _CHECKS.set(program, value=checks)
    structure = (_structure(args), _structure(kwargs))
    check = checks.get(structure)
    if check is None:
        if len(checks) >= MOST_STRUCTURES:
            checks.clear()
        check = checks[structure] = ScopeCheck()
    return check


def _structure(value: Any) -> Any:
    """What is likely to decide which sites a program has; hashable."""
    if isinstance(value, torch.Tensor):
        return value.shape
    if isinstance(value, bool | int | str | None):
        return value
    if isinstance(value, Mapping):
        return tuple((key, _structure(one)) for key, one in value.items())
    if isinstance(value, list | tuple) and len(value) <= 16:
        return tuple(map(_structure, value))
    return type(value)


def check_dependence(msg: Any, names: Mapping[int, int], owners: Mapping[int, str]) -> None:
    """Raise if a finished site depends on a variable out of its sight.

    Args:
        names: dims and ids of the variables in sight.
        owners: dim -> site whose variable was given it last.

    Raises:
        ValueError: it does.
    """
    fn = msg["fn"]
    shapes = [fn.batch_shape]
    value, mask = msg["value"], msg["mask"]
    if isinstance(value, torch.Tensor):
        shapes.append(value.shape[: value.dim() - len(fn._event_shape)])
    if isinstance(mask, torch.Tensor):
        shapes.append(mask.shape)
    for shape in shapes:
        rank = len(shape)
        for i, size in enumerate(shape):
            dim = i - rank
            if size != 1 and dim in owners and dim not in names:
                raise ValueError(
                    f"Enumeration dim conflict at site '{msg['name']}': it depends on the enumerated variable"
                    f" of site '{owners[dim]}', or one before it, which is out of its sight (shape"
                    f" {tuple(shape)}, dim {dim})\nTry increasing pyro.markov history size: a site may depend"
                    " on sites of its own context and of the `history` contexts around it, and on sites"
                    " outside of chains"
                )
