"""Plates: dims, frames, subsamples, scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.distributions import Delta, Normal
from sumprod.handlers.util import prune_subsample_sites, site_is_subsample


def sites(program, *args):
    return handlers.trace(program).get_trace(*args).nodes


def test_vectorised_plate_expands_and_owns_a_dim():
    def program():
        with sumprod.plate("a", 2), sumprod.plate("b", 3):
            sumprod.sample("x", Normal(0.0, 1.0))
            with sumprod.plate("c", 4, dim=-4):
                sumprod.sample("y", Normal(torch.zeros(5), 1.0).to_event(1))

    nodes = sites(program)
    assert nodes["x"]["value"].shape == (3, 2)
    assert nodes["y"]["value"].shape == (4, 1, 3, 2, 5)
    assert [str(f) for f in nodes["y"]["cond_indep_stack"]] == ["a", "b", "c"]
    assert [f.dim for f in nodes["y"]["cond_indep_stack"]] == [-1, -2, -4]


def test_sequential_plate_counts_iterations():
    def program():
        for i in sumprod.plate("loop", 3):
            assert isinstance(i, int)
            sumprod.sample(f"x{i}", Normal(0.0, 1.0))

    nodes = sites(program)
    frames = [nodes[f"x{i}"]["cond_indep_stack"][0] for i in range(3)]
    assert [(f.dim, f.size, f.counter) for f in frames] == [(None, 3, 1), (None, 3, 2), (None, 3, 3)]
    assert frames[0] != frames[1]
    assert not frames[0].vectorized


def test_frame_equality_ignores_the_full_size():
    frame = handlers.CondIndepStackFrame("a", -1, 2, 0, 10)
    assert frame == handlers.CondIndepStackFrame("a", -1, 2, 0, 20)
    assert hash(frame) == hash(handlers.CondIndepStackFrame("a", -1, 2, 0, 20))
    assert frame != handlers.CondIndepStackFrame("a", -2, 2, 0, 10)


def test_decorator_form():
    @sumprod.plate("data", 4)
    def program():
        return sumprod.sample("x", Normal(0.0, 1.0))

    assert program().shape == (4,)


def test_break_in_a_sequential_plate_closes_it():
    for i in sumprod.plate("loop", 5):
        if i == 1:
            break
    with handlers.trace() as trace:
        sumprod.sample("x", Normal(0.0, 1.0))
    assert trace.trace.nodes["x"]["cond_indep_stack"] == ()


# Trap 1
def test_trap_01_subsample_is_drawn_at_construction():
    torch.manual_seed(0)
    plate = sumprod.plate("data", 100, subsample_size=10)
    with plate as first:
        pass
    with plate as second:
        pass
    assert first is second
    assert len(set(first.tolist())) == 10

    def with_outer_plate():
        with plate:
            sumprod.sample("x", Normal(0.0, 1.0))

    assert "data" not in sites(with_outer_plate)

    def with_own_plate():
        with sumprod.plate("data", 100, subsample_size=10) as index:
            sumprod.sample("x", Normal(0.0, 1.0))
        return index

    guide = handlers.trace(with_own_plate).get_trace()
    model = handlers.trace(handlers.replay(with_own_plate, trace=guide)).get_trace()
    assert site_is_subsample(guide.nodes["data"])
    assert torch.equal(model.nodes["_RETURN"]["value"], guide.nodes["_RETURN"]["value"])
    assert not torch.equal(with_own_plate(), guide.nodes["_RETURN"]["value"])


# Trap 2
def test_trap_02_sequential_plates_scale_too():
    def program():
        for i in sumprod.plate("loop", 6, subsample_size=2):
            sumprod.sample(f"x{i}", Normal(0.0, 1.0))

    scales = [s["scale"] for n, s in sites(program).items() if n.startswith("x")]
    assert scales == [3.0, 3.0]


# Trap 3
def test_trap_03_subsample_sites_are_pruned():
    def program():
        with sumprod.plate("data", 5):
            sumprod.sample("x", Normal(0.0, 1.0))

    trace = handlers.trace(program).get_trace()
    pruned = prune_subsample_sites(trace)
    assert "data" in trace
    assert "data" not in pruned
    assert list(pruned.nodes) == ["_INPUT", "x", "_RETURN"]
    trace.compute_log_prob()
    assert trace.nodes["data"]["log_prob_sum"] == 0.0


# Trap 4
def test_trap_04_plate_without_size():
    def program():
        with sumprod.plate("unknown") as index:
            assert index is None
            sumprod.sample("x", Normal(torch.zeros(3), 1.0))
            with sumprod.plate("known", 2):
                sumprod.sample("y", Normal(0.0, 1.0))

    nodes = sites(program)
    assert "unknown" not in nodes
    assert nodes["x"]["scale"] == 1.0
    assert nodes["x"]["value"].shape == (3,)
    assert nodes["y"]["value"].shape == (2, 1)
    assert [(f.size, f.dim) for f in nodes["y"]["cond_indep_stack"]] == [(-1, -1), (2, -2)]


# Trap 55
def test_trap_55_deterministic_under_a_plate():
    def program():
        with sumprod.plate("data", 3):
            return sumprod.deterministic("d", torch.tensor([1.0, 2.0]))

    trace = handlers.trace(program).get_trace()
    node = trace.nodes["d"]
    assert node["value"].shape == (2,)
    assert node["fn"].batch_shape == (3,)
    assert node["fn"].event_shape == (2,)
    assert trace.log_prob_sum() == 0.0


# Trap 56
def test_trap_56_plate_stack_names_from_right_to_left():
    def program():
        with sumprod.plate_stack("p", (2, 3, 4), rightmost_dim=-2):
            sumprod.sample("x", Normal(0.0, 1.0))

    nodes = sites(program)
    frames = {f.name: (f.dim, f.size) for f in nodes["x"]["cond_indep_stack"]}
    assert frames == {"p_0": (-2, 4), "p_1": (-3, 3), "p_2": (-4, 2)}
    assert nodes["x"]["value"].shape == (2, 3, 4, 1)
    with (
        pytest.raises(ValueError, match="rightmost_dim < 0"),
        sumprod.plate_stack("p", (2,), rightmost_dim=0),
    ):
        pass


def test_nested_subsamples_multiply_their_scales():
    def program():
        with (
            sumprod.plate("a", 10, subsample_size=5),
            sumprod.plate("b", 9, subsample_size=3),
            handlers.scale(scale=2.0),
        ):
            sumprod.sample("x", Normal(0.0, 1.0))

    nodes = sites(program)
    assert nodes["x"]["scale"] == pytest.approx(12.0)
    assert nodes["x"]["cond_indep_stack"][0].full_size == 10


@pytest.mark.parametrize(
    "subsample", [[1, 3], (1, 3), np.array([1, 3]), torch.tensor([1, 3]), range(1, 4, 2)], ids=repr
)
def test_given_subsample_is_recorded(subsample):
    def program():
        with sumprod.plate("data", 5, subsample=subsample) as index:
            sumprod.sample("x", Normal(0.0, 1.0))
            return index

    nodes = sites(program)
    assert nodes["_RETURN"]["value"].tolist() == [1, 3]
    assert nodes["data"]["value"].tolist() == [1, 3]
    assert nodes["x"]["scale"] == 2.5


def test_subsample_size_beyond_the_size_takes_all():
    with sumprod.plate("data", 3, subsample_size=7) as index:
        assert index.tolist() == [0, 1, 2]


def test_subsets_are_uniform():
    # 2,000 draws of 2 out of 4: each of the 6 subsets has mean 333, sd 16.7. False alarm rate: 6 sides
    # of 4.5 sd, below 1e-4.
    torch.manual_seed(0)
    counts = {}
    for _ in range(2000):
        key = tuple(sorted(sumprod.plate("data", 4, subsample_size=2).indices.tolist()))
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 2000 / 6) < 75 for count in counts.values())


def test_param_and_data_follow_the_subsample():
    sumprod.clear_param_store()
    data = torch.arange(10.0).reshape(5, 2)

    def program():
        with sumprod.plate("data", 5, subsample=[4, 2]):
            loc = sumprod.param("loc", lambda: torch.arange(15.0).reshape(5, 3), event_dim=1)
            one = sumprod.param("one", torch.zeros(1, 3), event_dim=1)
            plain = sumprod.param("plain", torch.zeros(4))
            part = sumprod.subsample(data, event_dim=1)
        return loc, one, plain, part

    loc, one, plain, part = handlers.trace(program).get_trace().nodes["_RETURN"]["value"]
    assert loc.tolist() == [[12.0, 13.0, 14.0], [6.0, 7.0, 8.0]]
    assert loc.unconstrained().shape == (5, 3)
    loc.sum().backward()
    assert loc.unconstrained().grad.sum(-1).tolist() == [0.0, 0.0, 3.0, 0.0, 3.0]
    assert one.shape == (1, 3)
    assert plain.shape == (4,)
    assert part.tolist() == [[8.0, 9.0], [4.0, 5.0]]
    sumprod.clear_param_store()


def test_full_size_params_and_data_of_wrong_shape():
    sumprod.clear_param_store()
    with sumprod.plate("data", 5, subsample_size=2):
        with pytest.raises(ValueError, match=r"invalid shape of pyro.param\('bad'\).*size 5.*got \(4, 3\)"):
            sumprod.param("bad", torch.zeros(4, 3), event_dim=1)
        with pytest.raises(ValueError, match=r"invalid shape of pyro.subsample.*got \(4,\)"):
            sumprod.subsample(torch.zeros(4), event_dim=0)
    sumprod.clear_param_store()


def test_errors():
    with pytest.raises(ZeroDivisionError, match="plate 'p' has size 0"):
        sumprod.plate("p", 0)
    with pytest.raises(ValueError, match="Expected dim < 0"):
        sumprod.plate("p", 2, dim=0)
    with pytest.raises(ValueError, match=r"subsample_size does not match len\(subsample\), 3 vs 2"):
        sumprod.plate("p", 5, subsample_size=3, subsample=[0, 1])
    with sumprod.plate("p", 2), pytest.raises(ValueError, match="duplicate plate 'p'"), sumprod.plate("p", 2):
        pass
    with (
        sumprod.plate("p", 2, dim=-2),
        pytest.raises(ValueError, match="'q' and 'p', collide at dim=-2"),
        sumprod.plate("q", 3, dim=-2),
    ):
        pass
    with pytest.raises(ValueError, match="needs its size"):
        sumprod.plate("p", subsample_size=2)
    with pytest.raises(ValueError, match="Incompatible arguments: use_cuda=True and device=cpu"):
        sumprod.plate("p", 2, use_cuda=True, device="cpu")
    plate = sumprod.plate("p", 2)
    with plate:
        pass
    with pytest.raises(ValueError, match="cannot use plate 'p' as both"):
        next(iter(plate))
    loop = sumprod.plate("p", 2)
    list(loop)
    with pytest.raises(ValueError, match="cannot use plate 'p' as both"), loop:
        pass


def test_shape_mismatch_names_plate_site_and_sizes():
    mismatch = r"Shape mismatch inside plate\('p'\) at site x dim -1, 3 vs 2"
    with pytest.raises(ValueError, match=mismatch), sumprod.plate("p", 3), handlers.trace():
        sumprod.sample("x", Normal(torch.zeros(2), 1.0))
    # Nothing is checked or expanded where no distribution is involved.
    with sumprod.plate("p", 3), handlers.trace():
        assert sumprod.sample("x", lambda: torch.zeros(2)).shape == (2,)


def test_expanding_keeps_a_hand_set_has_rsample():
    fn = Normal(0.0, 1.0).has_rsample_(False)
    with handlers.trace() as trace, sumprod.plate("p", 3):
        sumprod.sample("x", fn)
    assert trace.trace.nodes["x"]["fn"].batch_shape == (3,)
    assert not trace.trace.nodes["x"]["fn"].has_rsample


def test_event_dims_and_delta():
    with handlers.trace() as trace, sumprod.plate("p", 3):
        value = sumprod.sample("x", Delta(torch.zeros(2), event_dim=1))
    assert value.shape == (3, 2)
    assert trace.trace.nodes["x"]["fn"].batch_shape == (3,)


def test_same_subset_as_the_peer_for_equal_seeds():
    pyro = pytest.importorskip("pyro")
    for size, subsample_size in [(5, 3), (10, 3), (1000, 1)]:
        torch.manual_seed(1)
        ours = sumprod.plate("p", size, subsample_size=subsample_size).indices
        torch.manual_seed(1)
        theirs = pyro.plate("p", size, subsample_size=subsample_size).indices
        assert torch.equal(ours, theirs)


def test_old_names_warn():
    with pytest.warns(DeprecationWarning, match="iarange"):
        sumprod.iarange("p", 2)
    with pytest.warns(DeprecationWarning, match="irange"):
        sumprod.irange("p", 2)
