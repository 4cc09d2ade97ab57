"""What contractions of trees remember from call to call."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor

from sumprod.ops import packed
from sumprod.ops.contract import contract_tensor_tree, contract_to_tensor


def pack(tensor: Tensor, names: str) -> Tensor:
    return packed.pack(tensor.clone(), dict(zip(range(-len(names), 0), names, strict=True)))


def test_one_structure_in_other_groups_and_sizes():
    """What is remembered of a tree holds for its groups, names and shapes only."""
    torch.manual_seed(0)
    for p in (4, 5):
        x, y = torch.randn(2), torch.randn(2, p)
        for outer in (frozenset(), frozenset("p")):
            tree = OrderedDict({outer: [pack(x, "x")]})
            tree.setdefault(frozenset("p"), []).append(pack(y, "xp"))
            each = y.sum(1) if not outer else y
            expected = (each + (x if not outer else x.unsqueeze(1))).logsumexp(0).sum()
            torch.testing.assert_close(contract_to_tensor(tree, {"x"}), expected)
            [(found, [total])] = contract_tensor_tree(tree, {"x"}).items()
            assert found == outer
            torch.testing.assert_close(total.sum(), expected)
    with pytest.raises(ValueError, match="size mismatch at dim 'x'"):
        contract_tensor_tree({frozenset(): [pack(x, "x"), pack(torch.zeros(3), "x")]}, {"x"})
