"""Calls every operator on small tensors on the GPU and compares with the CPU: for compute-sanitizer.

Sizes are around those at which kernels change: lanes, warps, blocks, and the number of states that fits.
Needs torch and sumprod only. `--device cpu` tries the program itself.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import sumprod
from sumprod import ops
from sumprod.ops import contraction

STATES = (1, 3, 16, 17, 33, 64, 65, 130, 257)
SHAPES = ((1, 1), (1, 70), (3, 5), (40, 7))
Call = Callable[[], Sequence[Tensor]]


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return list(torch.autograd.grad(function(*leaves).sum(), leaves))


def hmm_calls(
    batch: int, steps: int, states: int, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, Call]]:
    draw = torch.Generator().manual_seed(batch + steps + states)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=dtype).to(device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw, dtype=dtype).to(device)

    initial, emission = normal(states).log_softmax(-1), normal(batch, steps, states)
    lengths = torch.randint(1, steps + 1, (batch,), generator=draw).tolist()
    uniforms = uniform(2, batch, steps)
    transitions = [normal(states, states).log_softmax(-1)]
    if states <= 33 and steps > 1:
        transitions.append(normal(batch, steps - 1, states, states).log_softmax(-1))
    for transition in transitions:
        potentials = initial, transition, emission
        kind = "shared" if transition.dim() == 2 else "own"

        def total(i: Tensor, t: Tensor, e: Tensor) -> Tensor:
            return ops.hmm_log_normalizer(i, t, e, lengths=lengths)

        yield f"log_normalizer {kind}", lambda p=potentials, f=total: [f(*p)]  # type: ignore[misc]
        yield f"gradient {kind}", lambda p=potentials, f=total: gradients(f, *p)  # type: ignore[misc]
        for name in ("hmm_filter", "hmm_marginals", "hmm_pairwise"):
            function = getattr(ops, name)
            yield f"{name} {kind}", lambda p=potentials, f=function: [f(*p, lengths=lengths)]  # type: ignore[misc]
        yield f"viterbi {kind}", lambda p=potentials: [*ops.hmm_viterbi(*p, lengths=lengths)]  # type: ignore[misc]
        yield (
            f"sample {kind}",
            lambda p=potentials: [ops.hmm_sample(*p, lengths=lengths, uniforms=uniforms)],  # type: ignore[misc]
        )


def other_calls(dtype: torch.dtype, device: str) -> Iterator[tuple[str, Call]]:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=dtype).to(device)

    for shape, dim in itertools.product(((5, 3), (7, 33, 2), (2, 5000), (300, 17)), (0, -1)):
        x = normal(*shape)
        yield f"logsumexp {shape} {dim}", lambda x=x, dim=dim: [sumprod.logsumexp(x, dim)]  # type: ignore[misc]
        yield (
            f"logsumexp gradient {shape} {dim}",
            lambda x=x, dim=dim: gradients(lambda v: sumprod.logsumexp(v, dim), x),  # type: ignore[misc]
        )
        yield f"normalize_weights {shape} {dim}", lambda x=x, dim=dim: [*ops.normalize_weights(x, dim)]  # type: ignore[misc]
    for i, j, k in ((1, 1, 1), (3, 17, 5), (33, 64, 70), (65, 130, 129)):
        x, y = normal(2, i, j), normal(j, k)
        yield f"logmatmulexp {i, j, k}", lambda x=x, y=y: [ops.logmatmulexp(x, y)]  # type: ignore[misc]
        yield f"logmatmulexp gradient {i, j, k}", lambda x=x, y=y: gradients(ops.logmatmulexp, x, y)  # type: ignore[misc]
        yield f"maxmatmul {i, j, k}", lambda x=x, y=y: [*ops.maxmatmul(x, y)]  # type: ignore[misc]
    for steps, states, plate in ((3, 2, 1), (12, 5, 3), (9, 16, 40)):
        tensors, dims = [normal(states)], [(0,)]
        for t in range(1, steps):
            tensors += [normal(states, states), normal(plate, states)]
            dims += [(t - 1, t), ("p", t)]  # type: ignore[list-item]
        uniforms = torch.rand(steps, generator=draw, dtype=torch.float64).to(device)

        def total(*values: Tensor, dims: list[tuple[int, ...]] = dims) -> Tensor:
            return contraction.contract(values, dims, ["p"])[0][1]

        def drawn(
            tensors: list[Tensor] = tensors, dims: list[tuple[int, ...]] = dims, **keywords: object
        ) -> list[Tensor]:
            found = contraction.draw(tensors, dims, ["p"], **keywords)  # type: ignore[arg-type]
            return [value for _, value in found.values.values()]

        label = f"{steps, states, plate}"
        yield f"contract {label}", lambda t=tensors, f=total: [f(*t)]  # type: ignore[misc]
        yield f"contract gradient {label}", lambda t=tensors, f=total: gradients(f, *t)  # type: ignore[misc]
        yield f"contract draw {label}", lambda f=drawn, u=uniforms: f(uniforms=u)  # type: ignore[misc]
        yield f"contract best {label}", lambda f=drawn: f(maximise=True)  # type: ignore[misc]


def all_calls(device: str) -> Iterator[tuple[str, Call]]:
    for dtype in (torch.float32, torch.float64):
        for (batch, steps), states in itertools.product(SHAPES, STATES):
            if states > 65 and batch * steps > 100:
                continue
            for name, call in hmm_calls(batch, steps, states, dtype, device):
                yield f"{name} B={batch} T={steps} S={states} {dtype}", call
        for name, call in other_calls(dtype, device):
            yield f"{name} {dtype}", call


def differ(actual: Tensor, expected: Tensor) -> bool:
    actual = actual.cpu()
    if not expected.is_floating_point():
        # A uniform may fall between two sums that are rounded differently.
        return bool((actual != expected).double().mean() > 0.01)
    tolerance = 1e-4 if expected.dtype == torch.float32 else 1e-10
    return not torch.allclose(actual, expected, rtol=tolerance, atol=tolerance)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    wrong = count = 0
    for (name, here), (_, there) in zip(all_calls(device), all_calls("cpu"), strict=True):
        count += 1
        try:
            if any(differ(*pair) for pair in zip(here(), there(), strict=True)):
                wrong += 1
                print(f"DIFFERS: {name}", flush=True)
        except Exception as error:
            wrong += 1
            print(f"FAILED: {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
    if device != "cpu":
        torch.cuda.synchronize()
    print(f"{count} calls, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
