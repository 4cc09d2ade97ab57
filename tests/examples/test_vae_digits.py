"""The digits example: its pieces, and the program with small sizes."""

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

import sumprod  # noqa: E402
import vae_digits  # noqa: E402
from sumprod import handlers  # noqa: E402
from sumprod.infer import Trace_ELBO, TraceMeanField_ELBO  # noqa: E402

SIZES = {"latent": 2, "hidden": 16, "epochs": 40, "batch": 20}


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    return vae_digits.load(150, seed=0)


@pytest.fixture(scope="module")
def trained(digits: tuple[torch.Tensor, torch.Tensor]) -> vae_digits.Run:
    return vae_digits.train_vae(TraceMeanField_ELBO(), *digits, **SIZES, seed=0)


def test_digits_are_counts(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    train, test = digits
    assert train.shape == (120, 64)
    assert test.shape == (30, 64)
    assert train.min() == 0
    assert train.max() == 16
    assert torch.equal(train, train.round())


def test_training_raises_the_bound_above_independent_pixels(
    digits: tuple[torch.Tensor, torch.Tensor], trained: vae_digits.Run
) -> None:
    assert len(trained.train) == len(trained.test) == SIZES["epochs"]
    assert trained.train[-1] > trained.train[0] + 20
    assert trained.log_likelihood > vae_digits.independent_log_likelihood(*digits)
    assert trained.log_likelihood > trained.test[-1] - 1


def test_the_two_losses_estimate_one_bound(
    digits: tuple[torch.Tensor, torch.Tensor], trained: vae_digits.Run
) -> None:
    train, _ = digits
    vae = trained.vae
    means = []
    for loss in (Trace_ELBO(), TraceMeanField_ELBO()):
        sumprod.set_rng_seed(0)
        sumprod.clear_param_store()
        values = torch.tensor([loss.loss(vae.model, vae.guide, train) for _ in range(60)]).double()
        means.append((values.mean(), values.std() / 60**0.5))
    difference = (means[0][0] - means[1][0]).abs()
    assert difference < 5 * (means[0][1] ** 2 + means[1][1] ** 2).sqrt()  # 5 standard errors: 6e-7


def test_the_networks_are_registered_and_trained(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    sumprod.clear_param_store()
    vae = vae_digits.VAE(2, 16)
    x = digits[0][:5]
    trace = handlers.trace(
        handlers.replay(vae.model, trace=handlers.trace(vae.guide).get_trace(x))
    ).get_trace(x)
    assert trace.nodes["z"]["value"].shape == (5, 2)
    assert trace.nodes["x"]["fn"].batch_shape == (5,)
    names = set(sumprod.get_param_store())
    assert {name.split("$$$")[0] for name in names} == {"decoder", "encoder"}
    assert len(names) == len([*vae.encoder.parameters(), *vae.decoder.parameters()])


def test_noise_is_relative_to_the_gradient(
    digits: tuple[torch.Tensor, torch.Tensor], trained: vae_digits.Run
) -> None:
    noise = vae_digits.measure(Trace_ELBO(), trained.vae, digits[0][:20], seed=0)
    assert 0 < noise < 10
    many = Trace_ELBO(num_particles=16, max_plate_nesting=1, vectorize_particles=True)
    # Sixteen draws have a quarter of the noise; 200 repetitions tell it to about a tenth.
    assert vae_digits.measure(many, trained.vae, digits[0][:20], seed=1) == pytest.approx(noise / 4, rel=0.3)


def test_a_mosaic_keeps_images_upright() -> None:
    images = torch.zeros(2, 3, 64)
    images[1, 2, 8 * 3 + 5] = 1.0
    picture = vae_digits.mosaic(images)
    assert picture.shape == (20, 30)
    assert picture.nonzero().tolist() == [[10 + 1 + 3, 20 + 1 + 5]]


@pytest.mark.parametrize("digits", [20, 300])
def test_the_program_from_the_command_line_to_the_picture(
    digits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vae.png"
    sizes = ["--latent", "2", "--hidden", "8", "--epochs", "2", "--batch", "64"]
    vae_digits.main(["--digits", str(digits), *sizes, "--seed", "1", "--out", str(out)])
    printed = capsys.readouterr()
    assert f"training on {digits - round(0.2 * digits)} digits" in printed.out
    for name in ("pixels independent", "Trace_ELBO", "TraceMeanField_ELBO"):
        assert name in printed.out
    assert "2/2" in printed.err
    assert min(matplotlib.image.imread(out).shape[:2]) > 400
