"""Files with tensors and plain data."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import IO, Any

import torch

File = str | os.PathLike[str] | IO[bytes]
MapLocation = Callable[[Any, str], Any] | torch.device | str | dict[str, str] | None


def load_file(filename: File, map_location: MapLocation, allow_pickle: bool) -> Any:
    """What torch.save wrote. Raises ValueError for pickled objects unless `allow_pickle`."""
    try:
        return torch.load(filename, map_location=map_location, weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        if allow_pickle:
            raise
        raise ValueError(
            f"{filename!r} holds pickled objects, e.g. the constraints in a parameter file that Pyro wrote; "
            f"if you trust it, read it with load(filename, allow_pickle=True). torch says: {error}"
        ) from error
