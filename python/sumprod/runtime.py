"""The handler stack: how a primitive statement reaches the effect handlers around it.

A primitive (`sample`, `param`, ...) describes what it wants done in a *message*, a plain dict with
the keys of `Message`, and sends it through the stack with `apply_stack`:

1. from the innermost handler outwards, each handler's `_process_message` may change the message;
   a handler that sets `stop` hides it from the handlers further out;
2. unless a handler has done the work, the default behaviour calls `fn`;
3. from the outermost handler reached back inwards, each handler's `_postprocess_message` sees the
   finished message; then `continuation` runs, if a handler has set one.

The stack and the allocator of plate dims belong to the running thread: two threads can run two
programs at once.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypedDict, TypeVar, overload

from sumprod._enum_allocator import enum_allocator
from sumprod.errors import describe_site
from sumprod.params.param_store import PARAM_STORE

if TYPE_CHECKING:
    from types import TracebackType

    import torch

P = ParamSpec("P")
T = TypeVar("T")


class Message(TypedDict, total=False):
    """What a primitive asks of the handlers, and what they answered; in a trace, a site.

    Handlers and custom losses read and write these keys of a plain dict.
    """

    type: str  # "sample", "param", "subsample", "get_mask", ...; selects the handlers' methods
    name: str  # unique within one run of the program
    fn: Any  # a distribution, or any callable of args and kwargs
    is_observed: bool  # the value is data
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any  # None until known
    infer: dict[str, Any]  # options for inference; owned by this message
    scale: float | torch.Tensor  # factor of the log-density; plates and `scale` multiply it
    mask: bool | torch.Tensor | None  # where the log-density counts; None: everywhere
    cond_indep_stack: tuple[Any, ...]  # frames of the enclosing plates, outermost first
    done: bool  # a handler has supplied the value: do not call fn
    stop: bool  # handlers further out do not see the message
    continuation: Callable[[Any], None] | None  # runs last
    # Added by Trace.compute_log_prob and its kin:
    log_prob: torch.Tensor  # scaled and masked, of the batch shape
    log_prob_sum: torch.Tensor
    unscaled_log_prob: torch.Tensor  # neither scaled nor masked
    score_parts: Any
    packed: dict[str, Any]  # log-densities with named dims


class Handler(Protocol):
    """What the stack needs of a handler; `sumprod.handlers.messenger.Messenger` is the base class."""

    def _process_message(self, msg: Any) -> None: ...
    def _postprocess_message(self, msg: Any) -> None: ...
    def _reset(self) -> None: ...
    def _hides(self, msg: Any) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None: ...


class DimAllocator:
    """Gives each vectorised plate a batch dim of its own, counted from the right."""

    def __init__(self) -> None:
        self._names: list[str | None] = []  # of the plates at dims -1, -2, ...

    def allocate(self, name: str, dim: int | None) -> int:
        """The dim for plate `name`: `dim`, or the rightmost free one.

        Raises:
            ValueError: the plate is entered already, or `dim` is taken or not negative.
        """
        names = self._names
        if name in names:
            raise ValueError(
                f"duplicate plate '{name}': it is entered already; give the inner plate another name"
            )
        if dim is None:
            dim = -1 - names.index(None) if None in names else -1 - len(names)
        elif dim >= 0:
            raise ValueError(f"Expected dim < 0 to index from the right, actual {dim} at plate '{name}'")
        names.extend([None] * (-dim - len(names)))
        holder = names[-1 - dim]
        if holder is not None:
            raise ValueError(
                f"at plates '{name}' and '{holder}', collide at dim={dim}\n"
                "Give one of the two plates another dim, or leave dim out"
            )
        names[-1 - dim] = name
        return dim

    def leftmost(self) -> tuple[int, str] | None:
        """The leftmost plate: its dim and name; None outside of plates."""
        names = self._names
        return (-len(names), names[-1]) if names and names[-1] is not None else None

    def free(self, name: str, dim: int) -> None:
        """Give the dim of plate `name` back."""
        self._names[-1 - dim] = None
        while self._names and self._names[-1] is None:
            self._names.pop()


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.stack: list[Handler] = []  # outermost first
        self.dims = DimAllocator()


_STATE = _ThreadState()


def handler_stack() -> list[Handler]:
    """The handlers of this thread, outermost first. The list itself: entering a handler appends."""
    return _STATE.stack


def dim_allocator() -> DimAllocator:
    """The allocator of plate dims of the running thread."""
    return _STATE.dims


def __getattr__(name: str) -> Any:
    """Read access to the names under which third-party code finds this state."""
    if name == "_PYRO_STACK":
        return _STATE.stack
    if name == "_DIM_ALLOCATOR":
        return _STATE.dims
    if name == "_ENUM_ALLOCATOR":
        return enum_allocator()
    if name == "_PYRO_PARAM_STORE":
        return PARAM_STORE
    raise AttributeError(f"module 'sumprod.runtime' has no attribute '{name}'")


class NonlocalExit(Exception):
    """Leave the running program at `site`; the catcher calls `reset_stack`, then goes on elsewhere."""

    def __init__(self, site: Any, *args: object) -> None:
        super().__init__(site, *args)
        self.site = site

    def reset_stack(self) -> None:
        """Reset the handlers that saw the site, innermost first, up to one that hides it."""
        for handler in reversed(_STATE.stack):
            handler._reset()
            if handler._hides(self.site):
                break


def am_i_wrapped() -> bool:
    """Whether any handler is active in this thread."""
    return bool(_STATE.stack)


def default_process_message(msg: Any) -> None:
    """Call `fn`, unless a handler has done the work or a value is there."""
    if not (msg["done"] or msg["is_observed"] or msg["value"] is not None):
        msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
    msg["done"] = True


def apply_stack(initial_msg: Any) -> Any:
    """Send a message through the handlers of this thread and return it, finished.

    An error on the way gets the site's name and plates as the attributes `site` and `plates` and in
    its text, and keeps its class.
    """
    msg = initial_msg
    stack = _STATE.stack
    outermost = 0
    try:
        for position in range(len(stack) - 1, -1, -1):
            stack[position]._process_message(msg)
            if msg["stop"]:
                outermost = position
                break
        # A copy: a program run by fn or by a handler's hook may enter and leave handlers.
        visited = stack[outermost:]
        default_process_message(msg)
        for handler in visited:
            handler._postprocess_message(msg)
        continuation = msg["continuation"]
        if continuation is not None:
            continuation(msg)
    except (ValueError, TypeError, RuntimeError, LookupError) as error:
        describe_site(error, msg)
        raise
    return msg


def new_message(
    type: str,
    name: str | None,
    fn: Callable[..., Any] | None,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    value: Any = None,
    is_observed: bool = False,
    infer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A message with every key that handlers rely on. `infer` is kept, not copied."""
    return {
        "type": type,
        "name": name,
        "fn": fn,
        "is_observed": is_observed,
        "args": args,
        "kwargs": {} if kwargs is None else kwargs,
        "value": value,
        "scale": 1.0,
        "mask": None,
        "cond_indep_stack": (),
        "done": False,
        "stop": False,
        "continuation": None,
        "infer": {} if infer is None else infer,
    }


@overload
def effectful(fn: Callable[P, T], type: str) -> Callable[P, T]: ...
@overload
def effectful(fn: None = None, type: str | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def effectful(fn: Callable[..., Any] | None = None, type: str | None = None) -> Callable[..., Any]:
    """Make a function a primitive: under handlers, a call becomes a message of the given type.

    The wrapped function takes the extra keywords `name` (of the site), `infer` and `obs`, which go to
    the message and not to the function. A new type is handled by methods `_pyro_TYPE` and
    `_pyro_post_TYPE` of handlers.

    Raises:
        ValueError: no type was given, or the type is "message".
    """
    if fn is None:
        return functools.partial(effectful, type=type)
    if type is None:
        raise ValueError(f"effectful({fn!r}) needs the type of its messages: effectful(fn, type='name')")
    if type == "message":
        raise ValueError("the type 'message' is taken: handlers' methods of that name see every message")
    if getattr(fn, "_is_effectful", False):
        return fn

    @functools.wraps(fn)
    def primitive(*args: Any, **kwargs: Any) -> Any:
        name = kwargs.pop("name", None)
        infer = kwargs.pop("infer", None)
        value = kwargs.pop("obs", None)
        if not _STATE.stack:
            return fn(*args, **kwargs) if value is None else value
        msg = new_message(
            type,
            name,
            fn,
            args,
            kwargs,
            value=value,
            is_observed=value is not None,
            infer={} if infer is None else dict(infer),
        )
        return apply_stack(msg)["value"]

    primitive._is_effectful = True  # type: ignore[attr-defined]
    return primitive


def _inspect() -> dict[str, Any]:
    """What a site at this point would get from the handlers around it."""
    return apply_stack(new_message("inspect", "_pyro_inspect", lambda: True))  # type: ignore[no-any-return]


def get_mask() -> bool | torch.Tensor | None:
    """The mask that handlers would put on a sample site here; None when there is none.

    A program can skip work where the mask is False.
    """
    mask: bool | torch.Tensor | None = _inspect()["mask"]
    return mask


def get_plates() -> tuple[Any, ...]:
    """The frames of the plates entered here, outermost first."""
    frames: tuple[Any, ...] = _inspect()["cond_indep_stack"]
    return frames
