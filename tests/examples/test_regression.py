"""The regression example: its exact posterior by another way, and the program with small sizes."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

missing = [name for name in ("matplotlib", "sklearn") if find_spec(name) is None]
if missing:  # no skip: the test extra installs them
    pytest.fail(f'these tests need {", ".join(missing)}: pip install "sumprod[test]"', pytrace=False)

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import matplotlib.image  # noqa: E402
from scipy.stats import multivariate_t  # noqa: E402

import regression  # noqa: E402
from sumprod import handlers  # noqa: E402
from sumprod.infer.autoguide import AutoMultivariateNormal  # noqa: E402


@pytest.fixture(scope="module")
def data() -> regression.Data:
    return regression.load(seed=0, limit=80)


def test_the_data_are_standardised_by_the_training_part(data: regression.Data) -> None:
    assert data.x.shape == (60, 11)
    assert data.test_x.shape == (20, 11)
    assert data.names[:3] == ["constant", "age", "sex"]
    torch.testing.assert_close(data.x[:, 1:].mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x[:, 1:].std(0), torch.ones(10), atol=1e-4, rtol=0)
    assert (data.x[:, 0] == 1).all()
    whole = regression.load(seed=0, limit=None)
    assert len(whole.y) + len(whole.test_y) == 442


def test_the_evidence_is_that_of_a_multivariate_t(data: regression.Data) -> None:
    x, y = data.x.double(), data.y.double()
    shape = torch.eye(len(y), dtype=torch.float64) + regression.PRIOR_SCALE**2 * x @ x.T
    marginal = multivariate_t(
        loc=[0.0] * len(y), shape=regression.RATE / regression.SHAPE * shape.numpy(), df=2 * regression.SHAPE
    )
    assert regression.exact_posterior(data).log_evidence == pytest.approx(
        marginal.logpdf(y.numpy()), abs=1e-6
    )


def test_predictive_densities_are_ratios_of_evidences(data: regression.Data) -> None:
    exact = regression.exact_posterior(data)
    found = exact.log_predictive(data.test_x.double(), data.test_y.double())
    for i in range(3):
        more = data._replace(
            x=torch.cat([data.x, data.test_x[i : i + 1]]), y=torch.cat([data.y, data.test_y[i : i + 1]])
        )
        ratio = regression.exact_posterior(more).log_evidence - exact.log_evidence
        assert float(found[i]) == pytest.approx(ratio, abs=1e-6)


def test_the_model_has_the_density_that_the_update_assumes(data: regression.Data) -> None:
    """log p(y, w, v) - log p(w, v | y) is the evidence at any w and v."""
    exact = regression.exact_posterior(data)
    for v, shift in ((0.4, 0.0), (0.9, 0.1)):
        w = exact.mean.float() + shift
        fixed = handlers.condition(regression.model, data={"weights": w, "variance": torch.tensor(v)})
        joint = handlers.trace(fixed).get_trace(data.x, data.y).log_prob_sum()
        posterior = torch.distributions.MultivariateNormal(exact.mean, v * exact.covariance).log_prob(
            w.double()
        )
        gamma = torch.distributions.Gamma(exact.shape, exact.rate)
        posterior = (
            posterior + gamma.log_prob(torch.tensor(1 / v, dtype=torch.float64)) - 2 * torch.tensor(v).log()
        )
        assert float(joint - posterior) == pytest.approx(exact.log_evidence, abs=2e-3)


def test_the_guide_with_full_covariance_comes_near(data: regression.Data) -> None:
    exact = regression.exact_posterior(data)
    fitted = regression.fit(AutoMultivariateNormal, data, steps=400, samples=2000, seed=0)
    # Standard error of an ELBO from 500 draws: below 0.05.
    assert exact.log_evidence - 1.5 < fitted.elbo < exact.log_evidence + 0.25
    assert ((fitted.weights.mean(0) - exact.mean) / exact.sds()).abs().max() < 0.4
    assert fitted.predicted.shape == (2000, 20)
    truth = exact.log_predictive(data.test_x.double(), data.test_y.double()).mean()
    assert float(fitted.log_predictive.mean()) == pytest.approx(float(truth), abs=0.1)


def test_the_program_from_the_command_line_to_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "regression.png"
    sizes = ["--patients", "60", "--steps", "30", "--samples", "200"]
    regression.main([*sizes, "--seed", "1", "--out", str(out)])
    printed = capsys.readouterr()
    assert "training on 45 patients, testing on 15" in printed.out
    for name in ("exact posterior", "AutoMultivariateNormal", "AutoDiagonalNormal"):
        assert name in printed.out
    lines = printed.out.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("weight "))) + 1 :][:12]
    assert [line.split()[0] for line in table] == [*regression.load(1, 60).names, "noise"]
    assert "30/30" in printed.err
    assert min(matplotlib.image.imread(out).shape[:2]) > 500
