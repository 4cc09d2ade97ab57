"""`hmm_sample`: exact samples of the state path of a hidden Markov model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sumprod._native import ops as native
from sumprod.ops._devices import random_uniforms
from sumprod.ops._hmm_arguments import HMMArguments, canonical, check_support

__all__ = ["hmm_sample"]


def hmm_sample(
    initial: Tensor,
    transition: Tensor,
    emission: Tensor,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
) -> Tensor:
    """Independent draws from the posterior p(z | x) over state paths.

    Forward filtering, backward sampling (Scott 2002, "Bayesian methods for hidden Markov models").
    All randomness comes from `uniforms`: the same uniforms give the same paths, whatever the batch
    around a sequence, its padding, the number of threads, or (but for ties within rounding) the device.

    On a GPU the search for impossible sequences, and for lengths out of range, makes the host wait for the
    device. It is left out where the setting `validate_infer` is off (`sumprod.enable_validation(False)`) and
    while a CUDA graph is captured; paths of impossible sequences then mean nothing.

    Args:
        initial: log potentials of the first state, [S] or broadcastable to [*B, S].
        transition: log potentials [S, S] (from, to), or [*B or 1, T-1 or 1, S, S].
        emission: log potentials [*B, T, S]; state 0 emits at time 0.
        lengths: integers [*B], the number of real steps of each sequence; T when omitted.
        num_samples: number n of paths per sequence.
        generator: source of the uniforms, of the emission's device; torch's default one when omitted.
        uniforms: numbers in [0, 1) of shape [n, *B, T] on the emission's device, to use instead of drawing.

    Returns:
        Paths [n, *B, T], int64; -1 past a sequence's end, and throughout a sequence with NaN.

    Raises:
        SupportError: a sequence has no possible path; names the batch element and the first time
            step at which no state is possible.
        TypeError: an argument is not a floating-point tensor, or lengths are not integers.
        ValueError: shapes, devices, lengths or num_samples do not fit together.

    Example:
        >>> import torch, sumprod
        >>> initial, transition = torch.zeros(2), torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
        >>> emission = torch.zeros(3, 2)
        >>> emission[1, 0] = -torch.inf
        >>> sumprod.ops.hmm_sample(initial, transition, emission, num_samples=2).tolist()
        [[1, 1, 1], [1, 1, 1]]
    """
    arguments = canonical("hmm_sample", initial, transition, emission, lengths)
    numbers = _uniforms(arguments, num_samples, generator, uniforms)
    path, dead = native.hmm_sample(*arguments.constants, numbers)
    check_support("hmm_sample", dead, path, arguments.batch_shape)
    result: Tensor = path
    if len(arguments.batch_shape) != 1:
        result = result.reshape(result.shape[0], *arguments.batch_shape, result.shape[2])
    return result


def _uniforms(
    arguments: HMMArguments, num_samples: int, generator: torch.Generator | None, uniforms: Tensor | None
) -> Tensor:
    batch, steps, _ = arguments.emission.shape
    like = arguments.emission
    if uniforms is None:
        if isinstance(num_samples, bool) or not isinstance(num_samples, int):
            raise TypeError(f"hmm_sample: num_samples must be an int, got {type(num_samples).__name__}")
        if num_samples < 0:
            raise ValueError(f"hmm_sample: num_samples must not be negative, got {num_samples}")
        shape = (num_samples, batch, steps)
        return random_uniforms("hmm_sample", shape, like.dtype, like.device, generator)
    if not isinstance(uniforms, Tensor) or not uniforms.is_floating_point():
        got = uniforms.dtype if isinstance(uniforms, Tensor) else type(uniforms).__name__
        raise TypeError(f"hmm_sample: uniforms must be a floating-point tensor, got {got}")
    wanted = [*arguments.batch_shape, steps]
    if uniforms.dim() != len(wanted) + 1 or list(uniforms.shape[1:]) != wanted:
        raise ValueError(
            f"hmm_sample: uniforms must have shape [n, *B, T] = [n, {str(wanted)[1:]}, "
            f"got {list(uniforms.shape)}"
        )
    if uniforms.device != like.device:
        raise ValueError(f"hmm_sample: uniforms are on {uniforms.device}, emission on {like.device}")
    numbers = uniforms.detach()
    if numbers.dtype != like.dtype:
        # Rounding to fewer bits may give 1, which is not a uniform any more.
        numbers = numbers.to(like.dtype).clamp(max=1 - torch.finfo(like.dtype).eps / 2)
    return numbers.reshape(uniforms.shape[0], batch, steps)


@torch.library.register_fake("sumprod::hmm_sample")
def _fake(
    initial: Tensor, transition: Tensor, emission: Tensor, lengths: Tensor | None, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    batch, steps, _ = emission.shape
    path = emission.new_empty(uniforms.shape[0], batch, steps, dtype=torch.int64)
    return path, emission.new_empty(batch, dtype=torch.int64)
