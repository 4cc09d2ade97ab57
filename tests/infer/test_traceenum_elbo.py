"""The bound with enumeration, against brute force over all assignments."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import sumprod
from sumprod.infer.traceenum_elbo import TraceEnum_ELBO
from tests.infer.discrete_programs import Program, programs

SLOW = settings(max_examples=40, deadline=None, derandomize=True)


def empty(*args, **kwargs):
    pass


def loss_of(model, guide=empty, **options):
    return TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False, **options).loss(model, guide)


@SLOW
@given(programs())
def test_evidence(program):
    assert loss_of(program.model) == pytest.approx(-program.scale * program.log_evidence(), abs=1e-9)


@SLOW
@given(programs(), st.integers(0, 2**31))
def test_gradient(program, seed):
    generator = torch.Generator().manual_seed(seed)
    directions = []
    for node in program.nodes:
        node.table.requires_grad_()
        directions.append(torch.randn(node.table.shape, generator=generator, dtype=torch.float64))
    elbo = TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False)
    elbo.loss_and_grads(program.model, empty)
    slope = sum(
        (node.table.grad * direction).sum().item()
        for node, direction in zip(program.nodes, directions, strict=True)
        if node.table.grad is not None
    )

    def moved(step):
        nodes = [
            type(node)(**{**vars(node), "table": node.table.detach() + step * direction})
            for node, direction in zip(program.nodes, directions, strict=True)
        ]
        return -program.scale * Program(nodes).log_evidence()

    numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert slope == pytest.approx(numeric, rel=1e-6, abs=1e-6)


@SLOW
@given(programs())
def test_marginals(program):
    elbo = TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False)
    marginals = elbo.compute_marginals(program.model, empty)
    assert list(marginals) == [node.name for node in program.latent]
    total = program.log_evidence()
    for node in program.latent:
        if not node.plates:
            expected = [math.exp(program.log_evidence({node.name: k}) - total) for k in range(node.size)]
            np.testing.assert_allclose(marginals[node.name].probs.numpy(), expected, atol=1e-10)
        else:
            batch = {("p",): (2,), ("q",): (3, 1), ("q", "p"): (3, 2)}[node.plates]
            assert marginals[node.name].batch_shape == batch


def tables_for(program, names, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        node.name: torch.randn(node.table.shape, generator=generator, dtype=torch.float64)
        for node in program.latent
        if node.name in names
    }


@SLOW
@given(programs(), st.integers(0, 2**31))
def test_guide_parallel_sequential_and_mixed_agree(program, seed):
    names = tuple(node.name for node in program.latent)
    tables = tables_for(program, names, seed)
    results = []
    for marks in (lambda i: "parallel", lambda i: "sequential", lambda i: ("parallel", "sequential")[i % 2]):
        leaves = {name: table.clone().requires_grad_() for name, table in tables.items()}
        own = {name: marks(i) for i, name in enumerate(names)}

        def guide(leaves=leaves, own=own):
            config = sumprod.handlers.infer_config(
                program.guide, config_fn=lambda site: {"enumerate": own.get(site["name"])}
            )
            config(None, names, leaves)

        elbo = TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False)
        loss = elbo.loss_and_grads(program.model, guide)
        results.append([loss, *(leaf.grad for leaf in leaves.values())])
    for result in results[1:]:
        for value, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)


@SLOW
@given(programs(), st.integers(0, 2**31), st.sampled_from(["parallel", "sequential"]))
def test_guide_for_global_sites_and_model_for_the_rest(program, seed, mark):
    chosen = []
    for node in program.latent:  # roots of the global part, so that the guide can be run alone
        if not node.plates and set(node.parents) <= {one.name for one in chosen}:
            chosen.append(node)
    assume(chosen)
    names = tuple(node.name for node in chosen)
    tables = tables_for(program, names, seed)
    expected = 0.0
    for assignment in itertools.product(*(range(node.size) for node in chosen)):
        fixed = dict(zip(names, assignment, strict=True))
        log_q = sum(
            tables[node.name][tuple(fixed[parent] for parent in node.parents)]
            .log_softmax(-1)[fixed[node.name]]
            .item()
            for node in chosen
        )
        expected += math.exp(log_q) * (program.scale * program.log_evidence(fixed) - log_q)
    loss = loss_of(program.model, lambda: program.guide(mark, names, tables))
    assert loss == pytest.approx(-expected, abs=1e-9)


@pytest.mark.parametrize("history", [1, 2])
def test_long_chain(history):
    """1,000 steps, and a site after the loop, against the recursion in float64."""
    generator = torch.Generator().manual_seed(0)
    states, length = 3, 1000
    initial = torch.randn(states, generator=generator, dtype=torch.float64).log_softmax(-1)
    transition = torch.randn([states] * (history + 1), generator=generator, dtype=torch.float64).log_softmax(
        -1
    )
    emission = torch.randn(states, 2, generator=generator, dtype=torch.float64).log_softmax(-1)
    data = torch.randint(2, (length + 1,), generator=generator)

    def model():
        parallel = {"enumerate": "parallel"}
        last = []
        for t in sumprod.markov(range(length), history=history):
            logits = initial if len(last) < history else transition[tuple(last[-history:])]
            z = sumprod.sample(f"z{t}", sumprod.distributions.Categorical(logits=logits), infer=parallel)
            sumprod.sample(f"x{t}", sumprod.distributions.Categorical(logits=emission[z]), obs=data[t])
            last.append(z)
        sumprod.sample("end", sumprod.distributions.Categorical(logits=emission[last[-1]]), obs=data[length])

    def recursion():
        if history == 1:
            alpha = initial + emission[:, data[0]]
            for t in range(1, length):
                alpha = (alpha[:, None] + transition).logsumexp(0) + emission[:, data[t]]
            return (alpha + emission[:, data[length]]).logsumexp(0)
        first = initial + emission[:, data[0]]
        alpha = first[:, None] + initial + emission[:, data[1]]
        for t in range(2, length):
            alpha = (alpha[:, :, None] + transition).logsumexp(0) + emission[:, data[t]]
        return (alpha + emission[:, data[length]]).logsumexp((0, 1))

    loss = TraceEnum_ELBO(max_plate_nesting=0).loss(model, empty)
    assert loss == pytest.approx(-recursion().item(), rel=1e-9)
