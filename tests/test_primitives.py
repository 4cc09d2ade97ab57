"""The statements of a program."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import constraints

import sumprod
from sumprod import handlers
from sumprod.distributions import Bernoulli, Categorical, Normal, Poisson

# ---- sample


def test_sample_without_handlers():
    torch.manual_seed(0)
    value = sumprod.sample("x", Normal(0.0, 1.0))
    torch.manual_seed(0)
    assert value == torch.normal(torch.tensor(0.0), torch.tensor(1.0))
    assert sumprod.sample("x", Normal(0.0, 1.0), torch.Size([3])).shape == (3,)
    assert sumprod.sample("x", lambda a, b: a + b, 1, b=2) == 3


def test_observing_outside_of_inference_warns():
    with pytest.warns(RuntimeWarning, match="trying to observe a value outside of inference at x"):
        assert sumprod.sample("x", Normal(0.0, 1.0), obs=torch.tensor(2.0)) == 2.0
    assert sumprod.deterministic("d", torch.tensor(2.0)) == 2.0  # no warning


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda one: Normal(0 * one, one), 2),
        (lambda one: Bernoulli(0.5 * one), True),
        (lambda one: Poisson(one), 3),
        (lambda one: Normal(0 * one, one).expand([2]).mask(True), 2.0),
    ],
)
def test_python_numbers_are_observed_in_the_distributions_dtype(make, number, dtype):
    fn = make(torch.tensor(1.0, dtype=dtype))
    with handlers.trace() as trace:
        value = sumprod.sample("x", fn, obs=number)
    assert value.dtype == dtype
    assert value == number
    assert trace.trace.log_prob_sum().dtype == dtype


def test_observed_category_as_a_number():
    with handlers.trace() as trace:
        sumprod.sample("x", Categorical(torch.tensor([0.2, 0.8])), obs=1)
    assert trace.trace.log_prob_sum().item() == pytest.approx(math.log(0.8), rel=1e-6)


def test_infer_can_say_that_a_site_is_observed():
    with handlers.trace() as trace:
        sumprod.sample("x", Normal(0.0, 1.0), obs=torch.tensor(1.0), infer={"is_observed": False})
    assert not trace.trace.nodes["x"]["is_observed"]


def test_obs_mask_splits_the_site():
    data = torch.tensor([1.0, 2.0, 3.0])
    mask = torch.tensor([True, False, True])

    def program():
        with sumprod.plate("data", 3):
            return sumprod.sample("x", Normal(0.0, 1.0), obs=data, obs_mask=mask)

    trace = handlers.trace(program).get_trace()
    nodes = trace.nodes
    assert nodes["x_observed"]["is_observed"]
    assert not nodes["x_unobserved"]["is_observed"]
    value = nodes["x"]["value"]
    assert value[mask].tolist() == [1.0, 3.0]
    assert value[1] == nodes["x_unobserved"]["value"][1]
    trace.compute_log_prob()
    assert (nodes["x_observed"]["log_prob"] == 0).tolist() == [False, True, False]
    assert (nodes["x_unobserved"]["log_prob"] == 0).tolist() == [True, False, True]
    expected = Normal(0.0, 1.0).log_prob(value).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_obs_mask_with_event_dims_and_errors():
    fn = Normal(torch.zeros(3, 2), 1.0).to_event(1)
    mask = torch.tensor([True, False, True])
    with handlers.trace():
        value = sumprod.sample("x", fn, obs=torch.ones(3, 2), obs_mask=mask)
        assert value[mask].tolist() == [[1.0, 1.0], [1.0, 1.0]]
        with pytest.raises(ValueError, match=r"Invalid obs_mask shape at site 'z': \(2,\)"):
            sumprod.sample("z", fn, obs=torch.ones(3, 2), obs_mask=torch.tensor([True, False]))
        with pytest.raises(ValueError, match="obs_mask at site 'z' needs obs"):
            sumprod.sample("z", fn, obs_mask=mask)
        with pytest.raises(TypeError, match=r"bool tensor, got a tensor of torch.float32"):
            sumprod.sample("z", fn, obs=torch.ones(3, 2), obs_mask=torch.ones(3))


# ---- param


def test_param_first_use_wins():
    first = sumprod.param("p", torch.tensor(2.0), constraint=constraints.positive)
    again = sumprod.param("p", torch.tensor(7.0))
    assert first == again
    assert first.item() == pytest.approx(2.0)
    assert first.unconstrained().item() == pytest.approx(math.log(2.0))
    with pytest.raises(KeyError):
        sumprod.param("unknown")


def test_param_init_function_is_called_once():
    calls = []

    def init():
        calls.append(1)
        return torch.tensor(1.0)

    sumprod.param("p", init)
    with handlers.trace():
        sumprod.param("p", init)
    assert calls == [1]


# Trap 51
def test_trap_51_tensors_are_copied_and_parameters_aliased():
    tensor = torch.ones(2)
    value = sumprod.param("copied", tensor)
    assert not tensor.requires_grad
    with torch.no_grad():
        value.unconstrained().add_(1.0)
    assert tensor.tolist() == [1.0, 1.0]
    parameter = torch.nn.Parameter(torch.ones(2))
    assert sumprod.param("aliased", parameter).unconstrained() is parameter


# ---- module


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(2, 3)
        self.b = torch.nn.Linear(3, 2)
        self.b.bias.requires_grad_(False)


def test_module_registers_parameters():
    net = Net()
    with pytest.warns(UserWarning, match=r"b.bias of module 'net' was not registered"):
        returned = sumprod.module("net", net)
    assert returned is net
    store = sumprod.get_param_store()
    assert list(store.keys()) == ["net$$$a.weight", "net$$$a.bias", "net$$$b.weight"]
    assert store["net$$$a.weight"].unconstrained() is net.a.weight
    net.eval()
    sumprod.module("net", net)  # no warning outside of training mode
    with pytest.raises(NotImplementedError, match="class Net instead of an instance"):
        sumprod.module("other", Net)
    with pytest.raises(ValueError, match=r"\$\$\$"):
        sumprod.module("a$$$b", net)


def test_module_update():
    first, second = Net().eval(), Net().eval()
    sumprod.module("net", first)
    sumprod.module("net", second)
    assert not torch.equal(first.a.weight, second.a.weight)
    sumprod.module("net", second, update_module_params=True)
    assert second.a.weight is first.a.weight
    loss = second.b(second.a(torch.ones(1, 2))).sum()
    loss.backward()
    assert sumprod.get_param_store()["net$$$a.weight"].unconstrained().grad is not None


def test_tied_parameters_have_one_leaf():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(2, 2)
            self.b = torch.nn.Linear(2, 2)
            self.b.weight = self.a.weight

    sumprod.module("tied", Tied())
    assert list(sumprod.get_param_store().keys()) == ["tied$$$a.weight", "tied$$$a.bias", "tied$$$b.bias"]
    other = Tied()
    sumprod.module("tied", other, update_module_params=True)
    assert other.a.weight is other.b.weight


def test_random_module_draws_copies():
    net = torch.nn.Linear(2, 1)
    prior = {
        "weight": Normal(torch.zeros(1, 2), 1.0).to_event(2),
        "bias": Normal(torch.zeros(1), 1.0).to_event(1),
    }
    draw = sumprod.random_module("net", net, prior)
    with handlers.trace() as trace:
        drawn = draw()
    assert drawn is not net
    assert drawn.weight is trace.trace.nodes["net$$$weight"]["value"]
    assert drawn(torch.ones(1, 2)).shape == (1, 1)
    assert not torch.equal(draw().weight, draw().weight)
    assert isinstance(net.weight, torch.nn.Parameter)


# ---- factor, deterministic, barrier


def test_factor():
    def program():
        with sumprod.plate("data", 2):
            sumprod.factor("f", torch.tensor([1.0, 2.0]))

    trace = handlers.trace(program).get_trace()
    assert trace.log_prob_sum() == 3.0
    assert trace.nodes["f"]["is_observed"]
    assert trace.nodes["f"]["infer"] == {"is_auxiliary": True}


def test_deterministic_event_dim():
    with handlers.trace() as trace:
        sumprod.deterministic("a", torch.zeros(2, 3))
        sumprod.deterministic("b", torch.zeros(2, 3), event_dim=1)
    assert trace.trace.nodes["a"]["fn"].event_shape == (2, 3)
    assert trace.trace.nodes["b"]["fn"].batch_shape == (2,)
    assert trace.trace.log_prob_sum() == 0.0


def test_barrier_and_subsample_outside_plates_are_the_identity():
    data = torch.arange(3)
    assert sumprod.barrier(data) is data
    assert sumprod.subsample(data, event_dim=0) is data
    with handlers.trace():
        assert sumprod.subsample(data, event_dim=0) is data
    with pytest.raises(ValueError, match="event_dim >= 0"):
        sumprod.subsample(data, event_dim=-1)


# ---- validation


def test_validation_switches_all_three():
    from sumprod import settings

    flags = (
        "validate_infer",
        "validate_poutine",
        "validate_distributions_pyro",
        "validate_distributions_torch",
    )
    before = {flag: settings.get(flag) for flag in flags}

    @sumprod.validation_enabled(False)
    def fails():
        assert not any(settings.get(flag) for flag in flags)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert {flag: settings.get(flag) for flag in flags} == before
    sumprod.enable_validation(False)
    assert not any(settings.get(flag) for flag in flags)
    sumprod.enable_validation(True)
    assert all(settings.get(flag) for flag in flags)


def test_everything_is_reachable_from_the_top():
    for name in sumprod.__all__:
        assert getattr(sumprod, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sumprod.nothing  # noqa: B018
