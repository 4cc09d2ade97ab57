"""The backend `sumprod` of pyroapi, and `sumprod.generic`, which is the same idea."""

from __future__ import annotations

import inspect
import sys
import threading

import pytest
import torch

import sumprod
from sumprod import generic

pyroapi = pytest.importorskip("pyroapi")

import pyroapi.testing as pyroapi_testing  # noqa: E402
import pyroapi.tests.test_svi as pyroapi_programs  # noqa: E402

import sumprod.interop.pyroapi  # noqa: E402


def fit(api: object) -> float:
    """A conjugate model in terms of whatever backend is active: posterior mean 1.0."""
    data = torch.tensor([1.0, 1.5])

    def model() -> None:
        z = api.pyro.sample("z", api.distributions.Normal(0.0, 1.0))
        with api.pyro.plate("data", 2):
            api.pyro.sample("x", api.distributions.Normal(z, 1.0), obs=data)

    def guide() -> None:
        loc = api.pyro.param("loc", torch.tensor(0.0))
        api.pyro.sample("z", api.distributions.Normal(loc, 3**-0.5))

    api.pyro.set_rng_seed(0)
    svi = api.infer.SVI(model, guide, api.optim.Adam({"lr": 0.02}), api.infer.Trace_ELBO())
    for _ in range(400):
        svi.step()
    return api.pyro.param("loc").item()


def test_keys() -> None:
    assert list(sumprod.interop.pyroapi.BACKEND) == [
        "distributions",
        "handlers",
        "infer",
        "ops",
        "optim",
        "pyro",
    ]


def test_modules_of_the_backend() -> None:
    with pyroapi.pyro_backend("sumprod"):
        assert pyroapi.pyro.sample is sumprod.sample
        assert pyroapi.distributions.Normal is sumprod.distributions.Normal
        assert pyroapi.handlers.seed is sumprod.handlers.seed
        assert pyroapi.infer.SVI is sumprod.infer.SVI
        assert pyroapi.ops.ones is torch.ones
        assert pyroapi.optim.Adam is sumprod.optim.Adam


def test_inference_through_pyroapi() -> None:
    """Posterior mean (1 + 1.5) / 3; 0.1 is far more than the noise of Adam at this rate."""
    with pyroapi.pyro_backend("sumprod"):
        assert fit(pyroapi) == pytest.approx(2.5 / 3, abs=0.1)


@pytest.mark.parametrize("name", ["sumprod", "pyro"])
def test_inference_through_generic(name: str) -> None:
    with generic.pyro_backend(name):
        assert generic.pyro.sample is sumprod.sample
        assert fit(generic) == pytest.approx(2.5 / 3, abs=0.1)


def test_missing_pyroapi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sumprod.interop.pyroapi")
    monkeypatch.setitem(sys.modules, "pyroapi", None)
    with pytest.raises(ImportError, match="pip install pyro-api"):
        __import__("sumprod.interop.pyroapi")


def test_generic_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generic, "_BACKENDS", dict(generic._BACKENDS))
    generic.register_backend("mixed", {"optim": "torch.optim"})
    with generic.pyro_backend("mixed"):
        assert generic.optim.Adam is torch.optim.Adam
        assert generic.pyro.sample is sumprod.sample
        with generic.pyro_backend(infer="math"):
            assert generic.infer.pi > 3
            assert generic.optim.Adam is torch.optim.Adam
        # Other threads have their own backend.
        seen: list[object] = []
        thread = threading.Thread(target=lambda: seen.append(generic.optim.Adam))
        thread.start()
        thread.join()
        assert seen == [sumprod.optim.Adam]
    assert generic.optim.Adam is sumprod.optim.Adam


def test_generic_errors() -> None:
    with pytest.raises(ValueError, match="unknown modules \\['handlers'\\]"):
        generic.register_backend("mine", {"handlers": "x"})
    with (
        pytest.raises(ValueError, match="unknown backend 'jax'; known: pyro, sumprod"),
        generic.pyro_backend("jax"),
    ):
        pass
    for arguments in ((), ("pyro", "sumprod")):
        with pytest.raises(ValueError, match="give one backend"), generic.pyro_backend(*arguments):
            pass
    with pytest.raises(ValueError, match="unknown modules"), generic.pyro_backend(ops="torch"):
        pass
    with pytest.raises(AttributeError):
        _ = generic.pyro.no_such_name


def programs() -> list[tuple[str, dict[str, object]]]:
    """The programs that pyroapi brings along for testing backends, without those for Jit losses."""
    found: list[tuple[str, dict[str, object]]] = []
    for name, function in vars(pyroapi_programs).items():
        if name.startswith("test_"):
            names = inspect.signature(function).parameters
            arguments: dict[str, object] = {"backend": None}
            if "jit" in names:
                arguments["jit"] = False
            if "optim_name" in names:
                for optim_name in ("Adam", "ClippedAdam"):
                    arguments = {**arguments, "optim_name": optim_name, "optim_kwargs": {"lr": 0.0001}}
                    found.append((name, arguments))
            else:
                found.append((name, arguments))
    return found


@pytest.mark.parametrize(("name", "arguments"), programs())
def test_programs_of_pyroapi(name: str, arguments: dict[str, object]) -> None:
    with pyroapi.pyro_backend("sumprod"):
        getattr(pyroapi_programs, name)(**arguments)


@pytest.mark.parametrize("name", sorted(pyroapi_testing.MODELS))
def test_models_of_pyroapi(name: str) -> None:
    with pyroapi.pyro_backend("sumprod"), pyroapi.handlers.seed(rng_seed=1):
        made = pyroapi_testing.MODELS[name]()
        arguments, keywords = made.get("model_args", ()), made.get("model_kwargs", {})
        trace = pyroapi.handlers.trace(made["model"]).get_trace(*arguments, **keywords)
        assert torch.isfinite(trace.log_prob_sum())
        if "guide" in made:
            svi = pyroapi.infer.SVI(
                made["model"], made["guide"], pyroapi.optim.Adam({"lr": 0.001}), pyroapi.infer.Trace_ELBO()
            )
            assert isinstance(svi.step(*arguments, **keywords), float)
