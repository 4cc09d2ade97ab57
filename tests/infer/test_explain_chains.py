"""What `explain` and the plan say of chains written with `vectorized_markov`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Categorical, Normal
from sumprod.infer import TraceEnum_ELBO, config_enumerate, explain
from sumprod.infer._program_plan import ChainPlan

TABLE = torch.eye(3) * 0.7 + 0.1
PAIRS = torch.full((3, 3, 3), 1 / 3)


def nothing(*args: Any, **kwargs: Any) -> None:
    pass


def rows(t: Any) -> torch.Tensor:
    """Data of steps in a plate of two."""
    return torch.zeros(2) if isinstance(t, int) else torch.zeros(len(t), 2)


def steps(size: int, history: int = 1) -> Any:
    return sumprod.vectorized_markov(name="time", size=size, dim=-2, history=history)


@config_enumerate
def hmm(size: int) -> None:
    with sumprod.plate("rows", 2):
        z: Any = 0
        for t in steps(size):
            z = sumprod.sample(f"z_{t}", Categorical(TABLE[z]))
            sumprod.sample(f"x_{t}", Normal(z.double(), 1.0), obs=rows(t))


@config_enumerate
def second_order(size: int) -> None:
    with sumprod.plate("rows", 2):
        before: Any = 0
        last: Any = 0
        for t in steps(size, history=2):
            before, last = last, sumprod.sample(f"z_{t}", Categorical(PAIRS[before, last]))
            sumprod.sample(f"x_{t}", Normal(last.double(), 1.0), obs=rows(t))


@config_enumerate
def with_an_end(size: int) -> None:
    z: Any = 0
    for t in sumprod.vectorized_markov(name="time", size=size, dim=-1):
        z = sumprod.sample(f"z_{t}", Categorical(TABLE[z]))
    sumprod.sample("end", Normal(z.double(), 1.0), obs=torch.tensor(1.0))


@config_enumerate
def separate_steps(size: int) -> None:
    for t in sumprod.vectorized_markov(name="time", size=size, dim=-1):
        sumprod.sample(f"z_{t}", Categorical(TABLE[0]))


def chain_of(model: Any, *args: Any) -> ChainPlan:
    [chain] = TraceEnum_ELBO().plan(model, nothing, *args).chains
    return chain


def test_a_hidden_markov_model() -> None:
    chain = chain_of(hmm, 200)
    assert (chain.name, chain.size, chain.history) == ("time", 200, 1)
    assert chain.states == ("z_slice(1, 200, None)",)
    assert (chain.combined, chain.batch, chain.refusal) == (3, ("rows=2",), "")
    assert chain.flops == 2 * 2 * 199 * 3**2
    assert "forward recursion of a hidden Markov model with 3 states" in str(chain)


def test_several_steps_make_one_state() -> None:
    chain = chain_of(second_order, 30)
    assert (chain.history, chain.combined, chain.refusal) == (2, 9, "")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (with_an_end, "site 'end' outside of it depends on its last states"),
        (separate_steps, "no step depends on another one"),
    ],
)
def test_written_out_step_by_step(model: Any, reason: str) -> None:
    chain = chain_of(model, 7)
    assert chain.refusal == reason
    assert chain.combined == chain.flops == 0
    assert f"written out step by step, because {reason}" in str(chain)


def test_steps_of_a_chain_written_out_have_their_names() -> None:
    plan = TraceEnum_ELBO().plan(with_an_end, nothing, 4)
    [component] = plan.components
    assert component.variables == ("z_0", "z_1", "z_2", "z_3")
    assert component.factors[-1] == "end"


def test_the_whole_explanation() -> None:
    explanation = explain(hmm, nothing, 50)
    text = str(explanation)
    assert "chain 'time': 50 steps" in text
    assert [site.name for site in explanation.sites] == [
        "z_0",
        "x_0",
        "z_slice(1, 50, None)",
        "x_slice(1, 50, None)",
    ]
    assert [plate.name for plate in explanation.plates] == ["time", "rows"]
    assert "slice(0, 49, None)" in text  # the states before, along a dim of the transitions
    assert not any("one by one" in note for note in explanation.notes)


def test_why_steps_run_one_by_one() -> None:
    def reason(model: Any, guide: Any = nothing) -> str:
        [note] = [note for note in explain(model, guide, 3).notes if "one by one" in note]
        return note

    latent = handlers.infer_config(hmm, lambda site: {"enumerate": None})
    assert reason(latent) == (
        "the steps of chain 'time' run one by one: its site 'z_0' is not enumerated in the model"
    )
    given = handlers.condition(hmm, {"z_2": torch.tensor([0, 1])})
    assert "its site 'z_2' is given by ConditionMessenger" in reason(given)

    def guide(size: int) -> None:
        with sumprod.plate("rows", 2):
            sumprod.sample("z_1", Categorical(TABLE[0]), infer={"enumerate": "parallel"})

    assert "its site 'z_1' is given by ReplayMessenger" in reason(hmm, guide)

    @config_enumerate
    def loop(size: int) -> None:
        z: Any = 0
        for t in sumprod.markov(range(size)):
            z = sumprod.sample(f"z_{t}", Categorical(TABLE[z]))

    assert reason(loop) == (
        "the steps of a loop in markov run one by one; those of vectorized_markov would run at once"
    )
