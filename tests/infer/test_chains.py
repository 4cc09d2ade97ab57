"""Chains and trees under TraceEnum_ELBO, its marginals and infer_discrete, against all assignments."""

import itertools
from typing import Any

import pytest
import torch

import sumprod
from sumprod.distributions import Categorical, Normal
from sumprod.handlers import condition, do, mask, trace
from sumprod.infer import TraceEnum_ELBO, config_enumerate, infer_discrete
from sumprod.ops import hmm_log_normalizer, hmm_marginals, hmm_viterbi
from tests.goodness_of_fit import chi_square
from tests.infer.chain_programs import MARK, PROGRAMS, SEEN, START, hidden, observe

SMALL = pytest.mark.parametrize("model", PROGRAMS.values(), ids=PROGRAMS)


def nothing(*args):
    pass


def latent_sites(model):
    sites = trace(model).get_trace().nodes.items()
    return {
        name: site
        for name, site in sites
        if site["type"] == "sample" and not site["is_observed"] and not hasattr(site["fn"], "subsample_size")
    }


def number_of_values(site):
    return len(site["fn"].enumerate_support(expand=False))


def assignments(model):
    """Every assignment of the latent sites, and its log weight, without any enumeration."""
    sites = latent_sites(model)
    cells = [(name, i) for name, site in sites.items() for i in range(site["value"].numel())]
    sizes = [number_of_values(sites[name]) for name, _ in cells]
    for numbers in itertools.product(*map(range, sizes)):
        values = {name: torch.zeros_like(site["value"]) for name, site in sites.items()}
        for (name, i), number in zip(cells, numbers, strict=True):
            values[name].view(-1)[i] = number
        yield values, trace(condition(model, data=values)).get_trace().log_prob_sum().double()


@pytest.fixture(scope="module")
def tables():
    return {name: list(assignments(model)) for name, model in PROGRAMS.items()}


def log_weights(table):
    return torch.stack([weight for _, weight in table])


@SMALL
def test_loss(model, tables):
    expected = -log_weights(tables[model.__name__]).logsumexp(0).item()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    # The first runs give each variable a dim that has not been in use for long, the later ones few dims.
    for _ in range(5):
        assert elbo.loss(model, nothing) == pytest.approx(expected, rel=1e-10)


@SMALL
def test_marginals(model, tables):
    table = tables[model.__name__]
    weights = log_weights(table).softmax(0)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for _ in range(4):
        found = elbo.compute_marginals(model, nothing)
    assert list(found) == list(table[0][0])
    for name, marginal in found.items():
        values = torch.stack([values[name] for values, _ in table])
        for number, value in enumerate(marginal.enumerate_support(expand=False).reshape(-1)):
            expected = (weights.reshape(-1, *[1] * (values.dim() - 1)) * (values == number)).sum(0)
            torch.testing.assert_close(marginal.log_prob(value).exp(), expected, rtol=1e-9, atol=1e-12)


@SMALL
def test_most_probable_assignment(model, tables):
    best = log_weights(tables[model.__name__]).max()
    for _ in range(4):
        found = trace(infer_discrete(model, first_available_dim=-2, temperature=0)).get_trace()
        torch.testing.assert_close(found.log_prob_sum().double(), best, rtol=1e-10, atol=0)


@SMALL
def test_draws(model, tables):
    """2,000 draws in one run, as a plate around the program. Fails by chance once in 10**6 runs."""
    table = tables[model.__name__]
    torch.manual_seed(0)

    def repeated():
        with sumprod.plate("draws", 2000, dim=-2):
            model()

    drawn = trace(infer_discrete(repeated, first_available_dim=-3)).get_trace().nodes
    # One number per assignment: of each draw, and of each row of the table.
    codes, rows = torch.zeros(2000, dtype=torch.long), torch.zeros(len(table), dtype=torch.long)
    for name, site in latent_sites(model).items():
        count = site["value"].numel()
        cells = drawn[name]["value"].long().reshape(2000, count)
        size = number_of_values(site)
        own = torch.stack([values[name].reshape(-1).long() for values, _ in table])
        for i in range(count):
            codes = codes * size + cells[:, i]
            rows = rows * size + own[:, i]
    counts = torch.bincount(codes, minlength=len(table))[rows]
    probabilities = log_weights(table).softmax(0)
    assert counts.sum() == 2000
    assert chi_square(counts.numpy(), probabilities.numpy()) > 1e-6


def test_ragged_chains():
    """Masked steps contribute nothing, and their states follow the prior."""
    lengths = torch.tensor([3, 1, 2])
    data = torch.stack([SEEN[i : i + 3] for i in range(3)])

    def model():
        with sumprod.plate("sequences", 3, dim=-1):
            z = START
            for t in sumprod.markov(range(3)):
                with mask(mask=t < lengths):
                    z = hidden(f"z{t}", z)
                    sumprod.sample(f"x{t}", sumprod.distributions.Normal(z.double(), 1.0), obs=data[:, t])

    def one(i):
        def program():
            z = START
            for t in range(3):
                z = hidden(f"z{t}", z)
                if t < lengths[i]:
                    sumprod.sample(f"x{t}", sumprod.distributions.Normal(z.double(), 1.0), obs=data[i, t])

        return program

    rows = [list(assignments(one(i))) for i in range(3)]
    expected = -sum(log_weights(row).logsumexp(0) for row in rows).item()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for _ in range(4):
        assert elbo.loss(model, nothing) == pytest.approx(expected, rel=1e-10)
    marginals = elbo.compute_marginals(model, nothing)
    best = trace(infer_discrete(model, first_available_dim=-2, temperature=0)).get_trace().nodes
    for i, row in enumerate(rows):
        weights = log_weights(row)
        states = torch.stack([torch.stack([values[f"z{t}"] for t in range(3)]) for values, _ in row])
        found = torch.stack([marginals[f"z{t}"].probs[i] for t in range(3)])[:, 1]
        torch.testing.assert_close(found, weights.softmax(0) @ states.double(), rtol=1e-9, atol=1e-12)
        path = torch.stack([best[f"z{t}"]["value"][i] for t in range(3)])
        torch.testing.assert_close(weights[(states == path).all(1)].squeeze(), weights.max())


# ---- long chains

STEPS, STATES = 1000, 3


def long_chain(history):
    """Potentials of a long chain; with history 2, of the chain of pairs of states."""
    generator = torch.Generator().manual_seed(history)
    shape = [STATES] * (history + 1)
    transition = torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1)
    emission = torch.randn(STATES, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    data = torch.randint(4, (STEPS,), generator=generator)

    def model():
        states = [START] * history
        for t in sumprod.markov(range(STEPS), history=history):
            z = sumprod.sample(f"z{t}", Categorical(logits=transition[tuple(states)]), infer=MARK)
            states = [*states[1:], z]
            sumprod.sample(f"x{t}", Categorical(logits=emission[z]), obs=data[t])

    if history == 1:
        return model, transition[0], transition, emission[:, data].T
    # A state of the chain of pairs: (z_t-1, z_t).
    pairs = torch.full((STATES,) * 4, -torch.inf, dtype=torch.float64)
    for a, b, c in itertools.product(range(STATES), repeat=3):
        pairs[a, b, b, c] = transition[a, b, c]
    initial = torch.full((STATES, STATES), -torch.inf, dtype=torch.float64)
    initial[0] = transition[0, 0]
    count = STATES**2
    return model, initial.reshape(-1), pairs.reshape(count, count), emission[:, data].T.repeat(1, STATES)


@pytest.mark.parametrize("history", [1, 2])
def test_a_thousand_steps(history):
    model, initial, transition, emission = long_chain(history)
    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    expected = -hmm_log_normalizer(initial, transition, emission).item()
    for _ in range(4):
        [(model_trace, _)] = elbo._get_traces(model, nothing, (), {})
    dims = {site["infer"].get("_enumerate_dim") for site in model_trace.nodes.values() if "fn" in site}
    assert dims - {None} == set(range(-1, -2 - history, -1))
    assert elbo.loss(model, nothing) == pytest.approx(expected, rel=1e-12)

    smoothed = hmm_marginals(initial, transition, emission).exp().reshape(STEPS, -1, STATES).sum(1)
    marginals = elbo.compute_marginals(model, nothing)
    found = torch.stack([marginals[f"z{t}"].probs for t in range(STEPS)])
    torch.testing.assert_close(found, smoothed, rtol=1e-7, atol=1e-12)

    best = trace(infer_discrete(model, first_available_dim=-1, temperature=0)).get_trace()
    score = hmm_viterbi(initial, transition, emission).score
    torch.testing.assert_close(best.log_prob_sum(), score, rtol=1e-12, atol=0)
    drawn = trace(infer_discrete(model, first_available_dim=-1)).get_trace()
    assert drawn.log_prob_sum() < score


def test_forty_global_variables():
    """More variables than the 25 dims that some operations take, each with few neighbours."""

    def model():
        z = START
        for i in range(40):
            z = hidden(f"z{i}", z)
            observe(f"x{i}", i % 8, z)

    def chain():
        z = START
        for i in sumprod.markov(range(40)):
            z = hidden(f"z{i}", z)
            observe(f"x{i}", i % 8, z)

    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    assert elbo.loss(model, nothing) == pytest.approx(elbo.loss(chain, nothing), rel=1e-12)
    for _ in range(2):
        pair = [elbo.compute_marginals(one, nothing)["z7"].probs for one in (model, chain)]
        torch.testing.assert_close(*pair, rtol=1e-10, atol=0)
    scores = [
        trace(infer_discrete(one, first_available_dim=-1, temperature=0)).get_trace().log_prob_sum()
        for one in (model, chain)
    ]
    torch.testing.assert_close(*scores, rtol=1e-12, atol=0)


def test_two_hundred_iterations_of_a_sequential_plate():
    """Variables of other iterations are out of sight, so that their dims serve again."""

    def row(i, g):
        z = hidden(f"z{i}", g)
        observe(f"x{i}", i % 8, hidden(f"y{i}", z, g), z)

    def model():
        g = hidden("g")
        for i in sumprod.plate("rows", 200):
            row(i, g)

    totals = []
    for g in torch.arange(2):
        rows = [log_weights(assignments(lambda i=i, g=g: row(i, g))).logsumexp(0) for i in range(200)]
        prior = trace(condition(lambda: hidden("g"), data={"g": g})).get_trace().log_prob_sum()
        totals.append(prior + sum(rows))
    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    expected = [-torch.stack(totals).logsumexp(0).item()] * 5
    assert [elbo.loss(model, nothing) for _ in range(5)] == pytest.approx(expected, rel=1e-11)
    marginal = elbo.compute_marginals(model, nothing)["g"]
    torch.testing.assert_close(marginal.probs, torch.stack(totals).softmax(0), rtol=1e-8, atol=0)


def test_too_many_visible_variables():
    def model():
        z = START
        for i in range(70):
            z = hidden(f"z{i}", z)

    with pytest.raises(
        ValueError, match=r"no tensor dim is left for.*'z63'.*at most 64 dims(.|\n)*pyro.markov"
    ):
        TraceEnum_ELBO(max_plate_nesting=0).loss(model, nothing)


def test_do_inside_a_chain() -> None:
    """What depends on the fixed value does so; the site itself still follows what was before it."""
    moves = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    seen = torch.tensor([0.1, 0.8, -0.3, 1.2], dtype=torch.float64)

    @config_enumerate
    def model(fixed: bool) -> None:
        x: Any = 0
        for t in sumprod.markov(range(4)):
            x = sumprod.sample(f"x_{t}", Categorical(moves[x]))
            if fixed and t == 2:
                x = torch.tensor(1)
            sumprod.sample(f"y_{t}", Normal(x * 1.0, 1.0), obs=seen[t])

    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    wanted = elbo.loss(model, lambda fixed: None, True)
    done = do(model, data={"x_2": torch.tensor(1)})
    assert elbo.loss(done, lambda fixed: None, False) == pytest.approx(wanted, rel=1e-12)
