"""The contraction engine at sizes that fill registers and blocks, against recursions in float64 torch.

`test_contraction.py` enumerates small graphs; here chains and stars have as many states, plate slices and
steps as it takes to meet every path of the kernels, and tensors are shared by plates and by steps.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from sumprod.ops.contraction import contract, draw

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
STEPS = 6


class Chain:
    """x0 - x1 - ... in a plate, with a factor for each variable and one for each pair."""

    def __init__(self, states, batch, sharing, spread, dtype, reverse=False):
        generator = torch.Generator().manual_seed(states + 100 * batch)

        def table(*shape):
            return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

        self.unary = [table(batch, states) for _ in range(STEPS)]
        if sharing == "one":
            self.pairs = [table(1, states, states)] * (STEPS - 1)
        elif sharing == "steps":
            self.pairs = [table(1, states, states) for _ in range(STEPS - 1)]
        else:
            self.pairs = [table(batch, states, states) for _ in range(STEPS - 1)]
        self.batch = batch
        self.reverse = reverse

    @property
    def leaves(self):
        return list({id(tensor): tensor for tensor in self.unary + self.pairs}.values())

    def graph(self):
        """Tensors and dims, in an order that does not follow the chain."""
        factors = [(tensor, ("plate", f"x{t}")) for t, tensor in enumerate(self.unary)]
        for t, tensor in enumerate(self.pairs):
            factors.append((tensor, ("plate", f"x{t}", f"x{t + 1}")))
        if self.reverse:
            factors.reverse()
        return [tensor for tensor, _ in factors], [dims for _, dims in factors]

    def total(self, reduce=torch.logsumexp):
        """The sum, or with `amax` the largest term, per slice of the plate, step by step."""
        message = self.unary[0].double()
        for pair, unary in zip(self.pairs, self.unary[1:], strict=True):
            message = reduce(message[:, :, None] + pair.double(), 1) + unary.double()
        return reduce(message, 1)

    def score(self, values):
        """The log-weight of one assignment of all variables, [batch] each."""
        rows = torch.arange(self.batch)
        score = sum(unary.double()[rows, x] for unary, x in zip(self.unary, values, strict=True))
        for t, pair in enumerate(self.pairs):
            score = score + pair.double().expand(self.batch, -1, -1)[rows, values[t], values[t + 1]]
        return score


SIZES = [(1, 5), (2, 1), (2, 40), (3, 16), (7, 21), (16, 3), (17, 33), (33, 1), (48, 2)]
chains = pytest.mark.parametrize(
    ("states", "batch", "sharing", "spread", "reverse"),
    [
        (*size, sharing, spread, reverse)
        for size, sharing, (spread, reverse) in itertools.product(
            SIZES, ["one", "steps", "full"], [(1.0, False), (1.0, True), (40.0, False), (2000.0, True)]
        )
    ],
)


@pytest.mark.parametrize("dtype", DTYPES)
@chains
def test_totals_and_gradients(states, batch, sharing, spread, reverse, dtype):
    chain = Chain(states, batch, sharing, spread, dtype, reverse)
    leaves = [leaf.requires_grad_() for leaf in chain.leaves]
    weights = torch.linspace(0.5, 2.0, batch, dtype=torch.float64)
    expected = chain.total()
    wanted = torch.autograd.grad(expected @ weights, leaves)
    [(dims, total)] = contract(*chain.graph(), plates=["plate"], kept=["plate"])
    assert dims == ("plate",)
    scale = 1 + 10 * STEPS * spread
    torch.testing.assert_close(total.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)
    found = torch.autograd.grad(total.double() @ weights, leaves)
    for one, other in zip(found, wanted, strict=True):
        # A log-weight of size s is known to s ulps only, and so is a ratio of two.
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE[dtype] * scale)
    [(_, summed)] = contract(*chain.graph(), plates=["plate"])
    torch.testing.assert_close(summed.double(), expected.sum(), rtol=0, atol=TOLERANCE[dtype] * scale * batch)
    gradients = torch.autograd.grad(summed, leaves)
    for one, other in zip(gradients, torch.autograd.grad(expected_sum(chain), leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE[dtype] * scale * batch)


def expected_sum(chain):
    return chain.total().sum()


@pytest.mark.parametrize("dtype", DTYPES)
@chains
def test_the_most_probable_assignment(states, batch, sharing, spread, reverse, dtype):
    chain = Chain(states, batch, sharing, spread, dtype, reverse)
    totals, values = draw(*chain.graph(), plates=["plate"], maximise=True)
    best = chain.total(torch.amax)
    torch.testing.assert_close(
        chain.score([values[f"x{t}"][1] for t in range(STEPS)]), best, rtol=0, atol=1e-9
    )
    assert totals[0][1].item() == pytest.approx(best.sum().item(), rel=1e-6, abs=1e-4)


@pytest.mark.parametrize("sharing", ["one", "steps"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sharing_changes_no_draw(sharing, dtype):
    chain = Chain(5, 37, sharing, 2.0, dtype)
    tensors, dims = chain.graph()
    uniforms = torch.rand(37 * STEPS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shared = draw(tensors, dims, plates=["plate"], uniforms=uniforms)
    copies = [tensor.expand(37, *tensor.shape[1:]).clone() for tensor in tensors]
    full = draw(copies, dims, plates=["plate"], uniforms=uniforms)
    for name, (_, value) in full.values.items():
        assert torch.equal(shared.values[name][1], value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_expanded_tensors_get_the_gradient_of_each_slice(dtype):
    chain = Chain(4, 20, "steps", 1.0, dtype)
    tensors, dims = chain.graph()
    expanded = [tensor.expand(20, *tensor.shape[1:]).detach().requires_grad_() for tensor in tensors]
    copies = [tensor.detach().clone().requires_grad_() for tensor in expanded]
    for leaves in (expanded, copies):
        [(_, total)] = contract(leaves, dims, plates=["plate"])
        total.backward()
    for one, other in zip(expanded, copies, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_dim_along_which_all_tensors_have_size_one():
    prior = torch.tensor([[0.25, 0.75]]).log()
    tensors, dims = [prior, torch.tensor([[0.5], [0.1]]).log()], [("p", "z"), ("z", "p")]
    [(_, one)] = contract(tensors, dims, plates=["p"])
    [(_, three)] = contract(tensors, dims, plates=["p"], sizes={"p": 3})
    assert one.exp().item() == pytest.approx(0.2)
    assert three.exp().item() == pytest.approx(0.2**3)
    assert draw(tensors, dims, plates=["p"], sizes={"p": 3}).values["z"][1].shape == (3,)
    [(_, kept)] = contract(tensors, dims, plates=["p"], kept=["p"], sizes={"p": 3})
    torch.testing.assert_close(kept.exp(), torch.full((3,), 0.2))


def test_tensors_that_lack_the_first_dims():
    row, table = torch.randn(5, 3, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    dims = [("p", "a"), ("p", "a", "b")]
    [(_, total)] = contract([row, table], dims, plates=["p"])
    expected = (row[:, :, None] + table).logsumexp((1, 2)).sum()
    torch.testing.assert_close(total, expected)
    for create_graph in (False, True):
        found = torch.autograd.grad(total, (row, table), create_graph=create_graph, retain_graph=True)
        for one, other in zip(
            found, torch.autograd.grad(expected, (row, table), retain_graph=True), strict=True
        ):
            torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match=r"factor 1 has shape \(3, 2\), but dims 'a'"):
        contract([row, table], [("p", "a"), ("a",)], plates=["p"])


def test_gradients_of_one_tensor_in_many_places_add_up():
    """Also where the places have dims of size 1 in other ways, and in second derivatives."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(1, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    row = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    tensors = [row, table, table, table, row]
    dims = [("p", "a"), ("p", "a", "b"), ("p", "b", "c"), ("p", "c", "a"), ("p", "c")]

    def total(*leaves):
        found = contract([{id(row): leaves[0], id(table): leaves[1]}[id(t)] for t in tensors], dims, ["p"])
        return found[0][1]

    def by_hand(row, table):
        joint = row[:, :, None, None] + table[:, :, :, None] + table[:, None, :, :]
        joint = joint + table.transpose(1, 2)[:, :, None, :] + row[:, None, None, :]
        return joint.logsumexp((1, 2, 3)).sum()

    torch.testing.assert_close(total(row, table), by_hand(row, table))
    for one, other in zip(
        torch.autograd.grad(total(row, table), (row, table)),
        torch.autograd.grad(by_hand(row, table), (row, table)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradgradcheck(total, (row, table))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [10.0, 100.0, 1000.0])
def test_separated_components(gap, dtype):
    """Terms that vanish beside others are left out; terms that are lifted by another factor are not."""
    shape = (40, 3)
    near = torch.zeros(shape, dtype=dtype)
    near[:, 1], near[:, 2] = -gap, -2 * gap
    away = torch.linspace(0, -1, 40, dtype=dtype)[:, None] + near.flip(1)  # lifts what `near` has small
    mild = torch.tensor([0.1, 0.3, -0.2], dtype=dtype)
    for others in ([mild], [away], [away, mild], [near, mild]):
        leaves = [near.clone().requires_grad_(), *(one.clone().requires_grad_() for one in others)]
        for dims in ([("p", "z")] * len(leaves), [("p", "z", "y"), *[("p", "z")] * len(others)]):
            tensors = [leaves[0].unsqueeze(-1) if len(dims[0]) == 3 else leaves[0], *leaves[1:]]
            [(_, total)] = contract(tensors, dims, plates=["p"], kept=["p"], sizes={"y": 2})
            exact = sum(leaf.double() for leaf in leaves).logsumexp(-1)
            exact = exact + (len(dims[0]) == 3) * torch.tensor(2.0).double().log()
            torch.testing.assert_close(total.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
            found = torch.autograd.grad(total.sum(), leaves)
            for one, other in zip(found, torch.autograd.grad(exact.sum(), leaves), strict=True):
                tolerance = 2e-6 * gap if dtype == torch.float32 else 1e-11
                torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [50, 300, 3000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_many_factors_in_one_step(count, dtype, spread):
    """A product of thousands neither overflows nor vanishes."""
    generator = torch.Generator().manual_seed(1)
    leaves = (spread * torch.randn(count, 3, 2, generator=generator, dtype=torch.float64)).to(dtype)
    leaves.requires_grad_()
    tensors, dims = list(leaves.unbind()), [("centre", i) for i in range(count)]
    [(_, total)] = contract(tensors, dims)
    exact = leaves.double().logsumexp(-1).sum(0).logsumexp(0)
    torch.testing.assert_close(total.double(), exact, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)
    [found], [wanted] = torch.autograd.grad(total, leaves), torch.autograd.grad(exact, leaves)
    torch.testing.assert_close(
        found.double(), wanted.double(), rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-9
    )


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_a_bit_of_shared_gradients(dtype):
    chain = Chain(9, 700, "one", 1.0, dtype)
    leaves = [leaf.requires_grad_() for leaf in chain.leaves]
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        [(_, total)] = contract(*chain.graph(), plates=["plate"])
        found.append((total, *torch.autograd.grad(total, leaves)))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
