"""Run a program with its discrete variables inferred, jointly and exactly."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from sumprod._random import preserve_rng_state
from sumprod.handlers import EnumMessenger, block, replay, trace
from sumprod.handlers.messenger import Messenger
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import prune_subsample_sites
from sumprod.handlers.vectorized_markov import TrialOfChains
from sumprod.infer._backward_sample import (
    BackwardSampleMessenger,
    SitePosterior,
    SubsampleRecorder,
    check_guide_is_not_enumerated,
    settled_sites,
)
from sumprod.infer._calling import either_convention
from sumprod.infer._enum_factors import FactorGraph
from sumprod.infer._nesting import deepest_plate
from sumprod.infer.elbo import Arguments, Keywords, Program
from sumprod.infer.traceenum_elbo import Pair, TraceEnum_ELBO
from sumprod.ops._plan import memory_budget
from sumprod.settings import state

__all__ = ["TraceEnumSample_ELBO", "infer_discrete"]


def infer_discrete(
    fn: Callable[..., Any] | None = None,
    first_available_dim: int | None = None,
    temperature: float = 1,
    *,
    strict_enumeration_warning: bool = True,
) -> Any:
    """A program with its sites marked for parallel enumeration inferred from the observed ones.

    Calling it runs `fn` twice: once, hidden from outer handlers, with all values of the marked sites at
    once; then with these sites at their inferred values and all other latent sites drawn again, but for
    the indices of subsampled plates, to which the inferred values belong. The
    second run's result is returned; handlers around see that run. Its log-densities are those of the
    model's own distributions at the inferred values.

    Masks count, except on a marked site itself: such a variable follows its prior given the others.
    Scales do not count.

    Args:
        fn: a program; None: return a decorator.
        first_available_dim: the dim of the first enumerated variable, left of all plates; None: found by
            a trial run in each call.
        temperature: 1: a draw from the joint posterior; 0: its most probable joint assignment (of several,
            always the same one).
        strict_enumeration_warning: warn when no site is marked.

    Returns:
        A function of the program's arguments, or a decorator.

    Raises:
        ValueError: temperature is neither 0 nor 1; `first_available_dim` is not negative, or (when called)
            not left of all plates.
        SupportError: (when called, and validating) no assignment of the variables is possible. Without
            validation they get the first value of their support.

    References:
        Obermeyer et al. 2019, "Tensor Variable Elimination for Plated Factor Graphs".

    >>> import torch, sumprod
    >>> from sumprod.distributions import Categorical, Normal
    >>> @infer_discrete(first_available_dim=-2, temperature=0)
    ... def assign(data):
    ...     with sumprod.plate("data", len(data)):
    ...         z = sumprod.sample("z", Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
    ...         sumprod.sample("x", Normal(torch.tensor([-1., 1.])[z], 1.), obs=data)
    ...     return z
    >>> assign(torch.tensor([-0.3, 2.0, 0.1]))
    tensor([0, 1, 1])
    """
    if not isinstance(temperature, int | float) or temperature not in (0, 1):
        raise ValueError(f"temperature must be 0 (map) or 1 (sample), but got {temperature!r}")
    if first_available_dim is not None and (
        not isinstance(first_available_dim, int) or first_available_dim >= 0
    ):
        raise ValueError(
            f"Expected first_available_dim < 0 to index from the right, got {first_available_dim!r}"
        )
    if fn is None:
        return functools.partial(
            infer_discrete,
            first_available_dim=first_available_dim,
            temperature=temperature,
            strict_enumeration_warning=strict_enumeration_warning,
        )

    @functools.wraps(fn)
    def inferred(*args: Any, **kwargs: Any) -> Any:
        dim = first_available_dim
        if dim is None:
            dim = -1 - _depth(fn, args, kwargs)
        recorder = SubsampleRecorder()
        support = EnumMessenger(first_available_dim=dim)
        support._checked = state.validate_infer
        with block(), recorder:
            enumerated = prune_subsample_sites(trace(support(fn)).get_trace(*args, **kwargs))
        deepest = deepest_plate([enumerated])
        if deepest >= -dim:
            raise ValueError(
                f"first_available_dim={dim} collides with a plate at dim {-deepest}: enumeration goes left of"
                f" all plates, use first_available_dim={-1 - deepest} or less"
            )
        graph = FactorGraph.of_trace(enumerated, -1 - dim)
        posterior = SitePosterior.of_trace(graph, enumerated)
        if not posterior.sites and strict_enumeration_warning and state.validate_infer:
            warnings.warn(
                "infer_discrete found no sample sites configured for enumeration. Mark them by"
                ' @config_enumerate or infer={"enumerate": "parallel"}',
                UserWarning,
                stacklevel=2,
            )
        indices = {name: site["value"] for name, site in recorder.sites.items()}
        with _Fixed({**indices, **posterior.draw(maximise=temperature == 0)}):
            return fn(*args, **kwargs)

    return inferred


def _depth(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    with preserve_rng_state(), block():
        return deepest_plate([prune_subsample_sites(trace(TrialOfChains()(fn)).get_trace(*args, **kwargs))])


class _Fixed(Messenger):
    """Gives latent sites the values that were inferred for them, and plates their indices."""

    _reads_scope = False

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._known_values = values

    def _pyro_sample(self, msg: Any) -> None:
        value = self._known_values.get(msg["name"])
        if value is not None and not msg["is_observed"]:
            msg["value"] = value
            msg["done"] = True


class _Saved(NamedTuple):
    """What `TraceEnumSample_ELBO` keeps of a call."""

    run: Callable[[], Any]  # the model with its arguments, replayed
    posterior: SitePosterior
    guide_trace: Trace


class TraceEnumSample_ELBO(TraceEnum_ELBO):
    """`TraceEnum_ELBO` whose last call can be sampled from, without computing its densities again.

    `sample_saved` draws the model's enumerated sites from their joint posterior, as
    `TraceEnum_ELBO.sample_posterior` does, but given the guide's draws (of the last particle, or of all
    vectorised ones) and the densities of the last `loss`, `differentiable_loss` or `loss_and_grads`.
    Its traces, with all tensors in them, are kept until the next call or `clear_saved`.

    Arguments are those of `TraceEnum_ELBO`.

    >>> import torch, sumprod
    >>> from sumprod.distributions import Categorical
    >>> def model():
    ...     z = sumprod.sample("z", Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
    ...     sumprod.sample("x", Categorical(torch.eye(2)[z]), obs=torch.tensor(1))
    ...     return z
    >>> elbo = TraceEnumSample_ELBO()
    >>> loss = elbo.loss(model, lambda: None)
    >>> elbo.sample_saved()
    tensor(1)
    """

    _run: Callable[[], Any] | None = None  # of the running call
    _saved: _Saved | None = None

    def sample_saved(self) -> Any:
        """Run the model once more, with a posterior draw; returns its result.

        Parameters have their present values, the posterior is that of the last call.

        Raises:
            RuntimeError: there was no call, or `clear_saved` came after it.
            NotImplementedError: the guide enumerates a site.
            SupportError: no assignment of the variables is possible (when validating).
        """
        if self._saved is None:
            raise RuntimeError(
                "TraceEnumSample_ELBO.sample_saved() draws from the posterior of the last loss: call loss(),"
                " differentiable_loss() or loss_and_grads() first, and clear_saved() after the last draw"
            )
        check_guide_is_not_enumerated(self._saved.guide_trace, "TraceEnumSample_ELBO.sample_saved()")
        with memory_budget(self.memory_budget), BackwardSampleMessenger.of_posterior(self._saved.posterior):
            return self._saved.run()

    def clear_saved(self) -> None:
        """Forget the last call and free its tensors."""
        self._run = self._saved = None

    @either_convention
    def _get_trace(self, model: Program, guide: Program, args: Arguments, kwargs: Keywords) -> Pair:
        recorder = SubsampleRecorder()
        with recorder:
            pair: Pair = super()._get_trace(model, guide, args, kwargs)
        settled = settled_sites(pair[0], recorder.sites)
        self._run = functools.partial(replay(model, trace=settled), *args, **kwargs)
        return pair

    def _elbo(self, pair: Pair) -> tuple[Any, FactorGraph]:
        elbo, graph = super()._elbo(pair)
        model_trace, guide_trace = pair
        assert self._run is not None  # the pair comes from _get_trace
        posterior = SitePosterior.of_trace(graph, model_trace, guide_trace.nodes)
        self._saved = _Saved(self._run, posterior, guide_trace)
        return elbo, graph
