"""Leave sites, or batch elements of them, out of the log-density."""

from __future__ import annotations

from typing import Any

import torch

from sumprod.handlers.messenger import Messenger, make_handler


class MaskMessenger(Messenger):
    """Count log-densities only where the mask holds; nested masks combine by "and".

    Values are sampled and returned as without it.

    Args:
        mask: a bool, or a bool tensor that broadcasts to the sites' batch shapes (a uint8 tensor of
            zeros and ones is taken too). False lets densities be skipped.

    Raises:
        ValueError: anything else.
    """

    def __init__(self, mask: bool | torch.Tensor) -> None:
        super().__init__()
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.uint8:
            mask = mask != 0
        if not isinstance(mask, bool) and not (isinstance(mask, torch.Tensor) and mask.dtype == torch.bool):
            got = f"a tensor of {mask.dtype}" if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise ValueError(f"Expected mask to be a bool or a BoolTensor, got {got}")
        self.mask = mask

    def _process_message(self, msg: Any) -> None:
        outer = msg["mask"]
        msg["mask"] = self.mask if outer is None else outer & self.mask


mask = make_handler(MaskMessenger)
