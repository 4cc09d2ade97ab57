"""Random programs with a chain: coupled states, any history, plates, masks, variables before and after."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import sumprod
from sumprod.distributions import Categorical, Normal
from sumprod.handlers import mask
from sumprod.ops.indexing import Vindex
from tests.infer.vectorized_programs import MARK, Case, Chain, Loop, Tables

PLATE = 2
Parent = tuple[int, int]  # how many steps before, number of the state


@dataclass(frozen=True)
class Node:
    """A state or data of every step. The table is [steps or 1, PLATE or 1, 2 of g, *parents, size]."""

    name: str
    size: int  # 0: data
    parents: tuple[Parent, ...]
    inside: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class RandomChain:
    """left: the steps are left of the plate. g: whether a variable before the chain counts."""

    size: int
    history: int
    left: bool
    g: bool
    nodes: tuple[Node, ...]
    masks: Tensor | None
    after: tuple[int, ...] | None  # of these states of the last step
    plated: bool

    def __call__(self, tables: Tables, loop: Loop) -> None:
        plate_dim, dim = (-1, -2) if self.left else (-2, -1)
        plate = sumprod.plate("p", PLATE, dim=plate_dim) if self.plated else ExitStack()
        rows = torch.arange(PLATE).reshape((-1, *(1,) * (-1 - plate_dim)))
        g: Any = torch.tensor(0)
        if self.g:
            g = sumprod.sample("g", Categorical(logits=tables["g"]), infer=MARK)
        start = [torch.tensor(0)] * sum(node.size > 0 for node in self.nodes)
        past = [start] * (self.history + 1)
        for t in loop("time", self.size, dim, self.history):
            step = t.reshape(-1, *(1,) * (-1 - dim)) if isinstance(t, Tensor) else t
            now: list[Any] = []
            past = [now, *past[: self.history]]
            for node in self.nodes:
                table = tables[node.name]
                place = [step if table.shape[0] > 1 else 0, rows if table.shape[1] > 1 else 0, g]
                logits = Vindex(table)[(*place, *(past[lag][i] for lag, i in node.parents))]
                with ExitStack() as around:
                    if node.inside and self.plated:
                        around.enter_context(plate)
                    if self.masks is not None:
                        wide = self.masks if node.inside and self.plated else self.masks[:, :1]
                        around.enter_context(mask(mask=Vindex(wide)[step, rows if wide.shape[1] > 1 else 0]))
                    name = f"{node.name}_{t}"
                    if node.size:
                        now.append(sumprod.sample(name, Categorical(logits=logits), infer=MARK))
                    else:
                        seen = Vindex(SEEN)[step, rows if node.inside and self.plated else 0]
                        one = torch.ones((), dtype=torch.float64)
                        sumprod.sample(name, Normal(logits.squeeze(-1), one), obs=seen)
        if self.after is not None:
            logits = Vindex(tables["after"])[tuple(past[0][i] for i in self.after)]
            sumprod.sample("after", Categorical(logits=logits), infer=MARK)


SEEN = torch.randn(8, PLATE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@st.composite
def chains(draw: Any) -> Case:
    history = draw(st.sampled_from([1, 1, 1, 2, 2, 0, 3]))
    plated = draw(st.booleans())
    count = draw(st.integers(1, 3 if history < 3 else 1))
    size = draw(st.integers(1, 6 if not plated else 4))
    # States of the plate come last: the others cannot depend on them.
    cut = draw(st.integers(0, count)) if plated else 0
    g = draw(st.booleans())
    nodes: list[Node] = []
    shapes: dict[str, tuple[int, ...]] = {"g": (2,)} if g else {}
    sizes: list[int] = []

    def add(name: str, own: int, inside: bool, upto: int) -> None:
        allowed = [
            (lag, i)
            for lag in range(history + 1)
            for i in range(upto if lag == 0 else count)
            if inside or i < cut or not plated
        ]
        if lag_free := [pair for pair in allowed if pair[1] < len(sizes)]:
            parents = draw(st.lists(st.sampled_from(lag_free), unique=True, max_size=3))
        else:
            parents = []
        steps = size if draw(st.booleans()) else 1
        wide = PLATE if inside and plated and draw(st.booleans()) else 1
        shape = (steps, wide, 2 if g else 1, *(sizes[i] for _, i in parents), max(own, 1))
        nodes.append(Node(name, own, tuple(parents), inside, shape))
        shapes[name] = shape

    sizes.extend(draw(st.lists(st.integers(2, 3 if count < 3 else 2), min_size=count, max_size=count)))
    names = "abc"[:count]
    for i, name in enumerate(names):
        add(name, sizes[i], plated and i >= cut, i)
    for i in range(draw(st.integers(0, 2))):
        add(f"y{i}", 0, plated and (cut == 0 or draw(st.booleans())), count)
    masks = None
    seed = draw(st.integers(0, 2**31))
    if draw(st.booleans()):
        masks = torch.rand(size, PLATE if plated else 1, generator=torch.Generator().manual_seed(seed)) < 0.7
    after = None
    reachable = [i for i in range(count) if not plated or i < cut]
    if history and reachable and draw(st.booleans()):
        after = tuple(draw(st.lists(st.sampled_from(reachable), unique=True, min_size=1)))
        shapes["after"] = (*(sizes[i] for i in after), 2)
    left = plated and draw(st.booleans())
    chain = RandomChain(size, history, left, g, tuple(nodes), masks, after, plated)
    return Case(chain, shapes, 2, (Chain(tuple(names), size, -2 if left else -1, history),))
