"""The mixture example: its likelihood and assignments by another way, and the program with small sizes."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

missing = [name for name in ("matplotlib", "sklearn", "tqdm") if find_spec(name) is None]
if missing:  # no skip: the test extra installs them
    pytest.fail(f'these tests need {", ".join(missing)}: pip install "sumprod[test]"', pytrace=False)

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import matplotlib.image  # noqa: E402
from scipy.stats import multivariate_normal  # noqa: E402
from sklearn.mixture import GaussianMixture  # noqa: E402

import mixture  # noqa: E402
from sumprod import handlers  # noqa: E402

COMPONENTS, SIZE, STEPS = 4, 3, 60


@pytest.fixture(scope="module")
def data() -> mixture.Data:
    return mixture.load(seed=0, limit=200, size=SIZE)


@pytest.fixture(scope="module")
def fitted(data: mixture.Data) -> tuple[mixture.Parameters, list[float]]:
    return mixture.fit(data, COMPONENTS, STEPS, seed=0)


def joint(parameters: mixture.Parameters, x: torch.Tensor) -> torch.Tensor:
    """log p(z, x) by scipy, [N, K] in float64: an independent witness."""
    roots = parameters.roots().double()
    return (
        torch.stack(
            [
                torch.from_numpy(
                    multivariate_normal(mean.numpy(), (root @ root.mT).numpy()).logpdf(x.numpy())
                )
                for mean, root in zip(parameters.means.double(), roots, strict=True)
            ],
            dim=-1,
        )
        + parameters.weights.double().log()
    )


def test_training_digits_have_unit_variance(data: mixture.Data) -> None:
    assert data.x.shape == (160, SIZE)
    assert data.test_x.shape == (40, SIZE)
    torch.testing.assert_close(data.x.mean(0), torch.zeros(SIZE), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x.var(0), torch.ones(SIZE), atol=1e-4, rtol=0)
    assert set(data.labels.tolist()) == set(range(10))


def test_scores_and_assignments_are_those_of_the_joint_density(
    data: mixture.Data, fitted: tuple[mixture.Parameters, list[float]]
) -> None:
    parameters, _ = fitted
    expected = joint(parameters, data.test_x)
    log_likelihood = mixture.log_likelihood(parameters, data.test_x)
    assert log_likelihood == pytest.approx(float(expected.logsumexp(-1).mean()), abs=1e-4)
    found = mixture.responsibilities(parameters, data.test_x)
    torch.testing.assert_close(found.double(), expected.softmax(-1), atol=1e-4, rtol=1e-3)
    assert torch.equal(mixture.assign(parameters, data.test_x), expected.argmax(-1))


def test_scikit_learn_gives_its_own_result_the_same_score(data: mixture.Data) -> None:
    found = GaussianMixture(COMPONENTS, random_state=0, max_iter=1000).fit(data.x.double().numpy())
    parameters = mixture.expectation_maximisation(data, COMPONENTS, seed=0)
    for x in (data.x, data.test_x):
        score = found.score(x.double().numpy())
        assert mixture.log_likelihood(parameters, x) == pytest.approx(score, abs=1e-3)


def test_fitting_raises_the_likelihood_and_stays_near_the_maximum(
    data: mixture.Data, fitted: tuple[mixture.Parameters, list[float]]
) -> None:
    parameters, losses = fitted
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.1
    started = mixture.k_means(data.x, COMPONENTS, seed=0)
    maximum = mixture.expectation_maximisation(data, COMPONENTS, seed=0)
    scores = [mixture.log_likelihood(p, data.x) for p in (started, parameters, maximum)]
    assert scores[0] < scores[1] < scores[2] + 0.05  # another maximum may be a little higher
    assert scores[2] - scores[1] < 0.3
    assert all(not values.requires_grad for values in parameters)
    torch.testing.assert_close(parameters.weights.sum(), torch.tensor(1.0))


def test_the_loss_is_minus_likelihood_and_prior(
    data: mixture.Data, fitted: tuple[mixture.Parameters, list[float]]
) -> None:
    _, losses = fitted
    start = mixture.k_means(data.x, COMPONENTS, seed=0)
    fixed = handlers.condition(mixture.program, data=start._asdict())
    hidden = handlers.block(fixed, hide=["x", "z"])
    prior = handlers.trace(hidden).get_trace(data.x, COMPONENTS).log_prob_sum()
    expected = -mixture.log_likelihood(start, data.x) - float(prior) / len(data.x)
    # k-means runs again inside the fit, from the same seed.
    assert losses[0] == pytest.approx(expected, abs=1e-3)


def test_components_are_named_by_their_majority() -> None:
    means = torch.tensor([[-5.0, 0.0], [5.0, 0.0]])
    parameters = mixture.Parameters(
        torch.tensor([0.5, 0.5]), means, torch.ones(2, 2), torch.eye(2).expand(2, 2, 2)
    )
    x = torch.tensor([[-5.0, 0.1], [-4.0, 0.0], [-5.5, 0.0], [5.0, 0.0], [4.0, 0.0]])
    labels = torch.tensor([3, 3, 8, 1, 1])
    test_x, test_labels = (
        torch.tensor([[-5.0, 0.0], [-5.0, 1.0], [5.0, 0.0], [6.0, 0.0]]),
        torch.tensor([3, 8, 1, 1]),
    )
    data = mixture.Data(x, test_x, labels, test_labels, None)
    assert mixture.recognised(parameters, data) == 0.75


@pytest.mark.parametrize("components", [1, 5])
def test_the_program_from_the_command_line_to_the_picture(
    components: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mixture.png"
    sizes = ["--digits", "120", "--size", "2", "--components", str(components), "--steps", "15"]
    mixture.main([*sizes, "--seed", "1", "--out", str(out)])
    printed = capsys.readouterr()
    assert "training on 96 digits, testing on 24" in printed.out
    for name in ("one component", f"{components} components, scikit-learn", f"{components} components, SVI"):
        assert name in printed.out
    assert "15/15" in printed.err
    assert min(matplotlib.image.imread(out).shape[:2]) > 500
