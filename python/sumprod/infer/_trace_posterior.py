"""Weighted traces of a model, and the empirical distributions of its sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sumprod.distributions.empirical import Empirical
from sumprod.handlers import block
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._information_criteria import information_criterion, log_likelihoods, observed_sites
from sumprod.infer._posterior_io import load_posterior, save_posterior, to_arviz
from sumprod.infer._posterior_summary import PosteriorSummary, by_chain, summarize
from sumprod.infer._trace_store import TraceStore

__all__ = ["EmpiricalMarginal", "Marginals", "TracePosterior", "as_list"]

Self = TypeVar("Self", bound="TracePosterior")
Sites = str | Sequence[str] | None


class TracePosterior(ABC):
    """A posterior distribution over traces of a model, as a weighted sample of them.

    A subclass writes `_traces(*args, **kwargs)`, a generator of pairs (trace, log-weight) or triples
    (trace, log-weight, chain number).

    Args:
        num_chains: how many independent chains the traces come from.
        detach: cut stored values and weights from the autograd graph; with False, gradients flow
            through them and the graph of every run stays in memory.

    Attributes:
        exec_traces: the traces, a read-only sequence. Values are kept stacked and a trace is put
            together at each access (see `TraceStore`), without densities.
        log_weights: their log-weights, in any normalisation, as yielded: numbers or 0-d tensors.
        chain_ids: the number of the chain of each trace.
    """

    def __init__(self, num_chains: int = 1, *, detach: bool = True) -> None:
        if not isinstance(num_chains, int) or num_chains < 1:
            raise ValueError(f"{type(self).__name__}: num_chains must be a positive int, got {num_chains!r}")
        self.num_chains = num_chains
        self.detach = detach
        self._reset()

    def _reset(self) -> None:
        self.exec_traces: Any = TraceStore(self.detach)
        self.log_weights: list[Any] = []
        self.chain_ids: list[int] = []
        self._shares: Tensor | None = None  # of the draws
        self._saved_log_likelihoods: OrderedDict[str, Tensor] | None = None  # from a file

    @abstractmethod
    def _traces(self, *args: Any, **kwargs: Any) -> Iterable[tuple[Any, ...]]:
        """Yield (trace, log-weight) or (trace, log-weight, chain number)."""

    def run(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Collect traces, given the model's arguments, and return self; earlier traces are forgotten.

        Handlers around the call do not see the sites of these runs.

        Raises:
            ValueError: a chain number is not below `num_chains`.
        """
        self._reset()
        with block():
            for item in self._traces(*args, **kwargs):
                self._collect(*item)
        self.exec_traces.finish()
        return self

    def _collect(self, trace: Trace, log_weight: Any, chain: int = 0) -> None:
        if not 0 <= chain < self.num_chains:
            raise ValueError(
                f"{type(self).__name__}: trace {len(self.exec_traces)} has chain number {chain}, expected"
                f" 0 <= number < num_chains = {self.num_chains}"
            )
        if self.detach and isinstance(log_weight, Tensor):
            log_weight = log_weight.detach()
        self.exec_traces.append(trace)
        self.log_weights.append(log_weight)
        self.chain_ids.append(chain)

    # ---- draws

    def _require_traces(self) -> None:
        if not len(self.exec_traces):
            raise RuntimeError(
                f"{type(self).__name__} holds no traces: call run() first, with num_samples > 0"
            )

    def _log_weights(self) -> Tensor:
        """All log-weights, shape (number of traces,)."""
        if any(isinstance(weight, Tensor) for weight in self.log_weights):
            return torch.stack([torch.as_tensor(weight) for weight in self.log_weights])
        return torch.tensor(self.log_weights, dtype=torch.get_default_dtype())

    def _draw(self) -> int:
        """The number of a trace, drawn by weight."""
        self._require_traces()
        if self._shares is None:
            weights = self._log_weights().detach()
            largest = weights.max()
            if not bool(largest.isfinite()):
                raise ValueError(
                    f"{type(self).__name__}: cannot draw a trace: the largest log-weight is {largest.item()}"
                )
            self._shares = weights.double().softmax(0).to(weights.dtype)
        return int(torch.multinomial(self._shares, 1))

    def __call__(self, *args: Any, **kwargs: Any) -> Trace:
        """One trace, drawn by weight, without its observed sites. The arguments are not used.

        Raises:
            RuntimeError: there are no traces.
            ValueError: no trace has a positive weight, or one has an infinite weight.
        """
        drawn: Trace = self.exec_traces[self._draw()]
        for name in drawn.observation_nodes:
            drawn.remove_node(name)
        return drawn

    def marginal(self, sites: Sites = None) -> Marginals:
        """Empirical distributions of sites: one name, several, or by default the return value."""
        return Marginals(self, sites)

    def stack(self, site: str) -> Tensor:
        """The values of a site in all traces, shape (number of traces,) + value shape.

        Raises:
            RuntimeError: there are no traces.
            KeyError: a trace lacks the site.
            TypeError, ValueError: the values are not tensors, or differ in shape.
        """
        self._require_traces()
        stacked: Tensor = self.exec_traces.stack(site)
        return stacked

    # ---- fit

    def log_likelihood(self, sites: Sites = None) -> OrderedDict[str, Tensor]:
        """Log-densities of observed sites in all traces, shape (number of traces,) + batch shape.

        Scales are left out; masked entries are 0. By default of all observed sites.
        """
        self._require_traces()
        names = observed_sites(self.exec_traces) if sites is None else as_list(sites)
        return self._log_likelihoods(names)

    def _log_likelihoods(self, names: Sequence[str]) -> OrderedDict[str, Tensor]:
        if self._saved_log_likelihoods is None:
            return log_likelihoods(self.exec_traces, names)
        missing = [name for name in names if name not in self._saved_log_likelihoods]
        if missing:
            raise KeyError(
                f"the file holds no log-likelihood of {missing}, only of {list(self._saved_log_likelihoods)}"
            )
        return OrderedDict((name, self._saved_log_likelihoods[name]) for name in names)

    def information_criterion(
        self, pointwise: bool = False, *, sites: Sites = None, kind: Literal["waic", "loo"] = "waic"
    ) -> OrderedDict[str, Tensor]:
        """How well the posterior would predict new data; smaller is better, on the scale of deviance.

        "waic" (Watanabe 2010): for each data point, lpd is the log of its mean density and p the
        variance of its log-density, both over the weighted traces; WAIC = -2 (lpd - p).
        "loo" (Vehtari, Gelman and Gabry 2017; Vehtari et al. 2024): -2 times the log-density of each
        data point under the posterior of the other points, by Pareto-smoothed importance sampling.

        Scales are left out. Masked data points count as 0.

        Args:
            pointwise: one value per data point, of the batch shape of the observed site, instead of
                their sums.
            sites: names of the observed sites to use; needed if there are several. With
                `pointwise`, their entries are flattened and joined.

        Returns:
            Keys waic and p_waic, or loo, p_loo and pareto_k (with `pointwise=False` the largest k; above
            0.7 the result is not reliable). Empty before a run.

        Raises:
            ValueError: there is no observed site, or several and no `sites`; observed sites differ
                between traces; a plate is subsampled; there is only one trace.
        """
        if not len(self.exec_traces):
            return OrderedDict()
        if sites is None:
            names = observed_sites(self.exec_traces)
            if len(names) != 1:
                found = f"it has {len(names)}: {names}" if names else "it has none"
                raise ValueError(
                    f"information_criterion only works for models with one observation node; {found}. Name"
                    " the sites to add up with sites=[...]"
                )
        else:
            names = as_list(sites)
        return information_criterion(self._log_likelihoods(names), self._log_weights(), pointwise, kind)

    # ---- reports and files

    def summary(self, prob: float = 0.9, sites: Sites = None) -> PosteriorSummary:
        """Mean, deviation, median, interval, effective sample size and R-hat of each site.

        Printing the result gives a table. By default of all latent sites with tensor values that all
        traces have. See `PosteriorSummary`.
        """
        self._require_traces()
        return summarize(self, prob, None if sites is None else as_list(sites))

    def to_arviz(self) -> Any:
        """The traces as `arviz.InferenceData` (or the tree that newer versions of ArviZ use instead).

        Groups posterior, log_likelihood and observed_data, with dims (chain, draw). ArviZ knows no
        weights: traces of unequal weight are resampled by weight, with torch's default generator.

        Raises:
            ImportError: ArviZ is not installed.
        """
        self._require_traces()
        return to_arviz(self)

    def save(self, file: Any) -> None:
        """Write values, weights, chains and log-likelihoods to a file (a path or a file object).

        The file holds tensors, numbers and names only; `load` reads it without running code. It has
        neither distributions nor values that are not tensors.
        """
        self._require_traces()
        save_posterior(self, file)

    def load(self: Self, file: Any, map_location: Any = None) -> Self:
        """Read the traces that `save` wrote, in place of those held now, and return self.

        Such traces can be drawn, replayed, stacked and summarised; `information_criterion` works.
        Sites have no distributions, so their densities cannot be computed.

        `num_chains` becomes that of the file.

        Raises:
            ValueError: it is another kind of file.
        """
        load_posterior(self, file, map_location)
        return self


def as_list(sites: str | Iterable[str]) -> list[str]:
    """A list of names, from one name or several."""
    return [sites] if isinstance(sites, str) else list(sites)


class EmpiricalMarginal(Empirical):
    """The empirical distribution of one site or of several stacked sites under a posterior.

    Args:
        trace_posterior: a posterior that has been run.
        sites: a name; or a list or tuple of k names, whose values of equal shape are stacked on a new
            leading event dim, giving (k,) + shape; None: the return value, "_RETURN".

    Samples have the weights of the traces. With several chains, the chains are a batch dim; they must
    have equally many traces.

    Raises:
        AssertionError: `trace_posterior` is not a TracePosterior.
        RuntimeError: it has no traces.
        KeyError: a trace lacks a site.
        TypeError: a site's value is not a tensor.
        ValueError: shapes differ, between traces or between sites; chains differ in length.
    """

    def __init__(
        self, trace_posterior: TracePosterior, sites: Sites = None, validate_args: Any = None
    ) -> None:
        assert isinstance(trace_posterior, TracePosterior), (
            f"trace_dist must be trace posterior distribution object, got {type(trace_posterior).__name__}"
        )
        samples = _stacked_sites(trace_posterior, "_RETURN" if sites is None else sites)
        weights = trace_posterior._log_weights().to(samples.device)
        if trace_posterior.num_chains > 1:
            order = by_chain(trace_posterior).to(samples.device)
            samples, weights = samples[order], weights[order]
        super().__init__(samples, weights, validate_args=validate_args)


def _stacked_sites(posterior: TracePosterior, sites: str | Sequence[str]) -> Tensor:
    if isinstance(sites, str):
        return posterior.stack(sites)
    stacks = [posterior.stack(name) for name in sites]
    if not stacks:
        raise ValueError("EmpiricalMarginal: sites is empty; name at least one site")
    if any(stack.shape != stacks[0].shape for stack in stacks):
        shapes = {name: tuple(stack.shape[1:]) for name, stack in zip(sites, stacks, strict=True)}
        raise ValueError(
            f"EmpiricalMarginal: only sites of equal shape can be stacked, got {shapes};"
            " use marginal(sites), which keeps them apart"
        )
    return torch.stack(stacks, dim=1)


class Marginals:
    """Empirical distributions of several sites, whose shapes may differ.

    Args:
        trace_posterior: a posterior that has been run.
        sites: a name, a list or tuple of names, or None for the return value.

    Attributes:
        sites: list of names.
        empirical: ordered dict site -> `EmpiricalMarginal`.

    Raises:
        As `EmpiricalMarginal`.
    """

    def __init__(
        self, trace_posterior: TracePosterior, sites: Sites = None, validate_args: Any = None
    ) -> None:
        assert isinstance(trace_posterior, TracePosterior), (
            f"trace_dist must be trace posterior distribution object, got {type(trace_posterior).__name__}"
        )
        self.sites = ["_RETURN"] if sites is None else as_list(sites)
        self._chains = trace_posterior.num_chains
        self.empirical: OrderedDict[str, EmpiricalMarginal] = OrderedDict(
            (site, EmpiricalMarginal(trace_posterior, site, validate_args)) for site in self.sites
        )

    def support(self, flatten: bool = False) -> OrderedDict[str, Tensor]:
        """Samples of each site, without weights.

        Returns:
            Ordered dict site -> tensor of shape (samples, ...), or (chains, samples, ...) when there are
            several chains; `flatten=True` makes one dim of the two, chain by chain.
        """
        samples = OrderedDict((site, dist.enumerate_support()) for site, dist in self.empirical.items())
        if flatten and self._chains > 1:
            samples = OrderedDict((site, value.flatten(0, 1)) for site, value in samples.items())
        return samples
