"""The indices of a plate's subsample, as a distribution."""

from __future__ import annotations

from typing import Any

import torch

from sumprod.distributions import Distribution


class SubsampleIndices(Distribution):
    """`subsample_size` of the numbers 0..size-1, drawn without replacement; all of them, in order, if equal.

    It is the `fn` of the hidden sample site by which a guide and a model share a minibatch. Its density
    does not count.
    """

    has_rsample = False

    def __init__(
        self, size: int, subsample_size: int | None, use_cuda: bool | None = None, device: Any = None
    ) -> None:
        if use_cuda is not None and device is not None and (torch.device(device).type == "cuda") != use_cuda:
            raise ValueError(
                f"Incompatible arguments: use_cuda={use_cuda} and device={device}; give only device"
            )
        self.size = size
        self.subsample_size = size if subsample_size is None else min(subsample_size, size)
        self.device = torch.device("cuda" if use_cuda else "cpu") if device is None else torch.device(device)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """A 1-d tensor of int64 indices."""
        if len(sample_shape):
            raise NotImplementedError(
                f"a plate draws one set of indices at a time, not sample_shape={tuple(sample_shape)}"
            )
        if self.subsample_size == self.size:
            return torch.arange(self.size, device=self.device)
        # Cloned, so that the indices do not keep the whole permutation alive.
        return torch.randperm(self.size, device=self.device)[: self.subsample_size].clone()

    def log_prob(self, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Zero, as a scalar."""
        return torch.zeros((), device=value.device)


_Subsample = SubsampleIndices  # the name under which third-party code knows it
