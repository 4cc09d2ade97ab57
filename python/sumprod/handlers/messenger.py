"""The base class of effect handlers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from sumprod.runtime import handler_stack

T = TypeVar("T")
H = TypeVar("H", bound="Messenger")

# "sample" -> ("_pyro_sample", "_pyro_post_sample"): two handler methods per message and handler are
# looked up by name, so the names are put together once.
_METHOD_NAMES: dict[str, tuple[str, str]] = {}


def _method_names(type: str) -> tuple[str, str]:
    names = (f"_pyro_{type}", f"_pyro_post_{type}")
    _METHOD_NAMES[type] = names
    return names


class BoundHandler(functools.partial):  # type: ignore[type-arg]
    """A function wrapped by a handler; as a class attribute it binds `self` as a function does."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)


class Messenger:
    """An effect handler: sees every message that primitives send while it is active.

    Subclasses define `_pyro_TYPE(msg)` (before the default behaviour, innermost handler first) and
    `_pyro_post_TYPE(msg)` (after it, outermost first) for the types of message they care about.
    Works as a context manager, as a decorator, and called on a function.
    """

    # Whether handlers further out may close before this one does.
    _may_stay_open = False
    # Whether messages must say which sites a site may depend on (`markov`). A class that does not look sets
    # False; that does not count for its subclasses, which may look.
    _reads_scope = True

    def __call__(self, fn: Callable[..., Any]) -> Any:
        """`fn`, run inside this handler."""
        if not callable(fn):
            raise ValueError(
                f"{fn!r} is not callable, did you mean to pass it as a keyword arg?"
                f" {type(self).__name__} wraps a function"
            )
        wrapped = BoundHandler(self._call, fn)
        functools.update_wrapper(wrapped, fn, updated=())
        return wrapped

    def _call(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        with self:
            return fn(*args, **kwargs)

    def __enter__(self) -> Any:
        stack = handler_stack()
        for handler in stack:
            if handler is self:
                raise ValueError(
                    f"cannot install a Messenger instance twice: {self!r} is active already;"
                    " make a new one for each use"
                )
        stack.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        stack = handler_stack()
        if stack and stack[-1] is self:
            stack.pop()
            return None
        position = next((i for i, handler in enumerate(stack) if handler is self), None)
        inner = [] if position is None else stack[position + 1 :]
        if kind is None and not (inner and all(getattr(one, "_may_stay_open", False) for one in inner)):
            found = "which is not active" if position is None else "inside which others are still active"
            raise ValueError(
                f"cannot leave {self!r}, {found}: handlers close in the reverse order of opening"
            )
        # After an exception, this handler and what was opened inside it go.
        if position is not None:
            for one in inner:
                one._reset()
            del stack[position:]
        return None

    def _reset(self) -> None:
        """Forget what this run of the program has left behind; called when a run is abandoned."""

    def _hides(self, msg: Any) -> bool:
        """Whether handlers further out do not see the message."""
        return False

    def _process_message(self, msg: Any) -> None:
        names = _METHOD_NAMES.get(msg["type"]) or _method_names(msg["type"])
        method = getattr(self, names[0], None)
        if method is not None:
            method(msg)

    def _postprocess_message(self, msg: Any) -> None:
        names = _METHOD_NAMES.get(msg["type"]) or _method_names(msg["type"])
        method = getattr(self, names[1], None)
        if method is not None:
            method(msg)

    @classmethod
    def register(
        cls, fn: Callable[..., Any] | None = None, type: str | None = None, post: bool | None = None
    ) -> Any:
        """Add a method for messages of a type to this class; usable as a decorator.

        Raises:
            ValueError: no type was given.
        """
        if fn is None:
            return functools.partial(cls.register, type=type, post=post)
        if type is None:
            raise ValueError(f"{cls.__name__}.register({fn!r}) needs the type of the messages: type='sample'")
        setattr(cls, _method_names(type)[1 if post else 0], staticmethod(fn) if _takes_one(fn) else fn)
        cls._reads_scope = True  # this function may
        return fn

    @classmethod
    def unregister(cls, fn: Callable[..., Any] | None = None, type: str | None = None) -> Any:
        """Remove what `register` has added for a type; usable as a decorator.

        Raises:
            ValueError: no type was given.
        """
        if type is None:
            raise ValueError(f"{cls.__name__}.unregister needs the type of the messages: type='sample'")
        for name in _method_names(type):
            if name in vars(cls):
                delattr(cls, name)
        return fn


def _takes_one(fn: Callable[..., Any]) -> bool:
    """Whether a registered operation is a function of the message alone."""
    code = getattr(fn, "__code__", None)
    return code is not None and code.co_argcount == 1


class ReentrantMessenger(Messenger):
    """A handler that may be entered while it is active; the inner entries only count."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def __enter__(self) -> Any:
        if self._depth == 0:
            super().__enter__()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        # A reset, by an abandoned run, has counted down to zero before the blocks close one by one.
        self._depth = max(self._depth - 1, 0)
        return super().__exit__(kind, error, traceback) if self._depth == 0 else None

    def _reset(self) -> None:
        self._depth = 0


def unwrap(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside any handlers, bound handlers and partial applications around it."""
    while True:
        if isinstance(fn, BoundHandler):
            fn = fn.args[0]
        elif isinstance(fn, functools.partial):
            fn = fn.func
        elif callable(inner := getattr(fn, "fn", None)):
            fn = inner
        else:
            return fn


@contextmanager
def block_messengers(predicate: Callable[[Messenger], bool]) -> Iterator[list[Any]]:
    """Take the active handlers for which the predicate holds out of the stack; yields them."""
    stack = handler_stack()
    before = list(stack)
    blocked: list[Any] = [handler for handler in before if predicate(handler)]  # type: ignore[arg-type]
    stack[:] = [handler for handler in before if handler not in blocked]
    inside = len(stack)
    try:
        yield blocked
    finally:
        stack[:inside] = before


def make_handler(messenger: Callable[..., H]) -> Callable[..., Any]:
    """The function under which users know a handler: `h(fn, ...)`, `h(...)` as decorator or in `with`."""

    @functools.wraps(messenger, updated=())
    def handler(fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        if fn is not None and not callable(fn):
            raise ValueError(
                f"{fn!r} is not callable, did you mean to pass it as a keyword arg?"
                f" The first argument of {handler.__name__} is the function to wrap"
            )
        active = messenger(*args, **kwargs)
        return active if fn is None else active(fn)

    return handler
