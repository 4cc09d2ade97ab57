"""A Markov chain as a function of the state carried from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from sumprod.handlers.markov_chain import MarkovChain, TimeIndex
from sumprod.handlers.messenger import Messenger
from sumprod.handlers.vectorized_markov import VectorizedMarkovMessenger
from sumprod.runtime import dim_allocator

__all__ = ["scan"]


def scan(
    transition: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any,
    length: int | None = None,
    reverse: bool = False,
    history: int = 1,
    *,
    name: str = "time",
    dim: int | None = None,
) -> tuple[Any, Any]:
    """Run the steps of a chain, `carry, y = transition(carry, x)`; all at once where states are summed out.

    The steps run as those of `vectorized_markov`, which says when they run at once. Then `transition` gets
    the data of all steps, along dim 0, which must be batch dim `dim`, left of all plates: with data
    [T, B, D], of which D is an event and B in a plate at dim -1, `dim` is -2.

    Sites are written with one name, and get the step added: "x" is `x_0`, ..., or `x_slice(1, 60, None)`.

    Args:
        transition: a step. Its sites depend on the carry, on `x` and on what is outside.
        init: the first carry: tensors in tuples, lists and dicts; or None.
        xs: data: the same, each tensor with all steps along dim 0; None when `length` is given.
        length: number of steps; that of `xs` when omitted.
        reverse: run from the last step to the first.
        history: how many earlier steps' states the carry holds.
        name, dim: as of `vectorized_markov`.

    Returns:
        (carry of the last step, all `y` along a new dim 0). While states are enumerated the carry has all
        values of the last state, and there is no `y` (None).

    Raises:
        TypeError: there are neither `xs` nor `length`; `transition` returns no pair.
        ValueError: tensors of `xs` have other lengths; a plate is left of `dim`; as of `vectorized_markov`.

    >>> import torch, sumprod
    >>> from sumprod.distributions import Categorical
    >>> table = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    >>> @sumprod.infer.infer_discrete(first_available_dim=-2, temperature=0)
    ... def decode(data):
    ...     def step(x, note):
    ...         x = sumprod.sample("x", Categorical(table[x]), infer={"enumerate": "parallel"})
    ...         sumprod.sample("y", Categorical(table[x]), obs=note)
    ...         return x, x
    ...     return sumprod.scan(step, torch.tensor(0), data)
    >>> decode(torch.tensor([0, 0, 1, 1]))
    (tensor(1), tensor([0, 0, 1, 1]))
    """
    leaves, structure = ([xs], None) if isinstance(xs, Tensor) else tree_flatten(xs)
    size = _length(leaves, length)
    if reverse:
        leaves = [_flipped(leaf) for leaf in leaves]
    loop = VectorizedMarkovMessenger(name, size, dim, history)
    carry, ys = init, []
    for t in loop:
        steps = t
        if isinstance(t, TimeIndex):
            _check_leftmost(loop.chain)
            steps = t.steps
        with _StepNames(t):
            result = transition(carry, _part_of(leaves, structure, steps))
        if not isinstance(result, tuple) or len(result) != 2:
            got = type(result).__name__
            raise TypeError(f"scan: the transition must return a pair (carry, y), got {got}")
        carry, y = result
        if not loop.is_auxiliary:
            ys.append(y)
    if loop.chain.mode == "enumerated":
        return carry, None
    if loop.chain.reason is not None:
        stacked = _each(_stacked, *ys)
    else:
        steps = loop.chain.steps
        stacked = _each(lambda *leaves: _joined(steps, *leaves), *ys)
    return carry, _each(_flipped, stacked) if reverse else stacked


def _each(function: Callable[..., Any], *trees: Any) -> Any:
    """A function of the leaves of trees of one structure; mostly they are tensors themselves."""
    return function(*trees) if isinstance(trees[0], Tensor) else tree_map(function, *trees)


class _StepNames(Messenger):
    """Adds the step to names of sites."""

    _reads_scope = False

    def __init__(self, step: Any) -> None:
        super().__init__()
        self._suffix = f"_{step}"

    def _pyro_sample(self, msg: Any) -> None:
        msg["name"] += self._suffix


def _length(leaves: Sequence[Any], length: int | None) -> int:
    sizes = {}
    for leaf in leaves:
        if leaf is None:
            continue
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            raise TypeError(f"scan: xs must hold tensors with all steps along dim 0, got {leaf!r}")
        sizes[len(leaf)] = leaf.shape
    if length is not None:
        sizes.setdefault(length, torch.Size((length,)))
    if not sizes:
        raise TypeError("scan: expected xs, or length when there are no data; got neither")
    if len(sizes) > 1:
        found = ", ".join(str(tuple(shape)) for shape in sizes.values())
        raise ValueError(f"scan: all tensors of xs (and length) must have one length, got shapes {found}")
    return next(iter(sizes))


def _check_leftmost(chain: MarkovChain) -> None:
    """Raise if a plate is left of the steps that run at once."""
    found = dim_allocator().leftmost()
    if found is not None and chain.dim is not None and found[0] < chain.dim:
        raise ValueError(
            f"scan: plate '{found[1]}' at dim {found[0]} is left of the steps at dim {chain.dim}, but data"
            f" have steps along dim 0. Use dim={found[0] - 1}, or vectorized_markov"
        )


def _stacked(*leaves: Any) -> Any:
    """Values of single steps along a new dim 0."""
    if not isinstance(leaves[0], Tensor):
        return leaves[-1] if leaves[-1] is None else torch.as_tensor(leaves)
    return torch.stack(torch.broadcast_tensors(*leaves))


def _has_steps(steps: int, one: Any, many: Any) -> bool:
    """Whether a value of many steps has them along dim 0; `one` is that of a single step."""
    if not isinstance(many, Tensor) or many.dim() == 0 or len(many) != steps:
        return False
    return many.dim() > one.dim() or (many.dim() == one.dim() and len(one) == 1)


def _joined(steps: int, *leaves: Any) -> Any:
    """Values of the first steps, one by one, and of the others together, along dim 0."""
    *first, many = leaves
    if not isinstance(many, Tensor):
        return many
    if first and not _has_steps(steps, first[0], many):
        many = many.expand(steps, *many.shape)
    elif first and many.dim() == first[0].dim():
        many = many.unsqueeze(1)
    return torch.cat([*(one.expand(many.shape[1:]).unsqueeze(0) for one in first), many])


def _part_of(leaves: Sequence[Any], structure: Any, steps: Any) -> Any:
    """The data of some steps; without a structure, the data are one tensor."""
    if structure is None:
        return leaves[0][steps]
    return tree_unflatten([leaf if leaf is None else leaf[steps] for leaf in leaves], structure)


def _flipped(leaf: Any) -> Any:
    return leaf.flip(0) if isinstance(leaf, Tensor) else leaf
