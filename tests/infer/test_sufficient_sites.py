"""Observed sites under enumerated states, by matrix products, against each site by itself."""

import pytest
import torch

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.handlers.util import prune_subsample_sites
from sumprod.infer import TraceEnum_ELBO, _enum_groups, _sufficient
from sumprod.infer._enum_groups import site_terms
from sumprod.infer._enum_sites import site_density, site_term, variable_of
from sumprod.ops.indexing import Vindex

DOUBLE = torch.float64
S, B, T, D, V = 3, 4, 5, 6, 4
PARALLEL = {"enumerate": "parallel"}


def uniform(*shape, seed=0):
    return torch.rand(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1


SHAPE = (B, T, D)
U = uniform(*SHAPE, seed=1)
COUNTS = (5 * U).floor()
CATEGORIES = (V * U).long()
# Of uniform parameters of a state and data dim, (..., V), and data.
FAMILIES = {
    "bernoulli": (lambda u: dist.Bernoulli(u[..., 0]), (U < 0.4).to(DOUBLE)),
    "bernoulli logits": (lambda u: dist.Bernoulli(logits=4 * u[..., 0] - 2), (U < 0.4).to(DOUBLE)),
    "binomial": (lambda u: dist.Binomial(5, u[..., 0]), COUNTS),
    "geometric": (lambda u: dist.Geometric(u[..., 0]), COUNTS),
    "poisson": (lambda u: dist.Poisson(3 * u[..., 0]), COUNTS),
    "exponential": (lambda u: dist.Exponential(u[..., 0]), U),
    "gamma": (lambda u: dist.Gamma(u[..., 0], u[..., 1]), U),
    "beta": (lambda u: dist.Beta(u[..., 0], u[..., 1]), U),
    "normal": (lambda u: dist.Normal(u[..., 0], u[..., 1]), U),
    "normal of one scale": (lambda u: dist.Normal(u[..., 0], 0.3), U),
    "normal of float data": (lambda u: dist.Normal(u[..., 0], 0.3), U.float()),
    "log normal": (lambda u: dist.LogNormal(u[..., 0], u[..., 1]), U),
    "categorical": (dist.Categorical, CATEGORIES),
    "categorical logits": (lambda u: dist.Categorical(logits=u), CATEGORIES),
    "one-hot": (dist.OneHotCategorical, torch.nn.functional.one_hot(CATEGORIES, V).to(DOUBLE)),
    "multinomial": (lambda u: dist.Multinomial(4 * V, u), uniform(*SHAPE, V, seed=2).mul(5).floor()),
}
LENGTHS = torch.tensor([5, 3, 4, 2])[:, None, None]
MASKS = {
    "no mask": True,
    "lengths": torch.arange(T)[:, None] < LENGTHS,
    "missing": uniform(*SHAPE, seed=3) < 0.6,
    "tones": torch.arange(D) % 3 > 0,
}


def emission(seed=4):
    return sumprod.param("emission", uniform(S, D, V, seed=seed), constraint=dist.constraints.unit_interval)


def model(family, mask, by_plate, time_first=False, by_time=False, alike=False):
    """States of all steps of all sequences, and tones of each. Mixtures: no state depends on another."""
    make, data = FAMILIES[family]
    if time_first:
        data, mask = data.transpose(0, 1), mask if mask is True or mask.dim() < 3 else mask.transpose(0, 1)
    outer, inner = ((T, B) if time_first else (B, T)) if by_plate else (B, T)
    shift = 0 if by_plate else 1

    def run():
        table = emission()
        if alike:
            table = table[:, :1]
        with sumprod.plate("outer", outer, dim=-3 + shift), sumprod.plate("inner", inner, dim=-2 + shift):
            x = sumprod.sample("x", dist.Categorical(uniform(S, seed=5)), infer=PARALLEL)
            parameters = table[x.squeeze(-1) if by_plate else x]
            if by_time:
                parameters = parameters * torch.linspace(0.5, 1, T, dtype=DOUBLE)[:, None, None]
            fn = make(parameters)
            if by_plate:
                with sumprod.plate("tones", D, dim=-1), handlers.mask(mask=mask):
                    sumprod.sample("y", fn, obs=data)
            else:
                fn = fn.expand((*fn.batch_shape[:-1], D)).to_event(1)
                flat = mask if mask is True else mask.squeeze(-1)
                with handlers.mask(mask=flat):
                    sumprod.sample("y", fn, obs=data)

    return run


@pytest.fixture(autouse=True)
def clean_store():
    sumprod.clear_param_store()
    yield
    sumprod.clear_param_store()


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    monkeypatch.setattr(_enum_groups, "pays", lambda family, entries: True)


@pytest.fixture
def products(monkeypatch):
    """What `summed_log_prob` answers."""
    answers = []
    original = _enum_groups.summed_log_prob

    def spy(*args):
        answers.append(original(*args))
        return answers[-1]

    monkeypatch.setattr(_enum_groups, "summed_log_prob", spy)
    return answers


def check(program, depth):
    """The term of the observed site and its gradient."""
    with handlers.enum(first_available_dim=-1 - depth):
        trace = prune_subsample_sites(handlers.trace(program).get_trace())
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    variables = {variable_of(site): site for site in sites if variable_of(site) is not None}
    (ours,) = (
        term
        for term, site in zip(site_terms(trace, sites, variables, depth), sites, strict=True)
        if site["name"] == "y"
    )
    site = trace.nodes["y"]
    expected = site_term(site, site_density(trace, site, depth))
    gone = [dim for dim in expected.dims if dim == "tones"]
    tensor = expected.tensor.sum([expected.dims.index(dim) for dim in gone]) if gone else expected.tensor
    kept = [dim for dim in expected.dims if dim not in gone]
    found = ours.tensor.permute([ours.dims.index(dim) for dim in kept])
    assert found.dtype == tensor.dtype
    torch.testing.assert_close(found, tensor, rtol=1e-12, atol=1e-12)
    leaf = dict(sumprod.get_param_store().named_parameters())["emission"]
    weights = torch.linspace(-1, 2, tensor.numel(), dtype=DOUBLE).reshape(tensor.shape)
    gradients = [
        torch.autograd.grad((weights * x).sum(), leaf, retain_graph=True)[0] for x in (found, tensor)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)
    return tensor


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tones_in_a_plate(family, mask, time_first, products):
    check(model(family, MASKS[mask], True, time_first), 3)
    assert products[-1] is not None


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("mask", ["no mask", "lengths"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tones_in_an_event(family, mask, alike, products):
    check(model(family, MASKS[mask], False, alike=alike), 2)
    assert products[-1] is not None


def test_counts_may_be_integers(products, monkeypatch):
    """The density alone would take the logarithms of their factorials in float."""
    make, data = FAMILIES["poisson"]
    expected = check(model("poisson", True, True), 3)
    monkeypatch.setitem(FAMILIES, "poisson", (make, data.long()))
    elbo = TraceEnum_ELBO(max_plate_nesting=3)
    elbo.loss(model("poisson", True, True), lambda: None)
    assert products[-1].dtype == DOUBLE
    torch.testing.assert_close(products[0], products[-1], rtol=1e-14, atol=0)
    assert expected.numel() == products[-1].numel()


@pytest.mark.parametrize("family", FAMILIES)
def test_small_densities_are_not_multiplied(family, products, monkeypatch):
    monkeypatch.setattr(_enum_groups, "pays", _sufficient.pays)
    check(model(family, True, True), 3)
    assert bool(products) == family.startswith("bernoulli")


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_that_vary_with_time_are_not_multiplied(family, products):
    check(model(family, True, True, by_time=True), 3)
    assert products == []


@pytest.mark.parametrize("family", FAMILIES)
def test_data_that_are_masked_out_may_be_anything(family, products, monkeypatch):
    make, data = FAMILIES[family]
    mask = MASKS["missing"]
    hidden = mask if data.dim() == 3 else mask.unsqueeze(-1)
    wrong = torch.nan if data.is_floating_point() else -7
    found = []
    for value in (data, torch.where(hidden, data, wrong)):
        monkeypatch.setitem(FAMILIES, family, (make, value))
        loss = TraceEnum_ELBO(max_plate_nesting=3).differentiable_loss(
            model(family, mask, True), lambda: None
        )
        leaf = dict(sumprod.get_param_store().named_parameters())["emission"]
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
        assert products[-1] is not None
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("family", FAMILIES)
def test_data_outside_the_support_are_refused_as_by_the_density(family, monkeypatch):
    make, data = FAMILIES[family]
    wrong = data.clone()
    wrong[1, 2, 3] = torch.nan if data.is_floating_point() else -1
    monkeypatch.setitem(FAMILIES, family, (make, wrong))
    messages = []
    elbo = TraceEnum_ELBO(max_plate_nesting=3)
    for _ in range(2):
        with pytest.raises(ValueError, match="'y'") as raised:
            elbo.loss(model(family, True, True), lambda: None)
        messages.append(str(raised.value))
        monkeypatch.setattr(_enum_groups, "_grouped_terms", lambda *args: {})
    assert messages[0] == messages[1]


NAN_ROW = [family for family, (_, data) in FAMILIES.items() if data.is_floating_point() and data.dim() == 3]


@pytest.mark.parametrize("family", NAN_ROW)
def test_nan_stays_in_its_element_where_nothing_is_validated(family, monkeypatch):
    make, data = FAMILIES[family]
    wrong = data.clone()
    wrong[1, 2, 3] = torch.nan

    def unchecked(u):
        fn = make(u)
        fn._validate_args = False
        return fn

    monkeypatch.setitem(FAMILIES, family, (unchecked, wrong))
    trace = handlers.trace(handlers.enum(model(family, True, True), first_available_dim=-4)).get_trace()
    trace = prune_subsample_sites(trace)
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    variables = {variable_of(site): site for site in sites if variable_of(site) is not None}
    term = dict(zip([s["name"] for s in sites], site_terms(trace, sites, variables, 3), strict=True))["y"]
    tensor = term.tensor.movedim([term.dims.index("outer"), term.dims.index("inner")], [0, 1])
    nan = tensor.isnan().flatten(2)
    assert nan[1, 2].all()
    nan[1, 2] = False
    assert not nan.any()


def hidden_markov(family, vectorized):
    """Sequences of different lengths; a state moves by a learned table and emits all tones."""
    make, data = FAMILIES[family]
    lengths = LENGTHS.squeeze(-1)  # (sequences, 1)

    def run():
        table = emission()
        moves = uniform(S, S, seed=6)
        tones = sumprod.plate("tones", D, dim=-1)
        with sumprod.plate("sequences", B, dim=-3 if vectorized else -2) as batch:
            x = 0
            if vectorized:
                times = sumprod.vectorized_markov(name="time", size=T, dim=-2)
            else:
                times = sumprod.markov(range(T))
            for t in times:
                mask = t < lengths
                with handlers.mask(mask=mask.unsqueeze(-1) if vectorized else mask):
                    x = sumprod.sample(f"x_{t}", dist.Categorical(moves[x]), infer=dict(PARALLEL))
                    observed = Vindex(data)[batch[:, None], t] if vectorized else data[:, t]
                    with tones:
                        sumprod.sample(f"y_{t}", make(table[x.squeeze(-1)]), obs=observed)

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_vectorised_chains_and_loops(family, products):
    found = []
    for vectorized in (True, False):
        elbo = TraceEnum_ELBO(max_plate_nesting=3 if vectorized else 2)
        loss = elbo.differentiable_loss(hidden_markov(family, vectorized), lambda: None)
        leaf = dict(sumprod.get_param_store().named_parameters())["emission"]
        found.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
        assert len(products) > 0
        assert all(answer is not None for answer in products)
        products.clear()
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
