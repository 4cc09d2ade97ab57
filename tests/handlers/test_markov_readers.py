"""Which sites a site may depend on is noted for all who may look, and for nobody else."""

from collections import Counter

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Categorical, Normal
from sumprod.handlers.messenger import Messenger
from sumprod.handlers.plate import PlateMessenger
from sumprod.runtime import handler_stack

LATER = {"x0": Counter(), "x1": Counter(["x0"]), "x2": Counter(["x1"])}


class Reader:
    """Mixed into a handler: keeps the scope of each site."""

    def _pyro_post_sample(self, msg):
        FOUND[msg["name"]] = msg["infer"].get("_markov_scope")


class Handler(Reader, Messenger):
    pass


class Blind(Reader, Messenger):
    _reads_scope = False


class Heir(Blind):
    pass


class Plate(PlateMessenger):
    def _postprocess_message(self, msg):
        super()._postprocess_message(msg)
        FOUND[msg["name"]] = msg["infer"].get("_markov_scope")


FOUND: dict[str, Counter[str] | None] = {}


@pytest.fixture(autouse=True)
def _forget():
    FOUND.clear()


def chain(inside=None):
    for t in sumprod.markov(range(3)):
        if inside is None:
            sumprod.sample(f"x{t}", Normal(0.0, 1.0))
        else:
            with inside():
                sumprod.sample(f"x{t}", Normal(0.0, 1.0))


@pytest.mark.parametrize("handler", [Handler, Heir, lambda: Plate("p", 2)])
def test_around_the_chain(handler):
    with handler():
        chain()
    assert {name: FOUND[name] for name in LATER} == LATER


@pytest.mark.parametrize("handler", [Handler, Heir, lambda: Plate("p", 2)])
def test_inside_the_chain(handler):
    chain(inside=handler)
    assert {name: FOUND[name] for name in LATER} == LATER


def test_nobody_looks():
    with sumprod.plate("p", 2), Blind():
        chain()
    assert set(FOUND.values()) == {None}


def test_one_who_comes_late():
    with Blind():
        for t in sumprod.markov(range(3)):
            with Handler() if t == 2 else Blind():
                sumprod.sample(f"x{t}", Normal(0.0, 1.0))
    assert FOUND["x0"] is FOUND["x1"] is None
    assert FOUND["x2"] == Counter(["x1"])


def test_a_function_registered_for_a_class_that_did_not_look():
    class Other(Blind):
        _reads_scope = False

    with Other():
        chain()
    assert FOUND["x1"] is None
    Other.register(lambda msg: None, type="sample")
    with Other():
        chain()
    assert LATER == FOUND


def test_the_second_run_of_infer_discrete_shows_scopes_to_handlers_around():
    def model():
        x = torch.tensor(0)
        for t in sumprod.markov(range(3)):
            x = sumprod.sample(f"x{t}", Categorical(torch.eye(2)[x]), infer={"enumerate": "parallel"})

    decoded = sumprod.infer.infer_discrete(model, first_available_dim=-1, temperature=0)
    trace = handlers.trace(decoded).get_trace()
    assert {name: trace.nodes[name]["infer"]["_markov_scope"] for name in LATER} == LATER


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_sequence_that_fails(steps):
    def numbers():
        yield from range(steps)
        raise LookupError("no more")

    def program():
        for t in sumprod.markov(numbers()):
            sumprod.sample(f"x{t}", Normal(0.0, 1.0))

    with pytest.raises(LookupError, match="no more"):
        program()
    assert handler_stack() == []
