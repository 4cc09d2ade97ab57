"""State of optimisers belongs to names: replaced leaves, saved files, other devices."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import constraints

import sumprod.optim
from sumprod.optim import PyroOptim
from sumprod.params import PARAM_STORE
from tests.optim.reference import parameter
from tests.optim.test_optim import CASES, IDS, Total


def steps(optim: PyroOptim, leaves: list[torch.Tensor], generator: torch.Generator, number: int = 3) -> None:
    for _ in range(number):
        for leaf in leaves:
            leaf.grad = torch.randn(leaf.shape, generator=generator)
        optim(leaves)


DENSE = [(name, options) for name, options in CASES if name != "SparseAdam"]


@pytest.mark.parametrize(("name", "options"), DENSE, ids=IDS[:-1])
def test_trap_44_state_survives_assignment(
    name: str, options: dict[str, Any], generator: torch.Generator
) -> None:
    """Replacing a leaf by an equal one changes nothing."""
    make = getattr(sumprod.optim, name)
    ends = []
    for replace in (False, True):
        PARAM_STORE.clear()
        generator.manual_seed(0)
        for key in "ab":
            parameter(key, torch.ones(2, 3))
        optim = make(options)
        for _ in range(4):
            steps(optim, [PARAM_STORE["a"], PARAM_STORE["b"]], generator)
            if replace:
                PARAM_STORE["a"] = PARAM_STORE["a"].detach()
                steps(optim, [PARAM_STORE["b"]], generator)
                PARAM_STORE["a"] = PARAM_STORE["a"].detach()
            else:
                steps(optim, [PARAM_STORE["b"]], generator)
        ends.append(torch.cat([PARAM_STORE["a"].detach(), PARAM_STORE["b"].detach()]))
        assert len(optim._slots) == 2
    assert ends[0].equal(ends[1])


def test_trap_44_callers_dicts_are_untouched() -> None:
    options, clip = {"lr": 0.1}, {"clip_norm": 1.0}
    optim = sumprod.optim.Adam(options, clip)
    leaf = parameter("a", torch.ones(1))
    leaf.grad = torch.ones(1)
    optim([leaf])
    options["lr"] = 5.0
    assert clip == {"clip_norm": 1.0}
    assert optim.pt_optim_args == {"lr": 0.1}


def test_a_new_parameter_of_an_old_name_starts_anew(generator: torch.Generator) -> None:
    """After `clear` or `del` it is another parameter, e.g. that of the next model."""
    optim = sumprod.optim.Adam({"lr": 0.1})
    for forget in (PARAM_STORE.clear, lambda: PARAM_STORE.__delitem__("a")):
        parameter("a", torch.ones(1))
        steps(optim, [PARAM_STORE["a"]], generator)
        assert optim.get_state()["a"]["state"][0]["step"] == 3
        forget()


def test_a_new_shape_starts_anew(generator: torch.Generator) -> None:
    optim = sumprod.optim.Adam({"lr": 0.1})
    parameter("a", torch.ones(2))
    steps(optim, [PARAM_STORE["a"]], generator)
    PARAM_STORE["a"] = torch.ones(5)
    steps(optim, [PARAM_STORE["a"]], generator, 1)
    state = optim.get_state()["a"]["state"][0]
    assert state["step"] == 1
    assert state["exp_avg"].shape == (5,)


def test_scopes_keep_their_own_state(generator: torch.Generator) -> None:
    optim = sumprod.optim.Adam({"lr": 0.1})
    states = []
    for _ in range(2):
        with PARAM_STORE.scope() as state:
            parameter("a", torch.ones(1))
        states.append(state)
    for index in (0, 1, 1, 0, 1):
        with PARAM_STORE.scope(states[index]):
            steps(optim, [PARAM_STORE["a"]], generator, 1)
            count = optim.get_state()["a"]["state"][0]["step"].item()
    assert count == 3
    with PARAM_STORE.scope(states[0]):
        assert optim.get_state()["a"]["state"][0]["step"] == 2


@pytest.mark.parametrize(("name", "options"), [*DENSE, ("ClippedAdam", {"lrd": 0.9}), ("AdagradRMSProp", {})])
def test_saved_and_loaded(
    name: str, options: dict[str, Any], tmp_path: Path, generator: torch.Generator
) -> None:
    """Going on after a load equals going on without; the file needs no pickle."""
    make = getattr(sumprod.optim, name)
    parameter("a", torch.ones(2, 3))
    parameter("b", torch.ones(3, 2))
    optim = make(options)
    steps(optim, [PARAM_STORE["a"], PARAM_STORE["b"]], generator)
    optim.save(tmp_path / "optim.pt")
    PARAM_STORE.save(tmp_path / "params.pt")
    later = generator.get_state()
    steps(optim, [PARAM_STORE["a"], PARAM_STORE["b"]], generator)
    expected = torch.cat([PARAM_STORE["a"].detach().flatten(), PARAM_STORE["b"].detach().flatten()])
    assert torch.load(tmp_path / "optim.pt", weights_only=True).keys() == {"a", "b"}

    for known in (False, True):
        PARAM_STORE.clear()
        other = make(options)
        if known:  # the state comes after the parameters have been stepped
            parameter("a", torch.zeros(2, 3))
            parameter("b", torch.zeros(3, 2))
            steps(other, [PARAM_STORE["b"], PARAM_STORE["a"]], generator, 1)
        PARAM_STORE.load(tmp_path / "params.pt")
        other.load(tmp_path / "optim.pt")
        assert other.get_state().keys() == {"a", "b"}  # also while it waits for the parameters
        generator.set_state(later)
        steps(other, [PARAM_STORE["a"], PARAM_STORE["b"]], generator)
        got = torch.cat([PARAM_STORE["a"].detach().flatten(), PARAM_STORE["b"].detach().flatten()])
        assert got.equal(expected)
        assert len({id(made) for made in other.optim_objs.values()}) == 1


def test_state_has_the_form_of_one_torch_optimizer_each(generator: torch.Generator) -> None:
    parameter("a", torch.ones(2))
    optim = sumprod.optim.Adam({"lr": 0.1})
    steps(optim, [PARAM_STORE["a"]], generator)
    single = torch.optim.Adam([torch.zeros(2, requires_grad=True)], lr=0.5)
    single.load_state_dict(optim.get_state()["a"])
    assert single.param_groups[0]["lr"] == 0.1
    assert single.param_groups[0]["fused"] is None
    optim.set_state({"a": single.state_dict()})
    assert optim.get_state()["a"]["state"][0]["step"] == 3


def test_state_is_a_copy(generator: torch.Generator) -> None:
    parameter("a", torch.ones(2))
    optim = sumprod.optim.Adam({"lr": 0.1})
    steps(optim, [PARAM_STORE["a"]], generator)
    state = optim.get_state()
    before = copy.deepcopy(state)
    steps(optim, [PARAM_STORE["a"]], generator)
    optim.set_state(state)
    steps(optim, [PARAM_STORE["a"]], generator)
    assert state["a"]["state"][0]["exp_avg"].equal(before["a"]["state"][0]["exp_avg"])
    assert state["a"]["state"][0]["step"] == 3
    assert optim.get_state()["a"]["state"][0]["step"] == 6


def test_restored_options_count(generator: torch.Generator) -> None:
    parameter("a", torch.zeros(1))
    optim = sumprod.optim.SGD({"lr": 1.0})
    steps(optim, [PARAM_STORE["a"]], generator, 1)
    state = optim.get_state()
    state["a"]["param_groups"][0]["lr"] = 0.25
    optim.set_state(state)
    PARAM_STORE["a"] = torch.zeros(1)
    PARAM_STORE["a"].grad = torch.ones(1)
    optim([PARAM_STORE["a"]])
    assert PARAM_STORE["a"].item() == -0.25


def test_unknown_classes_keep_their_state_too(generator: torch.Generator) -> None:
    parameter("a", torch.zeros(1))
    optim = PyroOptim(Total, {"lr": 1.0})
    steps(optim, [PARAM_STORE["a"]], generator)
    state = pickle.loads(pickle.dumps(optim.get_state()))
    PARAM_STORE["a"] = torch.zeros(1)
    optim.set_state(state)
    steps(optim, [PARAM_STORE["a"]], generator)


def test_wrong_states() -> None:
    leaf = parameter("a", torch.zeros(2))
    leaf.grad = torch.ones(2)
    optim = sumprod.optim.Adam({"lr": 0.1})
    optim([leaf])
    state = optim.get_state()
    with pytest.raises(ValueError, match="parameter 'a' is not that of an optimiser without scheduler"):
        optim.set_state({"a": {"optimizer": {}, "scheduler": {}}})
    state["a"]["state"][0]["exp_avg"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"'exp_avg' of parameter 'a' has shape \(7,\), but .* shape \(2,\)"):
        optim.set_state(state)
    scheduled = sumprod.optim.StepLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "step_size": 1}
    )
    scheduled([leaf])
    with pytest.raises(ValueError, match="parameter 'a' is not that of an optimiser with scheduler"):
        scheduled.set_state(optim.get_state())


def test_files_with_other_objects_need_permission() -> None:
    file = io.BytesIO()
    torch.save({"a": Total}, file)
    file.seek(0)
    with pytest.raises(ValueError, match="allow_pickle=True"):
        sumprod.optim.Adam({}).load(file)


def test_parameters_that_move(generator: torch.Generator) -> None:
    """State follows to another dtype or device; `meta` stands for a device that every machine has."""
    parameter("a", torch.ones(2))
    optim = sumprod.optim.Adam({"lr": 0.1})
    steps(optim, [PARAM_STORE["a"]], generator)
    PARAM_STORE["a"] = PARAM_STORE["a"].detach().double()
    PARAM_STORE["a"].grad = torch.ones(2, dtype=torch.float64)
    optim([PARAM_STORE["a"]])
    state = optim.get_state()["a"]["state"][0]
    assert state["step"] == 4
    assert state["exp_avg"].dtype == torch.float64
    PARAM_STORE["a"] = PARAM_STORE["a"].detach().to("meta")
    PARAM_STORE["a"].grad = torch.ones(2, dtype=torch.float64, device="meta")
    optim([PARAM_STORE["a"]])
    assert optim.get_state()["a"]["state"][0]["exp_avg"].device.type == "meta"


def test_leaves_outside_the_store(generator: torch.Generator) -> None:
    """Parameters that a module keeps to itself are known by the order in which they came."""
    leaves = [torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)]
    optim = sumprod.optim.Adam({"lr": 0.1})
    steps(optim, leaves, generator)
    state = optim.get_state()
    assert list(state) == ["unnamed.0", "unnamed.1"]
    other = sumprod.optim.Adam({"lr": 0.1})
    other.set_state(state)
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    later = generator.get_state()
    steps(optim, leaves, generator)
    generator.set_state(later)
    steps(other, copies, generator)
    assert all(one.equal(two) for one, two in zip(leaves, copies, strict=True))


def test_constrained_parameters_keep_their_state(generator: torch.Generator) -> None:
    leaf = PARAM_STORE.get_param("a", torch.ones(2), constraints.positive).unconstrained()
    optim = sumprod.optim.Adam({"lr": 0.1})
    steps(optim, [leaf], generator)
    PARAM_STORE["a"] = torch.tensor([3.0, 4.0])
    steps(optim, [PARAM_STORE["a"].unconstrained()], generator)
    assert optim.get_state()["a"]["state"][0]["step"] == 6


def test_optimizers_can_be_copied(generator: torch.Generator) -> None:
    parameter("a", torch.ones(2))
    optim = sumprod.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0})
    steps(optim, [PARAM_STORE["a"]], generator)
    for other in (pickle.loads(pickle.dumps(optim)), copy.deepcopy(optim)):
        assert other.pt_clip_args == {"clip_norm": 1.0}
        assert other.get_state()["a"]["state"][0]["step"] == 3
        steps(other, [PARAM_STORE["a"]], generator, 1)
        assert other.get_state()["a"]["state"][0]["step"] == 4
    assert optim.get_state()["a"]["state"][0]["step"] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="moves a module between devices in place")
def test_modules_that_move_to_a_gpu(generator: torch.Generator) -> None:
    module = torch.nn.Linear(2, 3)
    for name, weight in module.named_parameters():
        PARAM_STORE[name] = weight
    optim = sumprod.optim.Adam({"lr": 0.1})
    leaves = list(module.parameters())
    steps(optim, leaves, generator)
    module.to("cuda")
    for leaf in leaves:
        leaf.grad = torch.ones_like(leaf)
    optim(leaves)
    assert optim.get_state()["weight"]["state"][0]["exp_avg"].is_cuda
    assert optim.get_state()["weight"]["state"][0]["step"] == 4


def test_trap_28_parameters_are_kept_in_first_use_order(generator: torch.Generator) -> None:
    """Whatever the order of names or of later steps."""
    names = ["z", "b", "y", "a", "x"]
    for name in names:
        parameter(name, torch.ones(1))
    optim = sumprod.optim.Adam(lambda name: {"lr": 0.1 if name < "n" else 0.2})
    steps(optim, [PARAM_STORE[name] for name in names], generator)
    steps(optim, [PARAM_STORE[name] for name in sorted(names)], generator)
    assert list(optim.get_state()) == names
    assert [PARAM_STORE.param_name(leaf) for leaf in optim.optim_objs] == names
