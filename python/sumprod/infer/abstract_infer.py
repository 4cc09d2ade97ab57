"""Posterior containers: weighted traces of a model, collected by an inference algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sumprod.handlers.block import block
from sumprod.handlers.trace_struct import Trace

__all__ = ["TracePosterior"]


class TracePosterior(ABC):
    """A posterior distribution over traces of a model, as a weighted sample of them.

    A subclass writes `_traces(*args, **kwargs)`, a generator of pairs (trace, log-weight) or triples
    (trace, log-weight, chain number).

    Args:
        num_chains: how many independent chains the traces come from.
    """

    def __init__(self, num_chains: int = 1) -> None:
        if not isinstance(num_chains, int) or num_chains < 1:
            raise ValueError(f"{type(self).__name__}: num_chains must be a positive int, got {num_chains!r}")
        self.num_chains = num_chains
        self._reset()

    def _reset(self) -> None:
        self.exec_traces: Any = []
        self.log_weights: list[Tensor | float] = []
        self.chain_ids: list[int] = []

    @abstractmethod
    def _traces(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        """Yield (trace, log-weight) or (trace, log-weight, chain number)."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Collect traces, given the model's arguments; those of an earlier run are forgotten."""
        self._reset()
        with block():
            for item in self._traces(*args, **kwargs):
                trace, log_weight, chain = item if len(item) == 3 else (*item, 0)
                if not 0 <= chain < self.num_chains:
                    raise ValueError(f"chain number {chain} is not in range({self.num_chains})")
                self.exec_traces.append(trace)
                self.log_weights.append(log_weight)
                self.chain_ids.append(chain)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Trace:
        """One trace, drawn by weight, without its observed sites."""
        if not self.exec_traces:
            raise RuntimeError(f"{type(self).__name__} holds no traces: call run() first")
        weights = torch.as_tensor([float(w) for w in self.log_weights]).softmax(0)
        trace = self.exec_traces[int(torch.multinomial(weights, 1))].copy()
        for name in trace.observation_nodes:
            trace.remove_node(name)
        return trace  # type: ignore[no-any-return]
