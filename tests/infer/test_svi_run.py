"""`SVI.fit` and `SVI.run`: training loops, posterior traces, progress, early stopping."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

import sumprod
from sumprod import handlers
from sumprod.infer import SVI, EarlyStopping, Trace_ELBO
from tests.infer.svi_programs import guide, make, model, params

# ---- run


def test_run_with_defaults_collects_traces_and_does_not_train() -> None:
    """Trap 30: num_steps is 0."""
    svi = make()
    assert svi.run(2.0) is svi
    assert svi.losses == []
    assert params() == {"scale": 1.0, "loc": 0.5}
    assert len(svi.exec_traces) == 10
    assert [float(weight) for weight in svi.log_weights] == [1.0] * 10
    assert list(svi.chain_ids) == [0] * 10
    trace = svi.exec_traces[3]
    assert trace.nodes["_RETURN"]["value"].item() == trace.nodes["z"]["value"].item() * 2
    assert trace.nodes["x"]["is_observed"]
    assert trace.nodes["x"]["value"].item() == 2.0


def test_run_without_samples() -> None:
    """Trap 30: num_samples is 0."""
    svi = make(num_samples=0)
    svi.run()
    assert list(svi.exec_traces) == []
    assert list(svi.log_weights) == []


def test_run_trains_first_and_can_be_repeated() -> None:
    svi = make(num_steps=5, num_samples=3)
    for repetition in (1, 2):
        svi.run(2.0)
        assert len(svi.losses) == svi.steps_done == 5 * repetition
        assert len(svi.exec_traces) == 3
    values = [trace.nodes["z"]["value"].item() for trace in svi.exec_traces]
    assert len(set(values)) == 3


def test_run_gives_every_keyword_to_the_programs() -> None:
    """Traps 29 and 58: also keywords that are named like options."""
    seen: list[dict[str, Any]] = []

    def takes_all(**kwargs: Any) -> None:
        seen.append(kwargs)
        model()

    options = {
        "num_steps": 1,
        "progress": 2,
        "callbacks": 3,
        "args": 4,
        "kwargs": 5,
        "num_samples": 6,
        "self_": 7,
    }
    SVI(
        takes_all,
        lambda **kwargs: guide(),
        sumprod.optim.SGD({"lr": 0.1}),
        Trace_ELBO(),
        num_steps=2,
        num_samples=1,
    ).run(**options)
    assert seen == [options] * 3


def test_run_is_hidden_from_outer_handlers() -> None:
    with handlers.trace() as outer:
        make(num_steps=2).run()
        make().fit(2)
    assert len(outer.trace) == 0


def test_run_draws_from_the_fitted_guide() -> None:
    """The posterior of x = 2 is N(1, 1/2); 500 draws give its mean to 0.032, the fit to about 0.05."""
    svi = make(num_steps=600, num_samples=500)
    svi.optim = sumprod.optim.ClippedAdam({"lr": 0.05, "lrd": 0.995})
    svi.run(2.0)
    values = torch.stack([trace.nodes["z"]["value"] for trace in svi.exec_traces])
    assert values.mean().item() == pytest.approx(1.0, abs=0.15 + 0.05)
    assert values.std().item() == pytest.approx(0.5**0.5, abs=0.15)


# ---- fit


def test_fit_makes_the_same_steps_as_a_loop() -> None:
    sumprod.set_rng_seed(0)
    by_hand = make()
    losses = [by_hand.step(2.0) for _ in range(7)]
    expected = params()
    sumprod.clear_param_store()
    sumprod.set_rng_seed(0)
    svi = make()
    assert svi.fit(7, args=(2.0,)) is svi
    assert svi.losses == losses
    assert params() == expected
    svi.fit(0)
    assert svi.steps_done == 7


def test_fit_gives_args_and_kwargs_to_the_programs() -> None:
    seen: list[Any] = []

    def program(*args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))

    SVI(program, program, sumprod.optim.SGD({"lr": 0.1}), Trace_ELBO()).fit(
        1, args=[1, 2], kwargs={"progress": 3}
    )
    assert seen == [((1, 2), {"progress": 3})] * 2


def test_fit_refuses_a_negative_number_of_steps() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 0, got -1"):
        make().fit(-1)


def test_callbacks_see_every_step() -> None:
    seen: list[Any] = []
    svi = make(callbacks=[lambda *call: seen.append(call)], num_steps=2, num_samples=0)
    svi.step()  # not a step of fit
    svi.run()
    assert seen == [(svi, 2, svi.losses[1]), (svi, 3, svi.losses[2])]
    other: list[int] = []
    svi.fit(1, callbacks=[lambda svi, step, loss: other.append(step)])
    assert other == [4]
    assert len(seen) == 2
    svi.fit(1)
    assert len(seen) == 3


def test_an_error_in_a_callback_ends_training() -> None:
    def fail(svi: Any, step: int, loss: float) -> None:
        if step == 3:
            raise KeyError("stop here")

    svi = make(callbacks=[fail])
    with pytest.raises(KeyError, match="stop here"):
        svi.fit(10)
    assert svi.steps_done == 3
    assert not sumprod.runtime.am_i_wrapped()


# ---- progress


def test_progress_shows_the_loss() -> None:
    stream = io.StringIO()
    options = {"file": stream, "mininterval": 0, "ncols": 80}
    svi = make(progress=options)
    svi.fit(3)
    shown = stream.getvalue()
    assert "SVI: 100%" in shown
    assert "3/3" in shown
    assert f"loss={svi.losses[1]:.6g}" in shown


def test_progress_is_off_by_default_and_on_by_choice(capsys: pytest.CaptureFixture[str]) -> None:
    make().fit(2)
    assert capsys.readouterr() == ("", "")
    make().fit(2, progress=True)
    assert "2/2" in capsys.readouterr().err
    make(progress=True).fit(2, progress=False)
    assert capsys.readouterr() == ("", "")


def test_progress_with_a_loss_that_is_a_tuple() -> None:
    stream = io.StringIO()

    def pair(model: Any, guide: Any) -> Any:
        return torch.tensor(1.5), torch.tensor(2.5)

    svi = SVI(model, guide, sumprod.optim.SGD({"lr": 0.1}), pair, progress={"file": stream, "mininterval": 0})
    svi.fit(3)
    assert "loss=1.5, 2.5" in stream.getvalue()


# ---- early stopping


def test_early_stop_by_a_function() -> None:
    svi = make(early_stop=lambda svi, step, loss: step >= 4, num_steps=100, num_samples=2)
    svi.run()
    assert svi.steps_done == 4
    assert len(svi.exec_traces) == 2


def stops_after(stop: EarlyStopping, losses: list[Any]) -> int | None:
    return next((step for step, loss in enumerate(losses, 1) if stop(None, step, loss)), None)


def test_early_stopping_waits() -> None:
    assert stops_after(EarlyStopping(3), [5.0, 4.0, 4.5, 4.0, 4.2]) == 5
    assert stops_after(EarlyStopping(3), [5.0, 4.0, 3.0, 2.0, 1.0]) is None
    assert stops_after(EarlyStopping(2, min_delta=0.5), [5.0, 4.9, 4.6, 4.0]) == 3
    assert stops_after(EarlyStopping(2, min_delta=0.5), [5.0, 4.9, 4.0, 3.9, 3.8]) == 5
    assert stops_after(EarlyStopping(2), [float("nan"), float("nan")]) == 2
    assert stops_after(EarlyStopping(1), [(1.0, 2.0), (2.0, 0.5), (1.0, 2.0)]) == 3


def test_early_stopping_compares_means_over_a_window() -> None:
    noisy = [3.0, 1.0, 2.0, 0.0, 1.0, -1.0]
    assert stops_after(EarlyStopping(1), noisy) == 3
    assert stops_after(EarlyStopping(1, window=2), [3.0, 1.0, 2.0, 0.0, 1.0, -1.5]) is None
    means = EarlyStopping(2, window=2)
    assert stops_after(means, [4.0, 2.0, 2.0, 2.0, 2.0, 2.0]) == 5
    assert means.best == 2.0


@pytest.mark.parametrize("options", [{"patience": 0}, {"window": 0}, {"min_delta": -1.0}])
def test_early_stopping_checks_its_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected patience >= 1, window >= 1 and min_delta >= 0"):
        EarlyStopping(**options)


def test_early_stopping_starts_anew_in_each_fit() -> None:
    stop = EarlyStopping(1)
    svi = make(early_stop=stop)
    svi.fit(1000)
    first = svi.steps_done
    assert first < 1000
    stop.best = -1e9
    svi.fit(1)
    assert stop.best > -1e9
