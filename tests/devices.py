"""The device that operator tests run on, and how what they make gets there.

Oracles stay on the CPU. `OnDevice` puts every tensor that test code makes on the device; it is made on
the CPU first, so that all devices get the same numbers. Nothing changes for the library: a tensor that it
makes without saying where is on the CPU, and an error follows, as it would for a user. The raw operators must
be called with tensors of the device: a test cannot quietly test the CPU.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves

from sumprod import _native
from sumprod.ops import _devices
from tests import pretend

DEVICES = ("cpu", "cuda", "pretend")
_chosen = torch.device("cpu")
_strict = True


def device() -> torch.device:
    """What `--device` says."""
    return _chosen


def choose(name: str) -> None:
    """Sets the device for the whole run.

    Raises RuntimeError when tests on it would not test anything.
    """
    global _chosen
    if name == "cuda":
        built = _native.build_info()["cuda"]
        if built in ("no", "emulated"):
            raise RuntimeError(f"--device cuda: this build of sumprod has no CUDA kernels (cuda={built})")
        if not torch.cuda.is_available():
            raise RuntimeError("--device cuda: torch finds no usable GPU")
        name = f"cuda:{torch.cuda.current_device()}"
    elif name == "pretend":
        allow_pretend()
        name = "pretend:0"
    _chosen = torch.device(name)


def allow_pretend() -> None:
    """Makes the device "pretend" one with kernels."""
    pretend.set_up()
    _devices._HAVE_KERNELS.add(pretend.NAME)


def generator(seed: int) -> torch.Generator:
    """A generator for the library to draw from on the device."""
    made = pretend.PretendGenerator() if _chosen.type == "pretend" else torch.Generator(_chosen)
    return made.manual_seed(seed)


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Inside, test code and raw operators use whatever device they say, the CPU if they say nothing."""
    global _strict
    _strict = False
    try:
        yield
    finally:
        _strict = True


class OnDevice(TorchFunctionMode):
    """What test code makes is on the device, and so is what raw operators get; see above."""

    def __init__(self, target: torch.device) -> None:
        super().__init__()
        self.target = target
        self.factories = _device_constructors()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or not _strict:
            return func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverloadPacket | torch._ops.OpOverload):
            self._require_device(func, tree_leaves((args, kwargs)))
        elif func in self.factories and kwargs.get("device") is None and _from_tests():
            made = func(*args, **kwargs)
            return made.detach().to(self.target).requires_grad_(made.requires_grad)
        elif func in (Tensor.numpy, Tensor.__array__) and _from_tests():
            return func(args[0].cpu(), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _require_device(self, func: Any, given: list[Any]) -> None:
        name = getattr(func, "_qualified_op_name", str(func)).replace("::", ".")
        if not name.startswith("sumprod."):
            return
        for x in given:
            if isinstance(x, Tensor) and x.device.type not in (self.target.type, "meta"):
                raise AssertionError(f"{name} was called with a tensor on {x.device}, not on {self.target}")


def _from_tests() -> bool:
    """Whether the torch function was called by a module of the tests, not by the library or by torch."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "torch":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("tests.")
