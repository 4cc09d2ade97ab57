"""Checkpoints of `SVI`: files from which training goes on as if it had never stopped."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sumprod._random import get_rng_state, preserve_rng_state, set_rng_state
from sumprod.params.param_store import PARAM_STORE, ParamStoreDict

if TYPE_CHECKING:
    from sumprod.infer.svi import SVI

__all__ = ["Checkpoint", "load_checkpoint", "resume_checkpoint", "save_checkpoint"]

logger = logging.getLogger("sumprod.infer")

_FORMAT = "sumprod.svi.1"


class Checkpoint:
    """Where and when training saves its state: give it to `SVI(checkpoint=...)`.

    Args:
        path: the file; its folder must exist. A write replaces it in one piece.
        every: save after each so many steps, besides the end and Ctrl-C.
        resume: start from the file when it exists. False: overwrite it.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1000, resume: bool = True) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.path = Path(path)
        self.every = every
        self.resume = resume
        # Whether the file is of this run: then it may be overwritten.
        self.owned = not resume

    @classmethod
    def of(cls, given: Any) -> Checkpoint | None:
        """A checkpoint from a path; None and checkpoints as they are."""
        return given if given is None or isinstance(given, cls) else cls(given)


def save_checkpoint(svi: SVI, path: str | os.PathLike[str], early_stop: Any = None) -> None:
    """Write the state of training to `path`, atomically.

    The file is written beside its place and then moved there; an error or Ctrl-C on the way leaves what
    was there.
    """
    params = io.BytesIO()
    PARAM_STORE.save(params)
    content = {
        "format": _FORMAT,
        "steps_done": svi.steps_done,
        "asked": svi._asked,
        "losses": list(svi.losses),
        "params": torch.frombuffer(bytearray(params.getvalue()), dtype=torch.uint8),
        "optim": svi.optim.get_state(),
        "rng": _encode_rng(get_rng_state()),
        "early_stop": early_stop.state_dict() if hasattr(early_stop, "state_dict") else None,
    }
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def resume_checkpoint(
    svi: SVI, checkpoint: Checkpoint, early_stop: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """At the start of training: restore the file of an earlier process, if there is one.

    Raises:
        FileExistsError: there is one, but `svi` has made steps already.
    """
    if checkpoint.owned or svi._resumed:
        return
    checkpoint.owned = True
    if not checkpoint.path.exists():
        return
    if svi.steps_done:
        checkpoint.owned = False
        raise FileExistsError(
            f"checkpoint {checkpoint.path} exists, but this SVI has made {svi.steps_done} steps already and"
            " cannot resume from it: start with a new SVI, delete the file, or use"
            " Checkpoint(path, resume=False)"
        )
    load_checkpoint(svi, checkpoint.path, args, kwargs, early_stop)
    logger.info("Resumed from %s after %d steps", checkpoint.path, svi.steps_done)


def load_checkpoint(
    svi: SVI,
    path: str | os.PathLike[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    early_stop: Any = None,
) -> None:
    """Restore what `save_checkpoint` wrote.

    Raises:
        ValueError: the file is no checkpoint, or a parameter has another shape or constraint.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # torch raises a dozen classes for files that are not its own
        raise ValueError(f"{path} is no checkpoint of SVI, or it is damaged") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is no checkpoint of SVI: expected the format {_FORMAT!r}")
    # Guides that set themselves up and modules that hold parameters do so in this run; their leaves
    # then get the saved values in place.
    with preserve_rng_state():
        svi.evaluate_loss(*args, **kwargs)
    _restore_params(content["params"], path)
    svi.optim.set_state(content["optim"])
    svi.losses[:] = content["losses"]
    svi.steps_done = content["steps_done"]
    svi._asked = svi._credit = content["asked"]
    svi._resumed = True
    if early_stop is not None and content["early_stop"] is not None:
        early_stop.load_state_dict(content["early_stop"])
    set_rng_state(_decode_rng(content["rng"]))


def _restore_params(data: torch.Tensor, path: Any) -> None:
    saved = ParamStoreDict()
    saved.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu")
    state = saved.get_state()
    here = PARAM_STORE.get_state()
    new: Any = {"params": {}, "constraints": {}}
    for name, value in state["params"].items():
        leaf = here["params"].get(name)
        if leaf is None:
            new["params"][name], new["constraints"][name] = value, state["constraints"][name]
            continue
        if leaf.shape != value.shape or leaf.dtype != value.dtype:
            raise ValueError(
                f"{path} does not fit this program: parameter '{name}' has shape {tuple(value.shape)} and"
                f" {value.dtype} there, {tuple(leaf.shape)} and {leaf.dtype} here"
            )
        with torch.no_grad():
            leaf.copy_(value)
    PARAM_STORE.set_state(new)


def _encode_rng(state: dict[str, Any]) -> dict[str, Any]:
    """The states of the generators as tensors, numbers and strings, which load without pickled code."""
    kind, keys, *rest = state["numpy"]
    version, numbers, gauss = state["random"]
    return {
        **state,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "random": [version, torch.tensor(numbers, dtype=torch.int64), gauss],
    }


def _decode_rng(state: dict[str, Any]) -> dict[str, Any]:
    kind, keys, *rest = state["numpy"]
    version, numbers, gauss = state["random"]
    return {
        **state,
        "numpy": (kind, keys.numpy().astype(np.uint32), *rest),
        "random": (version, tuple(numbers.tolist()), gauss),
    }
