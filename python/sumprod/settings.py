"""Settings of the whole process: read them with `get`, change them with `set` or `context`.

| name | default | meaning |
|---|---|---|
| `validate_infer` | on, off under `python -O` | checks of inference algorithms |
| `validate_poutine` | same | checks of effect handlers |
| `validate_distributions_pyro` | same | argument and sample checks of our own distributions |
| `validate_distributions_torch` | torch's | torch's `Distribution.set_default_validate_args` |
| `module_local_params` | False | modules keep their parameters instead of the parameter store |
| `cholesky_relative_jitter` | 4.0 | jitter of `safe_cholesky`, in multiples of the smallest spacing |
| `binomial_approx_sample_thresh` | inf | accepted for programs that set it: binomial draws are always exact |
| `binomial_approx_log_prob_tol` | 0.0 | accepted for programs that set it: densities are always exact |
| `native` | True | run recognised program structures as one native operator; so far there is none |
| `deterministic` | False | refuse algorithms whose result may differ from run to run; so far there is none |
| `exact_zeros` | False | `Categorical(probs)` keeps a probability of zero as -inf |
| `memory_budget` | None | bytes that intermediate tensors of one contraction may take; None means no limit |
| `plan_log` | False | report every new contraction plan: a function of it, or True: the log "sumprod" |

Settings are shared by all threads. Library code reads them as plain attributes of `state`.

    >>> from sumprod import settings
    >>> with settings.context(exact_zeros=True):
    ...     settings.get("exact_zeros")
    True
    >>> settings.get("exact_zeros")
    False
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

from torch.distributions import Distribution

__all__ = ["context", "get", "register", "set", "state"]

Validator = Callable[[Any], Any]


class State:
    """The current values, as attributes. Assign through `set`, which checks them."""

    __slots__ = (
        "binomial_approx_log_prob_tol",
        "binomial_approx_sample_thresh",
        "cholesky_relative_jitter",
        "deterministic",
        "exact_zeros",
        "memory_budget",
        "module_local_params",
        "native",
        "plan_log",
        "validate_distributions_pyro",
        "validate_infer",
        "validate_poutine",
    )

    def __init__(self) -> None:
        self.validate_infer: bool = __debug__
        self.validate_poutine: bool = __debug__
        self.validate_distributions_pyro: bool = __debug__
        self.module_local_params: bool = False
        self.cholesky_relative_jitter: float = 4.0
        self.binomial_approx_sample_thresh: float = math.inf
        self.binomial_approx_log_prob_tol: float = 0.0
        self.native: bool = True
        self.deterministic: bool = False
        self.exact_zeros: bool = False
        self.memory_budget: int | None = None
        self.plan_log: bool | Callable[[Any], object] = False

    @property
    def validate_distributions_torch(self) -> bool:
        """Kept by torch alone, so that a program which asks torch directly sees the same value."""
        return bool(Distribution._validate_args)  # type: ignore[attr-defined, unused-ignore]

    @validate_distributions_torch.setter
    def validate_distributions_torch(self, value: bool) -> None:
        Distribution.set_default_validate_args(value)


state = State()


class _Place(NamedTuple):
    """Where a setting lives: an attribute path below a module, or below `state` (module None)."""

    module: str | None
    path: str
    validator: Validator | None

    def _holder(self) -> tuple[Any, str]:
        *parents, name = self.path.split(".")
        holder = state if self.module is None else import_module(self.module)
        for parent in parents:
            holder = getattr(holder, parent)
        return holder, name

    def read(self) -> Any:
        holder, name = self._holder()
        return getattr(holder, name)

    def write(self, value: Any) -> None:
        holder, name = self._holder()
        setattr(holder, name, value)


def _is_bool(value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"expected True or False, got {value!r}")


def _is_positive(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"expected a number > 0, got {value!r}")


def _is_not_negative(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"expected a number >= 0, got {value!r}")


def _is_budget(value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
        raise ValueError(f"expected None or a positive number of bytes, got {value!r}")


def _is_log(value: Any) -> None:
    if not (isinstance(value, bool) or callable(value)):
        raise TypeError(f"expected True, False or a function of a plan, got {value!r}")


_VALIDATION_SWITCHES = (
    "validate_infer",
    "validate_poutine",
    "validate_distributions_pyro",
    "validate_distributions_torch",
)

_PLACES: dict[str, _Place] = {name: _Place(None, name, None) for name in _VALIDATION_SWITCHES}
_PLACES.update(
    (name, _Place(None, name, validator))
    for name, validator in (
        ("module_local_params", _is_bool),
        ("cholesky_relative_jitter", _is_positive),
        ("binomial_approx_sample_thresh", _is_positive),
        ("binomial_approx_log_prob_tol", _is_not_negative),
        ("native", _is_bool),
        ("deterministic", _is_bool),
        ("exact_zeros", _is_bool),
        ("memory_budget", _is_budget),
        ("plan_log", _is_log),
    )
)


def _place(alias: str) -> _Place:
    place = _PLACES.get(alias)
    if place is None:
        close = difflib.get_close_matches(alias, _PLACES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known settings: {', '.join(sorted(_PLACES))}"
        raise KeyError(f"there is no setting {alias!r}; {hint}")
    return place


def get(alias: str | None = None) -> Any:
    """The value of one setting, or a dict of all of them, sorted by name.

    Raises KeyError for an unknown name.
    """
    if alias is None:
        return {name: _PLACES[name].read() for name in sorted(_PLACES)}
    return _place(alias).read()


def set(**kwargs: Any) -> None:
    """Changes settings: `settings.set(exact_zeros=True)`. Either all of them change or none does.

    Raises KeyError for an unknown name; TypeError or ValueError for a value that does not fit.
    """
    _assign(kwargs)


def _assign(values: Mapping[str, Any]) -> None:
    checked: list[tuple[_Place, Any]] = []
    for alias, value in values.items():
        place = _place(alias)
        if place.validator is not None:
            try:
                place.validator(value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"setting {alias!r}: {error}") from None
        checked.append((place, bool(value) if alias in _VALIDATION_SWITCHES else value))
    for place, value in checked:
        place.write(value)


@contextmanager
def context(**kwargs: Any) -> Iterator[None]:
    """Changes settings inside a `with` block (or a decorated function), then restores the old values."""
    before = [(_place(alias), _place(alias).read()) for alias in kwargs]
    _assign(kwargs)
    try:
        yield
    finally:
        for place, value in before:
            place.write(value)


def register(
    alias: str, module: str, deepname: str, validator: Validator | None = None
) -> Callable[[Validator], Validator]:
    """Makes the attribute `deepname` (dots allowed) of the module named `module` a setting called `alias`.

    `validator` gets a new value and raises when it does not fit. `register` may also decorate it:

        @settings.register("my_tolerance", __name__, "_TOLERANCE")
        def _check_tolerance(value):
            if value <= 0:
                raise ValueError(f"expected a number > 0, got {value}")

    Raises ValueError when `alias` already names another attribute.
    """
    known = _PLACES.get(alias)
    if known is not None and (known.module, known.path) != (module, deepname):
        raise ValueError(
            f"setting {alias!r} already exists: it is {known.path!r} of {known.module or __name__}; "
            "choose another name"
        )
    _PLACES[alias] = _Place(module, deepname, validator)

    def set_validator(function: Validator) -> Validator:
        _PLACES[alias] = _Place(module, deepname, function)
        return function

    return set_validator
