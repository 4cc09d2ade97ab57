"""Rings of packed tensors: the operations that plated contractions are made of.

A term is a packed tensor (see `sumprod.ops.packed`). Its dims are variables, which are summed out, or plates,
which are multiplied along. Results are new packed tensors, never a term itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sumprod.ops._adjoint import Mode, Parts, attach, parts_of, sizes_of
from sumprod.ops._rings import LINEAR, LOG, MAX, Factor, Semiring, multiply

__all__ = ["BACKEND_TO_RING", "LinearRing", "LogRing", "MapRing", "MarginalRing", "Ring", "SampleRing"]


class Ring(ABC):
    """Sums of products of packed tensors.

    Args:
        cache: remembers results by terms. Rings that share it share results. It keeps the terms alive; a
            term that was written to counts as a new one. None: a cache of this ring's own.
        dim_to_size: sizes of plates, for `broadcast`.
    """

    def __init__(
        self, cache: MutableMapping[Any, Any] | None = None, dim_to_size: Mapping[str, int] | None = None
    ) -> None:
        self._cache: MutableMapping[Any, Any] = {} if cache is None else cache
        self._dim_to_size: Mapping[str, int] = {} if dim_to_size is None else dim_to_size

    @abstractmethod
    def sumproduct(self, terms: Sequence[Tensor], dims: Collection[str]) -> Tensor:
        """The product of at least one term, summed over those of the dims that it has.

        The dims of the result are sorted by name.
        """

    @abstractmethod
    def product(self, term: Tensor, ordinal: Collection[str]) -> Tensor:
        """The product along those of the plates that the term has."""

    @abstractmethod
    def inv(self, term: Tensor) -> Tensor:
        """What gives one when multiplied. For zero the largest finite number: zero times it is zero."""

    @abstractmethod
    def broadcast(self, term: Tensor, ordinal: Collection[str]) -> Tensor:
        """The term with all of the plates; those that it lacks come first, of the sizes in `dim_to_size`.

        Raises:
            KeyError: the size of a plate is not known.
        """

    def global_local(
        self, term: Tensor, dims: Collection[str], ordinal: Collection[str]
    ) -> tuple[Tensor, Tensor]:
        """Split a term into what the outside of its plates sees, and what is left inside.

        Args:
            term: a packed tensor.
            dims: its dims that nothing outside of the plates has.
            ordinal: the plates.

        Returns:
            The term summed over `dims` and multiplied along `ordinal`; and the term divided by its sum over
            `dims`, which is zero, not NaN, where this sum is zero.
        """
        total = self.sumproduct([term], dims)
        return self.product(total, ordinal), self.sumproduct([term, self.inv(total)], ())


class SemiringRing(Ring):
    """A ring whose operations are those of a semiring."""

    semiring: ClassVar[Semiring]
    adjoint: ClassVar[Mode | None] = None
    """what `_pyro_backward()` of results tells the terms; see `sumprod.ops.einsum.adjoint`"""

    def sumproduct(self, terms: Sequence[Tensor], dims: Collection[str]) -> Tensor:
        if not terms:
            raise ValueError("Expected at least one term to multiply, got none")

        def compute() -> Tensor:
            factors = [_factor(term) for term in terms]
            sizes = sizes_of(factors)
            left = sorted(str(dim) for dim in sizes if dim not in dims)
            found = self.semiring.contract(factors, (), left)
            result, _ = multiply(self.semiring, found, left, sizes)
            return self._packed(result, left, [parts_of(*factor, {}) for factor in factors])

        return self._remember(("sumproduct", frozenset(dims)), terms, compute)

    def product(self, term: Tensor, ordinal: Collection[str]) -> Tensor:
        def compute() -> Tensor:
            factor = _factor(term)
            plates = {str(dim): size for dim, size in sizes_of([factor]).items() if dim in ordinal}
            result, left = self.semiring.product(factor, plates)
            return self._packed(result.view_as(result), left, [parts_of(*factor, plates)], plates)

        return self._remember(("product", frozenset(ordinal)), [term], compute)

    def inv(self, term: Tensor) -> Tensor:
        return self._remember(
            ("inv",), [term], lambda: self._packed(self.semiring.inverse(term), _factor(term)[1], [])
        )

    def broadcast(self, term: Tensor, ordinal: Collection[str]) -> Tensor:
        factor = tensor, dims = _factor(term)
        lacking = sorted(plate for plate in ordinal if plate not in dims)
        unknown = [plate for plate in lacking if plate not in self._dim_to_size]
        if unknown:
            raise KeyError(
                f"Expected sizes of plates {unknown} in dim_to_size, got {dict(self._dim_to_size)}"
            )
        sizes = {plate: self._dim_to_size[plate] for plate in lacking}

        def compute() -> Tensor:
            result = tensor.expand([*sizes.values(), *tensor.shape])
            return self._packed(result, [*lacking, *dims], [parts_of(*factor, sizes)])

        return self._remember(("broadcast", tuple(sizes.items())), [term], compute)

    def _packed(
        self,
        result: Tensor,
        dims: Sequence[Hashable],
        terms: Sequence[Parts],
        plates: Iterable[str] = (),
    ) -> Tensor:
        result._pyro_dims = "".join(map(str, dims))  # type: ignore[attr-defined]
        attach(result, self.adjoint, terms, dims, plates)
        return result

    def _remember(
        self, operation: tuple[Any, ...], terms: Sequence[Tensor], compute: Callable[[], Tensor]
    ) -> Tensor:
        key = (type(self), *operation, torch.is_grad_enabled(), *map(_identity, terms))
        if key not in self._cache:
            # The terms are kept, so that no other tensor gets their ids.
            self._cache[key] = compute(), tuple(terms)
        result: Tensor = self._cache[key][0]
        return result


class LinearRing(SemiringRing):
    """Numbers of any sign: sums and products.

    >>> weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> weights._pyro_dims = "ap"
    >>> LinearRing().product(LinearRing().sumproduct([weights], "a"), "p")
    tensor(24.)
    """

    semiring = LINEAR


class LogRing(SemiringRing):
    """Logs of weights: logsumexp and sums."""

    semiring = LOG


class MapRing(LogRing):
    """Logs of weights, the largest in place of the sum; the values that reach it flow back, ties lowest."""

    semiring = MAX
    adjoint = "maximise"


class SampleRing(LogRing):
    """As `LogRing`; joint draws of the variables flow back, for each plate slice its own."""

    adjoint = "draw"


class MarginalRing(LogRing):
    """As `LogRing`; log-weights of each term's entries together with everything else flow back."""

    adjoint = "marginal"


BACKEND_TO_RING: dict[str, type[SemiringRing]] = {
    "torch": LinearRing,
    **{
        f"{package}.ops.einsum.{name}": ring
        for package in ("pyro", "sumprod")
        for name, ring in [
            ("torch_log", LogRing),
            ("torch_map", MapRing),
            ("torch_sample", SampleRing),
            ("torch_marginal", MarginalRing),
        ]
    },
}
"""the backends of `sumprod.ops.contract.einsum`"""


def _factor(term: Tensor) -> Factor:
    dims = getattr(term, "_pyro_dims", None)
    if not isinstance(term, Tensor) or dims is None:
        got = f"shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
        raise TypeError(
            f"Expected packed tensors, whose dims have names (see sumprod.ops.packed), got {got} without"
        )
    return term, tuple(dims)


def _identity(term: Tensor) -> tuple[Any, ...]:
    # Writing to a tensor changes its version. Inference tensors have none.
    version = 0 if term.is_inference() else term._version
    return id(term), version, getattr(term, "_pyro_dims", None), hasattr(term, "_pyro_backward")
