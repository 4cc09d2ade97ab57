"""Mixtures of diagonal normals with pathwise gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Categorical, constraints

from sumprod import ops
from sumprod.distributions._hmm_parameters import broadcast
from sumprod.distributions.torch_distribution import TorchDistribution

__all__ = ["MixtureOfDiagNormals", "MixtureOfDiagNormalsSharedCovariance"]


class MixtureOfDiagNormals(TorchDistribution):
    """Mixture of K normals of dim D with diagonal covariances; its draws are reparameterised.

    The gradient of a draw moves it as the density moves. Means and scales carry the draw along in
    proportion to each component's responsibility; the weights move it through the conditional distribution
    functions, one coordinate after the other (Figurnov et al. 2018, "Implicit reparameterization
    gradients"; Jankowiak and Obermeyer 2018, "Pathwise derivatives beyond the reparameterization trick").
    Well separated components give gradients of large variance with respect to the weights.

    Args:
        locs: means [*B, K, D].
        coord_scale: standard deviations [*B, K, D], positive.
        component_logits: log weights [*B, K]; need not be normalised.
        validate_args: whether to check parameters and values.

    Raises:
        ValueError: shapes do not fit together, or a parameter is outside its constraint; names it.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "locs": constraints.independent(constraints.real, 2),
        "coord_scale": constraints.independent(constraints.positive, 2),
        "component_logits": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True
    _scale_dims: ClassVar[int] = 2

    def __init__(
        self,
        locs: Tensor,
        coord_scale: Tensor,
        component_logits: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        shape = _mixture_shape(type(self).__name__, locs, self._rows(coord_scale), component_logits)
        batch_shape = shape[:-2]
        self.locs = locs.expand(shape)
        kept = coord_scale.shape[coord_scale.dim() - self._scale_dims :]
        self.coord_scale = coord_scale.expand(*batch_shape, *kept)
        self.component_logits = component_logits.expand(shape[:-1])
        super().__init__(batch_shape, shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MixtureOfDiagNormals:
        """The same parameters, not copied, under a larger batch shape."""
        new: MixtureOfDiagNormals = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        new.locs = self.locs.expand(batch_shape + self.locs.shape[-2:])
        kept = self.coord_scale.shape[len(self.batch_shape) :]
        new.coord_scale = self.coord_scale.expand(batch_shape + kept)
        new.component_logits = self.component_logits.expand(batch_shape + self.locs.shape[-2:-1])
        if "has_rsample" in self.__dict__:
            new.has_rsample = self.has_rsample
        super(MixtureOfDiagNormals, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @classmethod
    def _rows(cls, coord_scale: Tensor) -> Tensor:
        """Scales with a component dim, maybe of size 1."""
        return coord_scale if cls._scale_dims == 2 else coord_scale.unsqueeze(-2)

    @property
    def _scales(self) -> Tensor:
        """[*B, K, D]."""
        return self._rows(self.coord_scale).expand(self.locs.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density [*], summed over the components."""
        if self._validate_args:
            self._validate_sample(value)
        each = _coordinate_log_prob(value.unsqueeze(-2), self.locs, self._scales).sum(-1)
        weights = self.component_logits.log_softmax(-1)
        return ops.logsumexp(each + weights, -1)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws of shape sample_shape + batch_shape + [D], with gradients to all parameters."""
        sample_shape = torch.Size(sample_shape)
        weights = self.component_logits.log_softmax(-1)
        with torch.no_grad():
            which = Categorical(logits=weights, validate_args=False).sample(sample_shape)
            index = which[..., None, None].expand(*which.shape, 1, self.locs.shape[-1])
            shape = sample_shape + self.locs.shape
            loc = self.locs.expand(shape).gather(-2, index).squeeze(-2)
            scale = self._scales.expand(shape).gather(-2, index).squeeze(-2)
            draw = loc + scale * torch.randn(loc.shape, dtype=loc.dtype, device=loc.device)
        result: Tensor = _Pathwise.apply(draw, self.locs, self._scales, weights)  # type: ignore[no-untyped-call]
        return result

    @property
    def mean(self) -> Tensor:
        """Weighted mean of the component means."""
        return (self.component_logits.softmax(-1).unsqueeze(-1) * self.locs).sum(-2)

    @property
    def variance(self) -> Tensor:
        """Per coordinate: variance within plus variance between the components."""
        weights = self.component_logits.softmax(-1).unsqueeze(-1)
        between = (self.locs - self.mean.unsqueeze(-2)).pow(2)
        return (weights * (self._scales.pow(2) + between)).sum(-2)


class MixtureOfDiagNormalsSharedCovariance(MixtureOfDiagNormals):
    """`MixtureOfDiagNormals` whose components share one vector of scales.

    Args:
        locs: means [*B, K, D].
        coord_scale: standard deviations [D] or [*B, D], positive.
        component_logits: log weights [*B, K]; need not be normalised.
        validate_args: whether to check parameters and values.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "locs": constraints.independent(constraints.real, 2),
        "coord_scale": constraints.independent(constraints.positive, 1),
        "component_logits": constraints.real_vector,
    }
    _scale_dims: ClassVar[int] = 1


def _mixture_shape(name: str, locs: Tensor, coord_scale: Tensor, component_logits: Tensor) -> torch.Size:
    """[*B, K, D]."""
    shape = None
    if locs.dim() >= 2 and coord_scale.dim() >= 2 and component_logits.dim() >= 1:
        shape = broadcast(locs.shape, coord_scale.shape, (*component_logits.shape, 1))
    if shape is None or shape[-2:] != locs.shape[-2:] or shape[-2] != component_logits.shape[-1]:
        raise ValueError(
            f"{name}: locs must have shape [*B, K, D], coord_scale one that broadcasts to it, and "
            f"component_logits [*B, K]; got {list(locs.shape)}, {list(coord_scale.shape)} and "
            f"{list(component_logits.shape)}"
        )
    return shape


def _coordinate_log_prob(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * ((value - loc) / scale).pow(2) - scale.log() - 0.5 * math.log(2 * math.pi)


class _Pathwise(torch.autograd.Function):
    """A draw [*, D] of the mixture, and how it moves with the parameters."""

    @staticmethod
    def forward(ctx: Any, draw: Tensor, locs: Tensor, scales: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(draw, locs, scales, weights)
        return draw.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        draw, locs, scales, weights = ctx.saved_tensors
        value = draw.unsqueeze(-2)
        each = _coordinate_log_prob(value, locs, scales)
        responsibility = (weights + each.sum(-1)).softmax(-1)
        moved = grad.unsqueeze(-2) * responsibility.unsqueeze(-1)
        grad_scales = moved * (value - locs) / scales
        grad_weights = _weight_gradient(grad, draw, locs, scales, weights, each)
        return (
            None,
            moved.sum_to_size(locs.shape),
            grad_scales.sum_to_size(scales.shape),
            grad_weights.to(weights.dtype).sum_to_size(weights.shape),
        )


def _weight_gradient(
    grad: Tensor, draw: Tensor, locs: Tensor, scales: Tensor, weights: Tensor, each: Tensor
) -> Tensor:
    """Gradient [*, K] with respect to the log weights, by implicit differentiation.

    The conditional distribution functions S_d = F(z_d | z_1..z_{d-1}) do not change along the path of a draw:
    dz = -(dS/dz)^-1 dS, a triangular system. In float64, since S loses its digits in the tails.
    """
    draw, locs, scales, each = (x.to(torch.float64) for x in (draw, locs, scales, each))
    standard = (draw.unsqueeze(-2) - locs) / scales
    cdf = torch.special.ndtr(standard).transpose(-1, -2)  # [*, D, K]
    before = each.cumsum(-1) - each
    share = (weights.unsqueeze(-1) + before).softmax(-2).transpose(-1, -2)  # p(k | z_1..z_{d-1}), [*, D, K]
    tilt = share * (cdf - (share * cdf).sum(-1, keepdim=True))  # dS_d / d log weight_k
    slope = -standard / scales  # d log phi_k(z_i) / dz_i, [*, K, D]
    density = (share * each.exp().transpose(-1, -2)).sum(-1)  # dS_d / dz_d
    jacobian = torch.tril(tilt @ slope, -1) + torch.diag_embed(density)
    adjoint: Tensor = torch.linalg.solve_triangular(
        jacobian.transpose(-1, -2), grad.to(torch.float64).unsqueeze(-1), upper=True
    )
    gradient: Tensor = -(tilt * adjoint).sum(-2)
    return gradient
