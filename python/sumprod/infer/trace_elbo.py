"""The evidence lower bound by Monte Carlo, for guides with and without reparameterisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sumprod._numeric import warn_if_nan
from sumprod.distributions.score_parts import ScoreParts
from sumprod.handlers.trace_struct import Trace, sum_tensors
from sumprod.infer._calling import call_method, either_convention
from sumprod.infer._checks import check_if_enumerated
from sumprod.infer._grouped_log_prob import compute_log_probs, log_prob_total, warn_of_sites
from sumprod.infer.elbo import ELBO, Arguments, Keywords, Program
from sumprod.infer.enum import check_site_shapes, run_guide_and_model
from sumprod.infer.util import (
    MultiFrameTensor,
    has_default_score_parts,
    is_identically_zero,
    torch_item,
)
from sumprod.settings import state

__all__ = ["Trace_ELBO"]


def _compute_log_r(model_trace: Trace, guide_trace: Trace) -> MultiFrameTensor:
    """log p(x, z) - log q(z), term by term in its plates, without gradients.

    All guide sites count, auxiliary ones too: what is drawn at one site changes the density of the others.
    """
    log_r = MultiFrameTensor()
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        terms: dict[Any, list[torch.Tensor]] = {}
        for site in trace.nodes.values():
            if site["type"] == "sample":
                log_prob = site["log_prob"]
                terms.setdefault((site["cond_indep_stack"], log_prob.shape), []).append(log_prob)
        for (stack, _), log_probs in terms.items():
            log_r.add((stack, sign * _add_up(log_probs).detach()))
    return log_r


def _add_up(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The sum of tensors of one shape."""
    first = tensors[0]
    if len(tensors) > 2 and all(t.dtype == first.dtype and t.device == first.device for t in tensors):
        return torch.stack(tensors).sum(0)
    return sum(tensors[1:], first)


def _score_terms(guide_sites: list[Any], log_r: MultiFrameTensor) -> list[torch.Tensor]:
    """Terms that add up to the sum of R * score over the sites, R being `log_r` seen from their plates."""
    scores: dict[Any, list[torch.Tensor]] = {}
    for site in guide_sites:
        score = site["score_parts"].score_function
        if not is_identically_zero(score):
            frames = tuple(frame for frame in site["cond_indep_stack"] if frame.dim is not None)
            scores.setdefault((frames, score.shape), []).append(score)
    return [(log_r.sum_to(frames) * _add_up(group)).sum() for (frames, _), group in scores.items()]


def _entropy_sum(site: Any) -> Any:
    entropy, log_prob = site["score_parts"].entropy_term, site["log_prob"]
    if entropy is log_prob:
        return site["log_prob_sum"]
    return 0.0 if is_identically_zero(entropy) else entropy.sum()


def compute_guide_densities(
    guide_trace: Trace, site_filter: Callable[[str, Any], bool] | None = None
) -> None:
    """Log-densities of a guide's sites; their `score_parts` as well, unless all are reparameterised.

    A reparameterised site's parts are (log_prob, 0, log_prob).
    """
    sites = [
        site
        for name, site in guide_trace.nodes.items()
        if site["type"] == "sample" and (site_filter is None or site_filter(name, site))
    ]
    default = [site for site in sites if has_default_score_parts(site["fn"])]
    names = {site["name"] for site in default}
    compute_log_probs(guide_trace, lambda name, site: name in names)
    if len(default) == len(sites) and all(site["fn"].has_rsample for site in sites):
        return
    for site in default:
        # What Distribution.score_parts and ScoreParts.scale_and_mask make of the log-density.
        log_prob = site["log_prob"]
        score, entropy = (0, log_prob) if site["fn"].has_rsample else (site["unscaled_log_prob"], 0)
        site["score_parts"] = ScoreParts(log_prob, score, entropy)
    guide_trace.compute_score_parts()


def with_gradient_of(value: Any, surrogate: torch.Tensor) -> torch.Tensor:
    """A tensor with the value of the first and the gradient of the second."""
    value = value.detach() if isinstance(value, torch.Tensor) else value
    # An infinite surrogate has no useful gradient, and inf - inf must not spoil the value.
    change = surrogate - surrogate.detach()
    result: torch.Tensor = value + change.nan_to_num(nan=0.0)
    return result


class Trace_ELBO(ELBO):
    """The evidence lower bound, E_q[log p(x, z) - log q(z)], estimated from samples of the guide.

    The gradient is that of the sampled value where a guide site is reparameterised, and the score
    function estimator elsewhere: the detached log p - log q times the gradient of the site's log q. In
    that factor, terms are summed over the plates that the site is not in, and kept apart in those that it
    is in, since elements of a plate are independent given what is outside (Rao-Blackwellisation). The
    estimate is unbiased, with auxiliary guide sites too.

    Arguments are those of `ELBO`. Losses are Python floats, means over the particles of
    -(log p - log q); 0.0 for programs without sites.

    References:
        Ranganath, Gerrish and Blei 2014, "Black Box Variational Inference".
        Wingate and Weber 2013, "Automated Variational Inference in Probabilistic Programming".

    >>> import torch, sumprod
    >>> from sumprod.distributions import Normal
    >>> def model(x):
    ...     z = sumprod.sample("z", Normal(0., 1.))
    ...     sumprod.sample("x", Normal(z, 1.), obs=x)
    >>> def guide(x):
    ...     sumprod.sample("z", Normal(sumprod.param("loc", torch.tensor(1.)), 0.5**0.5))
    >>> round(Trace_ELBO().loss(model, guide, torch.tensor(2.)), 2)  # the guide is the posterior
    2.27
    """

    @either_convention
    def _get_trace(
        self, model: Program, guide: Program, args: Arguments, kwargs: Keywords
    ) -> tuple[Trace, Trace]:
        """A pair (model trace, guide trace) with log-densities."""
        model_trace, guide_trace = run_guide_and_model(
            "flat", self.max_plate_nesting, model, guide, args, kwargs
        )
        if state.validate_infer and self.strict_enumeration_warning:
            check_if_enumerated(guide_trace)
        self._compute_densities(model_trace, guide_trace)
        return model_trace, guide_trace

    def _compute_densities(self, model_trace: Trace, guide_trace: Trace) -> None:
        compute_log_probs(model_trace)
        compute_guide_densities(guide_trace)
        if state.validate_infer:
            check_site_shapes(model_trace, self.max_plate_nesting)
            check_site_shapes(guide_trace, self.max_plate_nesting)

    # ---- one pair of traces

    def _loss_particle(self, model_trace: Trace, guide_trace: Trace) -> torch.Tensor | float:
        return log_prob_total(guide_trace) - log_prob_total(model_trace)

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """(loss, surrogate loss): the gradient of the second estimates the gradient of the expected first."""
        guide_sites = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
        log_p = log_prob_total(model_trace)
        loss = log_prob_total(guide_trace) - log_p
        if not any("score_parts" in site for site in guide_sites):
            return loss, loss
        entropy = sum_tensors([_entropy_sum(site) for site in guide_sites])
        scores: torch.Tensor | float = 0.0
        if not all(is_identically_zero(site["score_parts"].score_function) for site in guide_sites):
            scores = sum_tensors(_score_terms(guide_sites, _compute_log_r(model_trace, guide_trace)))
        return loss, entropy - log_p - scores

    # ---- losses

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of minus the evidence lower bound."""
        loss = 0.0
        for pair in call_method(self, "_get_traces", model, guide, args, kwargs):
            particle = torch_item(self._loss_particle(*pair))
            warn_of_sites(particle, pair)
            loss += particle / self.num_particles
        warn_if_nan(loss, "loss")
        return loss + 0.0  # -0.0 becomes 0.0

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss as a scalar tensor, whose gradient estimates the gradient of its expectation."""
        total: Any = 0.0
        for pair in call_method(self, "_get_traces", model, guide, args, kwargs):
            loss, surrogate = self._differentiable_loss_particle(*pair)
            if state.validate_poutine:
                warn_of_sites(torch_item(loss), pair)
            if isinstance(surrogate, torch.Tensor) and surrogate is not loss:
                loss = with_gradient_of(loss, surrogate)
            total = total + loss / self.num_particles
        result: torch.Tensor = total + 0.0 if isinstance(total, torch.Tensor) else torch.tensor(total + 0.0)
        return warn_if_nan(result, "loss") if state.validate_infer else result

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """`loss`, while gradients are added to the `grad` of every leaf it depends on.

        `backward` runs once per pair of traces, with `retain_graph`, and not at all when nothing
        requires grad.
        """
        loss = 0.0
        for pair in call_method(self, "_get_traces", model, guide, args, kwargs):
            value, surrogate = self._differentiable_loss_particle(*pair)
            if isinstance(surrogate, torch.Tensor) and surrogate.requires_grad:
                if self.num_particles > 1:
                    surrogate = surrogate / self.num_particles
                surrogate.backward(retain_graph=self.retain_graph)
            particle = torch_item(value)
            warn_of_sites(particle, pair)
            loss += particle / self.num_particles
        warn_if_nan(loss, "loss")
        return loss + 0.0
