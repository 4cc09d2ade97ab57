"""Record the sites of a run."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

from sumprod.errors import add_detail
from sumprod.handlers.messenger import BoundHandler, Messenger, make_handler
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import site_is_subsample


class TraceMessenger(Messenger):
    """Record the sample and param sites of a program.

    Args:
        graph_type: "flat" (default), or "dense" to add an edge from every earlier sample site to every
            later one, except between different iterations of a sequential plate.
        param_only: record only param sites.

    >>> import torch, sumprod
    >>> from sumprod.distributions import Normal
    >>> with sumprod.handlers.trace() as recorder:
    ...     x = sumprod.sample("x", Normal(0., 1.))
    >>> recorder.trace.nodes["x"]["value"] is x
    True
    """

    def __init__(
        self, graph_type: Literal["flat", "dense"] | None = None, param_only: bool | None = None
    ) -> None:
        super().__init__()
        self.graph_type: str = "flat" if graph_type is None else graph_type
        self.param_only = bool(param_only)
        self.trace = Trace(self.graph_type)

    def __enter__(self) -> TraceMessenger:
        self.trace = Trace(self.graph_type)
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self.graph_type == "dense" and error is None:
            add_dense_edges(self.trace)
        return super().__exit__(kind, error, traceback)

    def __call__(self, fn: Callable[..., Any]) -> TraceHandler:
        super().__call__(fn)  # checks that it is callable
        return TraceHandler(self, fn)

    def get_trace(self) -> Trace:
        """A copy of the trace recorded last; its sites are shared."""
        return self.trace.copy()

    def _reset(self) -> None:
        arguments = self.trace.nodes.get("_INPUT")
        self.trace = Trace(self.graph_type)
        if arguments is not None:
            self.trace.add_node("_INPUT", **arguments)

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.param_only or msg["infer"].get("_do_not_trace"):
            return
        self.trace._append(msg["name"], msg.copy())

    def _pyro_post_param(self, msg: Any) -> None:
        self.trace._append(msg["name"], msg.copy())


class TraceHandler:
    """A function together with a recorder: calling it runs the function and keeps the trace.

    Attributes:
        trace: the trace of the last call.
    """

    def __init__(self, messenger: TraceMessenger, fn: Callable[..., Any]) -> None:
        self.msngr = messenger
        self.fn = fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function and return what it returns."""
        with self.msngr:
            ends = not self.msngr.param_only
            if ends:
                self.msngr.trace.add_node("_INPUT", name="_INPUT", type="args", args=args, kwargs=kwargs)
            try:
                value = self.fn(*args, **kwargs)
            except (ValueError, RuntimeError) as error:
                # Once: an outer trace around this one would show the same sites again.
                if not hasattr(error, "shapes"):
                    table = self.msngr.trace.format_shapes()
                    error.shapes = table  # type: ignore[union-attr]
                    add_detail(error, table)
                raise
            if ends:
                # Of the run that has completed: sequential enumeration leaves some halfway.
                self.msngr.trace.add_node("_RETURN", name="_RETURN", type="return", value=value)
        return value

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else BoundHandler(self, instance)

    @property
    def trace(self) -> Trace:
        """The trace of the last call."""
        return self.msngr.trace

    def get_trace(self, *args: Any, **kwargs: Any) -> Trace:
        """Run the function and return the trace; its node `_RETURN` has the function's value."""
        self(*args, **kwargs)
        return self.msngr.get_trace()


def add_dense_edges(trace: Trace) -> None:
    """Add an edge between two sample sites unless a sequential plate makes them independent."""
    earlier: list[tuple[str, Any]] = []
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        for before, before_site in earlier:
            if not _independent(before_site, site):
                trace.add_edge(before, name)
        earlier.append((name, site))


def _independent(first: Any, second: Any) -> bool:
    """Whether two sites are in different iterations of one sequential plate."""
    counters = {frame.name: frame.counter for frame in first["cond_indep_stack"] if frame.dim is None}
    return any(
        frame.dim is None and counters.get(frame.name, frame.counter) != frame.counter
        for frame in second["cond_indep_stack"]
    )


trace = make_handler(TraceMessenger)
identify_dense_edges = add_dense_edges
