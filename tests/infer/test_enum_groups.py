"""Densities around enumerated variables in groups, against each site by itself."""

import pytest
import torch

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.handlers.util import prune_subsample_sites
from sumprod.infer import TraceEnum_ELBO, _enum_groups, _sufficient, infer_discrete
from sumprod.infer._enum_groups import site_terms
from sumprod.infer._enum_sites import site_density, site_term, variable_of

DOUBLE = torch.float64
S, B, T, D = 3, 4, 5, 6
PARALLEL = {"enumerate": "parallel"}


def uniform(*shape, seed=0):
    return torch.rand(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1


BITS = (uniform(B, T, D, seed=1) < 0.5).to(DOUBLE)
NUMBERS = uniform(B, T, seed=2)
LENGTHS = torch.tensor([5, 3, 4, 2])


def parameters():
    transition = sumprod.param("transition", uniform(S, S), constraint=dist.constraints.positive)
    emission = sumprod.param("emission", uniform(S, D), constraint=dist.constraints.unit_interval)
    return transition, emission


def chain(emit, by_plate, masked=True):
    """A hidden Markov model of B sequences, with a plate for the dims of the data or without."""

    def model():
        transition, emission = parameters()
        plate = sumprod.plate("tones", D, dim=-1)
        with sumprod.plate("sequences", B, dim=-2 if by_plate else -1):
            x = 0
            for t in sumprod.markov(range(T)):
                mask = t < LENGTHS if masked else torch.tensor(True)
                with handlers.mask(mask=mask[:, None] if by_plate and masked else mask):
                    x = sumprod.sample(f"x{t}", dist.Categorical(transition[x]), infer=PARALLEL)
                    emit(t, x, emission, plate)

    return model


def tones(t, x, emission, plate):
    with plate:
        sumprod.sample(f"y{t}", dist.Bernoulli(emission[x].squeeze(-2)), obs=BITS[:, t])


def own_tones(t, x, emission, plate):
    with sumprod.plate(f"tones{t}", D, dim=-1):
        sumprod.sample(f"y{t}", dist.Bernoulli(logits=emission[x].squeeze(-2)), obs=BITS[:, t])


def constant_tones(t, x, emission, plate):
    """Neither data nor parameters vary along the plate."""
    with plate:
        sumprod.sample(f"y{t}", dist.Normal(emission[x][..., 0], 1.0), obs=NUMBERS[:, t, None])


def event(t, x, emission, plate):
    sumprod.sample(f"y{t}", dist.Bernoulli(emission[x]).to_event(1), obs=BITS[:, t])


def normal_event(t, x, emission, plate):
    sumprod.sample(f"y{t}", dist.Normal(emission[x], 0.5).to_event(1), obs=BITS[:, t])


def normal(t, x, emission, plate):
    sumprod.sample(f"y{t}", dist.Normal(emission[x, 0], emission[x, 1]), obs=NUMBERS[:, t])


def classes(t, x, emission, plate):
    sumprod.sample(f"y{t}", dist.Categorical(emission[x]), obs=BITS[:, t].argmax(-1))


def two_families(t, x, emission, plate):
    normal(t, x, emission, plate)
    sumprod.sample(f"z{t}", dist.Poisson(emission[x, 2] + t), obs=BITS[:, t, 0])


def masked_inside(t, x, emission, plate):
    """A mask of the distribution: evaluated one by one."""
    fn = dist.Normal(emission[x, 0], 1.0).mask(BITS[:, t, 0] > 0)
    sumprod.sample(f"y{t}", fn, obs=NUMBERS[:, t])


PROGRAMS = {
    "tones": chain(tones, True),
    "own tones": chain(own_tones, True),
    "constant tones": chain(constant_tones, True),
    "unmasked tones": chain(tones, True, masked=False),
    "event": chain(event, False),
    "normal event": chain(normal_event, False),
    "normal": chain(normal, False),
    "classes": chain(classes, False),
    "two families": chain(two_families, False),
    "masked inside": chain(masked_inside, False),
}
GROUPED = dict.fromkeys(PROGRAMS, ("x", "y", "z")) | {"masked inside": ("x",)}

BY_PRODUCTS = ("tones", "own tones", "unmasked tones", "event", "normal event", "classes", "constant tones")


def nothing():
    pass


@pytest.fixture(autouse=True)
def clean_store():
    sumprod.clear_param_store()
    yield
    sumprod.clear_param_store()


@pytest.fixture(autouse=True, params=[True, False], ids=["products", "densities"])
def products(request, monkeypatch):
    """However small: whether sums are matrix products where they can be."""
    monkeypatch.setattr(_enum_groups, "pays", lambda family, entries: request.param)
    return request.param


@pytest.fixture
def one_by_one(monkeypatch):
    def switch():
        monkeypatch.setattr(_enum_groups, "_grouped_terms", lambda *args: {})

    return switch


def enumerated(model, depth=2):
    with handlers.enum(first_available_dim=-1 - depth):
        trace = prune_subsample_sites(handlers.trace(model).get_trace())
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    return trace, sites, {variable_of(site): site for site in sites if variable_of(site) is not None}


def depth_of(name):
    return 2 if "tones" in name else 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_terms(name):
    trace, sites, variables = enumerated(PROGRAMS[name], depth_of(name))
    found = site_terms(trace, sites, variables, depth_of(name))
    for site, term in zip(sites, found, strict=True):
        expected = site_term(site, site_density(trace, site, depth_of(name)))
        gone = [dim for dim in expected.dims if str(dim).startswith("tones")]
        assert term.ordinal == {"sequences"}
        assert set(term.dims) == set(expected.dims) - set(gone)
        tensor = expected.tensor.sum([expected.dims.index(dim) for dim in gone]) if gone else expected.tensor
        kept = [dim for dim in expected.dims if dim not in gone]
        # Along plates where it is constant a term has size 1.
        aligned = term.tensor.permute([term.dims.index(dim) for dim in kept])
        torch.testing.assert_close(aligned.expand(tensor.shape), tensor)


@pytest.mark.parametrize("name", PROGRAMS)
def test_which_sites_are_grouped(name, monkeypatch):
    alone = []

    def spy(trace, site, depth):
        alone.append(site["name"])
        return site_density(trace, site, depth)

    monkeypatch.setattr(_enum_groups, "site_density", spy)
    trace, sites, variables = enumerated(PROGRAMS[name], depth_of(name))
    site_terms(trace, sites, variables, depth_of(name))
    # At the first step there is one state less in sight than later.
    assert {one for one in alone if one.startswith(GROUPED[name])} <= {"x0", "y0", "z0"}
    assert {site["name"] for site in sites if not site["name"].startswith(GROUPED[name])} <= set(alone)


def results(model, depth):
    elbo = TraceEnum_ELBO(max_plate_nesting=depth)
    for _ in range(4):  # in the first runs every state of a chain has a dim of its own
        loss = elbo.differentiable_loss(model, nothing)
    leaves = [leaf for _, leaf in sumprod.get_param_store().named_parameters()]
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    second = torch.autograd.grad(sum((gradient**2).sum() for gradient in first), leaves)
    marginals = elbo.compute_marginals(model, nothing)
    probs = [marginal.probs.detach() for marginal in marginals.values()]
    best = handlers.trace(infer_discrete(model, first_available_dim=-1 - depth, temperature=0)).get_trace()
    return [loss.detach(), *first, *second, *probs, *(best.nodes[f"x{t}"]["value"] for t in range(T))]


@pytest.mark.parametrize("name", PROGRAMS)
def test_loss_derivatives_marginals_and_best_states(name, one_by_one):
    ours = results(PROGRAMS[name], depth_of(name))
    one_by_one()
    for value, expected in zip(ours, results(PROGRAMS[name], depth_of(name)), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PROGRAMS)
def test_where_matrix_products_will_not_do(name, products, monkeypatch):
    """Then densities are evaluated in smaller groups: they need more memory."""
    calls = []
    monkeypatch.setattr(_enum_groups, "summed_log_prob", lambda *args: calls.append(args))
    monkeypatch.setattr(_enum_groups, "_MOST_ENTRIES", 2 * S * B * D)
    test_terms(name)
    test_which_sites_are_grouped(name, monkeypatch)
    assert bool(calls) == (products and name in BY_PRODUCTS)


def test_a_plate_with_a_variable_inside_is_kept():
    """The second variable lives in the plate, so that its factors cannot be summed over it."""

    def model():
        transition, emission = parameters()
        x = sumprod.sample("x", dist.Categorical(transition[0]), infer=PARALLEL)
        with sumprod.plate("items", D, dim=-1):
            z = sumprod.sample("z", dist.Categorical(transition[x]), infer=PARALLEL)
            sumprod.sample("y", dist.Bernoulli(emission[x, 0]), obs=BITS[0, 0])
            sumprod.sample("w", dist.Bernoulli(emission[z, 0]), obs=BITS[1, 0])
            with sumprod.plate("inner", B, dim=-2):
                sumprod.sample("v", dist.Bernoulli(emission[z, 1]), obs=BITS[:, 0])

    trace, sites, variables = enumerated(model)
    ordinals = {
        site["name"]: term.ordinal
        for site, term in zip(sites, site_terms(trace, sites, variables, 2), strict=True)
    }
    inside = {"items"}
    assert ordinals == {"x": set(), "z": inside, "y": inside, "w": inside, "v": inside}
    loss = TraceEnum_ELBO(max_plate_nesting=2).loss(model, nothing)
    transition, emission = (x.detach() for x in parameters())
    transition = transition / transition.sum(-1, keepdim=True)
    total = torch.zeros(S, dtype=DOUBLE)
    for x in range(S):
        of_z = transition[x] * torch.exp(
            dist.Bernoulli(emission[:, 0]).log_prob(BITS[1, 0, :, None])
            + dist.Bernoulli(emission[:, 1]).log_prob(BITS[:, 0, :, None]).sum(0)
        )
        y = dist.Bernoulli(emission[x, 0]).log_prob(BITS[0, 0])
        total[x] = transition[0, x].log() + (of_z.sum(-1).log() + y).sum()
    torch.testing.assert_close(torch.tensor(-loss, dtype=DOUBLE), total.logsumexp(0))


def test_sites_without_enumerated_variables_keep_their_plates():
    def model():
        transition, emission = parameters()
        x = sumprod.sample("x", dist.Categorical(transition[0]), infer=PARALLEL)
        with sumprod.plate("items", D, dim=-1):
            for i in range(3):
                sumprod.sample(f"free{i}", dist.Bernoulli(emission[i]), obs=BITS[0, i])
                fn = dist.Bernoulli(emission[x[:, None] if x.dim() == 1 else x, torch.arange(D)])
                sumprod.sample(f"bound{i}", fn, obs=BITS[0, i])

    trace, sites, variables = enumerated(model, depth=1)
    terms = dict(zip([s["name"] for s in sites], site_terms(trace, sites, variables, 1), strict=True))
    assert terms["free0"].dims == ("items",)
    assert terms["free0"].ordinal == {"items"}
    assert terms["bound0"].ordinal == set()
    assert terms["bound0"].tensor.shape == (S,)


def test_masked_data_may_be_nan_and_scales_are_applied_once(one_by_one):
    missing = BITS.clone()
    for b, length in enumerate(LENGTHS):
        missing[b, length:] = torch.nan

    def emit(t, x, emission, plate):
        sumprod.sample(f"y{t}", dist.Bernoulli(emission[x]).to_event(1), obs=missing[:, t])

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    scaled = handlers.scale(chain(emit, False), scale=2.5)
    loss = [elbo.loss(scaled, nothing) for _ in range(4)][-1]
    one_by_one()
    expected = 2.5 * elbo.loss(PROGRAMS["event"], nothing)
    assert loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("emit", [tones, event])
def test_a_value_outside_the_support_names_the_site(emit, monkeypatch):
    wrong = BITS.clone()
    wrong[1, 2, 3] = 0.5
    monkeypatch.setitem(globals(), "BITS", wrong)
    model = chain(emit, emit is tones, masked=False)
    with pytest.raises(ValueError, match="y2"):
        TraceEnum_ELBO(max_plate_nesting=2 if emit is tones else 1).loss(model, nothing)


def test_a_density_that_does_not_fit_the_plates_is_refused():
    def emit(t, x, emission, plate):
        sumprod.sample(f"y{t}", dist.Bernoulli(emission[x]), obs=BITS[:, t])

    with pytest.raises(ValueError, match="'y0'"):
        TraceEnum_ELBO(max_plate_nesting=1).loss(chain(emit, False), nothing)


def test_a_large_group_is_cut_into_pieces(monkeypatch, one_by_one):
    monkeypatch.setattr(_enum_groups, "_MOST_ENTRIES", 2 * S * B)
    ours = results(PROGRAMS["normal"], 1)
    one_by_one()
    for value, expected in zip(ours, results(PROGRAMS["normal"], 1), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_impossible_data_and_exact_zeros(monkeypatch):
    """A logit of -inf is a probability of 0: the bound is that of the possible states."""
    monkeypatch.setattr(_enum_groups, "pays", _sufficient.pays)
    logits = torch.zeros(2, 3, dtype=DOUBLE)
    logits[0, 1] = -torch.inf
    data = torch.tensor([1.0, 1.0, 0.0], dtype=DOUBLE)

    def model():
        x = sumprod.sample("x", dist.Categorical(torch.ones(2, dtype=DOUBLE)), infer=PARALLEL)
        sumprod.sample("y", dist.Bernoulli(logits=logits[x]).to_event(1), obs=data)

    loss = TraceEnum_ELBO(max_plate_nesting=0).loss(model, nothing)
    assert loss == pytest.approx(-torch.tensor(0.5 / 8).log().item())


def test_one_large_site(one_by_one):
    """A mixture of many elements: the parameters of its one observed site are not expanded."""
    data = uniform(5000, seed=3)

    def model():
        transition, emission = parameters()
        with sumprod.plate("data", 5000):
            z = sumprod.sample("z", dist.Categorical(transition[0]), infer=PARALLEL)
            sumprod.sample("x", dist.Normal(emission[z, 0], emission[z, 1]), obs=data)

    _, sites, variables = enumerated(model, depth=1)
    assert "x" in _enum_groups._grouped_terms(sites, variables, 1)
    found = []
    for switch in (lambda: None, one_by_one):
        switch()
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, nothing)
        leaves = [leaf for _, leaf in sumprod.get_param_store().named_parameters()]
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for value, expected in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_a_homogeneous_chain_has_one_transition_tensor():
    """Its gradient is added up inside the contraction, over steps and over sequences."""
    probs = torch.full((3, 3), 1.0 / 3.0, requires_grad=True)

    def model():
        x = None
        with sumprod.plate("sequences", 4):
            for t in sumprod.markov(range(6)):
                row = probs[0] if x is None else probs[x]
                x = sumprod.sample(f"x_{t}", dist.Categorical(row), infer={"enumerate": "parallel"})

    trace, sites, variables = enumerated(model, 1)
    terms = site_terms(trace, sites, variables, 1)
    assert len({id(term.tensor) for term in terms[1:]}) <= 2  # dims alternate
    assert all(term.tensor.numel() == 9 for term in terms[1:])


def test_sites_of_one_kind_in_different_plates_keep_the_names_of_theirs():
    def model():
        for name in sumprod.markov(("first", "second"), history=0):
            with sumprod.plate(name, 2, dim=-1):
                z = sumprod.sample(f"z_{name}", dist.Categorical(uniform(S)), infer=PARALLEL)
                sumprod.sample(f"x_{name}", dist.Normal(uniform(S)[z], 1.0), obs=uniform(2))

    trace = handlers.trace(handlers.enum(model, first_available_dim=-2)).get_trace()
    trace = prune_subsample_sites(trace)
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    variables = {v: site for site in sites if (v := variable_of(site)) is not None}
    assert len({site["infer"]["_enumerate_dim"] for site in variables.values()}) == 1  # two groups in all
    for site, term in zip(sites, site_terms(trace, sites, variables, 1), strict=True):
        plate = site["name"].split("_")[1]
        assert term.ordinal == {plate}
        assert set(term.dims) - set(variables) <= {plate}


def test_short_vectors_lie_with_their_dims_first_in_memory(monkeypatch):
    value = torch.arange(24.0).reshape(1, 4, 6)
    found = _enum_groups._summed_outermost(value, (-1,))
    assert torch.equal(found, value)
    assert found.stride() == (4, 1, 4)
    for summed in ((), (-3,)):  # nothing to sum
        assert _enum_groups._summed_outermost(value, summed) is value
    monkeypatch.setattr(_enum_groups, "_SHORT", 5)
    assert _enum_groups._summed_outermost(value, (-1,)) is value


def test_a_plate_with_a_variable_inside_makes_another_kind():
    def model():
        for name in sumprod.markov(("outside", "inside"), history=0):
            prior = dist.Categorical(uniform(S))
            if name == "outside":
                z = sumprod.sample(f"z_{name}", prior, infer=PARALLEL)
            with sumprod.plate(name, 2, dim=-1):
                if name == "inside":
                    z = sumprod.sample(f"z_{name}", prior, infer=PARALLEL)
                sumprod.sample(f"x_{name}", dist.Normal(uniform(S)[z].reshape(S, 1), 1.0), obs=uniform(2))

    trace = prune_subsample_sites(handlers.trace(handlers.enum(model, first_available_dim=-2)).get_trace())
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    variables = {v: site for site in sites if (v := variable_of(site)) is not None}
    terms = {site["name"]: t for site, t in zip(sites, site_terms(trace, sites, variables, 1), strict=True)}
    assert terms["x_outside"].ordinal == frozenset()
    assert terms["x_inside"].ordinal == {"inside"}
