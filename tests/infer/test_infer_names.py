"""What `sumprod.infer` offers, and what it says about algorithms that it does not have."""

from __future__ import annotations

import importlib

import pytest

import sumprod
from sumprod import infer

PLANNED = [
    *("CSIS", "EnergyDistance", "ReweightedWakeSleep", "SMCFilter", "SVGD", "TraceTMC_ELBO"),
    *("TraceTailAdaptive_ELBO", "Trace_MMD"),
]


@pytest.mark.parametrize("name", PLANNED)
def test_algorithms_that_are_missing_can_be_imported_but_not_made(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"sumprod has no {name} yet: "):
        getattr(infer, name)(1, 2, three=3)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("svi", ["SVI"]),
        ("elbo", ["ELBO", "ELBOModule"]),
        ("trace_elbo", ["Trace_ELBO"]),
        ("trace_mean_field_elbo", ["TraceMeanField_ELBO"]),
        ("renyi_elbo", ["RenyiELBO"]),
        ("enum", ["get_importance_trace"]),
        ("discrete", ["TraceEnumSample_ELBO", "infer_discrete"]),
        ("abstract_infer", ["EmpiricalMarginal", "Marginals", "TracePosterior", "TracePredictive"]),
        ("importance", ["Importance", "psis_diagnostic", "vectorized_importance_weights"]),
        ("predictive", ["MHResampler", "Predictive", "WeighedPredictive"]),
        ("util", ["enable_validation", "is_validation_enabled"]),
    ],
)
def test_classes_are_the_same_under_both_paths(module: str, names: list[str]) -> None:
    loaded = importlib.import_module(f"sumprod.infer.{module}")
    for name in names:
        assert getattr(infer, name) is getattr(loaded, name)
        assert name in infer.__all__


def test_every_exported_name_is_there() -> None:
    assert [name for name in infer.__all__ if not hasattr(infer, name)] == []
    assert sumprod.infer is infer
    assert infer.autoguide.AutoNormal.__name__ == "AutoNormal"
