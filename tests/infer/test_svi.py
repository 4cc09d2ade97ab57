"""`SVI`: construction, single steps, losses that are not ELBOs, and nothing left behind."""

from __future__ import annotations

import gc
import inspect
import math
import sys
import types
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import sumprod
import sumprod.distributions as dist
from sumprod import handlers
from sumprod.infer import SVI, Trace_ELBO, TraceMeanField_ELBO, TracePosterior


def model(x: Any = 1.0) -> None:
    z = sumprod.sample("z", dist.Normal(sumprod.param("prior", torch.tensor(0.0)), 1.0))
    sumprod.sample("x", dist.Normal(z, 1.0), obs=torch.as_tensor(x))


def guide(x: Any = 1.0) -> None:
    scale = sumprod.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    sumprod.sample("z", dist.Normal(sumprod.param("loc", torch.tensor(0.5)), scale))


def sgd(lr: float = 0.1) -> Any:
    return sumprod.optim.SGD({"lr": lr})


def make(loss: Any = None, **kwargs: Any) -> SVI:
    return SVI(model, guide, sgd(), Trace_ELBO() if loss is None else loss, **kwargs)


# ---- construction


def test_signature() -> None:
    parameters = inspect.signature(SVI).parameters
    positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [*("model", "guide", "optim", "loss", "loss_and_grads", "num_samples", "num_steps")]
    defaults = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert defaults == {
        "progress": False,
        "callbacks": (),
        "early_stop": None,
        "checkpoint": None,
        "record": True,
    }
    assert parameters["loss_and_grads"].default is None
    assert (parameters["num_samples"].default, parameters["num_steps"].default) == (10, 0)
    assert [name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD] == ["kwargs"]


def test_attributes() -> None:
    elbo, optim = Trace_ELBO(), sgd()
    svi = SVI(model, guide, optim, elbo, None, 7, 3, num_chains=2)
    assert isinstance(svi, TracePosterior)
    assert (svi.model, svi.guide, svi.optim) == (model, guide, optim)
    assert (svi.num_samples, svi.num_steps, svi.num_chains) == (7, 3, 2)
    assert (svi.exec_traces[:], svi.log_weights[:], svi.chain_ids[:], svi.losses) == ([], [], [], [])
    assert svi.loss == elbo.loss  # bound methods, not the ELBO object
    assert svi.loss_and_grads == elbo.loss_and_grads


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="SVI got an unexpected keyword argument 'num_particles'"):
        make(num_particles=3)


@pytest.mark.parametrize(
    ("optim", "fix"),
    [
        (
            torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.02),
            r"sumprod.optim.Adam\({'lr': 0.02}\)",
        ),
        (torch.optim.SGD, r"sumprod.optim.SGD\({'lr': 0.001}\)"),
        (None, "got None"),
    ],
    ids=["object", "class", "nothing"],
)
def test_optimizer_of_torch(optim: Any, fix: str) -> None:
    with pytest.raises(ValueError, match="Optimizer should be an instance of.*" + fix):
        SVI(model, guide, optim, Trace_ELBO())


def test_loss_that_cannot_be_called() -> None:
    with pytest.raises(TypeError, match="loss must be an ELBO such as Trace_ELBO"):
        make(loss=3.0)
    with pytest.raises(TypeError, match=r"loss must be an instance, got the class: write Trace_ELBO\(\)"):
        make(loss=Trace_ELBO)


# ---- step and evaluate_loss


def test_step_moves_the_parameters_along_the_gradient() -> None:
    sumprod.set_rng_seed(0)
    Trace_ELBO().loss_and_grads(model, guide, 2.0)
    leaves = {name: sumprod.param(name).unconstrained() for name in ("loc", "scale", "prior")}
    expected = {name: (leaf - 0.1 * leaf.grad).item() for name, leaf in leaves.items()}
    sumprod.clear_param_store()
    sumprod.set_rng_seed(0)
    svi = make()
    loss = svi.step(2.0)
    assert type(loss) is float
    assert svi.losses == [loss]
    assert svi.steps_done == 1
    for name, value in expected.items():
        assert sumprod.param(name).unconstrained().item() == pytest.approx(value)


def test_step_passes_keywords_to_the_programs() -> None:
    def with_options(x: float, *, progress: float, num_steps: float) -> None:
        model(x + progress + num_steps)

    def its_guide(x: float, **kwargs: float) -> None:
        guide(x)

    svi = SVI(with_options, its_guide, sgd(), Trace_ELBO())
    sumprod.set_rng_seed(1)
    loss = svi.evaluate_loss(1.0, progress=2.0, num_steps=3.0)
    sumprod.set_rng_seed(1)
    assert make().evaluate_loss(6.0) == pytest.approx(loss)
    assert math.isfinite(svi.step(1.0, progress=2.0, num_steps=3.0))


def test_gradients_are_zeros_after_a_step() -> None:
    """Trap 27: zeros, not None."""
    make().step()
    for name in ("loc", "scale", "prior"):
        gradient = sumprod.param(name).unconstrained().grad
        assert gradient is not None
        assert gradient.item() == 0.0


def test_parameters_are_stepped_once_in_the_order_of_first_use() -> None:
    """Trap 28: not in the order of a set."""
    names = [f"p{i}" for i in (7, 3, 11, 2, 5, 13, 1)]
    seen: list[list[str | None]] = []

    class Recording(type(sgd())):  # type: ignore[misc]
        def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
            params = list(params)
            seen.append([sumprod.get_param_store().param_name(p) for p in params])
            return super().__call__(params, *args, **kwargs)

    def program() -> None:
        for name in [*names, names[0]]:
            sumprod.param(name, torch.tensor(1.0), constraint=constraints.positive)
        sumprod.sample("z", dist.Normal(sum(sumprod.param(name) for name in names), 1.0))

    optim = sgd()
    optim.__class__ = Recording
    SVI(program, program, optim, Trace_ELBO()).step()
    assert seen == [names]


def test_only_parameters_of_this_call_are_stepped() -> None:
    sumprod.param("other", torch.tensor(3.0))
    sumprod.param("other").unconstrained().grad = torch.tensor(1.0)
    svi = make()
    svi.step()
    assert sumprod.param("other").item() == 3.0
    assert sumprod.param("other").unconstrained().grad.item() == 1.0


def test_blocked_parameters_are_not_stepped() -> None:
    svi = SVI(handlers.block(model, hide=["prior"]), guide, sgd(), Trace_ELBO())
    svi.step()
    assert sumprod.param("prior").item() == 0.0
    assert sumprod.param("loc").item() != 0.5


def test_evaluate_loss_leaves_parameters_and_gradients_alone() -> None:
    svi = make()
    loss = svi.evaluate_loss(1.0)
    assert type(loss) is float
    assert sumprod.param("loc").item() == 0.5
    assert sumprod.param("loc").unconstrained().grad is None
    assert svi.losses == []
    assert svi.steps_done == 0
    assert svi.evaluate_loss(1.0) != loss  # it draws


def test_programs_without_parameters() -> None:
    def program() -> None:
        sumprod.sample("z", dist.Normal(0.0, 1.0))

    assert SVI(program, program, sgd(), Trace_ELBO()).step() == 0.0
    assert SVI(lambda: None, lambda: None, sgd(), Trace_ELBO()).step() == 0.0


def test_record_can_be_switched_off() -> None:
    svi = make(record=False)
    svi.step()
    assert svi.losses == []
    assert svi.steps_done == 1


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_fits_a_conjugate_model(elbo: Any) -> None:
    """Posterior of one datum x = 2 under N(0, 1) and unit noise: N(1, 1/2)."""

    def fixed() -> None:
        z = sumprod.sample("z", dist.Normal(0.0, 1.0))
        sumprod.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    loss = elbo(num_particles=20, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(fixed, guide, sumprod.optim.Adam({"lr": 0.03}), loss)
    for _ in range(300):
        svi.step()
    assert sumprod.param("loc").item() == pytest.approx(1.0, abs=0.1)
    assert sumprod.param("scale").item() == pytest.approx(math.sqrt(0.5), abs=0.1)


# ---- losses that are not ELBOs


def simple_loss(model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
    guide_trace = handlers.trace(guide).get_trace(*args, **kwargs)
    model_trace = handlers.trace(handlers.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    result: Tensor = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
    return result


def test_function_as_loss() -> None:
    values = []
    for loss in (simple_loss, Trace_ELBO(), Trace_ELBO().differentiable_loss):
        sumprod.clear_param_store()
        sumprod.set_rng_seed(0)
        svi = make(loss=loss)
        values.append((svi.step(2.0), svi.evaluate_loss(2.0), sumprod.param("loc").item()))
        assert [type(one) for one in values[-1]] == [float] * 3
    assert values[1] == pytest.approx(values[0])
    assert values[2] == pytest.approx(values[0])


def test_function_as_loss_and_grads() -> None:
    calls: list[str] = []

    def gradients(*args: Any) -> float:
        calls.append("gradients")
        loss = simple_loss(*args)
        (2 * loss).backward()
        return loss.item()

    sumprod.set_rng_seed(0)
    svi = make(loss=simple_loss, loss_and_grads=gradients)
    svi.step(2.0)
    doubled = sumprod.param("loc").item() - 0.5
    sumprod.clear_param_store()
    sumprod.set_rng_seed(0)
    make(loss=simple_loss).step(2.0)
    assert doubled == pytest.approx(2 * (sumprod.param("loc").item() - 0.5))
    assert calls == ["gradients"]


def test_loss_without_gradients() -> None:
    """Trap 25: a number, and a tensor that does not require grad, are no error."""
    for value in (3.5, torch.tensor(3.5)):

        def constant(model: Any, guide: Any, result: Any = value) -> Any:
            sumprod.param("loc", torch.tensor(0.5))
            return result

        assert make(loss=constant).step() == 3.5
        assert sumprod.param("loc").item() == 0.5


def test_loss_that_returns_a_tuple() -> None:
    class Pair(NamedTuple):
        wake: Any
        sleep: Any

    for kind in (lambda a, b: (a, b), Pair):

        def pair(model: Any, guide: Any, make_pair: Any = kind) -> Any:
            loc = sumprod.param("loc", torch.tensor(0.5))
            return make_pair(loc.square(), loc * 3)

        sumprod.clear_param_store()
        svi = make(loss=pair)
        assert svi.step() == (0.25, 1.5)
        assert sumprod.param("loc").item() == pytest.approx(0.5 - 0.1 * (1.0 + 3.0))
        assert svi.losses == [(0.25, 1.5)]
        assert [type(one) for one in svi.evaluate_loss()] == [float, float]


# ---- nothing is left behind


def counted_step() -> Any:
    """A step on a program with several kinds of sites, so that each path of the losses runs."""

    def program() -> None:
        for i in range(4):
            sumprod.sample(f"a{i}", dist.Normal(0.0, 1.0))
        with sumprod.plate("rows", 6, subsample_size=3):
            sumprod.sample("b", dist.Bernoulli(0.5))
        sumprod.sample("c", dist.Beta(2.0, 2.0))

    def its_guide() -> None:
        loc = sumprod.param("loc", torch.tensor(0.1))
        for i in range(4):
            sumprod.sample(f"a{i}", dist.Normal(loc, 1.0))
        with sumprod.plate("rows", 6, subsample_size=3):
            sumprod.sample("b", dist.Bernoulli(logits=loc))
        sumprod.sample("c", dist.Beta(loc.exp(), 2.0))

    return SVI(program, its_guide, sumprod.optim.Adam({"lr": 1e-3}), Trace_ELBO(), record=False).step


@pytest.mark.usefixtures("new_objects_only")
def test_a_thousand_steps_leave_no_objects_behind() -> None:
    step = counted_step()

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    for _ in range(20):
        step()
    before = objects()
    blocks = sys.getallocatedblocks()
    for _ in range(1000):
        step()
    assert objects() - before <= 2  # the list that counts them, and the generator's slack
    # Memory blocks of Python as well: objects that gc does not track, such as floats and strings.
    assert sys.getallocatedblocks() - blocks < 500


def test_traces_die_with_the_step_without_the_garbage_collector() -> None:
    """No reference cycle keeps tensors until the next collection."""
    watched: list[Any] = []

    class Watching(Trace_ELBO):
        def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
            pair = super()._get_trace(model, guide, args, kwargs)
            watched.extend(weakref.ref(trace) for trace in pair)
            watched.append(weakref.ref(pair[0].nodes["z"]["value"]))
            return pair

    gc.disable()
    try:
        make(loss=Watching(num_particles=2)).step()
        assert len(watched) == 6
        assert [one() for one in watched] == [None] * 6
    finally:
        gc.enable()


# ---- plots


def test_plot_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    svi = make()
    svi.losses, svi.steps_done = [4.0, 2.0, 3.0, 1.0], 4
    line = svi.plot_losses().lines[0]
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata().tolist() == [4.0, 2.0, 3.0, 1.0]
    ax = svi.plot_losses(smooth=2, color="red")
    assert ax.lines[0].get_ydata().tolist() == [3.0, 2.5, 2.0]
    assert ax.lines[0].get_xdata().tolist() == [2, 3, 4]
    assert svi.plot_losses(ax=ax) is ax
    with pytest.raises(ValueError, match="smooth=5 needs at least 5 losses, there are 4"):
        svi.plot_losses(smooth=5)
    matplotlib.pyplot.close("all")


def test_plot_losses_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = types.ModuleType("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib", missing)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(ImportError, match="plot_losses needs matplotlib: pip install matplotlib"):
        make().plot_losses()
