"""The eight-schools example: its exact posterior by another way, and the program with small sizes."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import sumprod
from sumprod import handlers

if find_spec("matplotlib") is None:  # no skip: the test extra installs it
    pytest.fail('these tests need matplotlib: pip install "sumprod[test]"', pytrace=False)

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import matplotlib.image  # noqa: E402

import eight_schools  # noqa: E402


@pytest.fixture(scope="module")
def exact() -> eight_schools.Exact:
    return eight_schools.exact_posterior()


def test_the_exact_posterior_agrees_with_weighted_draws_from_the_prior(exact: eight_schools.Exact) -> None:
    """The same integrals by drawing tau and mu from their priors and weighing with p(y | tau, mu)."""
    generator = torch.Generator().manual_seed(0)
    n = 2_000_000
    tau = 100 * torch.rand(n, generator=generator, dtype=torch.float64)
    mu = 100 * torch.randn(n, generator=generator, dtype=torch.float64)
    log_weights = torch.zeros(n, dtype=torch.float64)
    theta = []
    for y, sigma in zip(eight_schools.EFFECTS.double(), eight_schools.ERRORS.double(), strict=True):
        variance = tau**2 + sigma**2
        log_weights += -0.5 * ((y - mu) ** 2 / variance + (2 * math.pi * variance).log())
        theta.append((tau**2 * y + sigma**2 * mu) / variance)
    evidence = log_weights.logsumexp(0) - math.log(n)
    weights = log_weights.softmax(0)
    ess = float(1 / weights.square().sum())
    # About 20,000 effective draws: errors of means are 0.007 posterior standard deviations; 6 of them here.
    assert ess > 10_000
    assert exact.log_evidence == pytest.approx(float(evidence), abs=6 / math.sqrt(ess))
    means = torch.stack([weights @ tau, weights @ mu, *(weights @ t for t in theta)])
    assert ((means - exact.means) / exact.sds).abs().max() < 6 / math.sqrt(ess)
    assert float((weights @ tau**2 - means[0] ** 2).sqrt()) == pytest.approx(float(exact.sds[0]), rel=0.05)


def test_the_exact_posterior_agrees_with_the_book(exact: eight_schools.Exact) -> None:
    """The book's medians come from 200 draws and are rounded: their error is about one half each."""
    book = torch.tensor(eight_schools.BOOK_MEDIANS, dtype=torch.float64)
    assert (exact.medians - book).abs().max() < 1.2
    assert float(exact.tau_density.sum() * 100 / len(exact.tau)) == pytest.approx(1.0, abs=1e-9)


def test_medians_of_mixtures() -> None:
    weights = torch.tensor([0.25, 0.75])
    means, sds = torch.tensor([[-5.0], [0.0]]), torch.ones(2, 1)
    median = eight_schools.mixture_medians(weights, means, sds)
    below = (weights[:, None] * torch.special.ndtr((median - means) / sds)).sum()
    assert float(below) == pytest.approx(0.5, abs=1e-5)
    values = torch.tensor([[3.0, 30.0], [1.0, 10.0], [2.0, 20.0]])
    assert eight_schools.weighted_medians(torch.tensor([0.6, 0.1, 0.3]), values).tolist() == [3.0, 30.0]
    assert eight_schools.weighted_medians(torch.tensor([0.2, 0.3, 0.5]), values).tolist() == [2.0, 20.0]


def test_both_ways_to_write_the_model_have_the_same_density() -> None:
    z = torch.randn(8)
    fixed = {"mu": torch.tensor(3.0), "tau": torch.tensor(2.5)}
    theta = 3.0 + 2.5 * z
    written = [
        handlers.trace(handlers.condition(model, data={**fixed, **latent})).get_trace().log_prob_sum()
        for model, latent in (
            (eight_schools.centred, {"theta": theta}),
            (eight_schools.non_centred, {"z": z}),
        )
    ]
    # The densities of theta and z differ by the constant 8 log tau.
    assert float(written[1] - written[0]) == pytest.approx(8 * math.log(2.5), abs=1e-4)


def test_importance_sampling_corrects_a_guide(exact: eight_schools.Exact) -> None:
    task = eight_schools.tasks()[-1]
    fitted = eight_schools.fit(task, steps=400, samples=4000, seed=0)
    assert fitted.elbo < exact.log_evidence + 0.1
    assert fitted.log_evidence == pytest.approx(exact.log_evidence, abs=0.3)
    error = ((fitted.corrected_means - exact.means) / exact.sds).abs().max()
    # A few hundred effective draws or more: 0.35 is five standard errors at 200.
    assert fitted.ess > 200
    assert error < 0.35


def test_the_program_from_the_command_line_to_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "schools.png"
    eight_schools.main(["--steps", "20", "--samples", "500", "--seed", "1", "--out", str(out)])
    printed = capsys.readouterr()
    assert "log p(y) = -35.252" in printed.out
    for task in eight_schools.tasks():
        assert task.name in printed.out
    table = printed.out.split("school ")[1].splitlines()[1:9]
    assert [line.split()[0] for line in table] == list("ABCDEFGH")
    assert "20/20" in printed.err
    assert min(matplotlib.image.imread(out).shape[:2]) > 500
    assert not sumprod.runtime.am_i_wrapped()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "argument --steps: must be at least 1, not 0"),
        (["--samples", "5"], "argument --samples: must be at least 100, not 5"),
        (["--out", "a.xyz"], "argument --out: 'a.xyz' must end in one of ."),
        (["--out", "no/such/folder/a.png"], "argument --out: there is no folder"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        eight_schools.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("program", ["eight_schools", "mixture", "regression", "vae_digits"])
def test_a_missing_extra_is_named_in_one_line(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in {"matplotlib", "options", program}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stop:
        __import__(program)
    assert stop.value.code == 'this example needs matplotlib: pip install "sumprod[examples]"'


@pytest.mark.parametrize("program", ["mixture", "regression", "vae_digits"])
def test_scikit_learn_is_called_by_the_name_to_install(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in {"sklearn", program}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SystemExit) as stop:
        __import__(program)
    assert stop.value.code == 'this example needs scikit-learn: pip install "sumprod[examples]"'


def test_help_works_as_a_program() -> None:
    command = [sys.executable, str(EXAMPLES / "eight_schools.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for option in ("--steps", "--samples", "--seed", "--out"):
        assert option in done.stdout
