"""Scale log-densities."""

from __future__ import annotations

from typing import Any

import torch

from sumprod import settings
from sumprod.handlers.messenger import Messenger, make_handler


class ScaleMessenger(Messenger):
    """Multiply the log-densities of the sites inside; nested scales multiply.

    Args:
        scale: a positive number, or a positive tensor that broadcasts to the sites' batch shapes.

    Raises:
        ValueError: not positive (for a tensor: checked under validation).
        TypeError: neither a number nor a tensor.
    """

    def __init__(self, scale: float | torch.Tensor) -> None:
        super().__init__()
        if isinstance(scale, torch.Tensor):
            if settings.state.validate_poutine and not bool((scale > 0).all()):
                raise ValueError(f"Expected scale > 0 everywhere, got {scale}")
        elif not isinstance(scale, int | float):
            raise TypeError(f"Expected scale to be a number or a tensor, got {type(scale).__name__}")
        elif not scale > 0:
            raise ValueError(f"Expected scale > 0 but got {scale}")
        self.scale_factor = scale

    def _process_message(self, msg: Any) -> None:
        msg["scale"] = self.scale_factor * msg["scale"]


scale = make_handler(ScaleMessenger)
