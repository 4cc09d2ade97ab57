"""Intervene on sites (Pearl's do)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any

import torch

from sumprod.handlers.messenger import Messenger, make_handler
from sumprod.runtime import apply_stack, new_message


class DoMessenger(Messenger):
    """Fix what the rest of the program sees of a site, without changing what the site itself draws.

    The site splits in two. One keeps the name and is sampled (or observed) as before; nothing in the
    program depends on it. The other holds the fixed value, is named `NAME__CF`, and stays hidden.

    Args:
        data: values by name, tensors or numbers.

    Raises:
        NotImplementedError: (while running) a value of another kind.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__()
        self.data = data

    def _pyro_sample(self, msg: Any) -> None:
        value = self.data.get(msg["name"])
        interveners = msg.get("_interveners", ())
        if value is None or self in interveners:
            return
        if interveners:
            warnings.warn(
                f"Attempting to intervene on variable '{msg['name']}' multiple times, this is almost"
                " certainly incorrect behavior",
                RuntimeWarning,
                stacklevel=2,
            )
        if not isinstance(value, Number | torch.Tensor):
            raise NotImplementedError(
                f"Interventions of type {type(value).__name__} are not implemented; got one for site"
                f" '{msg['name']}': pass a tensor or a number"
            )
        twin = new_message(
            "sample",
            msg["name"],
            msg["fn"],
            msg["args"],
            msg["kwargs"],
            value=msg["value"],
            is_observed=msg["is_observed"],
            infer={key: value for key, value in msg["infer"].items() if not key.startswith("_markov")},
        )
        # Plates, scales, masks and chains meet the twin anew on its own way through the stack.
        twin["_interveners"] = (*interveners, self)
        apply_stack(twin)
        msg["name"] = f"{msg['name']}__CF"
        msg["value"] = value
        msg["is_observed"] = True
        msg["stop"] = True


_do = make_handler(DoMessenger)


def do(
    fn: Callable[..., Any] | Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None
) -> Any:
    """`DoMessenger` as `do(fn, data)`, `do(data)` or `do(data=data)`."""
    if isinstance(fn, Mapping) and data is None:
        fn, data = None, fn
    if data is None:
        raise ValueError("do needs data: a dict of values by site name")
    return _do(fn, data=data)
