"""TracePredictive: posterior traces replayed in the model, on the same data and on other data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sumprod
from sumprod import distributions as dist
from sumprod import handlers
from sumprod.infer.abstract_infer import TracePredictive
from sumprod.infer.importance import Importance
from tests.infer.posterior_cases import DATA, FromRuns, normal_model, normal_posterior


def local_model(data: Tensor | None = None, size: int = 4) -> Tensor:
    """A global site, and in plate "data" a local one, a local pair and the data."""
    loc = sumprod.sample("loc", dist.Normal(0.0, 1.0))
    with sumprod.plate("data", size):
        z = sumprod.sample("z", dist.Normal(loc, 1.0))
        pair = sumprod.sample("pair", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        sumprod.sample("x", dist.Normal(z + pair.sum(-1), 0.1), obs=data)
    return z


def posterior_of(count: int = 6, weights: Any = None, **arguments: Any) -> FromRuns:
    weights = [0.0] * count if weights is None else weights
    return FromRuns(local_model, weights).run(torch.zeros(4), **arguments)


def test_the_same_data_keep_their_local_values() -> None:
    posterior = posterior_of()
    predictive = TracePredictive(local_model, posterior, num_samples=20)
    assert predictive.run(torch.zeros(4)) is predictive
    assert predictive.log_weights == [0.0] * 20
    rows = {tuple(row) for row in posterior.stack("z").tolist()}
    assert {tuple(row) for row in predictive.stack("z").tolist()} <= rows


def where_in(values: Tensor, source: Tensor) -> list[list[int]]:
    """For each row of values, the places of its entries in the row of source that has all of them."""
    places = []
    for row in values.tolist():
        origin = next(candidate for candidate in source.tolist() if row[0] in candidate)
        places.append([origin.index(entry) for entry in row])
    return places


def test_trap_40_other_data_take_local_values_at_random_one_choice_per_plate() -> None:
    posterior = posterior_of()
    predictive = TracePredictive(local_model, posterior, num_samples=200).run(None, size=7)
    assert predictive.stack("x").shape == (200, 7)
    assert predictive.stack("pair").shape == (200, 7, 2)
    picks = where_in(predictive.stack("z"), posterior.stack("z"))
    pairs = posterior.stack("pair")
    for side in range(2):
        assert where_in(predictive.stack("pair")[..., side], pairs[..., side]) == picks
    counts = torch.tensor(picks).flatten().bincount(minlength=4)
    # 1,400 picks among four: chi-square with 3 degrees of freedom is above 21.1 once in 10,000 seeds.
    assert ((counts - 350.0) ** 2 / 350).sum() < 21.1


def test_reindex_always_shuffles_plates_of_the_same_size() -> None:
    posterior = posterior_of()
    predictive = TracePredictive(local_model, posterior, num_samples=50, reindex="always").run(torch.zeros(4))
    picks = where_in(predictive.stack("z"), posterior.stack("z"))
    assert any(pick != [0, 1, 2, 3] for pick in picks)


def test_nested_plates_change_one_by_one() -> None:
    def model(rows: int, columns: int) -> None:
        with sumprod.plate("rows", rows, dim=-2):
            sumprod.sample("row", dist.Normal(0.0, 1.0).expand([rows, 1]))
            with sumprod.plate("columns", columns, dim=-1):
                sumprod.sample("cell", dist.Normal(torch.zeros(3), 1.0).to_event(1).expand([rows, columns]))

    posterior = FromRuns(model, [0.0]).run(2, 3)
    predictive = TracePredictive(model, posterior, num_samples=5).run(4, 3)
    row, cell = posterior.stack("row")[0], posterior.stack("cell")[0]
    for new_row, new_cell in zip(predictive.stack("row"), predictive.stack("cell"), strict=True):
        pick = torch.tensor([row.flatten().tolist().index(entry) for entry in new_row.flatten().tolist()])
        assert torch.equal(new_cell, cell[pick])


def test_draws_follow_the_weights_of_the_posterior() -> None:
    posterior = posterior_of(weights=[-float("inf"), 0.0, -float("inf")])
    predictive = TracePredictive(local_model, posterior, num_samples=10).run(torch.zeros(4))
    assert torch.equal(predictive.stack("loc"), posterior.stack("loc")[1].expand(10))


def test_it_runs_a_posterior_without_traces() -> None:
    posterior = FromRuns(local_model, [0.0] * 3)
    TracePredictive(local_model, posterior, num_samples=2).run(torch.zeros(4))
    assert len(posterior.exec_traces) == 3
    before = posterior.stack("loc")
    TracePredictive(local_model, posterior, num_samples=2).run(torch.zeros(4))
    assert torch.equal(posterior.stack("loc"), before)


def test_keep_sites_samples_the_others_anew() -> None:
    posterior = posterior_of()
    predictive = TracePredictive(local_model, posterior, 30, keep_sites=["loc"]).run(None, size=9)
    assert set(predictive.stack("loc").tolist()) <= set(posterior.stack("loc").tolist())
    assert predictive.stack("z").unique().numel() == 270


def test_sites_that_the_model_lacks_are_named() -> None:
    def smaller() -> None:
        sumprod.sample("loc", dist.Normal(0.0, 1.0))

    posterior = posterior_of()
    message = (
        r"has no sites \['data', 'z', 'pair'\], which the posterior has; its sites are \['loc'\].*keep_sites"
    )
    with pytest.raises(KeyError, match=message):
        TracePredictive(smaller, posterior, 1).run()
    kept = TracePredictive(smaller, posterior, 5, keep_sites=["loc"]).run()
    assert set(kept.stack("loc").tolist()) <= set(posterior.stack("loc").tolist())


def test_plate_indices_are_those_of_the_new_run() -> None:
    def model(size: int) -> Tensor | None:
        loc = sumprod.sample("loc", dist.Normal(0.0, 1.0))
        with sumprod.plate("data", size, subsample_size=3) as index:
            sumprod.sample("z", dist.Normal(loc, 1.0))
        return index

    posterior = FromRuns(model, [0.0] * 4).run(3)
    predictive = TracePredictive(model, posterior, 50).run(100)
    assert predictive.stack("_RETURN").max() > 3
    assert torch.equal(predictive.stack("_RETURN"), predictive.stack("data"))


def test_marginal_gives_the_predictive_samples() -> None:
    predictive = TracePredictive(local_model, posterior_of(), 8).run(None)
    support = predictive.marginal(["x", "z"]).support()
    assert torch.equal(support["x"], predictive.stack("x"))
    assert torch.equal(predictive.marginal().support()["_RETURN"], predictive.stack("z"))


def test_predictions_have_the_exact_distribution() -> None:
    torch.manual_seed(3)
    posterior = Importance(normal_model, num_samples=20_000, vectorized=True).run()
    resampled = posterior.resample(2000)
    x = TracePredictive(normal_model, resampled, 2000).run(None, size=4).stack("x").double()
    mean, variance = normal_posterior()
    # 2,000 draws of the mean of four new points; five standard errors.
    expected = variance + 1 / 4
    averages = x.mean(1)
    assert abs(averages.mean().item() - mean) < 5 * (expected / 2000) ** 0.5 + 0.02
    assert averages.var().item() == pytest.approx(expected, rel=5 * (2 / 2000) ** 0.5 + 0.02)


def test_outer_handlers_do_not_see_the_runs() -> None:
    with handlers.trace() as outer:
        TracePredictive(normal_model, FromRuns(normal_model, [0.0]), 3).run(DATA)
    assert list(outer.trace.nodes) == []


def test_says_what_is_wrong() -> None:
    with pytest.raises(
        TypeError, match=r"posterior must be a TracePosterior, got dict; for a dict of samples use"
    ):
        TracePredictive(local_model, {}, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_samples must not be negative, got -1"):
        TracePredictive(local_model, posterior_of(), -1)
    with pytest.raises(ValueError, match="reindex must be 'changed' or 'always', got 'never'"):
        TracePredictive(local_model, posterior_of(), 1, reindex="never")  # type: ignore[arg-type]
    assert TracePredictive(local_model, posterior_of(), 0).run(None).exec_traces == []
