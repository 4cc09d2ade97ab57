"""The base class of losses that bound the evidence from below, and their module form.

A loss runs guide and model `num_particles` times, or once with all particles in an extra outermost
plate, and combines the log-densities of the recorded sites. Subclasses say how one pair of traces is
made (`_get_trace`) and what is computed from it.
"""

from __future__ import annotations

import math
import operator
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from sumprod._program_memory import ProgramMemory
from sumprod._random import get_rng_state, set_rng_state
from sumprod.errors import add_detail
from sumprod.handlers.messenger import BoundHandler, Messenger
from sumprod.infer._calling import call_method, either_convention
from sumprod.infer._nesting import deepest_plate, try_nesting
from sumprod.primitives import plate

__all__ = ["ELBO", "ELBOModule"]

Program = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]

PARTICLE_PLATE = "num_particles_vectorized"


class ELBOModule(torch.nn.Module):
    """A loss together with the model and guide it is for, as a module: `forward` is the differentiable loss.

    The parameters of a model and a guide that are modules are those of this module.

    Args:
        model: the model.
        guide: the guide.
        elbo: the loss.
    """

    def __init__(self, model: Program, guide: Program, elbo: ELBO) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self.elbo = elbo

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`elbo.differentiable_loss(model, guide, *args, **kwargs)`."""
        loss: torch.Tensor = self.elbo.differentiable_loss(self.model, self.guide, *args, **kwargs)
        return loss


class ELBO(metaclass=ABCMeta):
    """Base class of the evidence lower bounds.

    Args:
        num_particles: how many pairs of runs are averaged; at least 1.
        max_plate_nesting: the largest -dim of any vectorised plate. It is needed for parallel enumeration
            and vectorised particles alone; infinity (default) means: find out, by a trial run of each
            pair of model and guide, when it is needed.
        max_iarange_nesting: deprecated name of `max_plate_nesting`.
        vectorize_particles: run all particles at once, in a plate left of all others. The programs need
            static structure then. No effect for one particle.
        strict_enumeration_warning: warn when marks for enumeration and the class of the loss do not fit.
        ignore_jit_warnings: for the compiled losses: no warnings while compiling.
        retain_graph: passed to `backward`; None means False.
        jit_options: for the compiled losses.
        tail_adaptive_beta: exponent of tail-adaptive weights, in [-1, 0).
        memory_budget: bytes that intermediate tensors may take while discrete variables are summed out;
            None: what the setting `memory_budget` says.

    `max_plate_nesting` reads one larger than given (or found) when particles are vectorised. In Pyro,
    `jit_options` stands before `retain_graph`: a dict as the seventh positional argument, or a bool as
    the eighth, is taken in that order.

    Raises:
        ValueError: `num_particles` is less than 1.
        TypeError: `num_particles` is not an integer.
    """

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        max_iarange_nesting: float | None = None,
        vectorize_particles: bool = False,
        strict_enumeration_warning: bool = True,
        ignore_jit_warnings: bool = False,
        retain_graph: Any = None,
        jit_options: Any = None,
        tail_adaptive_beta: float = -1.0,
        *,
        memory_budget: int | None = None,
    ) -> None:
        if max_iarange_nesting is not None:
            warnings.warn(
                "max_iarange_nesting is deprecated; use max_plate_nesting instead",
                DeprecationWarning,
                stacklevel=2,
            )
            max_plate_nesting = max_iarange_nesting
        if isinstance(retain_graph, Mapping) or isinstance(jit_options, bool):
            retain_graph, jit_options = jit_options, retain_graph
        if not (retain_graph is None or isinstance(retain_graph, bool)):
            raise TypeError(f"retain_graph must be True, False or None, got {retain_graph!r}")
        if operator.index(num_particles) < 1:
            raise ValueError(f"num_particles must be at least 1, got {num_particles}")
        self.num_particles = num_particles
        self.vectorize_particles = vectorize_particles
        self.retain_graph: bool | None = retain_graph
        self.strict_enumeration_warning = strict_enumeration_warning
        self.ignore_jit_warnings = ignore_jit_warnings
        self.jit_options: Any = jit_options
        self.tail_adaptive_beta = tail_adaptive_beta
        self.memory_budget = memory_budget
        self._nesting_given = not math.isinf(max_plate_nesting)
        self._max_plate_nesting = max_plate_nesting + self._particle_dims()
        self._guesses: ProgramMemory[int] = ProgramMemory()

    def __call__(self, model: Program, guide: Program) -> ELBOModule:
        """The loss of one pair of programs as a module.

        >>> import sumprod, torch
        >>> from sumprod.distributions import Normal
        >>> from sumprod.infer import Trace_ELBO
        >>> def model(): sumprod.sample("z", Normal(0., 1.))
        >>> def guide(): sumprod.sample("z", Normal(0., 1.))
        >>> Trace_ELBO()(model, guide)().item()
        0.0
        """
        return ELBOModule(model, guide, self)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """An estimate of the loss."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """The loss as a tensor whose gradient is an estimate of the loss's gradient."""
        raise NotImplementedError(f"{type(self).__name__} defines no differentiable_loss")

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """An estimate of the loss, while its gradient is added to `grad` of the parameters."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss_and_grads")

    # ---- nesting of plates

    @property
    def max_plate_nesting(self) -> float:
        """The largest -dim of any plate, the plate of particles included; infinity when not known yet."""
        return self._max_plate_nesting

    @max_plate_nesting.setter
    def max_plate_nesting(self, depth: float) -> None:
        self._nesting_given = not math.isinf(depth)
        self._max_plate_nesting = depth

    def _particle_dims(self) -> int:
        return int(self.vectorize_particles and self.num_particles > 1)

    @either_convention
    def _guess_max_plate_nesting(
        self, model: Program, guide: Program, args: Arguments, kwargs: Keywords
    ) -> None:
        """Set `max_plate_nesting` by a trial run of model and guide, and remember it for this pair."""
        depth = try_nesting(model, guide, args, kwargs)
        self._guesses.set(model, guide, value=depth)
        self._max_plate_nesting = depth + self._particle_dims()

    def _need_max_plate_nesting(
        self, model: Program, guide: Program, args: Arguments, kwargs: Keywords
    ) -> None:
        """Make `max_plate_nesting` finite, and right for this pair."""
        if self._nesting_given:
            return
        depth = self._guesses.get(model, guide)
        if depth is None:
            call_method(self, "_guess_max_plate_nesting", model, guide, args, kwargs)
        else:
            self._max_plate_nesting = depth + self._particle_dims()

    # ---- traces

    @abstractmethod
    @either_convention
    def _get_trace(self, model: Program, guide: Program, args: Arguments, kwargs: Keywords) -> Any:
        """One pair (model trace, guide trace), with log-densities."""
        raise NotImplementedError

    @either_convention
    def _get_traces(
        self, model: Program, guide: Program, args: Arguments, kwargs: Keywords
    ) -> Iterator[tuple[Any, Any]]:
        """The pairs of traces whose losses are averaged: one per particle, or one with all of them."""
        if self._particle_dims():
            yield self._get_particles_at_once(model, guide, args, kwargs)
        else:
            for _ in range(self.num_particles):
                yield call_method(self, "_get_trace", model, guide, args, kwargs)

    def _get_particles_at_once(
        self, model: Program, guide: Program, args: Arguments, kwargs: Keywords
    ) -> tuple[Any, Any]:
        if self._nesting_given:
            pair: tuple[Any, Any] = call_method(self, "_get_vectorized_trace", model, guide, args, kwargs)
            return pair
        generators = get_rng_state()
        self._need_max_plate_nesting(model, guide, args, kwargs)
        # The remembered depth is of an earlier call, and may be too small for these arguments.
        try:
            pair = call_method(self, "_get_vectorized_trace", model, guide, args, kwargs)
            if deepest_plate(pair, ignore=PARTICLE_PLATE) < self.max_plate_nesting:
                return pair
            error = None
        except ValueError as raised:  # from a plate that collides with the plate of particles, or overflows
            error = raised
        before = self.max_plate_nesting
        set_rng_state(generators)
        call_method(self, "_guess_max_plate_nesting", model, guide, args, kwargs)
        if error is not None and self.max_plate_nesting <= before:
            raise error
        pair = call_method(self, "_get_vectorized_trace", model, guide, args, kwargs)
        return pair

    @either_convention
    def _get_vectorized_trace(
        self, model: Program, guide: Program, args: Arguments, kwargs: Keywords
    ) -> tuple[Any, Any]:
        """One pair of traces with all particles in the outermost plate."""
        pair: tuple[Any, Any] = call_method(
            self,
            "_get_trace",
            self._vectorized_num_particles(model),
            self._vectorized_num_particles(guide),
            args,
            kwargs,
        )
        return pair

    def _vectorized_num_particles(self, fn: Program) -> Program:
        """`fn` inside a plate of `num_particles` at the dim -`max_plate_nesting`; `fn` for one particle."""
        if self.num_particles == 1:
            return fn

        def vectorized(program: Program, /, *args: Any, **kwargs: Any) -> Any:
            watch = _LastSite()
            try:
                with watch, plate(PARTICLE_PLATE, self.num_particles, dim=-int(self.max_plate_nesting)):
                    return program(*args, **kwargs)
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                # Of the ValueErrors, only torch's about tensors that are no scalars has this cause.
                if watch.name is not None and (
                    not isinstance(error, ValueError) or "one element" in str(error)
                ):
                    add_detail(error, self._explain_particles(watch))
                raise

        return BoundHandler(vectorized, fn)

    def _explain_particles(self, watch: _LastSite) -> str:
        return (
            f"after site '{watch.name}' (value of shape {watch.shape}), while vectorize_particles=True gives"
            f" every sample site a batch dim {-int(self.max_plate_nesting)} of size {self.num_particles}."
            " A program that calls .item() on a value, branches on it, or counts its dims from the left"
            " needs vectorize_particles=False"
        )


class _LastSite(Messenger):
    """Keeps the name and the shape of the latent site drawn last."""

    def __init__(self) -> None:
        super().__init__()
        self.name: str | None = None
        self.shape: tuple[int, ...] = ()

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] != PARTICLE_PLATE:
            self.name = msg["name"]
            self.shape = tuple(getattr(msg["value"], "shape", ()))
