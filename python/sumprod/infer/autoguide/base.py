"""The base class of automatic guides: a guide made from a run of the model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from itertools import groupby
from typing import Any

import torch

from sumprod.handlers.block import block
from sumprod.handlers.indep import CondIndepStackFrame
from sumprod.handlers.plate import PlateMessenger
from sumprod.handlers.trace import trace
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.util import site_is_subsample
from sumprod.infer.autoguide.initialization import InitMessenger
from sumprod.infer.autoguide.latent import GuideSite, LatentSite
from sumprod.nn.module import PyroModule

Model = Callable[..., Any]
CreatePlates = Callable[..., PlateMessenger | list[PlateMessenger]]


class AutoGuide(PyroModule):
    """A guide whose sites, plates and parameters follow from a run of its model.

    The model is run once, with the arguments of the first call: the prototype. Sites and plates must be
    the same in all later runs. Parameters are called by the guide's class and the site, e.g.
    `AutoNormal.locs.x`, and are also `parameters()` of the guide, which is a module.

    Args:
        model: a program. Hide sites from the guide by `handlers.block`.
        create_plates: makes the guide's subsampled plates from the arguments of the model: a plate or
            a list of plates. By default the guide makes them like the model's, and the model uses the
            guide's indices through replay.

    Attributes:
        prototype_trace: the latent sites of the prototype run; None before the first call.
        master: weak reference to the `AutoGuideList` that this guide is a part of, or None.
        plates: the plates of the running call, by name.
    """

    def __init__(self, model: Model, *, create_plates: CreatePlates | None = None) -> None:
        super().__init__(name=type(self).__name__)
        self._model = (model,)  # in a tuple: its parameters are not the guide's
        self.create_plates = create_plates
        self.master: weakref.ref[Any] | None = None
        self.prototype_trace: Trace | None = None
        self.plates: dict[str, PlateMessenger] = {}
        self._prototype_frames: dict[str, CondIndepStackFrame] = {}
        self._latents: list[Any] = []  # of the type that `_guide_site` makes
        # Sites in a row with the same plates, which are entered once for all of them.
        self._groups: list[tuple[tuple[str, ...], list[Any]]] = []

    @property
    def model(self) -> Model:
        """The program whose prototype the guide follows."""
        return self._model[0]

    def call(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the guide and return the sampled values, sorted by the names of their sites."""
        return tuple(value for _, value in sorted(self(*args, **kwargs).items()))

    def sample_latent(self, *args: Any, **kwargs: Any) -> Any:
        """The latent variables as one vector, in guides that have it."""

    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The guide's median of each latent variable, by site."""
        raise NotImplementedError(f"{type(self).__name__} does not define median()")

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The guide's quantiles of each latent variable, by site; the first dim is that of `quantiles`."""
        raise NotImplementedError(f"{type(self).__name__} does not define quantiles()")

    # ---- the prototype

    def _ensure_prototype(self, args: Any, kwargs: Any) -> None:
        if self.prototype_trace is None:
            with self._pyro_context:
                self._setup_prototype(*args, **kwargs)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        """Run the model and make what follows from it. Subclasses add their parameters."""
        latent_only = block(self.model, hide_fn=self._prototype_hide_fn)
        with torch.no_grad():
            prototype = block(trace(latent_only).get_trace)(*args, **kwargs)
        master = None if self.master is None else self.master()
        if master is not None:
            master._check_prototype(prototype)
        latents, frames = [], {}
        for _, site in prototype.iter_stochastic_nodes():
            for frame in site["cond_indep_stack"]:
                if not frame.vectorized:
                    raise NotImplementedError(
                        f"AutoGuide does not support sequential pyro.plate: '{frame.name}' around site"
                        f" '{site['name']}'. Vectorise it: with plate('{frame.name}', {frame.full_size}): ..."
                    )
                frames[frame.name] = frame
            latents.append(self._guide_site(site))
        self._prototype_frames = frames
        self._latents = latents
        self._groups = [(plates, list(sites)) for plates, sites in groupby(latents, _plates_of)]
        self.prototype_trace = prototype

    @staticmethod
    def _guide_site(site: Any) -> Any:
        """What the guide needs to know of a latent site of the prototype."""
        return LatentSite(site)

    @staticmethod
    def _prototype_hide_fn(msg: Any) -> bool:
        """Only latent sites are recorded."""
        return msg["type"] != "sample" or msg["is_observed"] or site_is_subsample(msg)

    # ---- plates

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, PlateMessenger]:
        """The plates for this call, by name; parts of a list share those of the list."""
        if self.master is not None:
            if self.create_plates is not None:
                raise ValueError(
                    f"{self._pyro_name} is part of an AutoGuideList: give create_plates to the list"
                )
            plates: dict[str, PlateMessenger] = self.master().plates  # type: ignore[union-attr]
            self.__dict__["plates"] = plates  # not by setattr: a site may be called so
            return plates
        plates = {}
        if self.create_plates is not None:
            made = self.create_plates(*args, **kwargs)
            for plate in [made] if isinstance(made, PlateMessenger) else made:
                if not isinstance(plate, PlateMessenger):
                    raise AssertionError(f"create_plates() returned a non-plate: {plate!r}")
                plates[plate.name] = plate
        for name, frame in self._prototype_frames.items():
            if name not in plates:
                plates[name] = _plate_like(frame)
        self.__dict__["plates"] = plates
        return plates

    def _sample_sites(
        self, draw: Callable[[Any], torch.Tensor], args: Any, kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Call `draw` for each latent site, inside its plates; returns what it returns, by site."""
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for names, latents in self._groups:
            if not names:
                result.update({latent.name: draw(latent) for latent in latents})
                continue
            with ExitStack() as stack:
                for name in names:
                    stack.enter_context(plates[name])
                result.update({latent.name: draw(latent) for latent in latents})
        return result

    # ---- being part of a list; being copied

    def _update_master(self, master_ref: weakref.ref[Any]) -> None:
        self.master = master_ref

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "plates": {}, "master": None}


def _plates_of(latent: GuideSite) -> tuple[str, ...]:
    return latent.plates


def _plate_like(frame: CondIndepStackFrame) -> PlateMessenger:
    if frame.full_size is None or frame.full_size < 0:
        return PlateMessenger(frame.name, dim=frame.dim)
    return PlateMessenger(frame.name, frame.full_size, subsample_size=frame.size, dim=frame.dim)


def initialised(model: Model, init_loc_fn: Callable[[Any], Any]) -> Model:
    """The model with its latent sites at the values of a strategy.

    Raises:
        TypeError: the strategy is not callable.
    """
    if not callable(init_loc_fn):
        raise TypeError(f"Expected init_loc_fn to be a strategy such as init_to_median, got {init_loc_fn!r}")
    wrapped: Model = InitMessenger(init_loc_fn)(model)
    return wrapped
