"""Summaries, files and ArviZ data of posteriors."""

from __future__ import annotations

import io
import math
import sys
import types
from typing import Any

import pytest
import torch

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from sumprod.infer.abstract_infer import SavedPosterior, TracePosterior
from sumprod.ops import stats
from tests.infer.posterior_cases import DATA, FromRuns, counted, normal_model, rich_model

INF = math.inf


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
