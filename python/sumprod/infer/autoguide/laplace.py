"""The Laplace approximation: a normal at the mode, with the curvature there as its precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sumprod.distributions import Delta
from sumprod.handlers.replay import replay
from sumprod.handlers.trace import trace
from sumprod.infer.autoguide.continuous import AutoContinuous, AutoMultivariateNormal


class AutoLaplaceApproximation(AutoContinuous):
    """A point estimate on the real line, around which `laplace_approximation` fits a normal.

    Train it by SVI like any guide, then call `laplace_approximation` with the model's arguments.
    Parameter: `AutoLaplaceApproximation.loc`, (latent_dim,).

    Args:
        model: a program with at least one continuous latent variable.
        init_loc_fn: the strategy for the first values.
    """

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.loc = nn.Parameter(self._init_loc())

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """A point mass at the packed vector."""
        return Delta(self.loc, event_dim=1)

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The images of the location, by site."""
        self._ensure_prototype(args, kwargs)
        loc = self.loc.detach().clone()
        return {latent.name: latent.constrain(part) for latent, part in self._unpack_latent(loc)}

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Those of the guide that `laplace_approximation` returns."""
        raise NotImplementedError(
            "AutoLaplaceApproximation is a point until laplace_approximation() has been called: use the"
            " quantiles of the guide that it returns"
        )

    def laplace_approximation(self, *args: Any, **kwargs: Any) -> AutoMultivariateNormal:
        """The normal whose log-density has the gradient (zero) and the curvature of the model's at `loc`.

        Args:
            args, kwargs: of the model.

        Returns:
            A guide with fixed location and covariance: it has buffers, no parameters.

        Raises:
            torch.linalg.LinAlgError: the curvature is not negative definite: `loc` is not at a maximum.
        """
        self._ensure_prototype(args, kwargs)
        guide_trace = trace(self).get_trace(*args, **kwargs)
        model_trace = trace(replay(self.model, trace=guide_trace)).get_trace(*args, **kwargs)
        loss = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
        precision = _hessian(loss, self.loc)
        cholesky, failed = torch.linalg.cholesky_ex(precision)
        if failed.any() or not torch.isfinite(precision).all():
            raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
                f"the curvature of the model's log-density at the {self.latent_dim} values of"
                f" '{self._pyro_get_fullname('loc')}' is not negative definite, so no normal fits:"
                " train the guide longer, or with a smaller learning rate, until the loss no longer falls"
            )
        covariance = torch.cholesky_inverse(cholesky)
        approximation = AutoMultivariateNormal(self.model)
        approximation._setup_prototype(*args, **kwargs)
        for name, value in (
            ("loc", self.loc.detach().clone()),
            ("scale", torch.ones_like(self.loc)),
            ("scale_tril", torch.linalg.cholesky(covariance)),
        ):
            delattr(approximation, name)
            approximation.register_buffer(name, value)
        return approximation


def _hessian(y: Any, x: torch.Tensor) -> torch.Tensor:
    """The second derivatives (n, n) of a scalar by a vector (n,)."""
    (gradient,) = torch.autograd.grad(y, x, create_graph=True)
    rows = [
        torch.autograd.grad(entry, x, retain_graph=True, materialize_grads=True)[0]
        if entry.requires_grad
        else torch.zeros_like(x)
        for entry in gradient.unbind()
    ]
    return torch.stack(rows).detach()
