"""Run a program over all values of its discrete variables at once, each along a tensor dim of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from types import TracebackType
from typing import Any, NamedTuple

import torch

from sumprod._enum_allocator import Iteration, enum_allocator
from sumprod.distributions import Categorical
from sumprod.distributions._support import is_whole_support, mark_as_support
from sumprod.distributions.torch_distribution import TorchDistributionMixin
from sumprod.handlers._scope_check import ScopeCheck, Sight, check_dependence, scope_check
from sumprod.handlers.messenger import Messenger, make_handler
from sumprod.runtime import NonlocalExit

# Ends of so many chains stay visible to sites after them; a bound on the number of dims in use.
MAX_CHAIN_ENDS = 8
# From so many variables outside chains on, those inside sequential plates share dims between iterations.
MANY = 40


class _Seen(NamedTuple):
    """What is kept of a site for those after it."""

    dims: dict[int, int]  # along which its value really varies -> id of the variable
    iteration: Iteration  # of the sequential plates around it


class EnumMessenger(Messenger):
    """Enumerate the latent sites marked `infer={"enumerate": "parallel"}`.

    The site's value becomes its whole support, along a new dim left of all plates, with size 1 along the
    other dims (unless `infer["expand"]`). With `infer["num_samples"]` greater than 1 the value is that
    many independent draws along the new dim instead, one for each combination of the variables that the
    site depends on.

    A site outside `markov` gets a dim that no later site reuses. A site inside gets the rightmost dim that
    no variable visible from it occupies, so that a chain alternates between a few dims. The last contexts
    of a chain stay visible after it. Each variable has an id; ids, not dims, tell variables apart. From 40
    variables on, those in sequential plates are visible in their own iteration only.

    Sites get `infer["_enumerate_dim"]` (enumerated ones), and `infer["_dim_to_id"]`: which variables the
    dims of their densities may belong to.

    Args:
        first_available_dim: the dim of the first variable, left of all plates; None: go on to the left of
            all variables enumerated so far, as in a model that runs after its guide.

    Raises:
        ValueError: `first_available_dim` is not negative or is infinite; (while running) the site depends
            on a variable that is no longer visible, a plate occupies the dim, or more variables are visible
            than a tensor has dims.
        NotImplementedError: (while running) a marked site's distribution cannot be enumerated.

    >>> import torch, sumprod
    >>> from sumprod.distributions import Categorical
    >>> with sumprod.handlers.enum(first_available_dim=-1):
    ...     z = sumprod.sample("z", Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
    ...     x = sumprod.sample("x", Categorical(torch.ones(3, 2)[z]), infer={"enumerate": "parallel"})
    >>> z.shape, x.shape
    (torch.Size([3]), torch.Size([2, 1]))
    """

    def __init__(self, first_available_dim: int | None = None) -> None:
        super().__init__()
        if first_available_dim is not None:
            if math.isinf(first_available_dim):
                raise ValueError("max_plate_nesting must be set to a finite value for parallel enumeration")
            if int(first_available_dim) != first_available_dim or first_available_dim >= 0:
                raise ValueError(
                    f"Expected first_available_dim < 0 to index from the right, got {first_available_dim!r}"
                )
            first_available_dim = int(first_available_dim)
        self.first_available_dim = first_available_dim
        self._replayed: Container[str] = ()  # sites that get their values from elsewhere
        self._vectorizes = True  # whether the steps of vectorized_markov may run at once
        self._checked = False  # whether calls look for dependences on variables out of sight
        self._check: ScopeCheck | None = None
        self._spread: int | None = None  # number of the run, if its dims are spread
        self._reset()

    def _call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self._checked and self._check is None:
            # Once: when a guide is run branch by branch, a branch goes on with values of earlier ones.
            self._check = scope_check(fn, args, kwargs)
            self._spread = self._check.begin()
        return super()._call(fn, *args, **kwargs)

    def __enter__(self) -> Any:
        allocator = enum_allocator()
        if self.first_available_dim is None:
            allocator.continue_to_the_left()
        else:
            allocator.set_first_available_dim(self.first_available_dim)
        self._reset()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._check is not None:
            if kind is None:
                self._check.end(self._new, self._spread is not None)
            elif not issubclass(kind, NonlocalExit):
                self._check.fail()
        return super().__exit__(kind, error, traceback)

    def _reset(self) -> None:
        self._new: list[Sight] = []  # what `_check` does not know yet
        # What each site may depend on, its iteration of sequential plates, and in how many chains it is.
        # A replayed site's `infer` becomes that of another program, which may have other chains.
        self._upstream: dict[str, tuple[dict[int, int], Iteration, int]] = {}
        self._seen: dict[str, _Seen] = {}
        self._levels: dict[str, int] = {}  # in how many open chains a site inside chains is
        self._ends: list[str] = []  # sites at the ends of closed chains, outside all open ones

    # ---- what a site may depend on

    def _visible_dims(self, msg: Any, iteration: Iteration) -> dict[int, int]:
        visible = enum_allocator().visible(iteration)
        seen, levels = self._seen, self._levels
        for name in self._ends:
            end = seen[name]
            if end.dims and not (iteration and _differ(end.iteration, iteration)):
                visible.update(end.dims)
        scope = msg["infer"].get("_markov_scope")
        if scope:
            for name, count in scope.items():
                # A different count: the site is in an inner chain that has been left.
                if levels.get(name) == count and (dims := seen[name].dims):
                    visible.update(dims)
        return visible

    def _close_chain(self, names: list[str], depth: int) -> None:
        """A chain, `depth` chains deep, has been left; these sites are in its last contexts."""
        last = [name for name in names if self._levels.get(name) == depth]
        for name in last:
            self._levels[name] = depth - 1
        if depth == 1 and last:
            iteration = self._seen[last[-1]].iteration
            kept = [name for name in self._ends if not _differ(self._seen[name].iteration, iteration)]
            self._ends = (kept + last)[-MAX_CHAIN_ENDS:]

    # ---- messages

    def _chain_mode(self) -> str | None:
        """How loops of `vectorized_markov` are to run."""
        return "enumerated" if self._vectorizes else None

    def _pyro_sample(self, msg: Any) -> None:
        fn, name, infer = msg["fn"], msg["name"], msg["infer"]
        if "_auxiliary" in infer:
            msg["stop"] = True  # its variable is all that is wanted of it
        if not isinstance(fn, TorchDistributionMixin):
            return
        iteration = _iteration(msg)
        upstream = self._visible_dims(msg, iteration)
        self._upstream[name] = upstream, iteration, infer.get("_markov_depth", 0)
        if self._check is not None:
            sight = name, tuple(upstream.values())
            if not self._check.is_known(sight):
                self._new.append(sight)
        if (
            infer.get("enumerate") != "parallel"
            or msg["done"]
            or msg["is_observed"]
            or msg["value"] is not None
            or name in self._replayed
        ):
            return
        count = infer.get("num_samples")
        if count == 1:
            return  # an ordinary draw
        if count is None and not fn.has_enumerate_support:
            raise NotImplementedError(
                f"site '{name}' is marked for parallel enumeration, but {type(fn).__name__} cannot be"
                " enumerated: it does not implement enumerate_support. Mark it infer={'enumerate': None}"
            )
        taken = set(upstream)
        for other in infer.get("_markov_kept", ()):
            if other in self._seen:
                taken.update(self._seen[other].dims)
        if iteration and self._ends:
            # Chains of other iterations are out of sight here, so that the new variable may get their dims.
            self._ends = [one for one in self._ends if not _differ(self._seen[one].iteration, iteration)]
        allocator = enum_allocator()
        dim, number = allocator.allocate(name, taken, self._spread)
        _check_free(msg, dim)
        if "_markov_depth" not in infer:
            allocator.keep(dim, number, iteration if len(allocator.dim_to_id) >= MANY else ())
        if count is None:
            values = _support(fn, dim, expand=bool(infer.get("expand")))
        else:
            values = _move_support(fn(sample_shape=torch.Size((count,))), dim, fn)
        infer["_enumerate_dim"] = dim
        known = infer["_dim_to_id"] = {**upstream, dim: number}
        self._upstream[name] = known, iteration, infer.get("_markov_depth", 0)
        msg["value"] = values
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        name, infer = msg["name"], msg["infer"]
        if name not in self._upstream:
            return
        upstream, iteration, depth = self._upstream[name]
        # A new dict: a replayed site shares its own with the trace it comes from.
        known = infer.get("_dim_to_id")
        dim_to_id = infer["_dim_to_id"] = (
            upstream if known is None or known is upstream else {**upstream, **known}
        )
        dims: dict[int, int] = {}
        shape = getattr(msg["value"], "shape", ())
        if dim_to_id and shape:
            event_dim = len(msg["fn"]._event_shape)
            rank = len(shape) - event_dim
            for dim, number in dim_to_id.items():
                if rank >= -dim and shape[dim - event_dim] > 1:
                    dims[dim] = number
        if self._spread is not None:
            check_dependence(msg, dim_to_id, enum_allocator().owners)
        self._seen[name] = _Seen(dims, iteration)
        if depth:
            self._levels[name] = depth


def _iteration(msg: Any) -> Iteration:
    if not msg["cond_indep_stack"]:
        return ()
    return tuple((frame.name, frame.counter) for frame in msg["cond_indep_stack"] if frame.dim is None)


def _differ(one: Iteration, other: Iteration) -> bool:
    """Whether two sites are in different iterations of one sequential plate."""
    counters = dict(other)
    return any(counters.get(name, counter) != counter for name, counter in one)


def _check_free(msg: Any, dim: int) -> None:
    """Raise unless no batch dim of the site's distribution and no plate is where its variable goes."""
    for frame in msg["cond_indep_stack"]:
        if frame.dim is not None and frame.dim <= dim:
            raise ValueError(
                f"Enumeration dim conflict at site '{msg['name']}': its variable would get dim {dim}, but"
                f" plate '{frame.name}' is at dim {frame.dim}, and enumeration goes left of all plates. Use"
                f" first_available_dim={frame.dim - 1} (max_plate_nesting={-frame.dim}) or less"
            )
    batch_shape = msg["fn"].batch_shape
    if len(batch_shape) >= -dim and batch_shape[dim] != 1:
        raise ValueError(
            f"Enumeration dim conflict at site '{msg['name']}': dim {dim} of the batch shape"
            f" {tuple(batch_shape)} belongs to a variable that the site may not depend on any more, or to no"
            " plate\nTry increasing pyro.markov history size"
        )


def _support(fn: Any, dim: int, expand: bool) -> torch.Tensor:
    """All values of a distribution along batch dim `dim`."""
    if type(fn) is Categorical and not expand:
        return fn._support_along(dim)  # the same, in half as many operators
    return _move_support(fn.enumerate_support(expand=expand), dim, fn)


def _move_support(values: torch.Tensor, dim: int, fn: Any) -> torch.Tensor:
    """Values along the leftmost dim, moved to batch dim `dim`."""
    event_shape = tuple(fn._event_shape)
    batch = tuple(values.shape[1 : values.dim() - len(event_shape)])
    missing = -dim - 1 - len(batch)
    if missing >= 0:
        if missing == 0:
            return values
        moved = values.reshape(values.shape[:1] + (1,) * missing + batch + event_shape)
    elif all(size == 1 for size in batch):
        moved = values.reshape(values.shape[:1] + (1,) * (-dim - 1) + event_shape)
    else:
        # Batch dims left of the variable's: they belong to variables that the site depends on.
        moved = values.transpose(0, dim - len(event_shape)).squeeze(0)
    return mark_as_support(moved) if is_whole_support(values, len(values)) and _is_column(moved) else moved


def _is_column(values: torch.Tensor) -> bool:
    return values.dim() == 1 or values.numel() == values.shape[0]


enum = make_handler(EnumMessenger)
EnumerateMessenger = EnumMessenger
