"""A Markov chain whose steps run all at once, along a tensor dim of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Literal

import torch

from sumprod._enum_allocator import enum_allocator
from sumprod.handlers.condition import ConditionMessenger
from sumprod.handlers.do import DoMessenger
from sumprod.handlers.markov import MarkovMessenger
from sumprod.handlers.messenger import Messenger
from sumprod.handlers.plate import PlateMessenger
from sumprod.handlers.replay import ReplayMessenger
from sumprod.handlers.subsample import SubsampleIndices
from sumprod.runtime import handler_stack

__all__ = ["MarkovChain", "TrialOfChains", "VectorizedMarkovMessenger", "vectorized_markov"]

# How a handler wants chains to run: at once, when all states are enumerated; the same, when they are marked
# for it; at once, as in an earlier run whose states are known. None: one by one.
Mode = Literal["enumerated", "trial", "known"]


class TimeIndex(torch.Tensor):
    """The steps `start` to `stop - 1`, as an int64 tensor that site names show as a slice."""

    # Operators make ordinary tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    steps: slice

    @staticmethod
    def of(start: int, stop: int, device: Any = None) -> TimeIndex:
        index: TimeIndex = torch.arange(start, stop, device=device).as_subclass(TimeIndex)
        index.steps = slice(start, stop)
        return index

    def __str__(self) -> str:
        return str(self.steps)

    def __format__(self, spec: str) -> str:
        return format(str(self.steps), spec)


class MarkovChain:
    """What a run of a chain looked like.

    Attributes:
        name, size, history: as given to `vectorized_markov`.
        dim: of the steps that run at once; None: not given, and none of them did.
        first: the latent sites of each of the first steps, in order.
        previous: the same of each auxiliary step: `previous[k]` has the states of `history - k` steps before.
        current: the same of all other steps.
        mode: how the handlers around wanted it to run.
        reason: why the steps ran one by one; None when they ran at once.
    """

    def __init__(self, name: str, size: int, dim: int | None, history: int) -> None:
        self.name, self.size, self.dim, self.history = name, size, dim, history
        self.first: list[list[Any]] = []
        self.previous: list[list[Any]] = []
        self.current: list[Any] = []
        self.mode: Mode | None = None
        self.reason: str | None = None

    def states_at(self, t: int) -> Iterator[Any]:
        """The values of a step's latent sites, when those of all steps are known."""
        if t < self.history:
            for site in self.first[t]:
                yield site["value"]
            return
        assert self.dim is not None
        for site in self.current:
            value = site["value"]
            axis = value.dim() + self.dim - len(site["fn"]._event_shape)
            if axis < 0 or value.shape[axis] == 1:
                yield value
            else:
                yield (
                    value.select(axis, t - self.history)
                    if axis == 0
                    else value.narrow(axis, t - self.history, 1)
                )

    @property
    def key(self) -> tuple[str, str]:
        """The same for the same loop in another run of the program."""
        return self.name, next((site["name"] for sites in self.first for site in sites), "")

    @property
    def steps(self) -> int:
        """How many steps run at once."""
        return self.size - self.history


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
        self.is_auxiliary = False  # whether a trace shows nothing of the running step
        self._sites: list[Any] = []  # latent sites of the running step
        self._known: Iterator[Any] | None = None  # the states of a step that runs once more
        self._plate: PlateMessenger | None = None  # around the steps that run at once
        # A loop left by `break` closes when its generator dies, which may be after the program's end.
        self._may_stay_open = True

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
        self.is_auxiliary = False
        for t in range(min(self.history, self.size)):
            yield self._begin(chain.first, t)
        chain.mode = _wanted_mode(chain)
        if chain.size <= chain.history:
            chain.reason = f"it has no more than history={chain.history} steps"
            return
        chain.reason = _why_one_by_one(chain)
        if chain.reason is not None:
            for t in range(chain.history, chain.size):
                self._sites = []
                yield t
            return
        plate = _Steps(chain.name, chain.steps, chain.dim)
        self._plate = plate
        with plate:
            chain.dim = plate.dim
            if chain.mode == "enumerated":
                _check_room(chain)
            self.is_auxiliary = True
            for k in range(chain.history):
                yield self._begin(chain.previous, TimeIndex.of(k, k + chain.steps, self.device))
            self.is_auxiliary = False
            self._sites = chain.current
            yield TimeIndex.of(chain.history, chain.size, self.device)
            _check_alike(chain)
        if chain.mode != "enumerated":
            # What the program has at hand now is of many steps, and sites to come want the last ones.
            self.is_auxiliary = True
            for t in range(max(chain.size - chain.history, 0), chain.size):
                self._sites = []
                self._known = chain.states_at(t)
                yield t
            self._known, self.is_auxiliary = None, False

    def _begin(self, sites: list[list[Any]], step: Any) -> Any:
        self._sites = []
        sites.append(self._sites)
        return step

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
        if self._known is not None:
            msg["stop"] = True
            if not msg["is_observed"] and not isinstance(msg["fn"], SubsampleIndices):
                msg["value"], msg["done"] = next(self._known), True
            return
        if not isinstance(msg["fn"], SubsampleIndices):
            msg["infer"]["_chain"] = self.chain
            if not msg["is_observed"]:
                self._sites.append(msg)
            if self.is_auxiliary:
                if msg["is_observed"]:
                    msg["stop"] = True  # nobody is to see it, and its value is there
                    return
                msg["infer"]["_auxiliary"] = True
        super()._pyro_sample(msg)


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

    def _chain_mode(self, chain: MarkovChain) -> Literal["trial"]:
        return "trial"

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("_auxiliary"):
            msg["stop"] = True


def _wanted_mode(chain: MarkovChain) -> Mode | None:
    """What the innermost handler that cares about chains says."""
    for handler in reversed(handler_stack()):
        ask = getattr(handler, "_chain_mode", None)
        if ask is not None:
            mode: Mode | None = ask(chain)
            return mode
    return None


def _why_one_by_one(chain: MarkovChain) -> str | None:
    """Why the other steps cannot run at once, as far as the first ones show; None when they can."""
    mode = chain.mode
    if mode is None:
        return "nothing enumerates its states here"
    if mode == "known":
        return None
    if any(isinstance(one, VectorizedMarkovMessenger) and one._plate is not None for one in handler_stack()):
        return "it is inside a loop whose steps run at once"
    for t, sites in enumerate(chain.first):
        for site in sites:
            infer = site["infer"]
            if not ("_enumerate_dim" in infer or (mode == "trial" and infer.get("enumerate") == "parallel")):
                return f"its site '{site['name']}' is not enumerated in the model"
            # The same site of any step.
            parts = re.split(rf"(?<!\d){t}(?!\d)", site["name"])
            pattern = re.compile(r"\d+".join(map(re.escape, parts)))
            for handler in handler_stack():
                given = next((name for name in _named_by(handler) if pattern.fullmatch(name)), None)
                if given is not None:
                    return f"its site '{given}' is given by {type(handler).__name__}"
    return None


def _named_by(handler: Any) -> Iterator[str]:
    """The sites for which a handler has values."""
    if isinstance(handler, ConditionMessenger | DoMessenger):
        yield from handler.data if isinstance(handler.data, dict) else list(handler.data)
    elif isinstance(handler, ReplayMessenger) and handler.trace is not None:
        yield from handler.trace.nodes


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
