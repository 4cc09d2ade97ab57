"""The evidence lower bound with analytic KL divergences where they are known."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.distributions import kl_divergence

from sumprod.distributions import Independent
from sumprod.distributions.util import scale_and_mask
from sumprod.errors import describe_plates
from sumprod.handlers.trace_struct import Trace, sum_tensors
from sumprod.infer._checks import check_density_shape, check_site_shape, missing_guide_site
from sumprod.infer._grouped_log_prob import FEWEST_SITES, compute_log_probs
from sumprod.infer._stacked_family import family_key, stack_family
from sumprod.infer.trace_elbo import Trace_ELBO, compute_guide_densities
from sumprod.infer.util import check_fully_reparametrized, is_identically_zero
from sumprod.settings import state

__all__ = ["TraceMeanField_ELBO"]


class TraceMeanField_ELBO(Trace_ELBO):
    """The evidence lower bound for guides whose latent sites follow the model's order and structure.

    For a latent site with a registered KL divergence, KL(guide || model), given the sites before it,
    replaces the sampled difference of log-densities, which lowers the variance. It counts with the scale
    and the mask of the guide's site. Other latent sites, auxiliary guide sites and observed sites are as
    in `Trace_ELBO`. The result is right only when no guide site depends on a site that comes later in
    the model.

    Arguments are those of `ELBO`.

    Losses raise:
        KeyError: (it is a ValueError too) the model has a latent site that the guide lacks.
        ValueError: the masks of a site in model and guide differ, or its KL divergence has a batch shape
            other than the guide's.
        NotImplementedError: a guide site is not fully reparameterised (when validating).

    They warn:
        UserWarning: model and guide have their sites in different orders (when validating).

    >>> import torch, sumprod
    >>> from sumprod.distributions import Normal
    >>> def model(): sumprod.sample("z", Normal(0., 1.))
    >>> def guide(): sumprod.sample("z", Normal(1., 1.))
    >>> TraceMeanField_ELBO().loss(model, guide)
    0.5
    """

    def _compute_densities(self, model_trace: Trace, guide_trace: Trace) -> None:
        """KL divergences, as `site["kl"]` of latent model sites (None: not known), and other densities."""
        if state.validate_infer:
            _check_mean_field_requirement(model_trace, guide_trace)
        pairs = [
            (self._guide_site(name, guide_trace), site)
            for name, site in model_trace.nodes.items()
            if site["type"] == "sample" and not site["is_observed"]
        ]
        _compute_kls(pairs)
        # Names of the latent and auxiliary sites that need log-densities.
        sampled = {site["name"] for _, site in pairs if site["kl"] is None}
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample":
                if state.validate_infer:
                    check_fully_reparametrized(site)
                if name not in model_trace.nodes:
                    sampled.add(name)
        compute_log_probs(model_trace, lambda name, site: site["is_observed"] or name in sampled)
        compute_guide_densities(guide_trace, lambda name, site: name in sampled)
        if state.validate_infer:
            for one in (model_trace, guide_trace):
                for site in one.nodes.values():
                    if site["type"] == "sample" and "log_prob" in site:
                        check_site_shape(site, self.max_plate_nesting)
                    elif site.get("kl") is not None:
                        check_density_shape(site, site["kl"].shape, self.max_plate_nesting)

    def _guide_site(self, name: str, guide_trace: Trace) -> Any:
        site = guide_trace.nodes.get(name)
        if site is None or site["type"] != "sample":
            raise missing_guide_site(name, guide_trace, type(self).__name__)
        return site

    def _loss_particle(self, model_trace: Trace, guide_trace: Trace) -> torch.Tensor | float:
        terms: list[Any] = []
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample":
                if site["is_observed"]:
                    terms.append(-site["log_prob_sum"])
                elif site["kl"] is not None:
                    terms.append(site["kl"].sum() if site["kl"].dim() else site["kl"])
                else:
                    terms.append(_entropy_sum(guide_trace.nodes[name]) - site["log_prob_sum"])
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and name not in model_trace.nodes:
                terms.append(_entropy_sum(site))
        return sum_tensors(terms)

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        loss = self._loss_particle(model_trace, guide_trace)
        return loss, loss


def _entropy_sum(guide_site: Any) -> Any:
    parts = guide_site.get("score_parts")
    if parts is None:  # reparameterised: the term is the log-density
        return guide_site["log_prob_sum"]
    return 0.0 if is_identically_zero(parts.entropy_term) else parts.entropy_term.sum()


def _compute_kls(pairs: list[tuple[Any, Any]]) -> None:
    """Fill in `kl` of the model sites, given pairs (guide site, model site); equal families in one call."""
    groups: dict[Any, list[tuple[Any, Any]]] = {}
    for pair in pairs:
        key = _group_key(*pair)
        if key is not None:
            groups.setdefault(key, []).append(pair)
    for (scale, event_dims, _, _), members in groups.items():
        if len(members) >= FEWEST_SITES:
            guide_fns, model_fns = ([_base(pair[i]["fn"])[0] for pair in members] for i in (0, 1))
            try:
                kl = kl_divergence(stack_family(guide_fns), stack_family(model_fns))
            except NotImplementedError:
                continue
            kl = kl.flatten(-event_dims).sum(-1) if event_dims else kl
            for (_, model_site), one in zip(members, (kl * scale).unbind(), strict=True):
                model_site["kl"] = one
    for guide_site, model_site in pairs:
        if "kl" not in model_site:
            model_site["kl"] = _kl(guide_site, model_site)


def _base(fn: Any) -> tuple[Any, int]:
    """The distribution under `to_event`, and how many dims that has made event dims."""
    return (fn.base_dist, fn.reinterpreted_batch_ndims) if type(fn) is Independent else (fn, 0)


def _group_key(guide_site: Any, model_site: Any) -> tuple[Any, ...] | None:
    """What pairs of sites must share for one call; None for a pair that is evaluated on its own."""
    scale = guide_site["scale"]
    if (
        guide_site["mask"] is not None
        or model_site["mask"] is not None
        or isinstance(scale, torch.Tensor)
        or guide_site["fn"].batch_shape != model_site["fn"].batch_shape
    ):
        return None
    (guide_fn, guide_dims), (model_fn, model_dims) = _base(guide_site["fn"]), _base(model_site["fn"])
    guide_key, model_key = family_key(guide_fn), family_key(model_fn)
    if guide_key is None or model_key is None or guide_key[0] != model_key[0] or guide_dims != model_dims:
        return None
    return scale, guide_dims, guide_key, model_key


def _kl(guide_site: Any, model_site: Any) -> torch.Tensor | None:
    """KL(guide || model) of a site, scaled and masked, of the guide's batch shape; None: not known."""
    fn = guide_site["fn"]
    try:
        kl = kl_divergence(fn, model_site["fn"])
    except NotImplementedError:
        return None
    _check_same_mask(guide_site, model_site)
    shape = fn.batch_shape
    kl = torch.as_tensor(kl)
    if kl.shape != shape:
        try:
            kl = kl.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"KL divergence at site {_where(guide_site)} has shape {tuple(kl.shape)}, but the guide's"
                f" batch shape is {tuple(shape)}: draw the site in the same plates and with the same batch"
                " shape in model and guide"
            ) from None
    scaled: torch.Tensor = scale_and_mask(kl, guide_site["scale"], guide_site["mask"])
    return scaled


def _where(site: Any) -> str:
    return f"'{site['name']}'{describe_plates(site['cond_indep_stack'])}"


def _check_same_mask(guide_site: Any, model_site: Any) -> None:
    """The KL divergence counts with one mask: which one must not be a matter of choice."""
    masks = [site["mask"] for site in (guide_site, model_site)]
    if masks[0] is masks[1]:
        return
    plain = [True if mask is None else mask for mask in masks]
    if any(isinstance(mask, torch.Tensor) for mask in plain):
        if not state.validate_infer:  # comparing tensors waits for the device
            return
        shape = guide_site["fn"].batch_shape
        device = next(mask.device for mask in plain if isinstance(mask, torch.Tensor))
        full = [torch.as_tensor(mask, device=device).expand(shape) for mask in plain]
        same = torch.equal(full[0], full[1])
    else:
        same = plain[0] == plain[1]
    if not same:
        raise ValueError(
            f"the masks of site {_where(guide_site)} in model and guide differ, so its KL divergence is not"
            " defined: mask the site in the same way in both"
        )


def _check_mean_field_requirement(model_trace: Trace, guide_trace: Trace) -> None:
    """Warn when the sites that model and guide share come in different orders."""
    model_sites = [
        name
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and name in guide_trace.nodes
    ]
    shared = set(model_sites)
    guide_sites = [name for name in guide_trace.nodes if name in shared]
    if model_sites != guide_sites:
        warnings.warn(
            "Failed to verify mean field restriction on the guide. To eliminate this warning, ensure model"
            f" and guide sites occur in the same order.\nModel sites: {', '.join(model_sites)}\n"
            f"Guide sites: {', '.join(guide_sites)}",
            UserWarning,
            stacklevel=3,
        )
