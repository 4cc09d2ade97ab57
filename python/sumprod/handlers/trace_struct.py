"""The record of one run of a program."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from sumprod import settings
from sumprod._numeric import warn_if_inf, warn_if_nan
from sumprod.distributions.score_parts import ScoreParts
from sumprod.distributions.torch_distribution import TorchDistributionMixin
from sumprod.distributions.util import scale_and_mask
from sumprod.errors import add_detail, describe_plates
from sumprod.handlers.shapes import shape_table
from sumprod.ops import packed

SiteFilter = Callable[[str, Any], bool]


class Trace:
    """The sites of one run of a program, in order, and optionally which depends on which.

    Attributes:
        nodes: name -> site, a dict with the keys of `sumprod.runtime.Message`. A run recorded by
            `get_trace` also has `_INPUT` (type "args") and `_RETURN` (type "return").
        graph_type: "flat", or "dense": every sample site has an edge from each earlier one that a
            sequential plate does not make independent of it.

    Log-densities are computed on demand and kept in the sites: changing a value afterwards has no
    effect on them.
    """

    def __init__(self, graph_type: str = "flat") -> None:
        if graph_type not in ("flat", "dense"):
            raise ValueError(f"Expected graph_type 'flat' or 'dense', got {graph_type!r}")
        self.graph_type = graph_type
        self.nodes: OrderedDict[str, Any] = OrderedDict()
        self._successors: dict[str, list[str]] = {}
        self._predecessors: dict[str, list[str]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self.nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    # ---- the graph

    @property
    def edges(self) -> Iterator[tuple[str, str]]:
        """Pairs of names (from, to)."""
        return ((site, after) for site, later in self._successors.items() for after in later)

    def add_node(self, site_name: str, **site: Any) -> None:
        """Append a site.

        Raises:
            RuntimeError: a sample site of this name is there already, or a site of another type.
        """
        self._append(site_name, site)

    def _append(self, site_name: str, site: Any) -> None:
        """`add_node` of a dict that the trace may keep; many keywords take longer than all the rest."""
        known = self.nodes.get(site_name)
        if known is not None:
            if known["type"] != site["type"]:
                raise RuntimeError(
                    f"{site['type']} site '{site_name}' is already in the trace as a {known['type']}:"
                    " give one of the two another name"
                )
            if known["type"] == "sample":
                raise RuntimeError(
                    f"Multiple sample sites named '{site_name}': names must be unique within one run; in a"
                    f" loop, use for example f'{site_name}_{{i}}'"
                )
        self.nodes[site_name] = site

    def add_edge(self, site1: str, site2: str) -> None:
        """Record that `site2` may depend on `site1`."""
        for name in (site1, site2):
            if name not in self.nodes:
                raise KeyError(f"no site '{name}' in this trace")
        self._successors.setdefault(site1, []).append(site2)
        self._predecessors.setdefault(site2, []).append(site1)

    def remove_node(self, site_name: str) -> None:
        """Take a site and its edges out."""
        self.nodes.pop(site_name)
        for before in self._predecessors.pop(site_name, ()):
            self._successors[before].remove(site_name)
        for after in self._successors.pop(site_name, ()):
            self._predecessors[after].remove(site_name)

    def predecessors(self, site_name: str) -> list[str]:
        """The sites that `site_name` may directly depend on."""
        return list(self._predecessors.get(site_name, ()))

    def successors(self, site_name: str) -> list[str]:
        """The sites that may directly depend on `site_name`."""
        return list(self._successors.get(site_name, ()))

    def topological_sort(self, reverse: bool = False) -> list[str]:
        """Names such that every site comes after those it depends on."""
        order: list[str] = []
        seen: set[str] = set()
        for root in self.nodes:
            stack = [(root, False)]
            while stack:
                name, complete = stack.pop()
                if complete:
                    order.append(name)
                elif name not in seen:
                    seen.add(name)
                    stack.append((name, True))
                    stack.extend((before, False) for before in reversed(self.predecessors(name)))
        return order[::-1] if reverse else order

    def copy(self) -> Trace:
        """A new trace with the same site objects."""
        duplicate = Trace(self.graph_type)
        duplicate.nodes.update(self.nodes)
        duplicate._successors = {name: list(later) for name, later in self._successors.items()}
        duplicate._predecessors = {name: list(before) for name, before in self._predecessors.items()}
        return duplicate

    def detach_(self) -> None:
        """Cut the values of the sample sites from the autograd graph."""
        for site in self._samples():
            site["value"] = site["value"].detach()

    # ---- densities

    def _samples(self, site_filter: SiteFilter | None = None) -> Iterable[Any]:
        return (
            site
            for name, site in self.nodes.items()
            if site["type"] == "sample" and (site_filter is None or site_filter(name, site))
        )

    def log_prob_sum(self, site_filter: SiteFilter | None = None) -> torch.Tensor | float:
        """The sum of all sites' scaled and masked log-densities: a scalar tensor; 0.0 without sites.

        Raises:
            ValueError: a value does not suit its distribution; the text names the site.
        """
        sites = list(self._samples(site_filter))
        for site in sites:
            if "log_prob_sum" not in site:
                if "log_prob" in site:
                    site["log_prob_sum"] = site["log_prob"].sum()
                else:
                    log_prob = self._site_log_prob(site, "log_prob_sum")
                    log_prob = scale_and_mask(log_prob, site["scale"], site["mask"])
                    site["log_prob_sum"] = log_prob.sum()
        self._check(sites)
        return sum_tensors([site["log_prob_sum"] for site in sites])

    def compute_log_prob(self, site_filter: SiteFilter | None = None) -> None:
        """Fill in `unscaled_log_prob`, `log_prob` and `log_prob_sum` of the sample sites.

        Raises:
            ValueError: a value does not suit its distribution; the text names the site.
        """
        fresh = [site for site in self._samples(site_filter) if "log_prob" not in site]
        for site in fresh:
            log_prob = self._site_log_prob(site, "log_prob")
            site["unscaled_log_prob"] = log_prob
            log_prob = scale_and_mask(log_prob, site["scale"], site["mask"])
            site["log_prob"] = log_prob
            site["log_prob_sum"] = log_prob.sum()
        self._check(fresh)

    def compute_score_parts(self) -> None:
        """Fill in `score_parts` beside what `compute_log_prob` fills in.

        Raises:
            ValueError: a value does not suit its distribution; the text names the site.
        """
        fresh = [site for site in self._samples() if "score_parts" not in site]
        for site in fresh:
            try:
                parts: ScoreParts = site["fn"].score_parts(site["value"], *site["args"], **site["kwargs"])
            except ValueError as error:
                self._explain(error, "score_parts", site)
                raise
            site["unscaled_log_prob"] = parts.log_prob
            parts = parts.scale_and_mask(site["scale"], site["mask"])
            site["score_parts"] = parts
            site["log_prob"] = parts.log_prob
            site["log_prob_sum"] = parts.log_prob.sum()
        self._check(fresh)

    def _site_log_prob(self, site: Any, what: str) -> Any:
        fn, mask = site["fn"], site["mask"]
        if site["is_observed"] and isinstance(mask, torch.Tensor) and isinstance(fn, TorchDistributionMixin):
            # The density itself must not see data that are masked out: the gradient at a NaN is NaN,
            # even where it is multiplied by zero. A masked draw keeps its density, which is its score.
            fn = fn.mask(mask)
        try:
            return fn.log_prob(site["value"], *site["args"], **site["kwargs"])
        except ValueError as error:
            self._explain(error, what, site)
            raise

    def _explain(self, error: ValueError, what: str, site: Any) -> None:
        """Put the site and the shapes up to it into an error that a density has raised."""
        name = site["name"]
        error.site = name  # type: ignore[attr-defined]
        error.plates = site["cond_indep_stack"]  # type: ignore[attr-defined]
        head = f"Error while computing {what} at site '{name}'{describe_plates(site['cond_indep_stack'])}:"
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (f"{head}\n{error.args[0]}",)
        else:
            add_detail(error, head)
        add_detail(error, self.format_shapes(last_site=name))

    @staticmethod
    def _check(sites: list[Any]) -> None:
        """Warn of NaN and +inf, and later of such gradients, naming the site."""
        if not settings.state.validate_poutine:
            return
        sums = [site["log_prob_sum"] for site in sites]
        for site, value in zip(sites, sums, strict=True):
            if isinstance(value, torch.Tensor) and value.requires_grad:
                value.register_hook(functools.partial(_check_gradient, site["name"]))
        # One look at the total; the sites one by one only when something is wrong.
        total = float(sum_tensors([x.detach() if isinstance(x, torch.Tensor) else x for x in sums]))
        if math.isnan(total) or total == math.inf:
            for site, value in zip(sites, sums, strict=True):
                value = value.detach() if isinstance(value, torch.Tensor) else value
                what = f"log_prob_sum at site '{site['name']}'"
                warn_if_nan(value, what)
                warn_if_inf(value, what, allow_neginf=True)

    # ---- selections of sites

    @property
    def observation_nodes(self) -> list[str]:
        """Names of the observed sample sites."""
        return [name for name, site in self.nodes.items() if site["type"] == "sample" and site["is_observed"]]

    @property
    def param_nodes(self) -> list[str]:
        """Names of the param sites."""
        return [name for name, site in self.nodes.items() if site["type"] == "param"]

    @property
    def stochastic_nodes(self) -> list[str]:
        """Names of the latent sample sites."""
        return [name for name, _ in self.iter_stochastic_nodes()]

    @property
    def reparameterized_nodes(self) -> list[str]:
        """Names of the latent sites whose draws carry gradients."""
        return [name for name, site in self.iter_stochastic_nodes() if _has_rsample(site)]

    @property
    def nonreparam_stochastic_nodes(self) -> list[str]:
        """Names of the latent sites whose draws carry no gradients."""
        return [name for name, site in self.iter_stochastic_nodes() if not _has_rsample(site)]

    def iter_stochastic_nodes(self) -> Iterator[tuple[str, Any]]:
        """Names and sites of the latent sample sites."""
        for name, site in self.nodes.items():
            if site["type"] == "sample" and not site["is_observed"]:
                yield name, site

    # ---- named dims

    def symbolize_dims(self, plate_to_symbol: dict[str, str] | None = None) -> dict[str, str]:
        """Give each plate and each enumerated variable a one-character symbol.

        Args:
            plate_to_symbol: symbols that plates have in another trace; extended in place.

        Returns:
            plate name -> symbol. Each sample site gets `infer["_dim_to_symbol"]`; plates have even
            symbols and enumerated variables odd ones.
        """
        plate_to_symbol = {} if plate_to_symbol is None else plate_to_symbol
        self.symbol_to_dim: dict[str, int] = {}
        for site in self._samples():
            dim_to_symbol: dict[int, str] = {}
            for frame in site["cond_indep_stack"]:
                if frame.dim is not None:
                    symbol = plate_to_symbol.setdefault(frame.name, packed.symbol(2 * len(plate_to_symbol)))
                    dim_to_symbol[frame.dim] = symbol
            for dim, variable in site["infer"].get("_dim_to_id", {}).items():
                dim_to_symbol.setdefault(dim, packed.symbol(1 + 2 * variable))
            self.symbol_to_dim.update({symbol: dim for dim, symbol in dim_to_symbol.items()})
            site["infer"]["_dim_to_symbol"] = dim_to_symbol
        self.plate_to_symbol = plate_to_symbol
        return plate_to_symbol

    def pack_tensors(self, plate_to_symbol: dict[str, str] | None = None) -> None:
        """Compute packed forms of scales, masks and log-densities: `site["packed"]`.

        Raises:
            ValueError: a tensor has a dim that no plate and no enumerated variable accounts for.
        """
        self.symbolize_dims(plate_to_symbol)
        for site in self._samples():
            dim_to_symbol = site["infer"]["_dim_to_symbol"]
            entries = {
                "mask": site["mask"],
                "scale": site["scale"],
                "log_prob": site.get("log_prob"),
                "unscaled_log_prob": site.get("unscaled_log_prob"),
            }
            parts = site.get("score_parts")
            if parts is not None:
                entries["score_parts"] = parts
            try:
                site["packed"] = {
                    key: ScoreParts(*(packed.pack(part, dim_to_symbol) for part in value))
                    if isinstance(value, ScoreParts)
                    else packed.pack(value, dim_to_symbol)
                    for key, value in entries.items()
                    if value is not None or key in ("mask", "scale")
                }
            except ValueError as error:
                head = f"Error while packing tensors at site '{site['name']}':\n  {error}"
                error.args = (f"{head}\n{self.format_shapes()}",)
                raise

    def format_shapes(self, title: str = "Trace Shapes:", last_site: str | None = None) -> str:
        """A table of the sites' shapes: parameters, then distributions, values and log-densities.

        Args:
            title: the first line.
            last_site: stop after this site.
        """
        return shape_table(self.nodes, title, last_site)


def _check_gradient(name: str, gradient: torch.Tensor) -> None:
    if not math.isfinite(gradient):
        what = f"backward log_prob_sum at site '{name}'"
        warn_if_nan(gradient.detach(), what)
        warn_if_inf(gradient.detach(), what)


def _has_rsample(site: Any) -> bool:
    return bool(getattr(site["fn"], "has_rsample", False))


def sum_tensors(terms: list[Any]) -> torch.Tensor | float:
    """The sum of scalar tensors or numbers, with one autograd node however many there are."""
    tensors = [term for term in terms if isinstance(term, torch.Tensor)]
    rest = sum(term for term in terms if not isinstance(term, torch.Tensor))
    if not tensors:
        return float(rest)
    same = all(t.dtype == tensors[0].dtype and t.device == tensors[0].device for t in tensors)
    if len(tensors) < 4 or not same:
        total = tensors[0]
        for term in tensors[1:]:
            total = total + term
    else:
        total = torch.stack(tensors).sum()
    return total + rest if rest else total
