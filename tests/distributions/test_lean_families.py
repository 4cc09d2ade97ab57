"""Families whose constructor, draw and density are our own: they must be torch's in all but speed."""

from __future__ import annotations

import pytest
import torch
import torch.distributions as td
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import make_fx

import sumprod.distributions as dist
from sumprod.distributions.torch_distribution import TorchDistributionMixin
from tests.distributions.families import BATCHES, LEAN, draw, leaves, make

lean_family = pytest.mark.parametrize("case", LEAN, ids=[case.label for case in LEAN])


@lean_family
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_gradients_equal_torchs(case, batch):
    results = []
    for module in (dist, td):
        arguments = leaves(case, batch)
        d = getattr(module, case.name)(**arguments)
        value = draw(make(td, case, batch), (3,), seed=5)
        inputs = [a for a in arguments.values() if isinstance(a, torch.Tensor)]
        if value.is_floating_point() and not d.support.is_discrete:
            inputs.append(value.requires_grad_())
        log_prob = d.log_prob(value)
        weights = torch.linspace(-1, 1, log_prob.numel(), dtype=torch.float64).reshape(log_prob.shape)
        results.append(torch.autograd.grad((log_prob * weights).sum(), inputs, allow_unused=True))
        if d.has_rsample:
            torch.manual_seed(7)
            x = d.rsample((3,))
            results[-1] += torch.autograd.grad((x * x.detach().cos()).sum(), inputs, allow_unused=True)
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@lean_family
def test_second_derivatives(case):
    arguments = {k: a for k, a in leaves(case, (2,)).items() if isinstance(a, torch.Tensor)}
    value = draw(make(td, case, (2,)))

    def log_prob(*parameters):
        return getattr(dist, case.name)(**dict(zip(arguments, parameters, strict=True))).log_prob(value)

    # Not validated: finite differences leave the simplex.
    with dist.validation_enabled(False):
        assert torch.autograd.gradgradcheck(log_prob, tuple(arguments.values()), atol=1e-4)


@lean_family
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_half_precision_is_torchs(case, dtype):
    arguments = case.arguments((4,), dtype)
    value = draw(make(td, case, (4,), torch.float32)).to(dtype if case.name != "Categorical" else torch.int64)
    ours = getattr(dist, case.name)(**arguments, validate_args=False)
    theirs = getattr(td, case.name)(**arguments, validate_args=False)
    log_prob, expected = ours.log_prob(value), theirs.log_prob(value)
    assert log_prob.dtype == expected.dtype
    if case.name not in ("Dirichlet", "Beta", "Gamma"):  # torch cannot draw these in half precision
        assert ours.sample().dtype == theirs.sample().dtype
    exact = getattr(td, case.name)(
        **{k: v.double() for k, v in arguments.items()}, validate_args=False
    ).log_prob(value.double() if value.is_floating_point() else value)
    error = (log_prob.double() - exact).abs().max()
    accepted = (expected.double() - exact).abs().max() + 4 * torch.finfo(dtype).eps
    assert error <= accepted


@lean_family
def test_transforms_of_torch_func(case):
    arguments = {k: a for k, a in case.arguments((4,), torch.float64).items() if isinstance(a, torch.Tensor)}
    value = draw(make(td, case, (4,)))

    def log_prob(value, *parameters):
        return getattr(dist, case.name)(**dict(zip(arguments, parameters, strict=True))).log_prob(value)

    expected = log_prob(value, *arguments.values())
    torch.testing.assert_close(torch.func.vmap(log_prob)(value, *arguments.values()), expected)
    gradient = torch.func.grad(lambda p: log_prob(value, p, *list(arguments.values())[1:]).sum())
    first = next(iter(arguments.values()))
    assert gradient(first).shape == first.shape


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_code_is_one_graph_and_checks_stay_on_outside():
    def step(loc, scale, value):
        d = dist.Normal(loc, scale)
        return d.log_prob(value) + dist.Gamma(scale, scale).log_prob(value.exp())

    arguments = torch.zeros(3), torch.ones(3), torch.full((3,), 0.5)
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), step(*arguments))
    # This is what compiling does to torch's own checks, the first time in a process.
    td.Distribution.set_default_validate_args(False)
    with pytest.raises(ValueError, match="Expected parameter scale"):
        dist.Normal(0.0, -1.0)
    with pytest.raises(ValueError, match="Expected parameter scale"):
        dist.Gumbel(0.0, torch.tensor([-1.0]))


def test_traces_to_a_graph_without_validation():
    def log_prob(loc, scale, value):
        return dist.Normal(loc, scale).log_prob(value)

    arguments = torch.zeros(3), torch.ones(3), torch.full((3,), 0.5)
    with dist.validation_enabled(False):
        graph = make_fx(log_prob)(*arguments)
    operators = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert len(operators) == 5
    torch.testing.assert_close(graph(*arguments), log_prob(*arguments))


def test_numbers_and_mixed_arguments_follow_torch():
    x = torch.tensor([0.5, 1.5], dtype=torch.float64)
    for ours, theirs in (
        (dist.Normal(0, 1), td.Normal(0, 1)),
        (dist.Normal(x, 2), td.Normal(x, 2)),
        (dist.Normal(1.0, x), td.Normal(1.0, x)),
        (dist.Normal(x.unsqueeze(-1), x), td.Normal(x.unsqueeze(-1), x)),
        (dist.Beta(2.0, 3.0), td.Beta(2.0, 3.0)),
        (dist.Gamma(True, x), td.Gamma(True, x)),
        (dist.Uniform(x, 4.0), td.Uniform(x, 4.0)),
        (dist.HalfNormal(2), td.HalfNormal(2)),
        (dist.Poisson(3), td.Poisson(3)),
        (dist.Bernoulli(0.3), td.Bernoulli(0.3)),
    ):
        if not isinstance(ours, dist.Beta | dist.HalfNormal):
            assert repr(ours) == repr(theirs)
        value = draw(theirs, (2,))
        assert ours.log_prob(value).dtype == theirs.log_prob(value).dtype
        torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
        assert draw(ours).dtype == draw(theirs).dtype
    for bad in ("1", None, [1.0]):
        with pytest.raises(ValueError, match="Input arguments must all be instances of Number"):
            dist.Normal(bad, 1.0)


def test_value_dtypes_promote_as_in_torch():
    x = torch.tensor([1, 0, 2])
    for name, arguments in (
        ("Normal", (0.5, 2.0)),
        ("Laplace", (0.5, 2.0)),
        ("Cauchy", (0.5, 2.0)),
        ("Exponential", (2.0,)),
        ("Gamma", (0.5, 2.0)),
        ("Poisson", (2.0,)),
        ("HalfNormal", (2.0,)),
        ("HalfCauchy", (2.0,)),
        ("Categorical", (torch.tensor([0.2, 0.3, 0.5]),)),
    ):
        for value in (x, x.double(), x.half(), x[0], x[0].double()):
            ours = getattr(dist, name)(*arguments).log_prob(value)
            theirs = getattr(td, name)(*arguments).log_prob(value)
            assert ours.dtype == theirs.dtype, (name, value.dtype)
            torch.testing.assert_close(ours, theirs)


def test_empty_batches():
    for case in LEAN:
        if case.name == "Categorical":
            continue
        d = make(dist, case, (3,)).expand((3,))
        arguments = {
            k: a[:0] if isinstance(a, torch.Tensor) else a
            for k, a in case.arguments((3,), torch.float64).items()
        }
        empty = getattr(dist, case.name)(**arguments)
        assert empty.batch_shape == (0,)
        assert empty.sample().shape == (0, *d.event_shape)
        assert empty.log_prob(empty.sample()).shape == (0,)


def test_half_families_are_minus_infinity_below_zero_unless_validated():
    for d in (dist.HalfNormal(2.0, validate_args=False), dist.HalfCauchy(2.0, validate_args=False)):
        assert d.log_prob(torch.tensor([-1.0, 1.0])).isinf().tolist() == [True, False]


def test_lazy_parts_of_transformed_families():
    for d, base in (
        (dist.LogNormal(0.3, 2.0), td.LogNormal(0.3, 2.0)),
        (dist.HalfNormal(2.0), td.HalfNormal(2.0)),
        (dist.HalfCauchy(2.0), td.HalfCauchy(2.0)),
    ):
        assert isinstance(d, td.TransformedDistribution)
        assert isinstance(d.base_dist, TorchDistributionMixin)
        assert repr(d.base_dist) == repr(base.base_dist)
        assert d.transforms == base.transforms
        assert d.expand((2,)).base_dist.batch_shape == (2,)


def test_normal_keeps_digits_where_the_variance_underflows():
    tiny = torch.tensor(1e-30)
    log_prob = dist.Normal(0.0, tiny).log_prob(tiny)
    torch.testing.assert_close(log_prob, td.Normal(0.0, tiny.double()).log_prob(tiny.double()).float())


def test_uniform_is_half_open():
    d = dist.Uniform(torch.zeros(2), torch.ones(2))
    assert d.log_prob(torch.tensor([0.0, 0.5])).tolist() == [0.0, 0.0]
    assert d.log_prob(torch.tensor([0.0, 1.0])).tolist() == [0.0, -torch.inf]
    low = torch.zeros((), requires_grad=True)
    (gradient,) = torch.autograd.grad(
        dist.Uniform(low, 2.0).log_prob(torch.tensor([0.5, 2.0])).nan_to_num(neginf=0).sum(), low
    )
    assert gradient == 0.5


def test_subclasses_of_lean_families_work():
    class Shifted(dist.Normal):
        def __init__(self, loc):
            super().__init__(loc + 1, torch.ones_like(loc))

    d = Shifted(torch.zeros(2))
    assert d.loc.tolist() == [1.0, 1.0]
    with pytest.raises(NotImplementedError, match=r"must also define a custom .expand\(\) method"):
        d.expand((3, 2))

    class Named(dist.Gamma):
        pass

    assert type(Named(torch.ones(2), 1.0).expand((3, 2))) is Named


def test_constraints_of_lean_families_are_torchs():
    for case in LEAN:
        ours, theirs = make(dist, case, (2,)), make(td, case, (2,))
        assert type(ours.support) is type(theirs.support)
        assert constraints.is_dependent(type(ours).support) == constraints.is_dependent(type(theirs).support)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_of_certain_events_are_torchs_with_two_derivatives(dtype):
    results = []
    for module in (dist, td):
        probs = torch.tensor([0.0, 1.0, 1e-30, 0.3, 0.5, 1 - 1e-3], dtype=dtype, requires_grad=True)
        logits = module.Bernoulli(probs).logits
        (first,) = torch.autograd.grad(logits.cos().sum(), probs, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), probs)
        results.append((logits, first, second))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (2,), (2, 1), (1, 3), (3, 3), (4, 2, 3), (4, 2, 2, 3)], ids=str
)
def test_values_are_checked_against_the_shape_as_in_torch(batch, shape):
    outcomes = []
    for module in (dist, td):
        for d, value in (
            (module.Bernoulli(torch.full(batch, 0.3)), 1.0),
            (module.Dirichlet(torch.ones((*batch, 3))), 1 / 3),
            (module.Poisson(torch.ones((*batch, 2))), 1.0),
            (module.Poisson(torch.ones((*batch, 2))), 0.5),  # never valid
        ):
            try:
                d._validate_sample(torch.full(shape, value))
                outcomes.append("valid")
            except ValueError as error:
                outcomes.append(str(error).splitlines()[0].split(" of the distribution")[0])
    assert outcomes[:4] == outcomes[4:]
    assert outcomes[3] != "valid"
