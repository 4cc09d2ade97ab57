"""Initial values for every kind of constraint."""

from __future__ import annotations

import torch
from torch.distributions import constraints


def constrained_inits() -> list[tuple[constraints.Constraint, torch.Tensor]]:
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    return [
        (constraints.real, torch.tensor([-1.0, 2.0])),
        (constraints.positive, torch.tensor([0.5, 2.0])),
        (constraints.greater_than(2.0), torch.tensor([2.5])),
        (constraints.greater_than_eq(torch.tensor([1.0, 2.0])), torch.tensor([1.5, 4.0])),
        (constraints.less_than(1.0), torch.tensor([-3.0])),
        (constraints.nonnegative, torch.tensor([0.25])),
        (constraints.unit_interval, torch.tensor([0.25, 0.5])),
        (constraints.interval(-1.0, torch.tensor(3.0)), torch.tensor([0.0, 2.0])),
        (constraints.half_open_interval(0.0, 2.0), torch.tensor([1.0])),
        (constraints.simplex, torch.tensor([0.2, 0.3, 0.5])),
        (constraints.lower_cholesky, torch.linalg.cholesky(matrix)),
        (constraints.positive_definite, matrix),
        (constraints.positive_semidefinite, matrix),
        (constraints.corr_cholesky, torch.tensor([[1.0, 0.0], [0.6, 0.8]])),
        (constraints.real_vector, torch.tensor([1.0, 2.0])),
        (constraints.independent(constraints.positive, 1), torch.tensor([1.0, 2.0])),
        (constraints.independent(constraints.interval(0.0, 4.0), 2), torch.tensor([[1.0], [2.0]])),
        (
            constraints.cat([constraints.real, constraints.positive], lengths=[2, 1]),
            torch.tensor([1.0, -1.0, 3.0]),
        ),
        (constraints.stack([constraints.real, constraints.positive], dim=0), torch.tensor([-1.0, 3.0])),
    ]


INITS = constrained_inits()
IDS = [str(item[0]) for item in INITS]
