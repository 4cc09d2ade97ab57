"""Draws from prior and posterior predictive distributions, as stacked samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sumprod._random import preserve_rng_state
from sumprod.handlers import block, condition, mask, replay, trace
from sumprod.handlers.plate import plate
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import site_is_subsample
from sumprod.handlers.vectorized_markov import TrialOfChains
from sumprod.infer._nesting import deepest_plate
from sumprod.infer.discrete import infer_discrete

__all__ = ["PLATE", "Predictive", "Weigh"]

PLATE = "_num_predictive_samples"

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
Weigh = Callable[[Trace, Wrap, "tuple[int, int] | None"], None]
"""Called with each trace of the guide, what puts a program inside the plate of samples, and the number of
samples in the run and the depth of the plates (None in a run for one sample)."""


class Predictive(nn.Module):
    """Samples of a model's sites, given samples of some of them, a guide that draws some, or nothing.

    Call it with the model's arguments. Latent sites take the posterior samples (or the guide's draws)
    and the rest is sampled; to generate data, pass None where the model takes the data.

    Args:
        model: the program.
        posterior_samples: site -> tensor of shape (n,) + value shape, all of one n.
        guide: draws of the latent sites, instead of `posterior_samples`.
        num_samples: n, if not given by `posterior_samples`.
        return_sites: names of the sites to return; "_RETURN" is the model's return value. By default
            all sample sites that are not in `posterior_samples`, plate indices excepted. None: all.
        parallel: run once, inside an outermost plate of n samples; faster, and needs a program that
            broadcasts.
        squeeze: leave out the dims of size 1 described below.
        chunk: with `parallel`, the largest number of samples per run, to bound memory.
        infer_discrete: with True or 1, sites marked for parallel enumeration are drawn from their joint
            posterior given the model's data, for each of the samples; with 0 (not False) they get its most
            probable assignment. See `infer.infer_discrete`.

    Returns (of a call): dict site -> tensor of shape (n,) + batch shape + event shape. The batch shape is
    padded with dims of size 1 on its left to as many dims as the model's plates use: a global scalar beside
    a plate has shape (n, 1). `squeeze=True` gives it the shape (n,).

    Runs without gradients and with all densities masked out. A trial run finds shapes; it leaves the random
    generator as it was, so that sequential draws are those of n ordinary runs.

    Raises:
        ValueError: neither samples nor their number, or both samples and a guide, are given;
            `infer_discrete` is something else; sites have different shapes in different runs, or do not
            broadcast in a parallel one.
        SupportError: with `infer_discrete`, no assignment is possible (when validating).
        TypeError: the return value is asked for and not a tensor. (`parallel` without `chunk` gives it as
            it is.)

    Warns when `posterior_samples` disagree on n, or with `num_samples`: the tensors win, the last one over
    the others.

    Example:
        >>> import torch, sumprod
        >>> from sumprod.distributions import Normal
        >>> def model(data=None):
        ...     loc = sumprod.sample("loc", Normal(0.0, 1.0))
        ...     with sumprod.plate("data", 3):
        ...         sumprod.sample("x", Normal(loc, 1.0), obs=data)
        >>> {name: tuple(x.shape) for name, x in Predictive(model, num_samples=5)().items()}
        {'loc': (5, 1), 'x': (5, 3)}
        >>> Predictive(model, {"loc": torch.zeros(8)})()["x"].shape
        torch.Size([8, 3])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        posterior_samples: Mapping[str, Tensor] | None = None,
        guide: Callable[..., Any] | None = None,
        num_samples: int | None = None,
        return_sites: Iterable[str] | None = (),
        parallel: bool = False,
        *,
        squeeze: bool = False,
        chunk: int | None = None,
        infer_discrete: bool | int = False,
    ) -> None:
        super().__init__()
        if posterior_samples is None:
            if num_samples is None:
                raise ValueError("Either posterior_samples or num_samples must be specified for Predictive.")
        elif guide is not None:
            raise ValueError(
                "`posterior_samples` cannot be provided with the `guide` argument of Predictive."
            )
        else:
            num_samples = _sample_count(posterior_samples, num_samples)
        if num_samples < 1:
            raise ValueError(f"Predictive: num_samples must be positive, got {num_samples}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"Predictive: chunk must be positive, got {chunk}")
        if infer_discrete not in (0, 1):
            raise ValueError(
                "Predictive: infer_discrete must be False (off), True or 1 (posterior draws), or 0 (the most"
                f" probable values), got {infer_discrete!r}"
            )
        self.model = model
        self.posterior_samples: dict[str, Tensor] = (
            {} if posterior_samples is None else dict(posterior_samples)
        )
        self.guide = guide
        self.num_samples = num_samples
        self.return_sites = (return_sites,) if isinstance(return_sites, str) else return_sites
        self.parallel = parallel
        self.squeeze = squeeze
        self.chunk = chunk
        self.infer_discrete = infer_discrete

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples by site, given the model's arguments."""
        with torch.no_grad(), mask(mask=False):
            return self._samples(args, kwargs)

    def _samples(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], weigh: Weigh | None = None
    ) -> dict[str, Tensor]:
        layout = self._layout(args, kwargs)
        names = self._names(layout)
        run = self._run_parallel if self.parallel else self._run_sequential
        return run(layout, names, args, kwargs, weigh)

    def call(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """As `forward`, but the tensors alone, in the order of their names."""
        samples = self(*args, **kwargs)
        return tuple(samples[name] for name in sorted(samples))

    def get_samples(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Deprecated name of `forward`."""
        warnings.warn(
            "Predictive.get_samples is deprecated: call the object itself", DeprecationWarning, stacklevel=2
        )
        return self(*args, **kwargs)  # type: ignore[no-any-return]

    def get_vectorized_trace(self, *args: Any, **kwargs: Any) -> Trace:
        """The trace of one run of the model for all samples, inside a plate of samples."""
        with torch.no_grad(), mask(mask=False):
            layout = self._layout(args, kwargs)
            return self._vectorized(layout, 0, self.num_samples, args, kwargs)

    # ---- one run per sample

    def _run_sequential(
        self,
        layout: _Layout,
        names: list[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        weigh: Weigh | None,
    ) -> dict[str, Tensor]:
        given = layout.shaped(self.posterior_samples, self.num_samples, pad=False)
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for number in range(self.num_samples):
            if self.guide is not None:
                guide_trace = trace(self.guide).get_trace(*args, **kwargs)
                if weigh is not None:
                    weigh(guide_trace, lambda fn: fn, None)
                run = replay(self.model, trace=guide_trace)
            else:
                run = condition(self.model, data={name: x[number] for name, x in given.items()})
            run = self._with_discrete(run, layout.nesting)
            nodes = trace(run).get_trace(*args, **kwargs).nodes
            for name, column in columns.items():
                if name not in nodes:
                    raise ValueError(
                        f"Predictive: run {number} of the model has no site '{name}'; run 0 has one"
                    )
                column.append(nodes[name]["value"])
        return {name: self._shape(layout, name, _stack(name, column)) for name, column in columns.items()}

    def _shape(self, layout: _Layout, name: str, samples: Tensor) -> Tensor:
        """Pads the batch dims of samples of the natural shape."""
        if self.squeeze:
            return samples
        return samples.reshape(len(samples), *[1] * layout.padding(name), *samples.shape[1:])

    # ---- all samples in one run

    def _run_parallel(
        self,
        layout: _Layout,
        names: list[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        weigh: Weigh | None,
    ) -> dict[str, Tensor]:
        step = self.num_samples if self.chunk is None else self.chunk
        parts: dict[str, list[Any]] = {name: [] for name in names}
        for start in range(0, self.num_samples, step):
            count = min(step, self.num_samples - start)
            nodes = self._vectorized(layout, start, count, args, kwargs, weigh).nodes
            for name, part in parts.items():
                value = nodes[name]["value"]
                if step < self.num_samples or isinstance(value, Tensor):
                    value = _require_tensor(name, value)
                    value = self._shape(layout, name, layout.unpadded(name, value, count))
                part.append(value)
        return {name: part[0] if len(part) == 1 else torch.cat(part) for name, part in parts.items()}

    def _vectorized(
        self,
        layout: _Layout,
        start: int,
        count: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        weigh: Weigh | None = None,
    ) -> Trace:
        def inside(fn: Callable[..., Any]) -> Callable[..., Any]:
            def vectorized(*args: Any, **kwargs: Any) -> Any:
                with plate(PLATE, count, dim=-layout.nesting - 1):
                    return fn(*args, **kwargs)

            return vectorized

        if self.guide is not None:
            guide_trace = trace(inside(self.guide)).get_trace(*args, **kwargs)
            if weigh is not None:
                weigh(guide_trace, inside, (count, layout.nesting))
            run = replay(inside(self.model), trace=guide_trace)
        else:
            part = {name: x[start : start + count] for name, x in self.posterior_samples.items()}
            run = condition(inside(self.model), data=layout.shaped(part, count, pad=True))
        run = self._with_discrete(run, layout.nesting + 1)
        vectorized: Trace = trace(run).get_trace(*args, **kwargs)
        vectorized.remove_node(PLATE)
        return vectorized

    def _with_discrete(self, run: Callable[..., Any], nesting: int) -> Callable[..., Any]:
        """A run with its enumerated sites inferred, if that is wanted."""
        if self.infer_discrete is False:
            return run
        inferred: Callable[..., Any] = infer_discrete(
            run, first_available_dim=-1 - nesting, temperature=int(self.infer_discrete)
        )
        return inferred

    # ---- shapes and names

    def _layout(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Layout:
        """A trial run, of which outer handlers and the random generator notice nothing."""
        model = self.model
        if self.infer_discrete is not False or any("slice(" in name for name in self.posterior_samples):
            model = TrialOfChains()(model)  # steps of chains will run at once
        with preserve_rng_state(), block():
            if self.guide is None:
                traces = [trace(model).get_trace(*args, **kwargs)]
            else:
                guide_trace = trace(self.guide).get_trace(*args, **kwargs)
                model_trace = trace(replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
                traces = [model_trace, guide_trace]
        return _Layout(traces[0], deepest_plate(traces))

    def _names(self, layout: _Layout) -> list[str]:
        sites = [
            name
            for name, site in layout.nodes.items()
            if site["type"] == "sample" and not site_is_subsample(site)
        ]
        if self.return_sites is None:
            return sites
        asked = list(dict.fromkeys(self.return_sites))
        if not asked:
            return [name for name in sites if name not in self.posterior_samples]
        unknown = [name for name in asked if name not in layout.nodes]
        if unknown:
            warnings.warn(f"Predictive: the model has no sites {unknown}; it has {sites}", stacklevel=4)
        return [name for name in layout.nodes if name in asked]


class _Layout:
    """Shapes of the sites in one ordinary run of the model."""

    def __init__(self, model_trace: Trace, nesting: int) -> None:
        self.nodes = model_trace.nodes
        self.nesting = nesting

    def padding(self, name: str) -> int:
        """How many dims of size 1 bring the batch shape of a site to the depth of the plates."""
        site = self.nodes[name]
        if site["type"] != "sample":
            return 0
        return max(0, self.nesting - len(getattr(site["fn"], "batch_shape", ())))

    def shape(self, name: str) -> torch.Size:
        """The shape of a site's value."""
        return self.nodes[name]["value"].shape  # type: ignore[no-any-return]

    def shaped(self, samples: Mapping[str, Tensor], count: int, pad: bool) -> dict[str, Tensor]:
        """Posterior samples with the dims that their sites have, padded for a vectorised run or not.

        Samples of other sizes (of other data) stay as they are. Those of sites that the model does not
        have, such as auxiliary ones of a guide, are left out.
        """
        shaped = {}
        for name, x in samples.items():
            if name not in self.nodes:
                continue
            if x.numel() == count * self.shape(name).numel():
                x = x.reshape(count, *[1] * (self.padding(name) if pad else 0), *self.shape(name))
            shaped[name] = x
        return shaped

    def unpadded(self, name: str, value: Tensor, count: int) -> Tensor:
        """A value of a vectorised run as (count,) + the site's natural shape."""
        shape = (count, *[1] * self.padding(name), *self.shape(name))
        try:
            whole = value if value.numel() == count * self.shape(name).numel() else value.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"Predictive: the value of '{name}' has shape {tuple(value.shape)} in a run for {count}"
                f" samples, expected one that expands to {shape}: the program does not broadcast; use"
                " parallel=False"
            ) from error
        return whole.reshape(count, *self.shape(name))


def _sample_count(posterior_samples: Mapping[str, Tensor], num_samples: int | None) -> int:
    for name, samples in posterior_samples.items():
        size = samples.shape[0]
        if num_samples is not None and size != num_samples:
            warnings.warn(
                f"Sample's leading dimension size {size} at site '{name}' is different from the"
                f" {num_samples} of num_samples or of other sites. Defaulting to {size}.",
                stacklevel=3,
            )
        num_samples = size
    if num_samples is None:
        raise ValueError("No sample sites in posterior samples to infer `num_samples`.")
    return num_samples


def _require_tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"Predictive: the value of '{name}' is not a tensor but {type(value).__name__}; return a tensor"
            " from the model, or leave the name out of return_sites"
        )
    return value


def _stack(name: str, column: list[Any]) -> Tensor:
    first = _require_tensor(name, column[0])
    if all(value is first for value in column):
        return first.expand(len(column), *first.shape)
    if any(value.shape != first.shape for value in column):
        shapes = list(dict.fromkeys(tuple(value.shape) for value in column))
        raise ValueError(f"Predictive: site '{name}' has different shapes in different runs: {shapes}")
    return torch.stack(column)
