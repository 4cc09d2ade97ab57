"""Predictive distributions: samples of a model's sites, plain or weighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from sumprod.handlers import replay, trace
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import prune_subsample_sites
from sumprod.infer._log_weights import LogWeightsMixin
from sumprod.infer._particles import per_particle
from sumprod.infer._predictive import Predictive

__all__ = ["MHResampler", "Predictive", "WeighedPredictive", "WeighedPredictiveResults"]


@dataclass
class WeighedPredictiveResults(LogWeightsMixin):
    """Samples with importance weights; n samples.

    Attributes:
        samples: site -> tensor of shape (n, ...), as of `Predictive`.
        log_weights: shape (n,), model_log_prob - guide_log_prob.
        guide_log_prob: shape (n,), log-density of the guide at its draws.
        model_log_prob: shape (n,), log-density of the guide's draws and the data under the model.
    """

    samples: Any
    log_weights: Tensor
    guide_log_prob: Tensor
    model_log_prob: Tensor

    def clone(self) -> WeighedPredictiveResults:
        """A copy with tensors of its own."""
        return self._map(lambda tensors: tensors[0].clone(), [self])

    @staticmethod
    def _map(
        combine: Callable[[list[Tensor]], Tensor], results: Sequence[WeighedPredictiveResults]
    ) -> WeighedPredictiveResults:
        """Each tensor of the result is made of the same tensor of all `results`."""
        parts: dict[str, Any] = {
            field.name: combine([getattr(result, field.name) for result in results])
            for field in fields(WeighedPredictiveResults)
            if field.name != "samples"
        }
        sites = results[0].samples
        parts["samples"] = {site: combine([result.samples[site] for result in results]) for site in sites}
        return WeighedPredictiveResults(**parts)


class WeighedPredictive(Predictive):
    """Samples of a model with latent values drawn by a guide, and the importance weights of the draws.

    Takes the arguments of `Predictive`; a guide is required. Called with the model's arguments and
    optionally `model_guide`, the model with the data that the guide was fitted to; by default `model`,
    which must then have data. A weight is the density of the guide's draws and the data under `model_guide`,
    divided by the guide's density. Other latent sites of `model_guide` are drawn from it, which cancels
    their densities. Weighted estimates, as of `ops.stats.weighed_quantile`, correct for an inexact guide.

    Raises:
        ValueError: there is no guide.
    """

    def forward(  # type: ignore[override]
        self, *args: Any, model_guide: Callable[..., Any] | None = None, **kwargs: Any
    ) -> WeighedPredictiveResults:
        """Samples and weights, given the model's arguments."""
        if self.guide is None:
            raise ValueError(
                "WeighedPredictive needs a guide: weights compare the model with what drew the samples"
            )
        weighed = self.model if model_guide is None else model_guide
        model_parts: list[Tensor] = []
        guide_parts: list[Tensor] = []

        def weigh(guide_trace: Trace, inside: Any, vectorized: tuple[int, int] | None) -> None:
            model_trace = trace(replay(inside(weighed), trace=guide_trace)).get_trace(*args, **kwargs)
            guide_trace = prune_subsample_sites(guide_trace)
            model_trace = prune_subsample_sites(model_trace)
            for name in model_trace.stochastic_nodes:
                if name not in guide_trace:
                    model_trace.remove_node(name)
            model_parts.append(_log_prob(model_trace, vectorized))
            guide_parts.append(_log_prob(guide_trace, vectorized))

        with torch.no_grad():
            samples = self._samples(args, kwargs, weigh)
        model_log_prob, guide_log_prob = torch.cat(model_parts), torch.cat(guide_parts)
        return WeighedPredictiveResults(
            samples, model_log_prob - guide_log_prob, guide_log_prob, model_log_prob
        )

    def call(self, *args: Any, **kwargs: Any) -> WeighedPredictiveResults:  # type: ignore[override]
        """As `forward`, with the samples as a tuple in the order of the sites' names."""
        result: WeighedPredictiveResults = self(*args, **kwargs)
        result.samples = tuple(result.samples[name] for name in sorted(result.samples))
        return result


def _log_prob(one: Trace, vectorized: tuple[int, int] | None) -> Tensor:
    """Log-densities of the samples in a trace, shape (samples,)."""
    if vectorized is None:
        return torch.as_tensor(one.log_prob_sum()).reshape(1)
    count, nesting = vectorized
    one.compute_log_prob()
    sites = [site for site in one.nodes.values() if site["type"] == "sample"]
    terms = [per_particle(site["log_prob"], count, nesting) for site in sites]
    return torch.stack(terms).sum(0) if terms else torch.zeros(count)


class MHResampler(nn.Module):
    """Equally weighted samples from weighted ones, by independent Metropolis-Hastings chains.

    Each call draws new samples from `sampler`. Sample i of the new draw replaces sample i of the state with
    probability min(1, w_new / w_old). The first call returns the draw itself; with more calls the
    distribution comes nearer to the one that the weights stand for (Hastings 1970).

    Args:
        sampler: when called returns `WeighedPredictiveResults`, always of one size n; for example a
            `WeighedPredictive`.
        source_samples_slice: keep the draws of these calls, numbered from 0; by default of none.
        stored_samples_slice: keep the states after these calls.

    Attributes:
        samples: the state, `WeighedPredictiveResults`; None before the first call.
        transition_count: how often each sample has been replaced, shape (n,).
        source_samples, stored_samples: what has been kept, lists.
    """

    def __init__(
        self,
        sampler: Callable[..., WeighedPredictiveResults],
        source_samples_slice: slice = slice(0),
        stored_samples_slice: slice = slice(0),
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.source_samples_slice = source_samples_slice
        self.stored_samples_slice = stored_samples_slice
        self.samples: WeighedPredictiveResults | None = None
        self.transition_count = torch.zeros(0, dtype=torch.int64)
        self.source_samples: list[WeighedPredictiveResults] = []
        self.stored_samples: list[WeighedPredictiveResults] = []
        self._calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> WeighedPredictiveResults:
        """Draw once more, given the arguments of `sampler`, and return the state."""
        with torch.no_grad():
            drawn = self.sampler(*args, **kwargs)
            if _selects(self.source_samples_slice, self._calls):
                self.source_samples.append(drawn)
            if self.samples is None:
                self.samples = drawn
                self.transition_count = torch.zeros_like(drawn.log_weights, dtype=torch.int64)
            else:
                self._step(drawn)
            if _selects(self.stored_samples_slice, self._calls):
                self.stored_samples.append(self.samples)
            self._calls += 1
        return self.samples

    def _step(self, drawn: WeighedPredictiveResults) -> None:
        assert self.samples is not None
        old, new = self.samples.log_weights, drawn.log_weights
        if old.shape != new.shape:
            raise ValueError(
                f"MHResampler: the sampler gave {len(new)} samples, {len(old)} before; the"
                " number must not change"
            )
        # A sample of weight zero is always replaced.
        accept = (torch.rand_like(new).log() < new - old) | (old == -torch.inf)

        def choose(tensors: list[Tensor]) -> Tensor:
            before, after = tensors
            return torch.where(accept.reshape(-1, *[1] * (after.dim() - 1)), after, before)

        self.samples = WeighedPredictiveResults._map(choose, [self.samples, drawn])
        self.transition_count = self.transition_count + accept

    def get_min_sample_transition_count(self) -> Tensor:
        """How often the sample replaced least often has been replaced."""
        return self.transition_count.min()

    def get_total_transition_count(self) -> Tensor:
        """How often samples have been replaced, in total."""
        return self.transition_count.sum()

    def get_source_samples(self) -> WeighedPredictiveResults:
        """The kept draws, joined."""
        return self.get_samples(self.source_samples)

    def get_stored_samples(self) -> WeighedPredictiveResults:
        """The kept states, joined."""
        return self.get_samples(self.stored_samples)

    def get_samples(self, samples: Sequence[WeighedPredictiveResults]) -> WeighedPredictiveResults:
        """Results joined along their samples.

        Raises:
            ValueError: there are none.
        """
        if not samples:
            raise ValueError(
                "MHResampler: no samples have been kept; choose calls with source_samples_slice or"
                " stored_samples_slice, for example slice(100, None)"
            )
        return WeighedPredictiveResults._map(torch.cat, samples)


def _selects(selection: slice, number: int) -> bool:
    """Whether a slice selects the entry `number` of an endless list."""
    start, stop, step = selection.start or 0, selection.stop, selection.step or 1
    return number >= start and (stop is None or number < stop) and (number - start) % step == 0
