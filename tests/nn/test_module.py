"""Modules whose attributes are sites."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import sumprod
from sumprod import handlers, settings
from sumprod.distributions import Normal, constraints
from sumprod.infer import SVI, Trace_ELBO
from sumprod.nn import (
    PyroModule,
    PyroModuleList,
    PyroParam,
    PyroSample,
    clear,
    pyro_method,
    to_pyro_module_,
)
from sumprod.optim import Adam


def sites(fn: Any, *args: Any) -> dict[str, str]:
    """Name and type of each site of a run."""
    nodes = handlers.trace(fn).get_trace(*args).nodes
    return {name: site["type"] for name, site in nodes.items() if name not in ("_INPUT", "_RETURN")}


def stored() -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in sumprod.get_param_store().items()}


class Part(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.tensor(2.0), constraints.positive)
        self.noise = PyroSample(Normal(0.0, 1.0))

    def forward(self) -> Any:
        return self.scale * self.noise


class Everything(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(2, 1)
        self.linear = PyroModule[nn.Linear](2, 1)
        self.weight = nn.Parameter(torch.ones(2))
        self.scale = PyroParam(lambda: torch.tensor(3.0), constraints.positive)
        self.z = PyroSample(Normal(0.0, 1.0))
        self.y = PyroSample(lambda self: Normal(self.z, 1.0))
        self.part = Part()

    @PyroParam(constraint=constraints.positive)
    def rate(self) -> torch.Tensor:
        return torch.tensor(5.0)

    @PyroParam
    def offset(self) -> torch.Tensor:
        return torch.tensor(6.0)

    @PyroSample
    def x(self) -> Any:
        return Normal(self.z, self.rate)

    def forward(self, data: torch.Tensor) -> Any:
        mean = self.plain(data) + self.linear(data) + self.weight.sum() + self.offset
        return mean * self.scale + self.z + self.y + self.z + self.x + self.part()

    @pyro_method
    def difference(self) -> Any:
        return self.z - self.z


# ---- sites and names


def test_attributes_are_sites_in_order_of_use() -> None:
    found = sites(Everything(), torch.zeros(3, 2))
    assert list(found.items()) == [
        ("plain$$$weight", "param"),
        ("plain$$$bias", "param"),
        ("linear.weight", "param"),
        ("linear.bias", "param"),
        ("weight", "param"),
        ("offset", "param"),
        ("scale", "param"),
        ("z", "sample"),
        ("y", "sample"),
        ("rate", "param"),
        ("x", "sample"),
        ("part.scale", "param"),
        ("part.noise", "sample"),
    ]


def test_the_root_gives_its_name_to_all() -> None:
    root = PyroModule("root")
    root.child = Part()
    assert root.child._pyro_name == "root.child"
    assert root._pyro_get_fullname("x") == "root.x"
    root.forward = lambda: root.child()
    assert list(sites(root)) == ["root.child.scale", "root.child.noise"]


def test_a_submodule_uses_the_names_it_has_in_its_tree() -> None:
    model = Everything()
    assert list(sites(model.part)) == ["part.scale", "part.noise"]


def test_a_value_is_drawn_once_per_call_of_the_root() -> None:
    class Twice(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = PyroModule[nn.Linear](1, 1)
            self.layer.weight = PyroSample(Normal(0.0, 1.0).expand([1, 1]).to_event(2))

        def forward(self) -> torch.Tensor:
            return self.layer(torch.ones(1)) - self.layer(torch.ones(1))

    model = Twice()
    assert model().item() == 0.0
    assert Everything().difference().item() == 0.0
    draws = [handlers.trace(model).get_trace().nodes["layer.weight"]["value"].item() for _ in range(2)]
    assert draws[0] != draws[1]


def test_outside_a_call_attributes_are_plain_values() -> None:
    model = Everything()
    assert sites(lambda: (model.z, model.scale, model.weight, model.plain)) == {}
    assert model.z.item() != model.z.item()
    assert model.scale.item() == pytest.approx(3.0)
    assert stored() == {}


def test_a_prior_function_that_returns_a_tensor_makes_a_deterministic_site() -> None:
    model = PyroModule()
    model.twice = PyroSample(lambda self: 2 * torch.tensor(4.0))
    model.forward = lambda: model.twice
    trace = handlers.trace(model).get_trace()
    assert trace.nodes["twice"]["infer"] == {"_deterministic": True}
    assert model().item() == 8.0


def test_params_are_subsampled_in_plates() -> None:
    class InPlate(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = PyroParam(torch.arange(6.0).reshape(3, 2), event_dim=1)

        def forward(self) -> torch.Tensor:
            with sumprod.plate("data", 3, subsample=torch.tensor([2, 0])):
                return self.loc

    assert InPlate()().tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_handlers_see_the_sites() -> None:
    model = PyroModule[nn.Linear](2, 1)
    model.weight = PyroSample(Normal(0.0, 1.0).expand([1, 2]).to_event(2))
    fixed = handlers.condition(model, data={"weight": torch.tensor([[2.0, 3.0]])})
    assert (fixed(torch.ones(2)) - model.bias).item() == pytest.approx(5.0)
    lifted = handlers.lift(model, prior={"bias": Normal(0.0, 1.0).expand([1]).to_event(1)})
    assert sites(lifted, torch.ones(2)) == {"weight": "sample", "bias": "sample"}


# ---- plain modules


def test_the_children_of_containers_are_registered() -> None:
    class Containers(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.list = PyroModuleList([nn.Linear(1, 1, bias=False), Part()])
            self.dict = PyroModule[nn.ModuleDict]({"a": nn.Linear(1, 1, bias=False)})

        def forward(self, x: torch.Tensor) -> Any:
            return self.list[0](x) + self.dict["a"](x) + self.list[1]()

    assert list(sites(Containers(), torch.ones(1))) == [
        "list.0$$$weight",
        "dict.a$$$weight",
        "list.1.scale",
        "list.1.noise",
    ]
    assert list(sites(PyroModule[nn.Sequential](nn.Linear(1, 1)), torch.ones(1))) == [
        "0$$$weight",
        "0$$$bias",
    ]


def test_a_slice_of_a_list_keeps_the_names_of_its_modules() -> None:
    modules = PyroModuleList([Part(), Part()])
    part = modules[1:]
    assert type(part) is nn.ModuleList
    assert part[0] is modules[1]
    assert part[0]._pyro_name == "1"


def test_frozen_parameters_are_left_alone() -> None:
    model = Everything()
    model.weight.requires_grad_(False)
    assert "weight" not in sites(model, torch.zeros(1, 2))
    assert not model.weight.requires_grad
    model.plain.weight.requires_grad_(False)
    with pytest.warns(UserWarning, match="was not registered in the param store"):
        model(torch.zeros(1, 2))


def test_tied_parameters_are_one_leaf() -> None:
    class Tied(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(2))
            self.b = self.a
            self.inner = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
            self.inner[1].weight = self.inner[0].weight

        def forward(self) -> Any:
            return self.inner(self.a * self.b).sum()

    model = Tied()
    model().backward()
    store = sumprod.get_param_store()
    assert store["a"] is store["b"] is model.a
    assert "inner$$$1.weight" not in store
    old = model.inner[0].weight
    store["inner$$$0.weight"] = torch.eye(2)
    model()
    assert model.inner[0].weight is model.inner[1].weight is not old
    assert model.inner[0].weight.tolist() == [[1.0, 0.0], [0.0, 1.0]]


# ---- module and store


def test_module_and_store_share_their_leaves() -> None:
    model = Everything()
    model(torch.zeros(1, 2))
    store = sumprod.get_param_store()
    leaves = dict(model.named_parameters())
    assert store["weight"] is leaves["weight"]
    assert store["scale"].unconstrained() is leaves["scale_unconstrained"]  # type: ignore[attr-defined]
    assert store["plain$$$weight"] is leaves["plain.weight"]
    assert store["part.scale"].unconstrained() is leaves["part.scale_unconstrained"]  # type: ignore[attr-defined]


def test_the_store_wins_over_a_new_module() -> None:
    first = Everything()
    first(torch.zeros(1, 2))
    store = sumprod.get_param_store()
    for name in ("weight", "scale", "plain$$$weight", "part.scale"):
        store[name] = store[name].detach() + 1
    second = Everything()
    second(torch.zeros(1, 2))
    assert second.weight.tolist() == [2.0, 2.0]
    assert second.scale.item() == pytest.approx(4.0)
    assert second.part.scale.item() == pytest.approx(3.0)
    assert torch.equal(second.plain.weight, store["plain$$$weight"])
    first(torch.zeros(1, 2))
    assert second.weight is first.weight is store["weight"]


def test_a_left_over_parameter_of_another_shape_is_refused() -> None:
    sumprod.param("weight", torch.zeros(7))
    with pytest.raises(
        ValueError, match=r"'weight' with unconstrained shape \(7,\), but the module's has \(2,\)"
    ):
        Everything()(torch.zeros(1, 2))


def test_assignment_changes_module_and_store() -> None:
    model = Everything()
    model(torch.zeros(1, 2))
    leaf = model.scale_unconstrained
    model.scale = torch.tensor(4.0)
    assert model.scale.item() == pytest.approx(4.0)
    assert stored()["scale"].item() == pytest.approx(4.0)
    assert model.scale_unconstrained is leaf  # optimisers hold it
    with pytest.raises(ValueError, match=r"'scale': the initial value -1\.0 .* outside"):
        model.scale = torch.tensor(-1.0)
    model.scale = torch.tensor([4.0, 5.0])
    assert "scale" not in stored()
    model(torch.zeros(1, 2))
    assert stored()["scale"].tolist() == pytest.approx([4.0, 5.0])


def test_an_attribute_can_change_its_kind() -> None:
    model = Everything()
    model(torch.zeros(1, 2))
    model.z = torch.tensor(1.0)
    model.scale = PyroSample(Normal(1.0, 0.1))
    model.weight = PyroParam(torch.ones(2), constraints.positive)
    model.part.scale = nn.Parameter(torch.tensor(-1.0))
    found = sites(model, torch.zeros(1, 2))
    assert "z" not in found
    assert found["scale"] == "sample"
    assert found["weight"] == found["part.scale"] == "param"
    assert dict(model.named_parameters())["part.scale"].item() == -1.0
    assert "scale_unconstrained" not in dict(model.named_parameters())
    model.z = PyroSample(Normal(0.0, 1.0))
    assert sites(model, torch.zeros(1, 2))["z"] == "sample"
    model.scale = None
    assert model.scale is None


def test_deletion_reaches_the_store() -> None:
    model = Everything()
    model(torch.zeros(1, 2))
    del model.scale
    del model.z
    del model.weight
    for name in ("scale", "z", "weight"):
        with pytest.raises(AttributeError, match=name):
            getattr(model, name)
    assert not {"scale", "weight"} & set(stored())
    del model.part
    assert not hasattr(model, "part")


def test_clear_removes_parameters_and_children() -> None:
    model = Everything()
    model(torch.zeros(1, 2))
    sumprod.param("other", torch.zeros(1))
    clear(model)
    assert list(stored()) == ["other"]
    assert list(model.named_parameters()) == []
    assert not hasattr(model, "part")
    with pytest.raises(TypeError, match="Expected a PyroModule"):
        clear(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_named_pyro_params_are_constrained_values() -> None:
    model = Everything()
    values = dict(model.named_pyro_params("net"))
    assert list(values) == [
        "net.weight",
        "net.scale",
        "net.plain.weight",
        "net.plain.bias",
        "net.linear.weight",
        "net.linear.bias",
        "net.part.scale",
    ]
    assert values["net.scale"].item() == pytest.approx(3.0)
    assert [name for name, _ in model.named_pyro_params(recurse=False)] == ["weight", "scale"]


def test_state_dict_goes_from_one_module_to_another() -> None:
    first, second = Part(), Part()
    first.scale = torch.tensor(7.0)
    second.load_state_dict(first.state_dict())
    assert second.scale.item() == pytest.approx(7.0)


def test_svi_trains_the_parameters() -> None:
    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = PyroParam(torch.tensor(0.0))
            self.scale = PyroParam(torch.tensor(1.0), constraints.positive)

        def forward(self) -> None:
            sumprod.sample("z", Normal(self.loc, self.scale))

    def model() -> None:
        z = sumprod.sample("z", Normal(0.0, 1.0))
        sumprod.sample("x", Normal(z, 1.0), obs=torch.tensor(2.0))

    guide = Guide()
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO(num_particles=10))
    for _ in range(300):
        svi.step()
    # The posterior is N(1, 1/2). Adam's last steps of 0.05 leave an error far below the tolerance.
    assert guide.loc.item() == pytest.approx(1.0, abs=0.15)
    assert guide.scale.item() == pytest.approx(0.5**0.5, abs=0.15)


# ---- classes


def test_mixin_classes_are_made_once() -> None:
    linear = PyroModule[nn.Linear]
    assert linear is PyroModule[nn.Linear]
    assert linear.__name__ == "PyroLinear"
    assert issubclass(linear, nn.Linear)
    assert issubclass(linear, PyroModule)
    assert PyroModule[nn.Module] is PyroModule
    assert PyroModule[Part] is Part
    with pytest.raises(AssertionError, match=r"expects a subclass of torch\.nn\.Module"):
        PyroModule[int]


class Sub(PyroModule[nn.Linear]):  # type: ignore[misc, type-arg]
    def __init__(self) -> None:
        super().__init__(2, 1)


@pytest.mark.parametrize("make", [lambda: PyroModule[nn.Linear](2, 1), Sub, Part])
def test_modules_are_copied_and_pickled(make: Any) -> None:
    module = make()
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ):
        assert type(twin) is type(module)
        assert [name for name, _ in twin.named_parameters()] == [
            name for name, _ in module.named_parameters()
        ]
        assert all(a is not b for a, b in zip(twin.parameters(), module.parameters(), strict=True))
        assert set(sites(twin, *[torch.ones(2)] * (make is not Part))) >= {
            n for n, _ in twin.named_pyro_params()
        }


def test_a_network_becomes_bayesian() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    to_pyro_module_(net)
    assert type(net) is PyroModule[nn.Sequential]
    for module in net.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, PyroSample(Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())))
    assert sites(net, torch.ones(2)) == dict.fromkeys(["0.weight", "0.bias", "2.weight", "2.bias"], "sample")
    with pytest.raises(TypeError, match=r"Expected an nn\.Module instance but got a"):
        to_pyro_module_(nn.Linear)  # type: ignore[arg-type]


def test_only_the_root_is_turned_without_recursion() -> None:
    net = nn.Sequential(nn.Linear(2, 3))
    to_pyro_module_(net, recurse=False)
    assert type(net[0]) is nn.Linear


@pytest.mark.parametrize("convert", [False, True])
def test_recurrent_networks_use_their_sites(convert: bool) -> None:
    gru: Any
    if convert:
        gru = nn.GRU(2, 3)
        to_pyro_module_(gru)
    else:
        gru = PyroModule[nn.GRU](2, 3)
    gru.weight_hh_l0 = PyroSample(Normal(0.0, 1.0).expand([9, 3]).to_event(2))
    found = sites(gru, torch.zeros(4, 1, 2))
    assert found == {
        "weight_ih_l0": "param",
        "weight_hh_l0": "sample",
        "bias_ih_l0": "param",
        "bias_hh_l0": "param",
    }
    x = torch.ones(4, 1, 2)
    outputs = [
        handlers.condition(gru, data={"weight_hh_l0": torch.full((9, 3), v)})(x)[0] for v in (0.0, 1.0)
    ]
    assert not torch.allclose(*outputs)


def test_a_parameter_needs_an_initial_value() -> None:
    with pytest.raises(TypeError, match="PyroParam 'x' needs an initial value"):
        PyroModule().x = PyroParam()
    with pytest.raises(TypeError, match="not a decorator"):
        PyroParam(torch.tensor(1.0))(lambda self: torch.tensor(1.0))
    module = PyroModule()
    module.x = PyroParam(1.5)  # a number will do
    assert module.x.item() == 1.5


# ---- parameters that stay in the module


def test_local_parameters_stay_out_of_the_store() -> None:
    with settings.context(module_local_params=True):
        model = Everything()
        found = sites(model, torch.zeros(1, 2))
        assert found["scale"] == found["plain$$$weight"] == found["weight"] == found["part.scale"] == "param"
        assert stored() == {}
        model(torch.zeros(1, 2)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_local_parameters_are_trained_through_the_elbo_module() -> None:
    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = PyroParam(torch.tensor(0.5))

        def forward(self) -> None:
            sumprod.sample("z", Normal(self.loc, 1.0))

    with settings.context(module_local_params=True):
        guide = Guide()
        loss = Trace_ELBO()(lambda: sumprod.sample("z", Normal(0.0, 1.0)), guide)
        loss().backward()
        assert {name for name, _ in loss.named_parameters()} == {"guide.loc_unconstrained"}
        assert guide.loc_unconstrained.grad.item() != 0.0
        assert stored() == {}


def test_local_mode_refuses_global_parameters() -> None:
    class Mixed(PyroModule):
        def forward(self) -> torch.Tensor:
            return sumprod.param("global", torch.tensor(1.0))

    with (
        settings.context(module_local_params=True),
        pytest.raises(NotImplementedError, match=r"Support for global pyro\.param statements in PyroModules"),
    ):
        Mixed()()
    assert Mixed()().item() == 1.0
    assert not sumprod.runtime.am_i_wrapped()


# ---- state of calls


def test_an_exception_ends_the_call() -> None:
    class Fails(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.z = PyroSample(Normal(0.0, 1.0))

        def forward(self) -> None:
            _ = self.z
            raise KeyError("stop")

    model = Fails()
    with pytest.raises(KeyError, match="stop"):
        model()
    assert not model._pyro_context.active
    assert sites(lambda: model.z) == {}


def test_two_threads_draw_their_own_values() -> None:
    class Waits(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.z = PyroSample(Normal(0.0, 1.0))

        def forward(self, barrier: threading.Barrier) -> float:
            first = self.z
            barrier.wait(10)
            return (first - self.z).item()

    model, barrier, results = Waits(), threading.Barrier(2), []
    values: list[torch.Tensor] = []

    def run() -> None:
        trace = handlers.trace(model).get_trace(barrier)
        results.append(trace.nodes["_RETURN"]["value"])
        values.append(trace.nodes["z"]["value"])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [0.0, 0.0]
    assert values[0] is not values[1]
    assert not model._pyro_context.active


def test_reading_attributes_leaves_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Everything()(torch.zeros(1, 2))
