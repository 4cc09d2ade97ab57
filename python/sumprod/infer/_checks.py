"""Checks of models against guides and of sites against plates, shared by the inference algorithms.

They look at names and shapes only, never at the contents of tensors, so they wait for no device.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

from sumprod.distributions.unit import Unit
from sumprod.errors import add_detail, describe_plates
from sumprod.handlers.util import site_is_factor, site_is_subsample

__all__ = [
    "MissingGuideSiteError",
    "check_if_enumerated",
    "check_model_guide_match",
    "check_site_shape",
    "check_traces_match",
    "missing_guide_site",
]


class MissingGuideSiteError(KeyError, ValueError):
    """A latent site of the model has no counterpart in the guide where the algorithm needs one.

    Attributes:
        site: its name.
    """

    site: str = ""

    def __str__(self) -> str:  # KeyError would show the text in quotes
        return ValueError.__str__(self)


def missing_guide_site(name: str, guide_trace: Any, algorithm: str) -> MissingGuideSiteError:
    """The error for a latent site that the guide lacks."""
    known = [site["name"] for site in guide_trace.nodes.values() if _is_latent(site)]
    error = MissingGuideSiteError(
        f"{algorithm} needs a guide site for every latent site of the model, but '{name}' is not in the"
        f" guide, which has {_quoted(known) or 'no sites'}: sample '{name}' in the guide, or observe it in"
        " the model"
    )
    error.site = name
    return error


def _is_latent(site: Any) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _error(site: Any, text: str) -> ValueError:
    error = ValueError(text)
    error.site = site["name"]  # type: ignore[attr-defined]
    error.plates = site["cond_indep_stack"]  # type: ignore[attr-defined]
    return error


# ---- model against guide


def check_model_guide_match(model_trace: Any, guide_trace: Any, max_plate_nesting: float = math.inf) -> None:
    """Check that a guide has the model's latent sites, with the same shapes, in the same plates.

    Enumerated model sites and deterministic guide sites are exempt. Batch dims left of
    `max_plate_nesting` belong to enumeration and may broadcast.

    Warns:
        UserWarning: a site is in one of the two only, an auxiliary site is in the model, or a guide
            plate is not in the model.

    Raises:
        ValueError: the event dims or the shapes of a site differ between the two, or a factor in the guide
            does not say `has_rsample`.
    """
    model_nodes, guide_nodes = model_trace.nodes, guide_trace.nodes
    missing: list[str] = []
    for name, site in model_nodes.items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        guide_site = guide_nodes.get(name)
        if guide_site is None or guide_site["type"] != "sample":
            if not site_is_subsample(site) and site["infer"].get("_enumerate_dim") is None:
                missing.append(name)
            continue
        fn, guide_fn = site["fn"], guide_site["fn"]
        try:
            same = fn._event_shape == guide_fn._event_shape and fn._batch_shape == guide_fn._batch_shape
        except AttributeError:  # not distributions of torch: plate indices, or callables
            same = site_is_subsample(site)
        if not same:
            _check_shapes(site, guide_site, max_plate_nesting)
    _check_names(model_nodes, guide_nodes, missing)


def _check_names(model_nodes: Any, guide_nodes: Any, missing: list[str]) -> None:
    extra: list[str] = []
    auxiliary_in_model: list[str] = []
    plates: list[str] = []
    for name, site in guide_nodes.items():
        if site["type"] != "sample":
            continue
        model_site = model_nodes.get(name)
        latent = model_site is not None and model_site["type"] == "sample" and not model_site["is_observed"]
        infer = site["infer"]
        if infer.get("is_auxiliary"):
            if latent:
                auxiliary_in_model.append(name)
            if site["is_observed"] and site_is_factor(site):
                _check_guide_factor(site)
        elif not latent and not infer.get("_deterministic"):
            (plates if site_is_subsample(site) else extra).append(name)
    if auxiliary_in_model:
        _warn(
            f"Found auxiliary vars in the model: {_quoted(auxiliary_in_model)}. An auxiliary site belongs to"
            " the guide alone: rename it there, or drop infer={'is_auxiliary': True}"
        )
    if extra:
        _warn(
            "Found non-auxiliary vars in guide but not model, consider marking these"
            f" infer={{'is_auxiliary': True}}: {_quoted(extra)}"
        )
    if missing:
        _warn(
            f"Found vars in model but not guide: {_quoted(missing)}. They are drawn from the prior and"
            " counted without a guide density, which biases the loss: sample them in the guide too"
        )
    if plates:
        _warn(
            f"Found plate statements in guide but not model: {_quoted(plates)}. A guide shares the model's"
            " minibatch only through a plate of the same name"
        )


def _check_guide_factor(site: Any) -> None:
    """A factor in a guide must say how it depends on the draws: gradients differ."""
    fn = site["fn"]
    while not isinstance(fn, Unit):
        fn = fn.base_dist
    if "has_rsample" not in vars(fn):
        raise _error(
            site,
            f"missing specification of has_rsample at guide site '{site['name']}'"
            f"{describe_plates(site['cond_indep_stack'])}: write factor(..., has_rsample=True) when it"
            " depends on reparameterised draws only, has_rsample=False otherwise",
        )


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)


def _check_shapes(site: Any, guide_site: Any, max_plate_nesting: float) -> None:
    fn, guide_fn = site["fn"], guide_site["fn"]
    if not (hasattr(fn, "event_shape") and hasattr(guide_fn, "event_shape")):
        return
    where = f"'{site['name']}'{describe_plates(site['cond_indep_stack'])}"
    event_dim, guide_event_dim = len(fn.event_shape), len(guide_fn.event_shape)
    if event_dim != guide_event_dim:
        fewer = "guide" if guide_event_dim < event_dim else "model"
        raise _error(
            site,
            f"Model and guide event_dims disagree at site {where}: {event_dim} vs {guide_event_dim}"
            f" (event shapes {tuple(fn.event_shape)} and {tuple(guide_fn.event_shape)});"
            f" add .to_event({abs(event_dim - guide_event_dim)}) in the {fewer}",
        )
    shape = tuple(fn.batch_shape) + tuple(fn.event_shape)
    guide_shape = tuple(guide_fn.batch_shape) + tuple(guide_fn.event_shape)
    checked = max_plate_nesting + event_dim
    pairs = zip_longest(reversed(shape), reversed(guide_shape), fillvalue=1)
    for position, (size, guide_size) in enumerate(pairs):
        if size != guide_size and position < checked:
            raise _error(
                site,
                f"Model and guide shapes disagree at site {where}: {shape} vs {guide_shape} (model vs guide,"
                f" differing at dim {-1 - position}); draw it in the same plates and with the same event"
                " shape in both",
            )
        if size != guide_size and 1 not in (size, guide_size):
            raise _error(
                site,
                f"Model and guide shapes disagree at site {where}: {shape} vs {guide_shape} do not broadcast",
            )


def check_traces_match(trace1: Any, trace2: Any) -> None:
    """Check that two runs of one program have the same sample sites with the same shapes.

    Warns:
        UserWarning: the sites differ.

    Raises:
        ValueError: a site's shape differs.
    """
    first = {name: site for name, site in trace1.nodes.items() if site["type"] == "sample"}
    second = {name: site for name, site in trace2.nodes.items() if site["type"] == "sample"}
    if first.keys() != second.keys():
        gone = [name for name in first if name not in second]
        new = [name for name in second if name not in first]
        _warn(
            f"Model vars changed: only in the first run: {_quoted(gone) or 'none'};"
            f" only in the second: {_quoted(new) or 'none'}"
        )
    for name, site in first.items():
        if name in second and not site_is_subsample(site):
            shapes = [_full_shape(one) for one in (site, second[name])]
            if shapes[0] != shapes[1]:
                raise _error(
                    site,
                    f"Site dims disagree at site '{name}'{describe_plates(site['cond_indep_stack'])}:"
                    f" {shapes[0]} vs {shapes[1]}; the program must have the same structure in every run",
                )


def _full_shape(site: Any) -> tuple[int, ...]:
    fn = site["fn"]
    if hasattr(fn, "batch_shape"):
        return tuple(fn.batch_shape) + tuple(fn.event_shape)
    return tuple(getattr(site["value"], "shape", ()))


def check_if_enumerated(guide_trace: Any) -> None:
    """Warn when guide sites are marked for enumeration, which the calling loss does not do."""
    marked = [
        name
        for name, site in guide_trace.nodes.items()
        if site["type"] == "sample" and site["infer"].get("enumerate") and not site_is_subsample(site)
    ]
    if marked:
        _warn(
            f"Found sample sites configured for enumeration: {', '.join(marked)}\n"
            "If you want to enumerate sites, you need to use TraceEnum_ELBO instead."
        )


# ---- sites against plates


def check_site_shape(site: Any, max_plate_nesting: float) -> None:
    """Check that the shape of `site["log_prob"]` is what the plates around the site make it.

    Dims left of `max_plate_nesting` belong to enumeration.

    Raises:
        ValueError: two plates share a dim, a plate lies left of `max_plate_nesting`, the density has
            a batch dim that no plate accounts for, or an enumerated value's dim is taken.
    """
    check_density_shape(site, getattr(site["log_prob"], "shape", ()), max_plate_nesting)


def check_density_shape(site: Any, actual: tuple[int, ...], max_plate_nesting: float) -> None:
    """`check_site_shape` for a density of the site that has the shape `actual`."""
    stack = site["cond_indep_stack"]
    if not stack and not actual:
        return
    frames = _frames_by_dim(site)
    depth = -min(frames, default=0)
    if depth > max_plate_nesting:
        raise _error(
            site,
            f"{_place(site)}, plate stack overflow: max_plate_nesting={max_plate_nesting}\n"
            f"Try increasing max_plate_nesting to at least {depth}",
        )
    expected = [frames[dim].size if dim in frames else None for dim in range(-depth, 0)]
    checked = actual if max_plate_nesting >= len(actual) else actual[len(actual) - int(max_plate_nesting) :]
    for size, wanted in zip_longest(reversed(checked), reversed(expected), fillvalue=1):
        # None: a dim between plates; -1: a plate that was not told its size.
        if wanted is not None and wanted != -1 and size != wanted:
            raise _bad_shape(site, expected, tuple(checked))
    enum_dim = site["infer"].get("_enumerate_dim")
    if enum_dim is not None:
        batch_shape = site["fn"].batch_shape
        if len(batch_shape) >= -enum_dim and batch_shape[enum_dim] != 1:
            raise _error(
                site,
                f"Enumeration dim conflict {_place(site)}: dim {enum_dim} of the batch shape"
                f" {tuple(batch_shape)} is in use already\nTry increasing pyro.markov history size",
            )


def _frames_by_dim(site: Any) -> dict[int, Any]:
    frames: dict[int, Any] = {}
    for frame in site["cond_indep_stack"]:
        if frame.dim is not None:
            if frame.dim in frames:
                raise _error(
                    site,
                    f"at site '{site['name']}' within plate('{frame.name}', dim={frame.dim}), dim collision"
                    f" with plate '{frames[frame.dim].name}'\nTry setting dim arg in other plates.",
                )
            frames[frame.dim] = frame
    return frames


def _place(site: Any) -> str:
    return f"at site '{site['name']}'{describe_plates(site['cond_indep_stack'])}"


def _bad_shape(site: Any, expected: list[int | None], actual: tuple[int, ...]) -> ValueError:
    shown = ", ".join("any" if size is None or size == -1 else str(size) for size in expected)
    error = _error(
        site,
        f"{_place(site)}, invalid log_prob shape\n"
        f"  Expected [{shown}], actual {list(actual)}\n"
        "  Try one of the following fixes:\n"
        "  - enclose the batched tensor in a with plate(...): context\n"
        "  - .to_event(...) the distribution being sampled\n"
        "  - .permute() data dimensions",
    )
    fn = site["fn"]
    if hasattr(fn, "batch_shape"):
        add_detail(
            error, f"  (batch shape {tuple(fn.batch_shape)}, event shape {tuple(fn.event_shape)} of {fn})"
        )
    return error
