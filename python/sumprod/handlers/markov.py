"""Mark which earlier sites a site may depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

from sumprod.handlers.messenger import ReentrantMessenger
from sumprod.handlers.subsample import SubsampleIndices
from sumprod.runtime import handler_stack


class MarkovMessenger(ReentrantMessenger):
    """Contexts along a chain or a tree, of which each sees only the last few.

    A site may depend on sites of its own context and of the `history` contexts around it, and on sites
    outside all contexts. Enumeration may then use tensor dims again further along the chain. Sites after
    the last context may depend on the last `history` contexts.

    Sites get `infer["_markov_scope"]`, a counter of the visible sites' names, `infer["_markov_depth"]`, in
    how many markov handlers they are, and `infer["_markov_step"]`, their place along the innermost chain.
    With `keep`, `infer["_markov_kept"]` names sites that are not visible but will be together with this
    one. All of it only while some active handler may look.

    Args:
        history: how many earlier contexts are visible, at least 0.
        keep: let a context that opens where another has closed see that one, as siblings in a tree do.
    """

    _reads_scope = False

    def __init__(self, history: int = 1, keep: bool = False, name: str | None = None) -> None:
        super().__init__()
        if not isinstance(history, int) or isinstance(history, bool) or history < 0:
            raise ValueError(f"Expected history to be an int >= 0, got {history!r}")
        self.history = history
        self.keep = keep
        self.name = name
        self._contexts: list[dict[str, None]] = []  # names of the sites of each context
        self._position = -1  # of the innermost open context
        self._last: list[str] = []  # names of the sites of the last `history` contexts opened
        self._descending = False  # no context has closed since one opened
        self._iterable: Iterable[Any] | None = None

    def generator(self, iterable: Iterable[Any]) -> MarkovMessenger:
        """Make this handler iterate, each step in a context inside the step before."""
        self._iterable = iterable
        # A loop left by `break` closes when its generator dies, which may be after the program's end.
        self._may_stay_open = True
        return self

    def __iter__(self) -> Iterator[Any]:
        if self._iterable is None:
            raise TypeError("markov without an iterable cannot be looped over: markov(range(n))")
        entered, error = 0, None
        try:
            for value in self._iterable:
                self.__enter__()
                entered += 1
                yield value
        except BaseException as caught:
            error = caught
            raise
        finally:
            kind = None if error is None else type(error)
            for _ in range(entered):
                self.__exit__(kind, error, None)

    def __enter__(self) -> Any:
        self._position += 1
        self._descending = True
        if len(self._contexts) <= self._position:
            self._contexts.append({})
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._descending:
            self._descending = False
            last = self._contexts[max(0, self._position + 1 - self.history) : self._position + 1]
            self._last = [name for context in last for name in context]
        if not self.keep and self._contexts:
            self._contexts.pop()
        self._position = max(self._position - 1, -1)
        if self._position == -1 and self._last:
            names, self._last = self._last, []
            _announce_end(names)
        return super().__exit__(kind, error, traceback)

    def _reset(self) -> None:
        self._contexts = []
        self._position = -1
        self._last = []
        self._descending = False
        super()._reset()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or isinstance(msg["fn"], SubsampleIndices):
            return
        position = self._position
        if _scope_is_read():
            self._add_scope(msg["infer"], position)
        self._contexts[position][msg["name"]] = None

    def _add_scope(self, infer: dict[str, Any], position: int) -> None:
        """Note which sites a site in the context at `position` may depend on."""
        scope: Counter[str] | None = infer.get("_markov_scope")
        if scope is None:
            scope = infer["_markov_scope"] = Counter.__new__(
                Counter
            )  # its __init__ takes as long as the rest
        end = position + 1
        for context in self._contexts[max(0, position - self.history) : end]:
            for name in context:  # Counter.update takes several times as long for a few names
                scope[name] = scope.get(name, 0) + 1
        if len(self._contexts) > end:
            # Kept contexts further down the tree: sites to come will see both them and this site.
            kept = infer.setdefault("_markov_kept", [])
            for context in self._contexts[end : end + self.history]:
                kept.extend(context)
        infer["_markov_depth"] = 1 + infer.get("_markov_depth", 0)
        infer.setdefault("_markov_step", position)  # the innermost chain comes first


def _scope_is_read() -> bool:
    """Whether any active handler may look at what sites may depend on. Subclasses and others may."""
    for handler in handler_stack():  # noqa: SIM110, a generator is slow
        if type(handler).__dict__.get("_reads_scope", True):
            return True
    return False


def _announce_end(names: list[str]) -> None:
    """Tell the handlers further out that a chain ends, and which sites are in its last contexts."""
    stack = handler_stack()
    depth = sum(isinstance(handler, MarkovMessenger) for handler in stack)
    for handler in stack:
        close = getattr(handler, "_close_chain", None)
        if close is not None:
            close(names, depth)


def markov(
    fn: Callable[..., Any] | Iterable[Any] | None = None,
    history: int = 1,
    keep: bool = False,
    dim: int | None = None,
    name: str | None = None,
) -> Any:
    """Declare which earlier sites a site may depend on: a loop wrapper, context manager or decorator.

    Args:
        fn: what to loop over; or a (recursive) function whose calls are the contexts; or None for a
            context manager or decorator with arguments.
        history, keep: see `MarkovMessenger`.
        name: names the chain in reports.

    Raises:
        NotImplementedError: `dim` was given.
        ValueError: history is not an int >= 0.
    """
    if dim is not None:
        raise NotImplementedError("markov(dim=...) is not implemented: leave dim out")
    messenger = MarkovMessenger(history=history, keep=keep, name=name)
    if fn is None:
        return messenger
    if not callable(fn):
        return messenger.generator(iterable=fn)
    return messenger(fn)
