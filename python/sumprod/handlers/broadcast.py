"""Expand distributions to the plates around them."""

from __future__ import annotations

from typing import Any

from sumprod.handlers.indep import CondIndepStackFrame
from sumprod.handlers.messenger import Messenger, make_handler


class BroadcastMessenger(Messenger):
    """Expand the batch shape of each site's distribution to the enclosing plates.

    `plate` does this by itself; the handler remains for programs that ask for it.

    Raises:
        ValueError: (while running) a batch dim disagrees with its plate.
    """

    def _pyro_sample(self, msg: Any) -> None:
        for frame in msg["cond_indep_stack"]:
            broadcast_to_frame(msg, frame)


def broadcast_to_frame(msg: Any, frame: CondIndepStackFrame) -> None:
    """Expand the distribution of a sample message along the dim of one plate."""
    dim, size = frame.dim, frame.size
    if dim is None or size == -1 or msg["type"] != "sample" or msg["done"]:
        return
    fn = msg["fn"]
    shape = getattr(fn, "batch_shape", None)
    if shape is None:
        return
    if len(shape) >= -dim:
        if shape[dim] == size:
            return
        if shape[dim] != 1:
            raise ValueError(
                f"Shape mismatch inside plate('{frame.name}') at site {msg['name']} dim {dim},"
                f" {size} vs {shape[dim]}"
            )
        target = [*shape]
    else:
        target = [1] * (-dim - len(shape)) + [*shape]
    target[dim] = size
    expanded = fn.expand(target)
    if expanded.has_rsample != fn.has_rsample:  # set by hand on this object
        expanded.has_rsample_(fn.has_rsample)
    msg["fn"] = expanded


broadcast = make_handler(BroadcastMessenger)
