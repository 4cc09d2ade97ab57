"""Marks for enumeration, and enumeration one trace at a time."""

import itertools

import pytest
import torch

import sumprod
from sumprod.distributions import Bernoulli, Categorical, Normal
from sumprod.handlers import trace
from sumprod.infer.enum import config_enumerate, iter_discrete_traces


def program():
    with sumprod.plate("plate", 4, subsample_size=2):
        sumprod.sample("marked", Bernoulli(0.5), infer={"enumerate": "sequential", "expand": True})
        sumprod.sample("excluded", Bernoulli(0.5), infer={"enumerate": None})
        sumprod.sample("free", Bernoulli(0.5))
        sumprod.sample("continuous", Normal(0.0, 1.0))
        sumprod.sample("seen", Bernoulli(0.5), obs=torch.ones(2))


def marks(fn):
    return {
        name: {key: value for key, value in site["infer"].items() if not key.startswith("_")}
        for name, site in trace(fn).get_trace().nodes.items()
        if site["type"] == "sample"
    }


def test_latent_enumerable_sites_are_marked():
    assert marks(config_enumerate(program)) == {
        "plate": {},
        "marked": {"enumerate": "sequential", "expand": True},
        "excluded": {"enumerate": None, "expand": False},
        "free": {"enumerate": "parallel", "expand": False},
        "continuous": {},
        "seen": {},
    }


def test_num_samples_marks_all_latent_sites():
    found = marks(config_enumerate(program, num_samples=3))
    assert found["free"] == found["continuous"]
    assert found["free"] == {"enumerate": "parallel", "expand": False, "num_samples": 3, "tmc": "diagonal"}
    assert found["plate"] == found["seen"] == {}


@pytest.mark.parametrize("default", ["parallel", "sequential", None])
def test_default_as_decorator(default):
    @config_enumerate(default=default, expand=True)
    def decorated():
        program()

    assert marks(decorated)["free"] == {"enumerate": default, "expand": True}
    assert marks(config_enumerate()(program))["free"]["enumerate"] == "parallel"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"default": "serial"}, "Invalid default value"),
        ({"expand": 1}, "Invalid expand value"),
        ({"num_samples": 0}, "Invalid num_samples"),
        ({"num_samples": 2.0}, "Invalid num_samples"),
        ({"num_samples": True}, "Invalid num_samples"),
        ({"num_samples": 2, "default": "sequential"}, 'Local sampling does not support "sequential"'),
        ({"tmc": "other"}, "Invalid tmc value"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        config_enumerate(program, **options)


@config_enumerate(default="sequential")
def nested(flip):
    a = sumprod.sample("a", Bernoulli(0.5))
    if a.item() == flip:  # not every combination has every site
        sumprod.sample("b", Categorical(torch.ones(3)))
    sumprod.sample("x", Normal(0.0, 1.0))
    return a


@pytest.mark.parametrize("graph_type", ["flat", "dense"])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_every_combination_is_visited_once(graph_type, flip):
    found = [
        (one.nodes["a"]["value"].item(), one.nodes["b"]["value"].item() if "b" in one else None)
        for one in iter_discrete_traces(graph_type, nested, flip)
    ]
    expected = [(flip, b) for b in range(3)] + [(1.0 - flip, None)]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_traces_know_the_number_of_values():
    traces = list(iter_discrete_traces("flat", nested, flip=1.0))
    totals = [one.nodes["b"]["infer"]["_enum_total"] for one in traces if "b" in one]
    assert totals == [3, 3, 3]
    assert all(one.nodes["a"]["infer"]["_enum_total"] == 2 for one in traces)
    assert all(one.nodes["_RETURN"]["value"] == one.nodes["a"]["value"] for one in traces)


def test_values_in_plates_are_synchronised_or_expanded():
    def plated():
        with sumprod.plate("data", 2):
            sumprod.sample("z", Bernoulli(0.5), infer={"enumerate": "sequential", "expand": True})
            sumprod.sample("w", Bernoulli(0.5), infer={"enumerate": "sequential"})

    found = [
        (one.nodes["z"]["value"].tolist(), one.nodes["w"]["value"].tolist())
        for one in iter_discrete_traces("flat", plated)
    ]
    expected = [([z, z], [w]) for z, w in itertools.product([0.0, 1.0], repeat=2)]
    assert sorted(found) == sorted(expected)


def test_what_cannot_be_enumerated_is_named():
    def continuous():
        sumprod.sample("x", Normal(0.0, 1.0), infer={"enumerate": "sequential"})

    with pytest.raises(NotImplementedError, match=r"site 'x'.*Normal cannot be enumerated"):
        list(iter_discrete_traces("flat", continuous))
