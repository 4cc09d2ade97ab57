"""Importance sampling: posterior traces weighted by how much the model likes them more than the guide."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from sumprod.handlers import block, replay, trace
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._information_criteria import data_batch_shape, pointwise_of_particles
from sumprod.infer._log_weights import LogWeightsMixin
from sumprod.infer._nesting import try_nesting
from sumprod.infer._particles import ParticleTraces, run_particles
from sumprod.infer._trace_store import TraceSelection
from sumprod.infer.abstract_infer import TracePosterior
from sumprod.ops.stats import psis

__all__ = ["Importance", "LogWeightsMixin", "psis_diagnostic", "vectorized_importance_weights"]

Self = TypeVar("Self", bound="Importance")


class Importance(LogWeightsMixin, TracePosterior):
    """The posterior of a model by importance sampling.

    For each sample the guide runs, then the model with the guide's values; the log-weight is the model's
    log-density minus the guide's.

    Args:
        model: the program whose posterior is wanted.
        guide: the proposal, with the latent sites of the model; by default the model without its data.
        num_samples: number of traces; by default 10, with a warning.
        vectorized: run all samples at once, as a plate around guide and model. Much faster; needs a
            program that broadcasts, as for vectorised particles. Single traces are then put
            together by running the model again when they are asked for.
        max_plate_nesting: number of batch dims that plates use; for `vectorized`, found by a trial run
            if not given.
        detach: as in `TracePosterior`; with False, gradients flow through weights and values.

    Example:
        >>> import torch, sumprod
        >>> from sumprod.distributions import Normal
        >>> def model():
        ...     z = sumprod.sample("z", Normal(0.0, 1.0))
        ...     sumprod.sample("x", Normal(z, 1.0), obs=torch.tensor(1.0))
        >>> _ = torch.manual_seed(0)
        >>> posterior = Importance(model, num_samples=5000, vectorized=True).run()
        >>> exact = Normal(0.0, 2.0 ** 0.5).log_prob(torch.tensor(1.0))
        >>> bool((posterior.get_log_normalizer() - exact).abs() < 0.05)
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        num_samples: int | None = None,
        *,
        vectorized: bool = False,
        max_plate_nesting: int | None = None,
        detach: bool = True,
    ) -> None:
        if num_samples is None:
            num_samples = 10
            warnings.warn(f"num_samples not provided, defaulting to {num_samples}", stacklevel=2)
        if num_samples < 0:
            raise ValueError(f"Importance: num_samples must not be negative, got {num_samples}")
        self.model = model
        self.guide = block(model, hide_types=["observe"]) if guide is None else guide
        self.num_samples = num_samples
        self.vectorized = vectorized
        self.max_plate_nesting = max_plate_nesting
        super().__init__(detach=detach)

    def _reset(self) -> None:
        super()._reset()
        self._blame: dict[str, dict[str, int]] = {}  # kind of weight -> site -> number of samples
        self._densities: dict[str, Tensor] = {}  # of observed sites, particles leftmost

    def _traces(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Trace, Tensor]]:
        for _ in range(self.num_samples):
            guide_trace = trace(self.guide).get_trace(*args, **kwargs)
            model_trace = trace(replay(self.model, trace=guide_trace)).get_trace(*args, **kwargs)
            log_weight = torch.as_tensor(model_trace.log_prob_sum()) - guide_trace.log_prob_sum()
            if not bool(log_weight.isfinite()):
                self._record(log_weight, _site_sums(model_trace), _site_sums(guide_trace))
            yield model_trace, log_weight

    def run(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Draw and weigh the samples, given the arguments of model and guide, and return self."""
        if not self.vectorized or self.num_samples == 0:
            return super().run(*args, **kwargs)
        self._reset()
        nesting = self.max_plate_nesting
        if nesting is None:
            nesting = try_nesting(self.model, self.guide, args, kwargs)
        with block():
            model_trace, _, gains, costs = run_particles(
                self.model, self.guide, self.num_samples, nesting, args, kwargs
            )
        weights = _total(gains, costs, self.num_samples)
        weights = weights.detach() if self.detach else weights
        for number in (~weights.detach().isfinite()).nonzero()[:, 0].tolist():
            self._record(
                weights[number], *({k: v[number] for k, v in side.items()} for side in (gains, costs))
            )
        self.exec_traces = ParticleTraces(
            self.model, args, kwargs, model_trace, self.num_samples, nesting, self.detach
        )
        self.log_weights = list(weights.unbind())
        self.chain_ids = [0] * self.num_samples
        self._densities = {
            name: pointwise_of_particles(site, self.num_samples, nesting, self.detach)
            for name, site in model_trace.nodes.items()
            if site["type"] == "sample" and site["is_observed"]
        }
        return self

    def _log_likelihoods(self, names: Sequence[str]) -> OrderedDict[str, Tensor]:
        if not self._densities:
            return super()._log_likelihoods(names)
        shapes = {name: data_batch_shape(self.exec_traces.site(0, name)) for name in names}
        return OrderedDict(
            (name, self._densities[name].reshape(self.num_samples, *shape)) for name, shape in shapes.items()
        )

    def _record(self, weight: Tensor, gains: Mapping[str, Any], costs: Mapping[str, Any]) -> None:
        """Remember which sites made a weight infinite or NaN."""
        if bool(weight.isnan()):
            names = [f"'{name}' (model)" for name, x in gains.items() if not _finite(x)]
            names += [f"'{name}' (guide)" for name, x in costs.items() if not _finite(x)]
            kind = "nan"
        else:
            kind = "impossible" if bool(weight < 0) else "infinite"
            sign = torch.inf if kind == "infinite" else -torch.inf
            names = [f"'{name}' (model)" for name, x in gains.items() if float(x) == sign]
            names += [f"'{name}' (guide)" for name, x in costs.items() if float(x) == -sign]
        counts = self._blame.setdefault(kind, {})
        for name in names:
            counts[name] = counts.get(name, 0) + 1

    def _culprits(self, kind: str) -> str:
        counts = self._blame.get(kind)
        if not counts:
            return ""
        blamed = ", ".join(f"{name} in {count} samples" for name, count in counts.items())
        return f", because of the density at site {blamed}"

    def resample(self, num_samples: int | None = None) -> TracePosterior:
        """Traces drawn by weight, as a posterior of equal weights; by default as many as there are.

        Systematic resampling (Carpenter, Clifford and Fearnhead 1999): a trace with normalised weight w
        occurs floor(n w) or floor(n w) + 1 times. Draws one uniform from torch's default generator.

        Raises:
            RuntimeError: there are no traces.
            ValueError: as `get_normalized_weights`; or `num_samples` is negative.
        """
        self._require_traces()
        count = len(self.exec_traces) if num_samples is None else num_samples
        if count < 0:
            raise ValueError(f"resample: num_samples must not be negative, got {count}")
        weights = self.get_normalized_weights()
        assert weights is not None
        levels = weights.detach().double().cpu().cumsum(0)
        points = (torch.arange(count, dtype=torch.float64) + torch.rand((), dtype=torch.float64)) / count
        numbers = torch.searchsorted(levels / levels[-1], points, right=True).clamp(max=len(levels) - 1)
        return _Resampled(self, numbers.tolist())


class _Resampled(TracePosterior):
    """Traces of another posterior, each as often as its weight says."""

    def __init__(self, source: TracePosterior, numbers: list[int]) -> None:
        super().__init__(detach=source.detach)
        self.exec_traces = TraceSelection(source.exec_traces, numbers)
        self.log_weights = [0.0] * len(numbers)
        self.chain_ids = [0] * len(numbers)
        self._source = source
        self._numbers = numbers

    def _log_likelihoods(self, names: Sequence[str]) -> OrderedDict[str, Tensor]:
        rows = torch.tensor(self._numbers)
        densities = self._source._log_likelihoods(names)
        return OrderedDict((name, x[rows.to(x.device)]) for name, x in densities.items())

    def _traces(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        raise NotImplementedError(
            "a resampled posterior cannot be run: run its source and call resample() again"
        )


def _finite(value: Any) -> bool:
    return bool(torch.as_tensor(value).isfinite())


def _site_sums(one: Trace) -> dict[str, Any]:
    return {name: site["log_prob_sum"] for name, site in one.nodes.items() if "log_prob_sum" in site}


def _total(gains: Mapping[str, Tensor], costs: Mapping[str, Tensor], count: int) -> Tensor:
    """Log-weights of particles, shape (count,)."""
    parts = [*gains.values(), *(-cost for cost in costs.values())]
    return torch.stack(parts).sum(0) if parts else torch.zeros(count)


def vectorized_importance_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1,
    max_plate_nesting: int | None = None,
    normalized: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Trace, Trace]:
    """Log-weights of many samples from one run of guide and model inside a plate.

    The program must broadcast, as for vectorised particles. Gradients flow through the result. The
    keyword arguments other than these go to guide and model, as do `args`.

    Args:
        num_samples: number of samples n.
        max_plate_nesting: number of batch dims that the program's plates use; required.
        normalized: subtract the logsumexp, so that the weights sum to 1.

    Returns:
        `(log_weights, model_trace, guide_trace)`; log_weights has shape (n,). In the traces the
        samples are at dim -max_plate_nesting - 1.

    Raises:
        ValueError: `max_plate_nesting` is missing, or `num_samples` is not positive.
    """
    if max_plate_nesting is None:
        raise ValueError(
            "vectorized_importance_weights must provide max_plate_nesting: how many batch dims plates use"
        )
    if num_samples < 1:
        raise ValueError(f"vectorized_importance_weights: num_samples must be positive, got {num_samples}")
    model_trace, guide_trace, gains, costs = run_particles(
        model, guide, num_samples, max_plate_nesting, args, kwargs
    )
    log_weights = _total(gains, costs, num_samples)
    if normalized:
        log_weights = log_weights - log_weights.logsumexp(0)
    return log_weights, model_trace, guide_trace


def psis_diagnostic(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int = 1000,
    max_simultaneous_particles: int | None = None,
    max_plate_nesting: int = 7,
    **kwargs: Any,
) -> float:
    """The Pareto shape k of a guide's importance weights (Yao, Vehtari, Simpson and Gelman 2018).

    Below 0.5 the guide is close enough to the posterior for importance sampling to work well; above 0.7
    it misses important parts. The program must broadcast, as for vectorised particles; the keyword
    arguments other than these go to guide and model, as do `args`.

    Args:
        num_particles: number of weights.
        max_simultaneous_particles: how many at a time, to bound memory; by default all.
        max_plate_nesting: at least the number of batch dims that the program's plates use.

    Returns:
        k. With fewer than five weights in the tail a warning and inf; of equal weights -inf.

    Raises:
        ValueError: `num_particles` is not a multiple of `max_simultaneous_particles`; all weights are -inf,
            or one is +inf or NaN.
    """
    step = num_particles if max_simultaneous_particles is None else max_simultaneous_particles
    if num_particles < 1 or step < 1 or num_particles % step:
        raise ValueError(
            f"num_particles must be divisible by max_simultaneous_particles, got {num_particles} and {step}"
        )
    parts = []
    with torch.no_grad(), block():
        for _ in range(num_particles // step):
            _, _, gains, costs = run_particles(model, guide, step, max_plate_nesting, args, kwargs)
            parts.append(_total(gains, costs, step))
    weights = torch.cat(parts)
    highest = weights.max()
    if not bool(highest.isfinite()):
        raise ValueError(f"psis_diagnostic: the largest of {num_particles} log-weights is {highest.item()}")
    k = float(psis(weights).pareto_k)
    if k == float("inf"):
        warnings.warn(
            f"psis_diagnostic: Not enough tail samples among {num_particles} weights to fit a Pareto"
            " distribution; increase num_particles.",
            stacklevel=2,
        )
    return k
