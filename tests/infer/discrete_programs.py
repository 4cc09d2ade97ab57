"""Random programs with discrete latent sites in plates, and the same as factor graphs for the oracle."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import sumprod
from sumprod import handlers
from sumprod.distributions import Categorical
from tests.oracles.plated import log_total

PLATE_DIMS = {"p": -1, "q": -2}
PLATE_SIZES = {"p": 2, "q": 3}


@dataclass
class Node:
    """A categorical site; `table` [*parents, *plates (q before p), values] has its logits."""

    name: str
    size: int
    parents: tuple[str, ...]
    plates: tuple[str, ...]
    table: torch.Tensor
    observed: torch.Tensor | None = None
    mask: torch.Tensor | None = None


@dataclass
class Program:
    nodes: list[Node] = field(default_factory=list)
    scale: float = 1.0

    @property
    def latent(self) -> list[Node]:
        return [node for node in self.nodes if node.observed is None]

    def model(self, parallel: Any = "parallel", skip: tuple[str, ...] = ()) -> None:
        """The program; sites in `skip` are not marked for enumeration."""
        plates = {name: sumprod.plate(name, PLATE_SIZES[name], dim=dim) for name, dim in PLATE_DIMS.items()}
        values: dict[str, torch.Tensor] = {}
        with handlers.scale(scale=self.scale):
            for node in self.nodes:
                infer = {} if node.name in skip else {"enumerate": parallel}
                with handlers.mask(mask=True if node.mask is None else _in_place(node, node.mask)):
                    values[node.name] = _inside(plates, node, values, infer)

    def guide(self, parallel: Any, names: tuple[str, ...], tables: dict[str, torch.Tensor]) -> None:
        """Sites of the given names, with tables of their own."""
        plates = {name: sumprod.plate(name, PLATE_SIZES[name], dim=dim) for name, dim in PLATE_DIMS.items()}
        values: dict[str, torch.Tensor] = {}
        for node in self.latent:
            if node.name in names:
                own = Node(node.name, node.size, node.parents, node.plates, tables[node.name])
                values[node.name] = _inside(plates, own, values, {"enumerate": parallel})

    def factors(self) -> list[tuple[tuple[str, ...], np.ndarray]]:
        """What the oracle takes."""
        found = []
        for node in self.nodes:
            table = node.table.detach().log_softmax(-1)
            dims = (*node.parents, *node.plates, node.name)
            if node.observed is not None:
                index = node.observed.expand(table.shape[:-1]).unsqueeze(-1)
                table = table.gather(-1, index).squeeze(-1)
                dims = dims[:-1]
                if node.mask is not None:
                    table = table.where(node.mask, torch.zeros_like(table))
            found.append((dims, table.numpy()))
        return found

    def log_evidence(self, fixed: dict[str, int] | None = None) -> float:
        """log p(observed, fixed), by brute force."""
        sizes = {**PLATE_SIZES, **{node.name: node.size for node in self.nodes}}
        return log_total(self.factors(), sizes, frozenset(PLATE_DIMS), fixed)


def _inside(plates: Any, node: Node, values: dict[str, torch.Tensor], infer: dict[str, Any]) -> torch.Tensor:
    index: list[Any] = [values[parent] for parent in node.parents]
    for name in node.plates:
        own = torch.arange(PLATE_SIZES[name])
        index.append(own.reshape(-1, *(1,) * (-PLATE_DIMS[name] - 1)))
    logits = node.table[tuple(index)] if index else node.table
    observed = None if node.observed is None else _in_place(node, node.observed)
    with ExitStack() as entered:
        for name in node.plates:
            entered.enter_context(plates[name])
        return sumprod.sample(node.name, Categorical(logits=logits), obs=observed, infer=infer)


def _in_place(node: Node, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the sizes of a node's plates, with these at their dims."""
    return tensor.unsqueeze(-1) if node.plates == ("q",) else tensor


@st.composite
def programs(draw: Any, masks: bool = True) -> Program:
    """Up to 5 latent sites, up to 3 observed ones, in up to 2 plates; at most 9 copies of latent sites."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    program = Program(scale=draw(st.sampled_from([1.0, 1.0, 0.5, 3.0])))
    allowed = draw(
        st.sampled_from(
            [[()], [(), ("p",)], [(), ("q",)], [(), ("p",), ("q", "p")], [(), ("q",), ("q", "p")]]
        )
    )
    copies = 0
    for i in range(draw(st.integers(2, 7))):
        observed = i > 0 and draw(st.booleans())
        plates = draw(st.sampled_from(allowed))
        count = int(np.prod([PLATE_SIZES[name] for name in plates], initial=1))
        if not observed:
            copies += count
            if copies > 9:
                break
        outside = [node for node in program.latent if set(node.plates) <= set(plates)]
        parents = draw(st.lists(st.sampled_from(outside), unique_by=id, max_size=3)) if outside else []
        size = 3 if draw(st.booleans()) and copies < 5 else 2
        batch = [PLATE_SIZES[name] for name in plates]
        table = torch.randn(
            [*(p.size for p in parents), *batch, size], generator=generator, dtype=torch.float64
        )
        node = Node(f"x{i}", size, tuple(p.name for p in parents), plates, table)
        if observed:
            node.observed = torch.randint(size, batch, generator=generator)
            if masks and draw(st.booleans()):
                node.mask = torch.rand(batch, generator=generator) < 0.6
        program.nodes.append(node)
    return program
