"""A Markov chain whose steps run all at once, along a tensor dim of their own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Literal

from torch import Tensor

from sumprod._enum_allocator import enum_allocator
from sumprod.handlers.condition import ConditionMessenger
from sumprod.handlers.do import DoMessenger
from sumprod.handlers.markov import MarkovMessenger
from sumprod.handlers.markov_chain import MarkovChain, TimeIndex
from sumprod.handlers.messenger import Messenger
from sumprod.handlers.plate import PlateMessenger
from sumprod.handlers.replay import ReplayMessenger
from sumprod.handlers.subsample import SubsampleIndices
from sumprod.handlers.trace_struct import Trace
from sumprod.runtime import handler_stack

__all__ = ["TrialOfChains", "VectorizedMarkovMessenger", "vectorized_markov"]


class VectorizedMarkovMessenger(MarkovMessenger):
    """The handler behind `vectorized_markov`.

    Sites get `infer["_chain"]`, a `MarkovChain`, and those of auxiliary steps `infer["_auxiliary"]`.
    """

    _reads_scope = False

    def __init__(
        self, name: str, size: int, dim: int | None = None, history: int = 1, device: Any = None
    ) -> None:
        super().__init__(history=history, name=name)
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"Expected the size of vectorized_markov '{name}' to be an int, got {size!r}")
        if size < 1:
            raise ValueError(f"Expected size > 0, got {size} at vectorized_markov '{name}'")
        if dim is not None and (not isinstance(dim, int) or dim >= 0):
            raise ValueError(
                f"Expected dim < 0 to index from the right, actual {dim} at vectorized_markov '{name}'"
            )
        self.size, self.dim, self.device = size, dim, device
        self.chain = MarkovChain(name, size, dim, self.history)  # of the running loop
        self._sites: list[Any] = []  # latent sites of the running step
        self._lag: int | None = None  # of the running auxiliary step
        self._given: dict[int, Tensor] = {}  # state -> its values at many steps, from a handler
        self._replayed: Iterator[Any] | None = None  # the states of a step that runs once more
        self._plate: PlateMessenger | None = None  # around the steps that run at once
        # A loop left by `break` closes when its generator dies, which may be after the program's end.
        self._may_stay_open = True

    @property
    def is_auxiliary(self) -> bool:
        """Whether a trace shows nothing of the running step."""
        return self._lag is not None or self._replayed is not None

    def __iter__(self) -> Iterator[Any]:
        steps = self._steps()
        self._iterable = steps
        # The plate around many steps is to be inside this handler, also when it opens before the first step.
        with self if self.history == 0 else nullcontext():
            try:
                yield from super().__iter__()
            finally:
                steps.close()

    def _steps(self) -> Generator[Any, None, None]:
        chain = self.chain = MarkovChain(self.chain.name, self.size, self.dim, self.history)
        self._lag = self._replayed = None
        for t in range(min(chain.history, chain.size)):
            yield self._begin(chain.first, t)
        self._given = _given_states(chain)
        chain.mode = _wanted_mode() or ("known" if self._given else None)
        chain.reason = self._why_one_by_one()
        if chain.reason is not None:
            chain.settle()
            for t in range(chain.history, chain.size):
                self._sites = []
                yield t
            return
        self._plate = plate = _Steps(chain.name, chain.steps, chain.dim)
        with plate:
            chain.dim = plate.dim
            if chain.mode == "enumerated":
                _check_room(chain)
            for lag in range(chain.history):
                self._lag = lag
                yield self._begin(chain.previous, TimeIndex.of(lag, lag + chain.steps, self.device))
            self._lag, self._sites = None, chain.current
            yield TimeIndex.of(chain.history, chain.size, self.device)
        _check_alike(chain)
        if chain.mode != "enumerated":
            # What the program has at hand now is of many steps, and sites to come want the last ones.
            for t in range(chain.steps, chain.size):
                self._sites = []
                self._replayed = chain.states_at(t)
                yield t
            self._replayed = None
        chain.is_complete = True
        chain.settle()

    def _begin(self, sites: list[list[Any]], step: Any) -> Any:
        self._sites = []
        sites.append(self._sites)
        return step

    def _why_one_by_one(self) -> str | None:
        """Why the other steps cannot run at once, as far as the first ones show; None when they can."""
        chain = self.chain
        if chain.size <= chain.history:
            return f"it has no more than history={chain.history} steps"
        if chain.mode is None:
            return "nothing enumerates its states here"
        for handler in handler_stack():
            outer = handler is not self and isinstance(handler, VectorizedMarkovMessenger) and handler.chain
            if outer and outer.may_run_at_once:
                return f"it is inside the loop '{outer.name}', whose steps run at once"
        if chain.mode == "known":
            return None
        for t, sites in enumerate(chain.first):
            for state, site in enumerate(sites):
                if state in self._given:
                    continue
                infer = site["infer"]
                marked = chain.mode == "trial" and infer.get("enumerate") == "parallel"
                if not ("_enumerate_dim" in infer or marked):
                    return f"its site '{site['name']}' is not enumerated in the model"
                pattern = chain.names_at_steps(t, site["name"])
                for handler in handler_stack():
                    given = next((name for name in _given_by(handler) if pattern.fullmatch(name)), None)
                    if given is not None:
                        return f"its site '{given}' is given by {type(handler).__name__}"
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        stack = handler_stack()
        if self._plate is not None and stack and stack[-1] is self._plate:
            # A loop that is left early: the plate is inside this handler.
            self._plate.__exit__(kind, error, traceback)
        self._plate = None
        return super().__exit__(kind, error, traceback)

    def _reset(self) -> None:
        self._plate = None
        super()._reset()

    def _pyro_sample(self, msg: Any) -> None:
        latent = not msg["is_observed"] and not isinstance(msg["fn"], SubsampleIndices)
        if self._replayed is not None:
            msg["stop"] = True
            if latent:
                msg["value"], msg["done"] = next(self._replayed), True
            return
        if not isinstance(msg["fn"], SubsampleIndices):
            msg["infer"]["_chain"] = self.chain
        if latent:
            self._sites.append(msg)
            if self._lag is not None:
                msg["infer"]["_auxiliary"] = True
                self._give_shifted(msg)
        elif self._lag is not None:
            msg["stop"] = True  # nobody is to see it, and its value is there
            return
        super()._pyro_sample(msg)

    def _give_shifted(self, msg: Any) -> None:
        """A latent site of an auxiliary step gets its values, if those of all steps are known."""
        assert self._lag is not None
        state = len(self._sites) - 1
        many = self._given.get(state)
        if many is not None:
            msg["value"], msg["done"] = self.chain.shifted(state, self._lag, many), True
        elif self.chain.mode == "known":
            raise ValueError(
                f"vectorized_markov '{self.chain.name}': site '{msg['name']}' has no values, but other states"
                " have values for many steps; give those of all states, or of none"
            )
        if self.chain.mode == "known":
            msg["stop"] = True


class _Steps(PlateMessenger):
    """The plate around steps that run at once; it leaves no site of its own."""

    _reads_scope = False
    _may_stay_open = True

    def __init__(self, name: str, size: int, dim: int | None) -> None:
        super().__init__(name, dim=dim)
        self.size = self.subsample_size = size


class TrialOfChains(Messenger):
    """While active, chains run at once wherever their sites are marked for enumeration.

    The states are then draws that ignore each other: only shapes, names and plates mean anything.
    """

    _reads_scope = False

    def _chain_mode(self) -> Literal["trial"]:
        return "trial"

    def _pyro_sample(self, msg: Any) -> None:
        if "_auxiliary" in msg["infer"]:
            msg["stop"] = True


def _wanted_mode() -> Literal["enumerated", "trial"] | None:
    """How the innermost handler that enumerates, or tries, wants chains to run."""
    for handler in reversed(handler_stack()):
        ask = getattr(handler, "_chain_mode", None)
        if ask is not None:
            mode: Literal["enumerated", "trial"] | None = ask()
            return mode
    return None


def _given_states(chain: MarkovChain) -> dict[int, Tensor]:
    """Values at many steps that handlers have for the chain's states; by position within the step."""
    found: dict[int, Tensor] = {}
    for handler in handler_stack():
        given = _given_by(handler)
        if not any(chain.many in name for name in given):
            continue
        for state, site in enumerate(chain.first[0] if chain.first else ()):
            name = next((name for name in chain.names_of_many(0, site["name"]) if name in given), None)
            if name is not None:
                _check_given(handler, name, site)
                found[state] = _value(given, name)
        if not chain.first:
            found[0] = _value(given, next(name for name in given if chain.many in name))
    return found


def _check_given(handler: Any, name: str, first: Any) -> None:
    """Raise if values of many steps, of the site called `name`, cannot be used."""
    if isinstance(handler, DoMessenger):
        raise ValueError(
            f"do: '{name}' stands for many steps; give each by its own name, as '{first['name']}'"
        )
    if "_enumerate_dim" in first["infer"]:
        raise ValueError(
            f"'{name}' is given by {type(handler).__name__}, but '{first['name']}', of a step before, is not:"
            " give values for all steps"
        )


def _given_by(handler: Any) -> Mapping[str, Any]:
    """The sites for which a handler has values, or that hold them."""
    if isinstance(handler, ConditionMessenger | DoMessenger):
        return handler.data.nodes if isinstance(handler.data, Trace) else handler.data
    if isinstance(handler, ReplayMessenger) and handler.trace is not None:
        return handler.trace.nodes
    values: Mapping[str, Any] = getattr(handler, "_known_values", {})
    return values


def _value(given: Mapping[str, Any], name: str) -> Any:
    value = given.get(name)
    return value["value"] if isinstance(value, dict) else value


def _check_room(chain: MarkovChain) -> None:
    """Raise if the steps are where enumerated variables go."""
    assert chain.dim is not None
    taken = enum_allocator().rightmost
    if taken is not None and chain.dim <= taken:
        raise ValueError(
            f"plate stack overflow: the steps of vectorized_markov '{chain.name}' are at dim {chain.dim}, but"
            f" enumerated variables are at dim {taken} and left of it\nTry increasing"
            f" max_plate_nesting to at least {-chain.dim}, or first_available_dim={chain.dim - 1}"
        )


def _check_alike(chain: MarkovChain) -> None:
    """Raise unless all steps have the same states."""
    wanted = [site["name"] for site in chain.current]
    for sites in (*chain.first, *chain.previous):
        if len(sites) != len(wanted):
            raise ValueError(
                f"vectorized_markov '{chain.name}': all steps must have the same latent sites, in the same"
                f" order, but found {[site['name'] for site in sites]} and {wanted}. Use"
                " markov(range(size)) for steps that differ"
            )


def vectorized_markov(
    fn: Callable[..., Any] | None = None,
    name: str = "time",
    size: int | None = None,
    dim: int | None = None,
    history: int = 1,
    *,
    device: Any = None,
) -> VectorizedMarkovMessenger:
    """Loop over the steps of a Markov chain, which run at once where discrete states are summed out.

    Where an algorithm enumerates all latent sites of the chain (`TraceEnum_ELBO` those of the model,
    `infer_discrete`), the loop yields the first `history` steps one by one, as ints; then `history` times
    a tensor of steps for the states before those of the last round, which no trace shows; and last the tensor
    of all remaining steps. The body is evaluated 1 + 2 `history` times, whatever the size. Sites of the
    last round are in a plate called `name`, at `dim`. Sites after the loop may depend on the last `history`
    steps; where states are known (the second run of `infer_discrete`), these steps run once more, hidden.

    Everywhere else (drawing from the prior, guides, sites in the loop that are not enumerated) the loop is
    that of `markov(range(size), history=history)`. Both have the same losses, gradients and posteriors.

    In names of sites a tensor of steps appears as a slice: `f"x_{t}"` is `x_0`, then `x_slice(1, 60, None)`.

    Args:
        fn: must be None.
        name: of the plate.
        size: number of steps.
        dim: negative batch dim of the steps; None: the rightmost that is free when they are reached.
        history: how many earlier steps a step may depend on, at least 0.
        device: where the tensors of steps live.

    Raises:
        TypeError: size is not an int.
        ValueError: size is not positive, dim is not negative, history is negative; (in the loop) dim is
            taken; the steps have different latent sites.
        NotImplementedError: fn was given.

    References:
        Obermeyer et al. 2019, "Functional Tensors for Probabilistic Programming".
        Särkkä and García-Fernández 2021, "Temporal Parallelization of Bayesian Smoothers".

    >>> import torch, sumprod
    >>> from sumprod.distributions import Categorical
    >>> transition = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    >>> data = torch.tensor([0, 0, 1, 1])
    >>> @sumprod.infer.infer_discrete(first_available_dim=-2, temperature=0)
    ... def decode():
    ...     x = 0
    ...     for t in sumprod.vectorized_markov(name="time", size=4, dim=-1):
    ...         x = sumprod.sample(f"x_{t}", Categorical(transition[x]), infer={"enumerate": "parallel"})
    ...         sumprod.sample(f"y_{t}", Categorical(transition[x]), obs=data[t])
    >>> sites = sumprod.handlers.trace(decode).get_trace().nodes
    >>> sites["x_0"]["value"], sites["x_slice(1, 4, None)"]["value"]
    (tensor(0), tensor([0, 1, 1]))
    """
    if fn is not None:
        raise NotImplementedError(
            "vectorized_markov is a loop: for t in vectorized_markov(name=..., size=...)"
        )
    if size is None:
        raise TypeError(f"vectorized_markov '{name}' needs its number of steps: size=")
    return VectorizedMarkovMessenger(name, size, dim, history, device)
