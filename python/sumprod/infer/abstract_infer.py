"""Posterior containers: weighted traces of a model, collected by an inference algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from sumprod.handlers import replay, trace
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._adapt import adapt_to_plates
from sumprod.infer._trace_posterior import EmpiricalMarginal, Marginals, TracePosterior, as_list

__all__ = ["EmpiricalMarginal", "Marginals", "SavedPosterior", "TracePosterior", "TracePredictive"]


class SavedPosterior(TracePosterior):
    """A posterior read from a file that `TracePosterior.save` wrote, without the program it came from.

    Raises:
        ValueError: it is another kind of file.
    """

    def __init__(self, file: Any, map_location: Any = None) -> None:
        super().__init__()
        self.load(file, map_location)

    def _traces(self, *args: Any, **kwargs: Any) -> Iterable[tuple[Any, ...]]:
        raise NotImplementedError(
            "a SavedPosterior cannot be run: run the posterior that it was saved from, or construct that one"
            " and call load(file)"
        )


class TracePredictive(TracePosterior):
    """Draws from the posterior predictive distribution: the model replayed on posterior traces.

    For each sample, a trace is drawn from the posterior by weight and the model runs with its latent
    values; all that the trace does not hold is sampled. The model may be run on other data than the
    posterior: values in a plate whose size has changed are picked at random, with replacement and
    with the same numbers for all sites of the plate. In a plate of the same size they stay in place.

    Args:
        model: what to run, given the arguments of `run`.
        posterior: a TracePosterior; it is run with the same arguments if it has no traces.
        num_samples: number of draws, each with log-weight 0.
        keep_sites: replay only these sites; by default all latent ones.
        reindex: "changed", or "always" to shuffle plates of unchanged size, too, as Pyro does.

    Raises:
        TypeError: `posterior` is not a TracePosterior.
        ValueError: `num_samples` is negative, or `reindex` is unknown.
        KeyError: (while running) the model lacks sites of the posterior; the text names them.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        posterior: TracePosterior,
        num_samples: int,
        keep_sites: Iterable[str] | None = None,
        *,
        reindex: Literal["changed", "always"] = "changed",
    ) -> None:
        if not isinstance(posterior, TracePosterior):
            raise TypeError(
                f"TracePredictive: posterior must be a TracePosterior, got {type(posterior).__name__};"
                " for a dict of samples use Predictive"
            )
        if num_samples < 0:
            raise ValueError(f"TracePredictive: num_samples must not be negative, got {num_samples}")
        if reindex not in ("changed", "always"):
            raise ValueError(f"TracePredictive: reindex must be 'changed' or 'always', got {reindex!r}")
        self.model = model
        self.posterior = posterior
        self.num_samples = num_samples
        self.keep_sites = None if keep_sites is None else as_list(keep_sites)
        self.reindex = reindex
        super().__init__()

    def _traces(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Trace, float]]:
        if not len(self.posterior.exec_traces):
            self.posterior.run(*args, **kwargs)
        layout = trace(self.model).get_trace(*args, **kwargs)
        for _ in range(self.num_samples):
            drawn = self.posterior()
            if self.keep_sites is not None:
                for name in list(drawn.nodes):
                    if name not in self.keep_sites:
                        drawn.remove_node(name)
            adapted = adapt_to_plates(drawn, layout, shuffle=self.reindex == "always")
            yield trace(replay(self.model, trace=adapted)).get_trace(*args, **kwargs), 0.0
