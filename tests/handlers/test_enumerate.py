"""Dims and ids of enumerated variables."""

import sys
import threading

import pytest
import torch

import sumprod
from sumprod import handlers, runtime
from sumprod.distributions import Bernoulli, Categorical, Normal, OneHotCategorical
from sumprod.distributions._support import is_whole_support
from sumprod.handlers import EnumerateMessenger, EnumMessenger, enum, replay, trace
from sumprod.handlers.enumerate import _move_support, _support

PARALLEL = {"enumerate": "parallel"}


def categorical(name, size, *parents, parallel=True):
    """A categorical site whose probabilities depend on its parents."""
    probs = torch.ones(size)
    for parent in parents:
        probs = probs + parent.unsqueeze(-1)
    return sumprod.sample(name, Categorical(probs), infer=PARALLEL if parallel else {})


def run(program, first_available_dim=-1):
    with enum(first_available_dim=first_available_dim):
        sites = trace(program).get_trace().nodes
    return {name: site for name, site in sites.items() if site["type"] == "sample"}


def test_worked_example():
    def program():
        a = categorical("a", 2)
        categorical("b", 3, a)
        z = torch.tensor(0)
        for t in sumprod.markov(range(4)):
            z = categorical(f"z{t}", 4, z)
        categorical("w", 5)

    sites = run(program)
    shapes = {name: tuple(site["value"].shape) for name, site in sites.items()}
    assert shapes == {
        "a": (2,),
        "b": (3, 1),
        "z0": (4, 1, 1),
        "z1": (4, 1, 1, 1),
        "z2": (4, 1, 1),
        "z3": (4, 1, 1, 1),
        "w": (5, 1, 1),
    }
    dims = {name: site["infer"]["_enumerate_dim"] for name, site in sites.items()}
    assert dims == {"a": -1, "b": -2, "z0": -3, "z1": -4, "z2": -3, "z3": -4, "w": -3}
    ids = {name: site["infer"]["_dim_to_id"] for name, site in sites.items()}
    assert ids["a"] == {-1: 0}
    assert ids["b"] == {-2: 1, -1: 0}
    assert ids["z0"] == {-3: 2, -2: 1, -1: 0}
    assert ids["z1"] == {-4: 3, -3: 2, -2: 1, -1: 0}
    assert ids["z2"] == {-4: 3, -3: 4, -2: 1, -1: 0}
    assert ids["z3"] == {-4: 5, -3: 4, -2: 1, -1: 0}
    # w may also depend on the last state of the chain.
    assert ids["w"] == {-3: 6, -4: 5, -2: 1, -1: 0}


@pytest.mark.parametrize("history", [0, 1, 2, 3])
def test_chain_uses_few_dims(history):
    def program():
        last = [torch.tensor(0)] * 4
        for t in sumprod.markov(range(20), history=history):
            last = [*last[1:], categorical(f"z{t}", 2, *(last[-history:] if history else ()))]

    dims = [site["infer"]["_enumerate_dim"] for site in run(program).values()]
    assert min(dims) == -(history + 1)
    numbers = [site["infer"]["_dim_to_id"][site["infer"]["_enumerate_dim"]] for site in run(program).values()]
    assert numbers == list(range(20))


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("history", [1, 2])
def test_site_after_a_chain_depends_on_its_last_states(length, history):
    def program():
        last = [torch.tensor(0)] * 2
        for t in sumprod.markov(range(length), history=history):
            last = [last[-1], categorical(f"z{t}", 2, *last[-history:])]
        after = categorical("after", 3, *last[-history:])
        categorical("later", 4, after, last[-1])

    sites = run(program)
    # Every dim of every distribution is accounted for, by a variable of its own.
    for name in ("after", "later"):
        shape, infer = sites[name]["fn"].batch_shape, sites[name]["infer"]
        used = [dim for dim in range(-len(shape), 0) if shape[dim] > 1]
        own = infer["_enumerate_dim"]
        assert own not in used
        assert len({infer["_dim_to_id"][dim] for dim in [*used, own]}) == len(used) + 1
    last = sites[f"z{length - 1}"]["infer"]
    ends = last["_dim_to_id"][last["_enumerate_dim"]]
    assert sites["after"]["infer"]["_dim_to_id"][last["_enumerate_dim"]] == ends


def test_sites_before_the_last_contexts_are_out_of_sight():
    def program():
        z = torch.tensor(0)
        for t in sumprod.markov(range(5)):
            z = categorical(f"z{t}", 2, z)
        categorical("after", 3, z)

    infer = run(program)["after"]["infer"]
    assert sorted(infer["_dim_to_id"].values()) == [4, 5]


def test_two_chains_share_dims_but_not_ids():
    def program():
        for chain in sumprod.plate("chains", 30):
            z = torch.tensor(0)
            for t in sumprod.markov(range(3)):
                z = categorical(f"z{chain}_{t}", 2, z)

    infers = [site["infer"] for name, site in run(program).items() if name != "chains"]
    assert min(infer["_enumerate_dim"] for infer in infers) >= -4
    assert len({infer["_dim_to_id"][infer["_enumerate_dim"]] for infer in infers}) == 90


def test_many_chains_in_a_plain_loop_use_a_bounded_number_of_dims():
    def program():
        for chain in range(40):
            for t in sumprod.markov(range(2)):
                categorical(f"z{chain}_{t}", 2)

    assert min(site["infer"]["_enumerate_dim"] for site in run(program).values()) >= -12


def test_chain_inside_a_chain():
    def program():
        x = torch.tensor(0)
        for i in sumprod.markov(range(4)):
            x = categorical(f"x{i}", 2, x)
            y = x
            for j in sumprod.markov(range(5)):
                y = categorical(f"y{i}_{j}", 3, x, y)
            # after the inner chain, in the same step of the outer one
            categorical(f"s{i}", 2, y)

    sites = run(program)
    assert min(site["infer"]["_enumerate_dim"] for site in sites.values()) >= -9
    last = sites["y2_4"]["infer"]
    assert sites["s2"]["infer"]["_dim_to_id"][last["_enumerate_dim"]] == 2 * 7 + 5
    assert 2 * 7 + 4 not in sites["s2"]["infer"]["_dim_to_id"].values()


@pytest.mark.parametrize("keep", [False, True])
def test_tree(keep):
    """Every site can tell its parent, and with `keep` also its left sibling, from all else it sees."""
    seen = []

    @sumprod.markov(keep=keep)
    def grow(depth, name, parent, sibling):
        parents = (parent, sibling) if keep else (parent,)
        z = categorical(name, 2, *parents)
        seen.append((name, parents))
        if depth:
            left = grow(depth - 1, name + "l", z, torch.tensor(0))
            grow(depth - 1, name + "r", z, left)
        return z

    sites = run(lambda: grow(3, "z", torch.tensor(0), torch.tensor(0)))
    assert len(seen) == 15
    for name, parents in seen:
        infer = sites[name]["infer"]
        for other, site in sites.items():
            dim, known = site["infer"]["_enumerate_dim"], site["infer"]["_dim_to_id"]
            if any(site["value"] is parent for parent in parents):
                assert infer["_dim_to_id"][dim] == known[dim], (name, other)
    dims = {site["infer"]["_enumerate_dim"] for site in sites.values()}
    assert len(dims) == (12 if keep else 2)


def test_history_too_small_is_detected_at_the_site():
    def program():
        last = [torch.tensor(0), torch.tensor(0)]
        for t in sumprod.markov(range(4)):
            last = [last[1], categorical(f"z{t}", 2, last[0])]

    with pytest.raises(ValueError, match="Enumeration dim conflict at site 'z2'") as caught:
        run(program)
    assert "Try increasing pyro.markov history size" in str(caught.value)


def test_plate_at_the_dim_of_a_variable():
    def program():
        with sumprod.plate("data", 3):
            categorical("z", 2)

    with pytest.raises(ValueError, match=r"plate 'data' is at dim -1.*first_available_dim=-2"):
        run(program)


def test_plates_are_left_alone():
    def program():
        with sumprod.plate("outer", 4, dim=-2), sumprod.plate("inner", 3, dim=-1):
            categorical("z", 5)

    site = run(program, -3)["z"]
    assert site["value"].shape == (5, 1, 1)
    assert site["fn"].batch_shape == (4, 3)


def test_expand():
    def program():
        with sumprod.plate("data", 3):
            sumprod.sample("z", Categorical(torch.ones(2)), infer={**PARALLEL, "expand": True})

    assert run(program, -2)["z"]["value"].shape == (2, 3)


def test_support_of_a_distribution_with_wide_batch_shape_is_moved_between_its_dims():
    """The third state of a chain lies right of the second, on which it depends."""

    def program(expand):
        z = torch.tensor(0)
        for t in sumprod.markov(range(3)):
            probs = torch.ones(4) + z.unsqueeze(-1)
            z = sumprod.sample(f"z{t}", Categorical(probs), infer={**PARALLEL, "expand": expand})
        return z

    with enum(first_available_dim=-1):
        plain = program(False)
    with enum(first_available_dim=-1):
        expanded = program(True)
    assert plain.shape == (4,)
    # An expanded value carries along the dims of all that it depends on.
    assert expanded.shape == (4, 4, 4)
    assert torch.equal(expanded, plain.reshape(4, 1, 1).expand(4, 4, 4))


def test_event_dims():
    def program():
        with sumprod.plate("data", 2):
            sumprod.sample("z", OneHotCategorical(torch.ones(3)), infer=PARALLEL)

    value = run(program, -2)["z"]["value"]
    assert value.shape == (3, 1, 3)
    assert torch.equal(value.squeeze(1), torch.eye(3))


def test_marked_support_keeps_its_fast_density():
    def program():
        categorical("a", 2)
        categorical("b", 3)

    b = run(program)["b"]
    assert b["fn"].log_prob(b["value"]).data_ptr() == b["fn"].logits.data_ptr()


def test_density_of_a_support_between_the_batch_dims():
    """As in every second step of a chain; the same numbers as for an unmarked tensor."""
    probs = torch.rand(3, 1, 2, 4, generator=torch.Generator().manual_seed(0))

    def program():
        sumprod.sample("z", Categorical(probs), infer=PARALLEL)

    z = run(program, -2)["z"]
    found = z["fn"].log_prob(z["value"])
    assert found.shape == (3, 4, 2)
    assert found.data_ptr() == z["fn"].logits.data_ptr()
    assert torch.equal(found, z["fn"].log_prob(z["value"].clone()))


def test_model_goes_on_left_of_its_guide():
    def guide():
        for t in sumprod.markov(range(3)):
            categorical(f"z{t}", 2)

    def model():
        for t in sumprod.markov(range(3)):
            z = categorical(f"z{t}", 2, parallel=False)
            y = categorical(f"y{t}", 3, z)
            sumprod.sample(f"x{t}", Normal(y + z, 1.0), obs=torch.tensor(0.0))

    guide_trace = trace(enum(guide, first_available_dim=-1)).get_trace()
    before = {
        name: dict(site["infer"]["_dim_to_id"])
        for name, site in guide_trace.nodes.items()
        if name in "z0z1z2"
    }
    model_trace = trace(replay(EnumMessenger()(model), trace=guide_trace)).get_trace()
    for t in range(3):
        guide_infer, y, x = (
            guide_trace.nodes[f"z{t}"]["infer"],
            model_trace.nodes[f"y{t}"]["infer"],
            model_trace.nodes[f"x{t}"]["infer"],
        )
        dim = guide_infer["_enumerate_dim"]
        assert y["_enumerate_dim"] < -2
        assert x["_dim_to_id"][dim] == guide_infer["_dim_to_id"][dim] == t
        assert x["_dim_to_id"][y["_enumerate_dim"]] == 3 + t
    after = {name: guide_trace.nodes[name]["infer"]["_dim_to_id"] for name in before}
    assert after == before  # the model's run has not written into the guide's trace


def test_a_value_of_size_one_depends_on_nothing():
    def program():
        for t in sumprod.markov(range(3)):
            z = categorical(f"z{t}", 2)
            sumprod.sample(f"same{t}", Categorical(torch.ones(1) + 0 * z.float().mean()), infer={})

    infer = run(program)["same2"]["infer"]
    assert sorted(infer["_dim_to_id"].values()) == [1, 2]


def test_independent_samples_along_the_new_dim():
    torch.manual_seed(0)

    def program():
        a = categorical("a", 2)
        sumprod.sample("n", Normal(a.float(), 1.0), infer={**PARALLEL, "num_samples": 50})
        sumprod.sample("one", Normal(0.0, 1.0), infer={**PARALLEL, "num_samples": 1})

    sites = run(program)
    assert sites["n"]["value"].shape == (50, 2)
    assert sites["n"]["value"].unique().numel() == 100
    assert sites["one"]["value"].shape == ()
    assert "_enumerate_dim" not in sites["one"]["infer"]


def test_what_cannot_be_enumerated_is_named():
    with pytest.raises(NotImplementedError, match=r"site 'x'.*Normal cannot be enumerated"):
        run(lambda: sumprod.sample("x", Normal(0.0, 1.0), infer=PARALLEL))


@pytest.mark.parametrize("dim", [0, 1, -1.5])
def test_first_available_dim_is_negative(dim):
    with pytest.raises(ValueError, match="Expected first_available_dim < 0"):
        enum(first_available_dim=dim)


def test_first_available_dim_is_finite():
    with pytest.raises(ValueError, match="max_plate_nesting must be set to a finite value"):
        enum(first_available_dim=-float("inf"))


def test_first_use_in_a_thread_needs_a_dim():
    errors = []

    def work():
        try:
            with enum():
                sumprod.sample("x", Bernoulli(0.5), infer=PARALLEL)
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "max_plate_nesting must be set to a finite value" in errors[0]


@pytest.mark.parametrize("history", [1, 2])
@pytest.mark.parametrize("plates", [False, True])
def test_work_per_step_does_not_grow(history, plates):
    def program(steps):
        z = torch.tensor(0)
        for t in sumprod.markov(range(steps), history=history):
            z = categorical(f"z{t}", 2, z)
            if plates:
                with sumprod.plate(f"data{t}", 2, dim=-1):
                    categorical(f"y{t}", 2, z)
        categorical("after", 2, z)

    def events(steps):
        count = 0

        def note(frame, event, arg):
            nonlocal count
            count += 1

        sys.setprofile(note)
        try:
            run(lambda: program(steps), -2)
        finally:
            sys.setprofile(None)
        return count

    run(lambda: program(4), -2)
    few, many = events(100), events(400)
    assert many < 4.1 * few


def test_names():
    assert EnumerateMessenger is EnumMessenger
    assert sumprod.poutine.enum is enum
    assert handlers.enumerate.EnumMessenger is EnumMessenger
    run(lambda: categorical("a", 2))
    assert runtime._ENUM_ALLOCATOR.next_available_id == 1
    assert runtime._ENUM_ALLOCATOR.dim_to_id == {-1: 0}


def test_observed_and_unmarked_sites_are_not_enumerated():
    def program():
        categorical("free", 2, parallel=False)
        sumprod.sample("seen", Categorical(torch.ones(3)), obs=torch.tensor(1), infer=PARALLEL)

    sites = run(program)
    assert sites["free"]["value"].shape == sites["seen"]["value"].shape == ()
    assert all("_enumerate_dim" not in site["infer"] for site in sites.values())


@pytest.mark.parametrize("batch", [(), (1,), (2,), (2, 1, 3)])
@pytest.mark.parametrize("dim", [-1, -2, -4, -5])
def test_the_support_of_a_categorical_is_that_of_any_distribution(batch, dim):
    fn = Categorical(torch.ones(*batch, 4))
    if len(batch) >= -dim and batch[dim] != 1:
        return  # the dim is taken
    values = _support(fn, dim, expand=False)
    assert is_whole_support(values, 4)
    assert torch.equal(values, torch.arange(4).reshape([4] + [1] * (-dim - 1)))
    if len(batch) < -dim:
        assert torch.equal(values, _move_support(fn.enumerate_support(expand=False), dim, fn))
        expanded = _support(fn, dim, expand=True)
        assert expanded.shape == (4, *[1] * (-dim - 1 - len(batch)), *batch)


def test_a_subclass_of_categorical_has_its_own_support():
    class Even(Categorical):
        def enumerate_support(self, expand=True):
            return 2 * super().enumerate_support(expand)

    values = _support(Even(torch.ones(3)), -2, expand=False)
    assert values.flatten().tolist() == [0, 2, 4]
    assert not is_whole_support(values, 3)


def test_writing_into_the_values_of_a_site_leaves_others_alone():
    with handlers.enum(first_available_dim=-1):
        first = sumprod.sample("a", Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        for t in sumprod.markov(range(3)):
            sumprod.sample(f"z{t}", Categorical(torch.ones(3)), infer={"enumerate": "parallel"}).add_(t)
    assert first.tolist() == [0, 1, 2]
