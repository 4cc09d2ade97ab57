"""What operators need to know about devices: which have kernels, and when a value may be looked at.

On a GPU a check of values makes the host wait for everything that the device has still to do. So there such
checks are done while the setting `validate_infer` is on (`sumprod.enable_validation(False)` turns it off),
and never while a CUDA graph is captured, which forbids them. On the CPU they are always done.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sumprod._native import build_info
from sumprod.settings import state

__all__ = ["check_values", "one_device", "random_uniforms", "require_kernels"]

_HAVE_KERNELS = {"cpu", "meta"}
if build_info().get("cuda", "no") != "no":
    _HAVE_KERNELS.add("cuda")


def require_kernels(op: str, device: torch.device) -> None:
    """Raises ValueError when this build has no kernels for `device`."""
    if device.type in _HAVE_KERNELS:
        return
    if device.type == "cuda":
        raise ValueError(
            f"{op}: there is no kernel for device '{device}': this build of sumprod has no CUDA kernels. "
            "Build it where nvcc is on the PATH (`pip install --force-reinstall --no-deps .` in its folder), "
            "or move the tensors with .cpu(); `python -m sumprod.doctor` says what there is"
        )
    known = ", ".join(sorted(_HAVE_KERNELS - {"meta"}))
    raise ValueError(f"{op}: there is no kernel for device '{device.type}'; kernels exist for: {known}")


def one_device(a: Tensor, b: Tensor, c: Tensor) -> bool:
    """Whether three tensors are on one device with kernels; asked this way round, it is cheap for the CPU."""
    if a.is_cpu:
        return b.is_cpu and c.is_cpu
    device = a.device
    return device.type in _HAVE_KERNELS and b.device == device and c.device == device


def check_values(tensor: Tensor) -> bool:
    """Whether this is the place to look at the values of `tensor`, in order to raise when they are wrong."""
    if tensor.is_cpu:
        return True
    if tensor.is_meta or not state.validate_infer:
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def random_uniforms(
    op: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Numbers in [0, 1) on `device`, from its default generator or from a given one of the same device.

    Raises ValueError when the generator belongs to another device.
    """
    if generator is not None and device.type != "meta" and generator.device.type != device.type:
        raise ValueError(
            f"{op}: generator is on {generator.device}, the tensors are on {device}; make it with "
            f"torch.Generator('{device.type}'), or draw the uniforms where the generator is and give them as "
            f"uniforms=torch.rand(..., generator=generator).to('{device.type}')"
        )
    return torch.rand(shape, dtype=dtype, device=device, generator=generator)
