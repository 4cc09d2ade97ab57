"""Whether the order of a program's sites keeps the independence along plates around enumerated sites."""

from __future__ import annotations

import warnings
from typing import Any

from sumprod.handlers.util import site_is_subsample

__all__ = ["check_traceenum_requirements"]


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
