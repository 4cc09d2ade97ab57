"""Rényi's alpha-divergence bound; the importance-weighted bound for alpha = 0."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from sumprod._numeric import warn_if_nan
from sumprod.errors import describe_plates
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._calling import call_method
from sumprod.infer._grouped_log_prob import log_prob_total, warn_of_sites
from sumprod.infer.elbo import PARTICLE_PLATE, Program
from sumprod.infer.trace_elbo import Trace_ELBO, with_gradient_of
from sumprod.infer.util import is_identically_zero
from sumprod.settings import state

__all__ = ["RenyiELBO"]


class RenyiELBO(Trace_ELBO):
    """Rényi's variational bound of order alpha, estimated from weighted particles.

    With the weights w_k = p(x, z_k) / q(z_k) of K particles z_k, the objective is

        log(mean_k w_k^(1 - alpha)) / (1 - alpha),

    the importance-weighted bound (IWAE) for alpha = 0, and `Trace_ELBO`'s in the limit alpha -> 1. The
    gradient is sum_k v_k grad s_k, with detached v_k proportional to w_k^(1 - alpha) that sum to 1, and
    s_k = log w_k for reparameterised sites; log q of other guide sites enters s_k with the factor
    alpha / (1 - alpha). For those sites the gradient is that of K -> infinity (biased for finite K).

    Plates around every sample site of model and guide keep weights of their own: their elements are
    independent, and the bounds of all elements add up, which is tighter than one weight for all.

    Args:
        alpha: the order; any number but 1.
        num_particles: K.
        max_plate_nesting, max_iarange_nesting, vectorize_particles, strict_enumeration_warning,
            ignore_jit_warnings, jit_options, retain_graph: as for `ELBO`.
        local_weights: False gives each particle one weight, the product over all plates.

    Minibatches are not supported: the bound of a rescaled subsample is not an estimate of the bound of
    the data. A subsampled plate gives a warning.

    Raises:
        ValueError: alpha is 1 or not finite.
        NotImplementedError: (in a loss) a guide site has both a score and an entropy term.

    References:
        Li and Turner 2016, "Rényi Divergence Variational Inference".
        Burda, Grosse and Salakhutdinov 2016, "Importance Weighted Autoencoders".

    >>> import torch, sumprod
    >>> from sumprod.distributions import Normal
    >>> def model(): sumprod.sample("z", Normal(0., 1.))
    >>> RenyiELBO(alpha=0.5, num_particles=3).loss(model, model)
    0.0
    """

    def __init__(
        self,
        alpha: float = 0,
        num_particles: int = 2,
        max_plate_nesting: float = math.inf,
        max_iarange_nesting: float | None = None,
        vectorize_particles: bool = False,
        strict_enumeration_warning: bool = True,
        *,
        local_weights: bool = True,
        ignore_jit_warnings: bool = False,
        retain_graph: bool | None = None,
        jit_options: Any = None,
    ) -> None:
        if alpha == 1:
            raise ValueError(
                "The order alpha should not be equal to 1. Please use the Trace_ELBO class for that case."
            )
        if not math.isfinite(alpha):
            raise ValueError(f"The order alpha should be a finite number other than 1, got {alpha}")
        self.alpha = alpha
        self.local_weights = local_weights
        self._warned_of: set[str] = set()
        super().__init__(
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            max_iarange_nesting=max_iarange_nesting,
            vectorize_particles=vectorize_particles,
            strict_enumeration_warning=strict_enumeration_warning,
            ignore_jit_warnings=ignore_jit_warnings,
            retain_graph=retain_graph,
            jit_options=jit_options,
        )

    # ---- losses

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the bound."""
        pairs = self._collect(model, guide, args, kwargs)
        log_weights = self._log_weights(pairs, self._kept_dims(pairs))
        return self._finish(0.0 if log_weights is None else self._bound(log_weights)[0].item(), pairs)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss as a scalar tensor, whose gradient is the estimate of the class's text."""
        pairs = self._collect(model, guide, args, kwargs)
        loss, surrogate = self._loss_and_surrogate(pairs)
        if surrogate is None:
            return torch.tensor(0.0)
        if state.validate_infer:
            self._finish(loss.item(), pairs)
        return with_gradient_of(loss, surrogate) + 0.0

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """`loss`, while gradients are added to the `grad` of every leaf it depends on."""
        pairs = self._collect(model, guide, args, kwargs)
        loss, surrogate = self._loss_and_surrogate(pairs)
        if surrogate is None:
            return 0.0
        if surrogate.requires_grad:
            surrogate.backward(retain_graph=self.retain_graph)
        return self._finish(loss.item(), pairs)

    def _finish(self, loss: float, pairs: list[tuple[Trace, Trace]]) -> float:
        for pair in pairs:
            warn_of_sites(loss, pair)
        warn_if_nan(loss, "loss")
        return loss + 0.0  # -0.0 becomes 0.0

    # ---- weights

    def _collect(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[tuple[Trace, Trace]]:
        # All particles at once: which plates are shared by all sites depends on all of them.
        pairs = list(call_method(self, "_get_traces", model, guide, args, kwargs))
        for pair in pairs:
            self._warn_of_minibatches(pair)
        return pairs

    def _warn_of_minibatches(self, pair: Iterable[Trace]) -> None:
        for trace in pair:
            for site in _samples(trace):
                for frame in site["cond_indep_stack"]:
                    full = frame.full_size
                    if full is not None and frame.size < full and frame.name not in self._warned_of:
                        self._warned_of.add(frame.name)
                        warnings.warn(
                            f"RenyiELBO does not support minibatches: plate '{frame.name}' draws"
                            f" {frame.size} of {full} elements (at site '{site['name']}'), and the bound of a"
                            " rescaled subsample is not an estimate of the bound of the data; use"
                            " Trace_ELBO, or all elements",
                            UserWarning,
                            stacklevel=4,
                        )

    def _kept_dims(self, pairs: list[tuple[Trace, Trace]]) -> set[int]:
        """Dims whose elements have weights of their own: shared plates, and that of the particles."""
        stacks = [
            {frame for frame in site["cond_indep_stack"] if frame.dim is not None}
            for pair in pairs
            for trace in pair
            for site in _samples(trace)
        ]
        shared = set.intersection(*stacks) if stacks else set()
        return {frame.dim for frame in shared if self.local_weights or frame.name == PARTICLE_PLATE}

    def _log_weights(self, pairs: list[tuple[Trace, Trace]], kept: set[int]) -> torch.Tensor | None:
        """log w with the particles in dim 0, then one dim per kept plate; None without sites."""
        if not kept:
            return self._stack([log_prob_total(model) - log_prob_total(guide) for model, guide in pairs])
        return self._stack(
            [
                _add_terms(
                    [site["log_prob"] for site in _samples(model)]
                    + [-site["log_prob"] for site in _samples(guide)],
                    kept,
                )
                for model, guide in pairs
            ]
        )

    def _surrogates(self, pairs: list[tuple[Trace, Trace]], kept: set[int]) -> torch.Tensor | None:
        """s, in the layout of the log-weights."""
        return self._stack(
            [
                _add_terms(
                    [site["log_prob"] for site in _samples(model)]
                    + [self._guide_surrogate(site) for site in _samples(guide)],
                    kept,
                )
                for model, guide in pairs
            ]
        )

    def _stack(self, terms: list[Any]) -> torch.Tensor | None:
        """The particles of one vectorised run, which are in dim 0 already, or of several runs, stacked."""
        if not any(isinstance(term, torch.Tensor) for term in terms):
            return None
        if self._particle_dims():
            only: torch.Tensor = terms[0]
            return only
        return torch.stack([torch.as_tensor(term) for term in terms])

    def _guide_surrogate(self, site: Any) -> torch.Tensor:
        log_prob: torch.Tensor = site["log_prob"]
        parts = site.get("score_parts")
        if parts is None or is_identically_zero(parts.score_function):
            return -log_prob
        if not is_identically_zero(parts.entropy_term):
            raise NotImplementedError(
                f"RenyiELBO supports no guide site with both a score and an entropy term, as '{site['name']}'"
                f"{describe_plates(site['cond_indep_stack'])} has; use Trace_ELBO"
            )
        # The score belongs to the draw, which scale and mask do not change; log_prob to the weight.
        result: torch.Tensor = parts.score_function / (1 - self.alpha) - log_prob
        return result

    def _bound(self, log_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(minus the bound, normalised weights) from log-weights, particles in dim 0. No gradients."""
        powers = (1 - self.alpha) * log_weights.detach()
        largest = powers.amax(0)
        # Infinite where every particle is impossible (alpha < 1) or some are (alpha > 1): there is nothing
        # to weigh then, and no gradient rather than NaN.
        possible = largest.isfinite()
        powers = torch.where(possible, powers - largest, torch.zeros_like(powers))
        # log1p and expm1 keep the digits when alpha is close to 1 and all powers are close to 0.
        log_mean = powers.expm1().mean(0).log1p()
        bound = torch.where(possible, largest + log_mean, largest).sum() / (1 - self.alpha)
        return -bound, torch.where(possible, powers.softmax(0), torch.zeros_like(powers))

    def _loss_and_surrogate(
        self, pairs: list[tuple[Trace, Trace]]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        kept = self._kept_dims(pairs)
        log_weights = self._log_weights(pairs, kept)
        if log_weights is None:
            return torch.tensor(0.0), None
        loss, weights = self._bound(log_weights)
        surrogate: torch.Tensor | None = log_weights
        if any("score_parts" in site for _, guide in pairs for site in _samples(guide)):
            surrogate = self._surrogates(pairs, kept)
        assert surrogate is not None  # the sites are those of the log-weights
        # A particle without weight may have an infinite surrogate.
        surrogate = torch.where(weights > 0, surrogate, torch.zeros_like(surrogate))
        return loss, -(weights * surrogate).sum()


def _samples(trace: Trace) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _add_terms(terms: list[torch.Tensor], kept: set[int]) -> torch.Tensor | float:
    """The sum of log-densities over all dims that are not kept; these disappear. 0.0 without terms."""
    total: torch.Tensor | float = 0.0
    for term in terms:
        dims = [dim for dim in range(-term.dim(), 0) if dim not in kept]
        total = total + (term.sum(dims) if dims else term)
    return total
