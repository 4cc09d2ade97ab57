"""TracePosterior: collecting, drawing, storing, reporting and saving weighted traces."""

from __future__ import annotations

import gc
import io
import math
import sys
import types
from collections import OrderedDict
from typing import Any, NamedTuple

import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from pyro.infer.abstract_infer import TracePosterior as PyroTracePosterior
from torch import Tensor

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from sumprod.handlers.util import site_is_subsample
from sumprod.infer.abstract_infer import SavedPosterior, TracePosterior
from sumprod.ops import stats
from tests.infer.posterior_cases import DATA, FromRuns, counted, normal_model

INF = math.inf


@pytest.fixture(autouse=True)
def _no_parameters() -> None:
    sumprod.clear_param_store()


# ---- run


def test_run_collects_traces_weights_and_chains() -> None:
    weights = [torch.tensor(0.5), -1.0, torch.tensor(2.0)]
    posterior = FromRuns(counted(), weights, num_chains=2)
    assert posterior.run() is posterior
    assert len(posterior.exec_traces) == 3
    assert [trace.nodes["number"]["value"].item() for trace in posterior.exec_traces] == [0.0, 1.0, 2.0]
    assert [float(weight) for weight in posterior.log_weights] == [0.5, -1.0, 2.0]
    assert posterior.chain_ids == [0, 1, 0]
    assert posterior.num_chains == 2


def test_pairs_belong_to_chain_zero() -> None:
    class Pairs(TracePosterior):
        def _traces(self) -> Any:
            yield handlers.trace(counted()).get_trace(), 0.0

    assert Pairs().run().chain_ids == [0]


def test_run_forgets_the_run_before() -> None:
    posterior = FromRuns(counted(), [0.0, 0.0]).run()
    posterior.run()
    assert posterior.stack("number").tolist() == [2.0, 3.0]
    assert len(posterior.log_weights) == len(posterior.chain_ids) == 2


def test_no_traces_leave_empty_lists() -> None:
    # Pyro's run fails without traces.
    posterior = FromRuns(counted(), []).run()
    assert posterior.exec_traces == []
    assert posterior.log_weights == []
    assert posterior.chain_ids == []
    assert posterior.information_criterion() == {}


def test_traces_are_equal_to_no_other_list() -> None:
    traces = FromRuns(counted(), [0.0]).run().exec_traces
    assert traces != []
    assert traces != list(traces)
    assert traces == traces
    assert repr(traces) == "<1 traces>"


@pytest.mark.parametrize(
    "use",
    [
        lambda posterior: posterior(),
        lambda posterior: posterior.marginal("number"),
        lambda posterior: posterior.stack("number"),
        lambda posterior: posterior.summary(),
        lambda posterior: posterior.to_arviz(),
        lambda posterior: posterior.save(io.BytesIO()),
        lambda posterior: posterior.log_likelihood(),
    ],
)
def test_use_before_run_says_to_run(use: Any) -> None:
    with pytest.raises(RuntimeError, match=r"FromRuns holds no traces: call run\(\) first"):
        use(FromRuns(counted(), [0.0]))


@pytest.mark.parametrize("num_chains", [0, -1, 1.5, "2"])
def test_num_chains_is_a_positive_int(num_chains: Any) -> None:
    with pytest.raises(ValueError, match="FromRuns: num_chains must be a positive int, got"):
        FromRuns(counted(), [], num_chains=num_chains)


@pytest.mark.parametrize("chain", [2, -1])
def test_chain_number_out_of_range(chain: int) -> None:
    class Wrong(TracePosterior):
        def _traces(self) -> Any:
            yield handlers.trace(counted()).get_trace(), 0.0, chain

    with pytest.raises(
        ValueError, match=rf"trace 0 has chain number {chain}, expected 0 <= number < num_chains = 2"
    ):
        Wrong(num_chains=2).run()


def test_outer_handlers_do_not_see_the_runs() -> None:
    with handlers.trace() as outer:
        FromRuns(normal_model, [0.0, 0.0]).run()
    assert list(outer.trace.nodes) == []


# ---- draws


def test_trap_37_a_draw_is_the_trace_whose_weight_was_drawn() -> None:
    # With two chains Pyro returns trace 5 here: it takes the number of a trace for a place in a chain.
    for chosen in range(6):
        weights = [0.0 if number == chosen else -INF for number in range(6)]
        posterior = FromRuns(counted(), weights, num_chains=2).run()
        assert posterior().nodes["number"]["value"] == chosen


def test_draws_follow_the_weights() -> None:
    posterior = FromRuns(counted(), [math.log(0.2), math.log(0.5), math.log(0.3)], num_chains=3).run()
    counts = torch.zeros(3, dtype=torch.float64)
    for _ in range(2000):
        counts[int(posterior().nodes["number"]["value"])] += 1
    expected = torch.tensor([400.0, 1000.0, 600.0], dtype=torch.float64)
    # Chi-square with 2 degrees of freedom: above 18.4 once in 10,000 seeds.
    assert ((counts - expected) ** 2 / expected).sum() < 18.4


def test_draws_are_those_of_pyro(seed: int) -> None:
    weights = torch.randn(20).tolist()

    class Peer(PyroTracePosterior):
        def _traces(self) -> Any:
            for number, weight in enumerate(weights):
                model = lambda: pyro.sample("number", pyro_dist.Delta(torch.tensor(float(number))))  # noqa: B023, E731
                yield pyro.poutine.trace(model).get_trace(), torch.tensor(weight)

    peer, posterior = Peer().run(), FromRuns(counted(), [torch.tensor(w) for w in weights]).run()
    torch.manual_seed(seed)
    expected = [peer().nodes["number"]["value"].item() for _ in range(50)]
    torch.manual_seed(seed)
    assert [posterior().nodes["number"]["value"].item() for _ in range(50)] == expected


def test_a_drawn_trace_has_no_observed_sites_and_is_a_copy() -> None:
    posterior = FromRuns(normal_model, [0.0]).run()
    drawn = posterior()
    assert [name for name, site in drawn.nodes.items() if site["type"] == "sample"] == ["loc", "data"]
    drawn.nodes["loc"]["value"] = None
    drawn.remove_node("data")
    assert posterior().nodes["loc"]["value"] is not None
    assert "x" in posterior.exec_traces[0]


@pytest.mark.parametrize(
    ("weights", "found"), [([-INF, -INF], "-inf"), ([0.0, INF], "inf"), ([math.nan, 0.0], "nan")]
)
def test_a_draw_needs_a_finite_weight(weights: list[float], found: str) -> None:
    posterior = FromRuns(counted(), weights).run()
    with pytest.raises(ValueError, match=f"cannot draw a trace: the largest log-weight is {found}"):
        posterior()


# ---- storage


class Pair(NamedTuple):
    first: Tensor
    second: str


def rich_model(data: Tensor, *, factor: float = 2.0) -> Any:
    """Sites of many kinds: nested, expanded, masked and transformed distributions, params, factors."""
    weight = sumprod.param("weight", torch.tensor([0.5, -0.5]))
    scale = sumprod.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    a = sumprod.sample("a", dist.Normal(weight, scale).to_event(1), infer={"tag": ["x", {"depth": 1}]})
    sumprod.sample("b", dist.MultivariateNormal(torch.zeros(2), torch.eye(2) * scale))
    sumprod.sample("c", dist.LogNormal(a.sum(), 1.0))
    sumprod.sample("d", dist.Categorical(logits=a.detach()))
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(a, 1.0))
    sumprod.sample("e", mixture)
    sumprod.deterministic("f", a * factor)
    sumprod.factor("g", a.sum())
    with sumprod.plate("rows", len(data), dim=-2), handlers.scale(scale=3.0):
        mask = data > 0
        with sumprod.plate("columns", 6, subsample_size=3, dim=-1):
            sumprod.sample("h", dist.Bernoulli(0.3).expand([len(data), 3]).mask(mask[:, None]))
            with handlers.mask(mask=mask[:, None]):
                sumprod.sample("x", dist.Normal(a[0], scale), obs=data[:, None].expand(-1, 3))
    return Pair(a * 2, "label")


def tensors_of(item: Any) -> list[Tensor]:
    """All tensors inside a site."""
    if isinstance(item, Tensor):
        return [item]
    if isinstance(item, torch.distributions.Distribution | torch.distributions.Transform):
        return tensors_of(vars(item))
    if isinstance(item, dict):
        return [tensor for entry in item.values() for tensor in tensors_of(entry)]
    return (
        [tensor for entry in item for tensor in tensors_of(entry)] if isinstance(item, list | tuple) else []
    )


class Kept(TracePosterior):
    """Keeps the traces it yields, too."""

    def _traces(self, *args: Any, **kwargs: Any) -> Any:
        self.originals = []
        for _ in range(5):
            self.originals.append(handlers.trace(rich_model).get_trace(*args, **kwargs))
            yield self.originals[-1], 0.0


@pytest.mark.parametrize("detach", [True, False])
def test_stored_traces_are_the_traces(detach: bool) -> None:
    posterior = Kept(detach=detach).run(torch.tensor([0.4, -0.2]), factor=3.0)
    for original, stored in zip(posterior.originals, posterior.exec_traces, strict=True):
        assert list(stored.nodes) == list(original.nodes)
        assert stored.observation_nodes == original.observation_nodes
        for name, site in original.nodes.items():
            kept = stored.nodes[name]
            assert kept.keys() == site.keys()
            for key in ("type", "name", "is_observed", "cond_indep_stack", "infer", "kwargs", "scale"):
                assert kept.get(key) == site.get(key), (name, key)
            assert type(kept.get("fn")) is type(site.get("fn"))
            if name not in ("rows", "columns"):
                assert repr(kept.get("fn")) == repr(site.get("fn"))
            if name != "_RETURN":
                torch.testing.assert_close(kept.get("value"), site.get("value"), rtol=0, atol=0)
        stored.compute_log_prob()
        original.compute_log_prob()
        for name, site in original.nodes.items():
            if site["type"] == "sample":
                torch.testing.assert_close(stored.nodes[name]["log_prob"], site["log_prob"], rtol=0, atol=0)
        result = stored.nodes["_RETURN"]["value"]
        assert isinstance(result, Pair)
        assert result.second == "label"
        assert torch.equal(result.first, original.nodes["_RETURN"]["value"].first)
        assert torch.equal(stored.nodes["_INPUT"]["args"][0], torch.tensor([0.4, -0.2]))
        assert site_is_subsample(stored.nodes["columns"])


def test_stored_traces_can_be_replayed_and_sampled_from() -> None:
    posterior = Kept().run(torch.tensor([0.4, -0.2]))
    for stored in posterior.exec_traces:
        again = handlers.trace(handlers.replay(rich_model, trace=stored)).get_trace(torch.tensor([0.4, -0.2]))
        assert torch.equal(again.nodes["h"]["value"], stored.nodes["h"]["value"])
        assert torch.equal(again.nodes["columns"]["value"], stored.nodes["columns"]["value"])
        assert stored.nodes["e"]["fn"].sample((3,)).shape == (3,)
        assert stored.nodes["c"]["fn"].expand([4]).sample().shape == (4,)


def test_stored_tensors_carry_no_graph() -> None:
    stored = Kept().run(torch.tensor([0.4, -0.2])).exec_traces[2]
    for name, site in stored.nodes.items():
        for tensor in tensors_of(site):
            assert not tensor.requires_grad, name


def test_detach_false_lets_gradients_through() -> None:
    loc = torch.tensor(0.7, requires_grad=True)

    def model() -> Tensor:
        return sumprod.sample("z", dist.Normal(loc, 1.0))

    class Weighted(TracePosterior):
        def _traces(self) -> Any:
            for _ in range(3):
                trace = handlers.trace(model).get_trace()
                yield trace, trace.log_prob_sum()

    posterior = Weighted(detach=False).run()
    (grad,) = torch.autograd.grad(posterior.stack("z").sum(), loc, retain_graph=True)
    assert grad == 3
    (grad,) = torch.autograd.grad(posterior.marginal("z").support()["z"].mean(), loc, retain_graph=True)
    assert grad == pytest.approx(1.0)
    (grad,) = torch.autograd.grad(posterior.exec_traces[1].nodes["z"]["fn"].mean, loc, retain_graph=True)
    assert grad == 1
    assert all(weight.requires_grad for weight in posterior.log_weights)
    assert not any(weight.requires_grad for weight in Weighted().run().log_weights)


def test_training_on_does_not_change_stored_traces() -> None:
    def model() -> None:
        loc = sumprod.param("loc", torch.tensor(1.0))
        half = loc.detach()[None].expand(3)
        sumprod.sample("point", dist.Delta(loc))
        sumprod.sample("z", dist.Normal(loc, 1.0))
        sumprod.sample("w", dist.Normal(half, 1.0).to_event(1))

    class Training(TracePosterior):
        def _traces(self) -> Any:
            for step in range(4):
                yield handlers.trace(model).get_trace(), 0.0
                leaf = sumprod.param("loc").unconstrained()
                with torch.no_grad():
                    if step % 2:
                        leaf.add_(1.0)
                    else:
                        leaf.data += 1.0

    posterior = Training().run()
    assert posterior.stack("point").tolist() == [1.0, 2.0, 3.0, 4.0]
    assert posterior.stack("loc").tolist() == [1.0, 2.0, 3.0, 4.0]
    assert [trace.nodes["z"]["fn"].loc.item() for trace in posterior.exec_traces] == [1.0, 2.0, 3.0, 4.0]


def test_programs_that_take_several_paths() -> None:
    def model(number: int) -> Tensor:
        if number % 3 == 1:
            sumprod.sample("extra", dist.Normal(0.0, 1.0))
        size = 2 if number % 3 == 2 else 1
        sumprod.sample("vector", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        return sumprod.sample("number", dist.Delta(torch.tensor(float(number))))

    class Paths(TracePosterior):
        def _traces(self) -> Any:
            for number in range(200):
                yield handlers.trace(model).get_trace(number), float(number)

    posterior = Paths().run()
    assert posterior.stack("number").tolist() == [float(number) for number in range(200)]
    assert posterior.stack("_RETURN").tolist() == [float(number) for number in range(200)]
    assert ["extra" in trace for trace in posterior.exec_traces] == [number % 3 == 1 for number in range(200)]
    assert [t.nodes["number"]["value"].item() for t in posterior.exec_traces[5:9]] == [5.0, 6.0, 7.0, 8.0]
    assert posterior.exec_traces[-1].nodes["number"]["value"] == 199
    with pytest.raises(IndexError):
        posterior.exec_traces[200]
    with pytest.raises(KeyError, match=r"no site 'extra' in trace 0: its sites are \['_INPUT', 'vector'"):
        posterior.stack("extra")
    with pytest.raises(ValueError, match="site 'vector' has values of different kinds in different traces"):
        posterior.stack("vector")


def test_only_tensors_stack() -> None:
    posterior = FromRuns(lambda: "text", [0.0]).run()
    with pytest.raises(TypeError, match="the value of site '_RETURN' is not a tensor but str"):
        posterior.stack("_RETURN")


def test_traces_can_be_read_while_a_run_goes_on() -> None:
    class Reading(FromRuns):
        def _traces(self) -> Any:
            for item in super()._traces():
                yield item
                assert self.exec_traces[-1].nodes["number"]["value"] == len(self.exec_traces) - 1

    assert Reading(counted(), [0.0] * 100).run().stack("number").tolist() == list(range(100))


def storage_bytes() -> tuple[int, int]:
    """Number of tensors alive, and bytes of their distinct storages."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return len(tensors), sum(storages.values())


@pytest.mark.parametrize("latent", [10, 1000])
def test_memory_grows_by_the_values_alone(latent: int) -> None:
    data = torch.randn(20_000)

    def model(data: Tensor) -> Tensor:
        offset = sumprod.param("offset", torch.zeros(5_000))
        z = sumprod.sample("z", dist.Normal(torch.zeros(latent), 1.0).to_event(1))
        with sumprod.plate("data", len(data)):
            sumprod.sample("x", dist.Normal(z.sum() + offset.sum(), 1.0), obs=data * 1)
        return z.mean()

    sizes = {}
    for count in (200, 400):
        posterior = FromRuns(model, [0.0] * count).run(data)
        sizes[count] = storage_bytes()
        del posterior
    assert sizes[400][0] == sizes[200][0]
    grown = (sizes[400][1] - sizes[200][1]) / 200
    # z in its site; its sum, as the mean of x, and the return value. x itself, its scale, the data and
    # the parameters are there once.
    assert grown == (latent + 2) * 4


# ---- summaries


def test_summary_of_equal_weights() -> None:
    posterior = FromRuns(normal_model, [0.0] * 80, num_chains=2).run()
    summary = posterior.summary(prob=0.8)
    assert list(summary) == ["loc"]
    assert list(summary["loc"]) == ["mean", "std", "median", "10.0%", "90.0%", "n_eff", "r_hat"]
    loc = posterior.stack("loc").double()
    chains = torch.stack([loc[0::2], loc[1::2]])
    expected = {
        "mean": loc.mean(),
        "std": loc.std(),
        "median": stats.quantile(loc, 0.5),
        "10.0%": stats.quantile(loc, 0.1),
        "90.0%": stats.quantile(loc, 0.9),
        "n_eff": stats.effective_sample_size(chains),
        "r_hat": stats.split_gelman_rubin(chains),
    }
    for name, value in expected.items():
        torch.testing.assert_close(summary["loc"][name], value.float(), rtol=1e-5, atol=1e-6)


def test_summary_of_weighted_traces() -> None:
    weights = torch.randn(30, dtype=torch.float64)
    posterior = FromRuns(normal_model, list(weights)).run(None)
    summary = posterior.summary(sites=["x"])["x"]
    x, share = posterior.stack("x").double(), weights.softmax(0)[:, None]
    mean = (share * x).sum(0)
    variance = (share * (x - mean) ** 2).sum(0) / (1 - (share**2).sum())
    torch.testing.assert_close(summary["mean"], mean.float())
    torch.testing.assert_close(summary["std"], variance.sqrt().float())
    torch.testing.assert_close(summary["median"], stats.weighed_quantile(x, 0.5, weights).float())
    torch.testing.assert_close(summary["n_eff"], (1 / (share**2).sum()).float().expand(4))
    assert summary["r_hat"].isnan().all()


def test_summary_prints_a_table() -> None:
    def model() -> None:
        sumprod.sample("a", dist.Delta(torch.tensor(1.5)))
        sumprod.sample("b", dist.Delta(torch.arange(60.0), event_dim=1))
        sumprod.deterministic("c", torch.tensor(2))
        sumprod.sample("skipped", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    lines = str(FromRuns(model, [0.0] * 4).run().summary()).split("\n")
    assert lines[0].split() == ["mean", "std", "median", "5.0%", "95.0%", "n_eff", "r_hat"]
    assert lines[1].split() == ["a", "1.5", "0", "1.5", "1.5", "1.5", "nan", "nan"]
    assert lines[2].split()[0] == "b[0]"
    assert lines[51].split()[:2] == ["b[49]", "49"]
    assert lines[52].strip() == "b: 10 more"
    assert lines[53].split()[:2] == ["c", "2"]
    assert len(lines) == 54


def test_summary_refuses() -> None:
    with pytest.raises(ValueError, match="prob must be between 0 and 1, got 1"):
        FromRuns(counted(), [0.0]).run().summary(prob=1)
    with pytest.raises(ValueError, match="the largest log-weight is -inf"):
        FromRuns(counted(), [-INF]).run().summary()
    with pytest.raises(
        ValueError, match=r"chains must have equally many traces to be a batch dim, got \[2, 1\]"
    ):
        FromRuns(counted(), [0.0] * 3, num_chains=2).run().summary()


# ---- files


def saved(posterior: TracePosterior) -> io.BytesIO:
    file = io.BytesIO()
    posterior.save(file)
    file.seek(0)
    return file


def test_a_saved_posterior_reads_back(tmp_path: Any) -> None:
    weights = [torch.tensor(w) for w in (0.5, -1.0, 0.0, 2.0)]
    posterior = FromRuns(rich_model, weights, num_chains=2).run(torch.tensor([0.4, -0.2]))
    posterior.save(tmp_path / "posterior.pt")
    record = torch.load(tmp_path / "posterior.pt", weights_only=True)
    assert record["format"] == "sumprod.posterior"
    for read in (
        SavedPosterior(tmp_path / "posterior.pt"),
        FromRuns(counted(), []).load(tmp_path / "posterior.pt", map_location="cpu"),
    ):
        assert read.num_chains == 2
        assert read.chain_ids == posterior.chain_ids
        assert read.log_weights == posterior.log_weights
        for name in ("a", "b", "c", "d", "e", "f", "h", "x", "columns", "weight", "scale"):
            assert torch.equal(read.stack(name), posterior.stack(name))
            site, original = read.exec_traces[1].nodes[name], posterior.exec_traces[1].nodes[name]
            assert site["type"] == original["type"]
            assert site["cond_indep_stack"] == original["cond_indep_stack"]
            assert site["is_observed"] == original["is_observed"]
        assert "_RETURN" not in read.exec_traces[0]  # not a tensor
        drawn = read()
        again = handlers.trace(handlers.replay(rich_model, trace=drawn)).get_trace(torch.tensor([0.4, -0.2]))
        assert torch.equal(again.nodes["h"]["value"], drawn.nodes["h"]["value"])
        assert torch.equal(again.nodes["columns"]["value"], drawn.nodes["columns"]["value"])
        assert str(read.summary(sites=["a"])) == str(posterior.summary(sites=["a"]))


def test_a_saved_posterior_keeps_its_criterion() -> None:
    posterior = FromRuns(normal_model, [0.0, 1.0, 0.3]).run()
    read = SavedPosterior(saved(posterior))
    assert read.information_criterion() == posterior.information_criterion()
    assert read.information_criterion(kind="loo") == posterior.information_criterion(kind="loo")
    assert torch.equal(read.log_likelihood()["x"], posterior.log_likelihood()["x"])
    assert torch.equal(read.marginal().support()["_RETURN"], posterior.stack("_RETURN"))
    with pytest.raises(KeyError, match=r"the file holds no log-likelihood of \['loc'\], only of \['x'\]"):
        read.information_criterion(sites=["loc"])
    assert SavedPosterior(saved(read)).information_criterion() == posterior.information_criterion()


def test_a_file_stores_constants_once() -> None:
    data = torch.randn(50_000)

    def model() -> None:
        loc = sumprod.sample("loc", dist.Normal(0.0, 1.0))
        with sumprod.plate("data", len(data), subsample=torch.arange(40_000)):
            sumprod.sample("x", dist.Normal(loc, 1.0), obs=data[:40_000])

    assert len(saved(FromRuns(model, [0.0] * 50).run()).getvalue()) < 8 * 40_000 + 4 * 40_000 + 20_000


def test_saved_posteriors_refuse() -> None:
    read = SavedPosterior(saved(FromRuns(normal_model, [0.0]).run()))
    with pytest.raises(RuntimeError, match="read from a file, which holds values but not distributions"):
        read.exec_traces[0].log_prob_sum()
    with pytest.raises(NotImplementedError, match="a SavedPosterior cannot be run"):
        read.run()
    other = io.BytesIO()
    torch.save({"format": "other"}, other)
    other.seek(0)
    with pytest.raises(ValueError, match=r"not a file written by TracePosterior\.save"):
        SavedPosterior(other)
    newer = io.BytesIO()
    torch.save({"format": "sumprod.posterior", "version": 2}, newer)
    newer.seek(0)
    with pytest.raises(ValueError, match="version 2 of the posterior format, this library reads 1"):
        SavedPosterior(newer)


# ---- ArviZ


def fake_arviz(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    """ArviZ takes groups as keywords before version 1.0 and as one dict from then on."""

    def before(posterior: Any = None, *, log_likelihood: Any = None, observed_data: Any = None) -> Any:
        return {"posterior": posterior, "log_likelihood": log_likelihood, "observed_data": observed_data}

    def after(data: Any, *, name: Any = None) -> Any:
        return data

    module = types.ModuleType("arviz")
    module.from_dict = before if old else after  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "arviz", module)


@pytest.mark.parametrize("old", [True, False])
def test_to_arviz_of_chains(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    fake_arviz(monkeypatch, old)
    posterior = FromRuns(normal_model, [1.0] * 6, num_chains=2).run()
    groups = posterior.to_arviz()
    assert groups["posterior"].keys() == {"loc"}
    loc = posterior.stack("loc")
    assert groups["posterior"]["loc"].tolist() == [loc[0::2].tolist(), loc[1::2].tolist()]
    assert groups["log_likelihood"]["x"].shape == (2, 3, 4)
    assert groups["observed_data"]["x"].tolist() == DATA.tolist()


def test_to_arviz_resamples_unequal_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_arviz(monkeypatch, old=False)
    weights = [math.log(0.5), -INF, math.log(0.5), -INF]
    groups = FromRuns(counted(), weights * 50).run().to_arviz()
    numbers = torch.from_numpy(groups["posterior"]["number"])
    assert numbers.shape == (1, 200)
    assert (numbers % 2 == 0).all()
    assert len(numbers.unique()) > 40  # of 100; 63 expected
    assert groups.keys() == {"posterior"}


def test_to_arviz_without_arviz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"to_arviz needs ArviZ, which is not installed: pip install arviz"):
        FromRuns(counted(), [0.0]).run().to_arviz()


def test_log_likelihood_is_named_by_site() -> None:
    posterior = FromRuns(normal_model, [0.0] * 3).run()
    densities = posterior.log_likelihood()
    assert isinstance(densities, OrderedDict)
    loc = posterior.stack("loc")
    expected = torch.distributions.Normal(loc[:, None], 1.0).log_prob(DATA)
    torch.testing.assert_close(densities["x"], expected)
    assert torch.equal(posterior.log_likelihood("x")["x"], densities["x"])
