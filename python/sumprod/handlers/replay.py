"""Run a program with the values of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sumprod.handlers.messenger import Messenger, make_handler
from sumprod.handlers.trace_struct import Trace


class ReplayMessenger(Messenger):
    """Give latent sample sites the values and inference options that they have in a trace.

    Observed sites and sites that the trace does not hold are left alone.

    Args:
        trace: where values of sample sites come from.
        params: values of params by name, constrained, with the attribute `unconstrained`.

    Raises:
        ValueError: neither was given.
        RuntimeError: (while running) the trace holds the site as observed or as a param.
    """

    def __init__(self, trace: Trace | None = None, params: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if trace is None and params is None:
            raise ValueError("must provide trace or params to replay against")
        self.trace = trace
        self.params = params

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if self.trace is None or name not in self.trace or msg["is_observed"]:
            return
        site = self.trace.nodes[name]
        if site["type"] != "sample" or site["is_observed"]:
            found = "observed there" if site["type"] == "sample" else f"a {site['type']} site there"
            raise RuntimeError(f"site '{name}' must be sampled in trace to be replayed, but it is {found}")
        msg["done"] = True
        msg["value"] = site["value"]
        # A copy: handlers further out write into it, and the trace must not change.
        msg["infer"] = dict(site["infer"])

    def _pyro_param(self, msg: Any) -> None:
        if self.params is not None and msg["name"] in self.params:
            value = self.params[msg["name"]]
            if not hasattr(value, "unconstrained"):
                raise TypeError(
                    f"param '{msg['name']}' to be replayed has no attribute 'unconstrained':"
                    " pass values taken from the parameter store"
                )
            msg["done"] = True
            msg["value"] = value


replay = make_handler(ReplayMessenger)
