"""Conditionally independent replicates of a part of a program."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from types import TracebackType
from typing import Any

import numpy as np
import torch

from sumprod.handlers.broadcast import broadcast_to_frame
from sumprod.handlers.indep import CondIndepStackFrame
from sumprod.handlers.messenger import Messenger
from sumprod.handlers.subsample import SubsampleIndices
from sumprod.runtime import apply_stack, dim_allocator, handler_stack, new_message


class PlateMessenger(Messenger):
    """Sites inside are independent given those outside, over `size` replicates.

    Vectorised, `with plate("data", n) as index:` owns one batch dim, to which the sites inside are
    expanded. Sequential, `for i in plate("data", n):` runs its body once per replicate. Also a
    decorator (vectorised).

    With a subsample, the sites inside stand for all `size` replicates: their log-densities are scaled
    by size / subsample_size. A random subset is drawn when the object is made, by a hidden sample site
    of the plate's name, so that a guide's subset reaches the model through `replay`; one object
    entered twice has the same subset.

    Args:
        name: unique among the plates around and the sample sites of a run.
        size: number of replicates; None: unknown, which allocates a dim but neither scales nor expands.
        subsample_size: how many of them to use, drawn without replacement.
        subsample: which of them to use: anything with a length.
        dim: the negative batch dim; None: the rightmost that is free.
        use_cuda, device: where the indices live.

    Attributes:
        indices: int64 tensor of the replicates in use; None when the size is unknown.

    Raises:
        ZeroDivisionError: size is 0.
        ValueError: `subsample_size` is not the length of `subsample`; `dim` is not negative or taken.

    >>> import torch, sumprod
    >>> from sumprod.distributions import Normal
    >>> with sumprod.plate("data", 3):
    ...     x = sumprod.sample("x", Normal(torch.zeros(3), 1.))
    >>> x.shape
    torch.Size([3])
    """

    _reads_scope = False

    def __init__(
        self,
        name: str,
        size: int | None = None,
        subsample_size: int | None = None,
        subsample: Any = None,
        dim: int | None = None,
        use_cuda: bool | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        if dim is not None and dim >= 0:
            raise ValueError(f"Expected dim < 0 to index from the right, actual {dim} at plate '{name}'")
        self.name = name
        self.dim = dim
        self.counter = 0  # of the running iteration, from 1, in a sequential plate
        self._vectorized: bool | None = None  # None: not used yet
        self._frame: CondIndepStackFrame | None = None  # while active
        if size is None:
            if subsample_size is not None or subsample is not None:
                raise ValueError(f"plate '{name}' needs its size to subsample: plate(name, size, ...)")
            self.size, self.subsample_size, self.indices = -1, -1, None
            return
        if size == 0:
            raise ZeroDivisionError(f"plate '{name}' has size 0: leave the plate out when there is no data")
        if size < 0:
            raise ValueError(f"Expected size > 0, got {size} at plate '{name}'")
        self.size = size
        self.indices = _draw(name, size, subsample_size, subsample, use_cuda, device)
        self.subsample_size = len(self.indices)

    def __enter__(self) -> Any:
        self._use(vectorized=True)
        self.dim = dim_allocator().allocate(self.name, self.dim)
        self._frame = CondIndepStackFrame(self.name, self.dim, self.subsample_size, 0, self.size)
        super().__enter__()
        return self.indices

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._release()
        return super().__exit__(kind, error, traceback)

    def __iter__(self) -> Iterator[int]:
        self._use(vectorized=False)
        if self.indices is None:
            raise ValueError(f"plate '{self.name}' needs a size to be looped over: plate(name, size)")
        self.dim = None
        numbers = self.indices.tolist() if isinstance(self.indices, torch.Tensor) else self.indices
        super().__enter__()
        try:
            for self.counter, number in enumerate(numbers, 1):
                self._frame = CondIndepStackFrame(
                    self.name, None, self.subsample_size, self.counter, self.size
                )
                yield number
        finally:
            self._release()
            # As after an exception: handlers that a `break` left open inside close too.
            super().__exit__(GeneratorExit, None, None)

    def _use(self, vectorized: bool) -> None:
        if self._vectorized is not None and self._vectorized != vectorized:
            raise ValueError(
                f"cannot use plate '{self.name}' as both vectorized and non-vectorized independence"
                " context: make a second plate"
            )
        self._vectorized = vectorized

    def _release(self) -> None:
        """Give the dim back, once."""
        frame, self._frame, self.counter = self._frame, None, 0
        if frame is not None and frame.dim is not None:
            dim_allocator().free(self.name, frame.dim)

    def _reset(self) -> None:
        self._release()

    def _process_message(self, msg: Any) -> None:
        frame = self._frame
        if frame is None:
            return
        msg["cond_indep_stack"] = (frame, *msg["cond_indep_stack"])
        if self.subsample_size != self.size:
            msg["scale"] = msg["scale"] * (self.size / self.subsample_size)
        broadcast_to_frame(msg, frame)

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "param":
            event_dim = msg["kwargs"].get("event_dim")
            if event_dim is not None:
                value = self._select(msg, f"pyro.param({msg['name']!r})", event_dim)
                if value is not msg["value"]:
                    value.unconstrained = msg["value"].unconstrained
                    msg["value"] = value
        elif msg["type"] == "subsample":
            event_dim = msg["kwargs"]["event_dim"]
            msg["value"] = self._select(msg, "pyro.subsample(...)", event_dim)

    def _select(self, msg: Any, what: str, event_dim: int) -> Any:
        """The entries of a full-size value that belong to the subsample."""
        value, frame = msg["value"], self._frame
        if frame is None or frame.dim is None or self.subsample_size == self.size:
            return value
        dim = frame.dim - event_dim
        if value.dim() < -dim or value.shape[dim] == 1:
            return value
        if value.shape[dim] != self.size:
            raise ValueError(
                f"invalid shape of {what}: expected size {self.size} (or 1) at dim {dim}, for plate"
                f" '{self.name}' at dim {frame.dim} with event_dim={event_dim}, got {tuple(value.shape)}"
            )
        index = torch.as_tensor(self.indices, device=value.device)
        return value.index_select(dim, index)


def _draw(
    name: str, size: int, subsample_size: int | None, subsample: Any, use_cuda: bool | None, device: Any
) -> Any:
    """The plate's indices: given, or drawn by a sample site that handlers see."""
    if subsample is not None:
        if not isinstance(subsample, Sized):
            raise TypeError(f"Expected subsample of plate '{name}' to have a length, got {subsample!r}")
        if subsample_size is not None and subsample_size != len(subsample):
            raise ValueError(
                f"subsample_size does not match len(subsample), {subsample_size} vs {len(subsample)},"
                f" at plate '{name}': give only one of them"
            )
        if isinstance(subsample, list | tuple | range | np.ndarray):
            subsample = torch.as_tensor(np.asarray(subsample, dtype=np.int64), device=device)
    elif subsample_size is not None and subsample_size < 1:
        raise ValueError(f"Expected subsample_size > 0, got {subsample_size} at plate '{name}'")
    sampler = SubsampleIndices(size, subsample_size, use_cuda, device)
    if not handler_stack():
        return sampler() if subsample is None else subsample
    return apply_stack(new_message("sample", name, sampler, value=subsample))["value"]


plate = PlateMessenger
# Names under which third-party code knows parts of what is one class here.
IndepMessenger = PlateMessenger
SubsampleMessenger = PlateMessenger
_Subsample = SubsampleIndices
