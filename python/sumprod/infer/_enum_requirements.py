"""Whether the order of a program's sites keeps the independence along plates around enumerated sites."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from sumprod.handlers.util import site_is_subsample
from sumprod.infer._enum_sites import ordinal_of, variable_of

__all__ = ["check_guide_dependencies", "check_traceenum_requirements", "warn_of_dependency"]


def warn_of_dependency(site: Any, owner: Any) -> None:
    """Warn when a site, which depends on the enumerated site `owner`, is not in all of its plates."""
    inside = ordinal_of(site)
    for frame in owner["cond_indep_stack"]:
        if frame.dim is not None and frame.size > 1 and frame.name not in inside:
            warnings.warn(
                f"Found possibly invalid dependency: site '{site['name']}' depends on site '{owner['name']}',"
                f" which is inside plate '{frame.name}', from outside it; move '{site['name']}' into the"
                " plate",
                RuntimeWarning,
                stacklevel=3,
            )


def check_guide_dependencies(traces: Iterable[Any], guide_trace: Any) -> None:
    """Warn of sites that vary with an enumerated site of the guide, and are outside one of its plates."""
    owners = {
        variable_of(site): site
        for site in guide_trace.nodes.values()
        if site["type"] == "sample" and "_enumerate_dim" in site["infer"] and ordinal_of(site)
    }
    if not owners:
        return
    for one in traces:
        for site in one.nodes.values():
            if site["type"] != "sample":
                continue
            for dim, variable in site["infer"].get("_dim_to_id", {}).items():
                owner = owners.get(variable)
                if owner is not None and owner["name"] != site["name"] and _varies(site, dim):
                    warn_of_dependency(site, owner)


def _varies(site: Any, dim: int) -> bool:
    """Whether the density of a site varies along a batch dim."""
    value = site["value"].shape
    value = value[: len(value) - len(site["fn"]._event_shape)]
    return any(len(shape) >= -dim and shape[dim] > 1 for shape in (site["fn"].batch_shape, value))


def check_traceenum_requirements(model_trace: Any, guide_trace: Any) -> None:
    """Warn of sites that may depend on enumerated sites of the guide from outside the plates of these.

    Rows of a plate are enumerated side by side, as if each were the only one. That is exact as long as no
    site outside the plate depends on a site inside. Dependence itself is not visible in a trace; what is
    looked at is the order: a site that comes after an enumerated one, and is in some of its plates only.

    Args:
        model_trace: trace of the model, replayed against the guide.
        guide_trace: trace of the guide.

    Warns:
        RuntimeWarning: for each such site of the two programs, with the enumerated sites and their plates.

    >>> import sumprod
    >>> from sumprod.distributions import Bernoulli
    >>> def guide():
    ...     sumprod.sample("a", Bernoulli(0.5))
    ...     with sumprod.plate("data", 2):
    ...         sumprod.sample("b", Bernoulli(0.5), infer={"enumerate": "parallel"})
    >>> one = sumprod.handlers.trace(guide).get_trace()
    >>> check_traceenum_requirements(one, one)  # in the other order, "a" would be warned of
    """
    enumerated = {name for name, site in guide_trace.nodes.items() if _is_marked(site)}
    for role, one in (("model", model_trace), ("guide", guide_trace)):
        earlier: list[Any] = []
        for name, site in one.nodes.items():
            if site["type"] != "sample" or site_is_subsample(site):
                continue
            left = [(before["name"], _left_plates(before, site)) for before in earlier]
            left = [(before, plates) for before, plates in left if plates]
            if left:
                sites = ", ".join(f'"{before}"' for before, _ in left)
                plates = ", ".join(f'"{plate}"' for plate in dict.fromkeys(p for _, ps in left for p in ps))
                warnings.warn(
                    f'at {role} site "{name}", possibly invalid dependency.\n'
                    f'Expected site "{name}" to precede sites {sites}\n'
                    f"to avoid breaking independence of plates {plates}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            if name in enumerated:
                earlier.append(site)


def _is_marked(site: Any) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and site["infer"].get("enumerate") is not None


def _left_plates(before: Any, site: Any) -> list[str]:
    """Names of the vectorised plates of `before` that `site` is not in, if it is in no others."""
    inner, outer = set(before["cond_indep_stack"]), set(site["cond_indep_stack"])
    if not outer <= inner:
        return []
    return [
        frame.name for frame in before["cond_indep_stack"] if frame.dim is not None and frame not in outer
    ]
