"""What `explain` says of programs, and that it leaves no trace."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given

import sumprod
from sumprod import handlers, settings
from sumprod._random import get_rng_state
from sumprod.distributions import Bernoulli, Categorical, Normal, Poisson, constraints
from sumprod.infer import SVI, TraceEnum_ELBO, config_enumerate, explain
from sumprod.infer.autoguide import AutoNormal
from sumprod.ops import contraction
from sumprod.ops._plan import Plan
from sumprod.optim import Adam
from tests.infer.discrete_programs import PLATE_SIZES, Program, programs

PARALLEL = {"enumerate": "parallel"}


def nothing(*args: Any, **kwargs: Any) -> None:
    pass


@config_enumerate
def hmm(length: int, count: int = 2, states: int = 3) -> None:
    """`count` chains of `length` steps in plate "rows"."""
    table = sumprod.param("table", torch.eye(states) * 0.7 + 0.1, constraint=constraints.simplex)
    with sumprod.plate("rows", count):
        z: Any = 0
        for t in sumprod.markov(range(length)):
            z = sumprod.sample(f"z_{t}", Categorical(table[z]))
            sumprod.sample(f"x_{t}", Normal(z.float(), 1.0), obs=torch.zeros(count))


def plans_of_the_loss(model: Any, guide: Any, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that a loss really runs, without the checks that spread the dims of first runs."""
    made: list[Plan] = []
    plain = contraction._plan_of

    def record(*args: Any, **kwargs: Any) -> Plan:
        made.append(plain(*args, **kwargs))
        return made[-1]

    with monkeypatch.context() as patch, settings.context(validate_infer=False):
        patch.setattr(contraction, "_plan_of", record)
        TraceEnum_ELBO(strict_enumeration_warning=False).loss(model, guide)
    return made


# ---- random programs


@given(program=programs())
def test_factors_and_plans_are_those_of_the_program(program: Program) -> None:
    found = explain(program.model, nothing)
    latent = {node.name: node for node in program.latent}
    expected = []
    for node in program.nodes:
        variables = {*node.parents, *([node.name] if node.name in latent else [])}
        if variables:
            expected.append((node.name, variables, set(node.plates)))
    assert [(f.site, set(f.variables)) for f in found.factors] == [(name, own) for name, own, _ in expected]
    for factor, (_, variables, plates) in zip(found.factors, expected, strict=True):
        # Plates of one site alone may be multiplied along beforehand.
        assert set(factor.plates) <= plates
        sizes = [latent[name].size for name in variables] + [PLATE_SIZES[name] for name in factor.plates]
        assert factor.elements == math.prod(sizes)
    assert [(v.site, v.size, v.program) for v in found.variables] == [
        (name, node.size, "model") for name, node in latent.items()
    ]
    assert [site.name for site in found.sites] == [node.name for node in program.nodes]

    with pytest.MonkeyPatch.context() as patch:
        plans = plans_of_the_loss(program.model, nothing, patch)
    assert list(map(id, found.plan.plans)) == list(map(id, plans))
    assert found.plan.flops == sum(plan.flops for plan in plans)
    assert found.plan.flops == sum(component.flops for component in found.plan.components)
    assert found.plan.peak_bytes == 8 * max(plan.peak_elements for plan in plans)
    for component in found.plan.components:
        assert sorted(component.order) == sorted(component.variables)
    parts = [set(component.factors) for component in found.plan.components]
    assert sorted(name for part in parts for name in part) == sorted(name for name, *_ in expected)


@given(program=programs(masks=False))
def test_guide_variables_are_not_summed_out_of_the_model(program: Program) -> None:
    first = program.latent[0].name
    tables = {node.name: node.table for node in program.latent}

    def guide() -> None:
        program.guide("parallel", (first,), tables)

    def model() -> None:
        program.model()

    found = explain(model, guide)
    assert next((v.site, v.program) for v in found.variables) == (first, "guide")
    assert all(first not in component.variables for component in found.plan.components)
    roles = {(site.program, site.name): site.role for site in found.sites}
    assert roles["model", first] == "value from the guide"
    assert roles["guide", first] == "enumerated"
    if found.plan.refusal is None:
        with pytest.MonkeyPatch.context() as patch:
            assert list(found.plan.plans) == plans_of_the_loss(model, guide, patch)
    else:
        with pytest.raises(ValueError, match=re.escape(found.plan.refusal)):
            TraceEnum_ELBO().loss(model, guide)


# ---- how it looks


def test_a_small_program_in_full() -> None:
    def model(x: torch.Tensor) -> None:
        weights = sumprod.param("weights", torch.tensor([0.5, 0.5]))
        with sumprod.plate("data", 6, subsample_size=3):
            which = sumprod.sample("which", Categorical(weights), infer=PARALLEL)
            sumprod.sample("x", Normal(4.0 * which, 1.0), obs=x)

    assert repr(explain(model, nothing, torch.zeros(3))).splitlines() == [
        "model site  distribution  event  batch           plates  role        scale",
        "which       Categorical   ()     data=3          data    enumerated  2",
        "x           Normal        ()     which=2 data=3  data    observed    2",
        "",
        "plate  dim  size  of",
        "data   -1   3     6",
        "",
        "variable  enumerated in  size  dim  id",
        "which     model          2     -2   0",
        "",
        "factor  variables  plates  elements",
        "which   which      data    6",
        "x       which      data    6",
        "",
        "plan: 2 factors, 1 component, 1 step, 12 flops, 12 bytes of intermediate float32",
        "component 1: 1 variable, 2 factors, 1 step, 12 flops, 12 bytes; result [data]",
        "  sum    multiply along  of       to      flops",
        "  which  -               which x  [data]  12",
    ]


def test_a_long_chain_is_shown_in_few_lines() -> None:
    found = explain(hmm, nothing, 1000)
    lines = repr(found).splitlines()
    assert len(lines) < 45
    assert max(map(len, lines)) < 120
    assert "  z_2 ... z_999: same as z_1 (998 more)" in lines
    chain = "chain of 1,000 variables of size 3, 'z_0' to 'z_999', each tied to the one before"
    assert f"  {chain}" in lines
    assert len(found.sites) == len(found.factors) == 2000
    full = found.table(full=True)
    assert "same as" not in full
    for name in ("z_0", "z_500", "z_999", "x_777"):
        assert len(re.findall(rf"^{name} ", full, re.M)) >= 2
    [component] = found.plan.components
    assert len(component.order) == 1000


def test_chains_with_longer_history_are_recognised() -> None:
    @config_enumerate
    def model() -> None:
        before, last = torch.tensor(0), torch.tensor(0)
        for t in sumprod.markov(range(8), history=2):
            new = sumprod.sample(f"z_{t}", Categorical(torch.ones(2, 2, 2)[before, last]))
            before, last = last, new
            sumprod.sample(f"x_{t}", Normal(new.float(), 1.0), obs=torch.tensor(0.0))

    [component] = explain(model, nothing).plan.components
    assert component.chain == "chain of 8 variables of size 2, 'z_0' to 'z_7', each tied to the 2 before"


def test_stars_are_no_chains() -> None:
    @config_enumerate
    def model() -> None:
        center = sumprod.sample("center", Bernoulli(0.5))
        for i in range(6):
            sumprod.sample(f"leaf_{i}", Bernoulli(0.2 + 0.5 * center))

    [component] = explain(model, nothing).plan.components
    assert (component.chain, len(component.variables)) == ("", 7)


def test_like_components_are_written_once() -> None:
    @config_enumerate
    def model() -> None:
        for i in sumprod.plate("items", 200):
            z = sumprod.sample(f"z_{i}", Bernoulli(0.5))
            sumprod.sample(f"x_{i}", Normal(z, 1.0), obs=torch.tensor(0.0))

    found = explain(model, nothing)
    assert len(found.plan.components) == 200
    assert "component 1, and 199 more like it: 1 variable, 2 factors, 1 step" in repr(found)
    assert len(repr(found).splitlines()) < 30
    assert "component 200: " in found.table(full=True)


def test_names_without_numbers_are_cut_off() -> None:
    @config_enumerate
    def model() -> None:
        for i in sumprod.plate("items", 100):
            sumprod.sample("".join("abcdefghij"[int(digit)] for digit in f"{i:02}"), Bernoulli(0.5))

    lines = repr(explain(model, nothing)).splitlines()
    assert "  ... 60 more rows: see table(full=True)" in lines


def test_a_program_with_nothing_to_enumerate() -> None:
    def model() -> None:
        sumprod.sample("x", Normal(0.0, 1.0))

    found = explain(model, model)
    assert repr(found.plan) == "plan: nothing to sum out"
    assert (found.plan.flops, found.plan.peak_bytes, found.factors) == (0, 0, ())
    [note] = found.notes
    assert note.startswith("the model enumerates nothing")


# ---- notes and roles


def test_roles_of_sites() -> None:
    def model() -> None:
        for name in ("sequential", "parallel", "drawn"):
            sumprod.sample(name, Bernoulli(0.5))
        sumprod.sample("smooth", Normal(0.0, 1.0))
        sumprod.sample("missing", Normal(0.0, 1.0))
        sumprod.sample("summed", Bernoulli(0.5), infer=PARALLEL)
        sumprod.sample("several", Normal(0.0, 1.0), infer={**PARALLEL, "num_samples": 4})
        sumprod.factor("factor", torch.tensor(0.0))
        sumprod.deterministic("known", torch.tensor(0.0))

    def guide() -> None:
        sumprod.sample("sequential", Bernoulli(0.5), infer={"enumerate": "sequential"})
        sumprod.sample("parallel", Bernoulli(0.5), infer=PARALLEL)
        sumprod.sample("drawn", Bernoulli(0.5))
        sumprod.sample("smooth", Normal(0.0, 1.0))
        sumprod.sample("count", Poisson(1.0), infer={"is_auxiliary": True})

    found = explain(model, guide)
    assert {site.name: site.role for site in found.sites if site.program == "model"} == {
        **dict.fromkeys(("sequential", "parallel", "drawn", "smooth"), "value from the guide"),
        "missing": "drawn from the prior",
        "summed": "enumerated",
        "several": "4 samples",
        "factor": "factor",
        "known": "deterministic",
    }
    assert {site.name: site.role for site in found.sites if site.program == "guide"} == {
        "sequential": "enumerated, 2 runs",
        "parallel": "enumerated",
        "drawn": "score function",
        "smooth": "reparameterised",
        "count": "score function, auxiliary",
    }
    notes = "\n".join(found.notes)
    assert "sequential enumeration of 'sequential' takes 2 runs" in notes
    assert "score function, could be enumerated instead: 'drawn'" in notes
    assert "score function: 'count'" in notes
    assert "warning: Found vars in model but not guide: 'missing'" in notes
    assert "nothing observed depends on 'summed'" in notes


def test_masks_and_scales() -> None:
    def model() -> None:
        z = sumprod.sample("z", Bernoulli(0.5).mask(True), infer=PARALLEL)
        with (
            sumprod.plate("rows", 2),
            handlers.scale(scale=0.5),
            handlers.mask(mask=torch.tensor([True, False])),
        ):
            sumprod.sample("x", Normal(z, 1.0), obs=torch.zeros(2))
        with handlers.mask(mask=False):
            sumprod.sample("y", Normal(z, 1.0), obs=torch.tensor(0.0))

    found = explain(model, nothing)
    assert [(site.scale, site.mask) for site in found.sites] == [
        ("", "of distribution"),
        ("0.5", "tensor (2,)"),
        ("", "False"),
    ]
    notes = "\n".join(found.notes)
    assert "masked out altogether, yet factors of ones: 'y'" in notes
    assert "masks on enumerated sites have no effect: 'z'" in notes
    with pytest.raises(ValueError, match=r"common poutine\.scale") as refused:
        TraceEnum_ELBO().loss(model, nothing)
    assert f"the loss will be refused: {refused.value}" in found.notes


def test_crossed_plates_are_explained_and_not_raised() -> None:
    def model() -> None:
        columns, rows = sumprod.plate("columns", 2, dim=-1), sumprod.plate("rows", 3, dim=-2)
        with columns:
            x = sumprod.sample("x", Bernoulli(0.5), infer=PARALLEL)
        with rows:
            y = sumprod.sample("y", Bernoulli(0.5), infer=PARALLEL)
        with columns, rows:
            sumprod.sample("z", Normal(x + y, 1.0), obs=torch.zeros(3, 2))

    found = explain(model, nothing)
    assert found.plan.components == ()
    with pytest.raises(NotImplementedError, match="Expected tree-structured plate nesting") as refused:
        TraceEnum_ELBO().loss(model, nothing)
    assert found.plan.refusal == str(refused.value)
    assert "'x' lives in plate 'columns'; 'y' lives in plate 'rows'" in str(refused.value)
    assert any(note.startswith("site 'z' ties 'x' (in 'columns') to 'y' (in 'rows')") for note in found.notes)
    assert max(map(len, repr(found).splitlines())) < 120


def test_wide_factors_and_costly_steps() -> None:
    @config_enumerate
    def model() -> None:
        values = [sumprod.sample(f"cause_{i}", Bernoulli(0.1)) for i in range(6)]
        sumprod.sample("effect", Normal(sum(values), 1.0), obs=torch.tensor(2.0))

    notes = "\n".join(explain(model, nothing).notes)
    assert "wide factor: site 'effect' depends on 6 enumerated variables ('cause_0', 'cause_1'" in notes
    assert "64 elements" in notes


def test_plan_of_a_loss_is_that_of_explain() -> None:
    elbo = TraceEnum_ELBO()
    elbo._check_scopes = False
    found = elbo.plan(hmm, nothing, 6, count=3)
    assert repr(found) == repr(explain(hmm, nothing, 6, count=3).plan)
    assert sumprod.explain is explain
    assert list(sumprod.get_param_store()) == []


def test_plan_of_vectorised_particles() -> None:
    def guide(length: int) -> None:
        sumprod.sample("u", Normal(0.0, 1.0))

    def model(length: int) -> None:
        u = sumprod.sample("u", Normal(0.0, 1.0))
        z = sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
        sumprod.sample("x", Normal(z + u, 1.0), obs=torch.tensor(0.0))

    [component] = TraceEnum_ELBO(num_particles=7, vectorize_particles=True).plan(model, guide, 1).components
    assert component.result == ("num_particles_vectorized",)
    assert component.flops == 7 * 4


def test_memory_budget_of_a_loss() -> None:
    needed = explain(hmm, nothing, 5).plan.peak_bytes
    with settings.context(memory_budget=1):  # the option overrides the setting
        TraceEnum_ELBO(memory_budget=needed).loss(hmm, nothing, 5)
        TraceEnum_ELBO(memory_budget=needed).compute_marginals(hmm, nothing, 5)
    elbo = TraceEnum_ELBO(memory_budget=needed - 1)
    for method in (elbo.loss, elbo.loss_and_grads, elbo.compute_marginals, elbo.sample_posterior):
        with pytest.raises(MemoryError, match=f"more than memory_budget={needed - 1:,} allows"):
            method(hmm, nothing, 5)
    assert elbo.plan(hmm, nothing, 5).peak_bytes == needed


def test_memory_budget() -> None:
    needed = explain(hmm, nothing, 5).plan.peak_bytes
    with settings.context(memory_budget=needed):
        assert not any("memory_budget" in note for note in explain(hmm, nothing, 5).notes)
    with settings.context(memory_budget=needed - 1):
        assert any(
            f"{needed:,} bytes are above memory_budget" in note for note in explain(hmm, nothing, 5).notes
        )
        with pytest.raises(MemoryError, match=r"'z_\d' \(3\), 'rows' \(2\)|'rows' \(2\), 'z_\d' \(3\)"):
            TraceEnum_ELBO().loss(hmm, nothing, 5)


# ---- how it is called, and what it leaves behind


@pytest.mark.parametrize(
    "call",
    [
        lambda: explain(hmm, nothing, 4, count=3),
        lambda: explain(hmm, nothing, (4,), {"count": 3}),
        lambda: explain(hmm, nothing, args=(4,), kwargs={"count": 3}),
        lambda: explain(hmm, nothing, kwargs={"length": 4, "count": 3}),
        lambda: explain(hmm, nothing, args=(4, 3)),
    ],
)
def test_arguments_plain_and_packed(call: Any) -> None:
    found = call()
    assert (len(found.variables), found.plates[0].size) == (4, 3)


def test_a_tuple_alone_is_an_argument() -> None:
    def model(sizes: tuple[int, ...]) -> None:
        for i, size in enumerate(sizes):
            sumprod.sample(f"z_{i}", Categorical(torch.ones(size)), infer=PARALLEL)

    assert [v.size for v in explain(model, nothing, (2, 5)).variables] == [2, 5]


def test_nothing_leaks() -> None:
    def guide(length: int) -> None:
        sumprod.param("old", torch.tensor(3.0))
        sumprod.param("new", lambda: torch.randn(()))
        sumprod.sample("u", Normal(0.0, 1.0))

    def model(length: int) -> None:
        sumprod.sample("u", Normal(0.0, 1.0))
        hmm(length)

    leaf = sumprod.param("old", torch.tensor(2.0))
    before = get_rng_state()
    with handlers.trace() as outer, handlers.seed(rng_seed=3):
        explain(model, guide, 3)
    assert not outer.trace.nodes
    assert torch.equal(before["torch"], get_rng_state()["torch"])
    store = sumprod.get_param_store()
    assert list(store) == ["old"]
    assert store["old"].unconstrained() is leaf.unconstrained()


def test_nothing_leaks_from_a_program_that_raises() -> None:
    def model() -> None:
        sumprod.param("new", torch.tensor(1.0))
        sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
        raise RuntimeError("inside")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"):
        explain(model, nothing)
    assert list(sumprod.get_param_store()) == []
    assert torch.equal(before, torch.get_rng_state())


def test_training_goes_on_as_if_nothing_had_been_explained() -> None:
    def model(x: torch.Tensor) -> None:
        loc = sumprod.sample("loc", Normal(0.0, 3.0))
        with sumprod.plate("rows", len(x)):
            z = sumprod.sample("z", Bernoulli(0.5), infer=PARALLEL)
            sumprod.sample("x", Normal(loc * z, 1.0), obs=x)

    def losses(explained: bool) -> list[float]:
        sumprod.clear_param_store()
        torch.manual_seed(0)
        guide = AutoNormal(handlers.block(model, hide=["z"]))
        x = torch.tensor([0.1, 2.0, 2.2])
        svi = SVI(model, guide, Adam({"lr": 0.1}), TraceEnum_ELBO())
        found = []
        for _ in range(3):
            if explained:
                explain(model, guide, x)
            found.append(svi.step(x))
        return found

    assert losses(True) == losses(False)
