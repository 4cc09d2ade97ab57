"""A variational autoencoder of handwritten digits, trained by two estimates of the same bound.

    python examples/vae_digits.py              # about a minute, writes vae_digits.png
    python examples/vae_digits.py --help

The data are 1,797 digits bundled with scikit-learn: bitmaps of 32 x 32, of which every pixel here is a block
of 4 x 4, so that its value is the number of the 16 small pixels that are on. A binomial is its natural law:

    z ~ N(0, I)    x_k ~ Binomial(16, sigmoid(decoder(z)_k)), k = 1 ... 64

The guide is z ~ N(encoder(x)), normal with diagonal covariance (Kingma and Welling 2014). `Trace_ELBO`
estimates the whole bound from a draw of z; `TraceMeanField_ELBO` knows the Kullback-Leibler divergence of two
normals and estimates only the rest. Both are right on average. The program trains with each from the same
start, and compares the bounds on unseen digits and the noise of the gradients. Importance weighting
(`RenyiELBO` with alpha = 0; Burda et al. 2016) tells how much of the bound's gap is the guide's.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import sumprod
from sumprod.distributions import Binomial, Normal
from sumprod.infer import ELBO, SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from sumprod.optim import Adam

try:
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
    from tqdm import tqdm

    from options import at_least, picture
except ModuleNotFoundError as error:
    package = {"sklearn": "scikit-learn"}.get(name := (error.name or "").partition(".")[0], name)
    if package not in {"matplotlib", "scikit-learn", "tqdm"}:
        raise
    raise SystemExit(f'this example needs {package}: pip install "sumprod[examples]"') from None

LEVELS = 16  # small pixels per pixel
PIXELS = 64
TEST_SHARE = 0.2
ROWS, COLUMNS = 6, 8  # of the pictures of digits


# ---- the data --------------------------------------------------------------------------------------------


def load(limit: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Training and test digits, drawn at random, [N, 64] and [M, 64] with values 0 ... 16."""
    digits = torch.from_numpy(load_digits().data).float()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))[:limit]
    tests = max(1, round(TEST_SHARE * len(order)))
    return digits[order[tests:]], digits[order[:tests]]


def independent_log_likelihood(train: Tensor, test: Tensor) -> float:
    """Mean log p(x) of the test digits when every pixel has its own binomial, whatever the others are."""
    share = (train.sum(0) + 1) / (LEVELS * len(train) + 2)
    return float(Binomial(LEVELS, share).log_prob(test).sum(-1).mean())


# ---- the model -------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """From z [..., L] to the logits of the pixels [..., 64]."""

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, PIXELS))

    def forward(self, z: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.layers(z)
        return logits


class Encoder(nn.Module):
    """From x [..., 64] to mean and standard deviation of z, each [..., L]."""

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(PIXELS, hidden), nn.Softplus())
        self.mean = nn.Linear(hidden, latent)
        self.log_sd = nn.Linear(hidden, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation."""
        h = self.hidden(x / LEVELS - 0.5)
        return self.mean(h), self.log_sd(h).exp()


class VAE:
    """The two networks, and the programs that use them."""

    def __init__(self, latent: int, hidden: int) -> None:
        self.latent = latent
        self.decoder = Decoder(latent, hidden)
        self.encoder = Encoder(latent, hidden)

    def model(self, x: Tensor) -> None:
        """Digits x [N, 64] from latent vectors."""
        decoder = sumprod.module("decoder", self.decoder)
        with sumprod.plate("digits", len(x)):
            z = sumprod.sample("z", Normal(torch.zeros(self.latent), 1.0).to_event(1))
            sumprod.sample("x", Binomial(LEVELS, logits=decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Latent vectors of digits x [N, 64]."""
        encoder = sumprod.module("encoder", self.encoder)
        with sumprod.plate("digits", len(x)):
            mean, sd = encoder(x)
            sumprod.sample("z", Normal(mean, sd).to_event(1))

    @torch.no_grad()
    def pixels(self, z: Tensor) -> Tensor:
        """The expected pixels, between 0 and 1, of latent vectors [..., L]: [..., 64]."""
        return self.decoder(z).sigmoid()


# ---- training --------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A VAE trained by one loss."""

    name: str
    vae: VAE
    train: list[float]  # ELBO per training digit, by epoch
    test: list[float]  # ELBO per test digit, by epoch
    log_likelihood: float  # importance-weighted bound per test digit


def train_vae(
    loss: ELBO, train: Tensor, test: Tensor, *, latent: int, hidden: int, epochs: int, batch: int, seed: int
) -> Run:
    """Train from a start that depends only on the seed."""
    name = type(loss).__name__
    sumprod.clear_param_store()
    sumprod.set_rng_seed(seed)
    vae = VAE(latent, hidden)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 3e-3}), loss)
    history, held_out = [], []
    with tqdm(range(epochs), desc=f"{name:20}", unit="epoch") as bar:
        for _ in bar:
            total = sum(svi.step(part) for part in train[torch.randperm(len(train))].split(batch))
            history.append(-total / len(train))
            held_out.append(-svi.evaluate_loss(test) / len(test))
            bar.set_postfix(test_elbo=f"{held_out[-1]:.2f}", refresh=False)
    return Run(name, vae, history, held_out, importance_weighted(vae, test))


def importance_weighted(vae: VAE, test: Tensor, draws: int = 200) -> float:
    """The bound with `draws` weighted draws per digit: nearer to log p(x) than the ELBO."""
    bound = RenyiELBO(alpha=0, num_particles=draws, max_plate_nesting=1, vectorize_particles=True)
    losses = [bound.loss(vae.model, vae.guide, part) for part in test.split(50)]
    return -sum(losses) / len(test)


def gradient_noise(loss: ELBO, vae: VAE, x: Tensor, repeats: int, seed: int) -> float:
    """Standard deviation of the estimated gradient, relative to the length of its mean."""
    sumprod.set_rng_seed(seed)
    parameters = [*vae.encoder.parameters(), *vae.decoder.parameters()]
    gradients = []
    for _ in range(repeats):
        value = loss.differentiable_loss(vae.model, vae.guide, x)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    stacked = torch.stack(gradients)
    mean = stacked.mean(0)
    return float((stacked - mean).square().sum(-1).mean().sqrt() / mean.norm())


# ---- tables and picture ----------------------------------------------------------------------------------


def compare(runs: Sequence[Run], noises: Sequence[Sequence[float]], independent: float) -> str:
    """A table, one line per loss."""
    lines = [
        f"{'nats per digit':28}{'ELBO, training':>16}{'ELBO, test':>12}{'log p(x), test':>16}"
        f"{'gradient noise: at start':>26}{'at end':>8}",
        f"{'pixels independent':28}{'':16}{'':12}{independent:16.2f}",
    ]
    for run, (start, end) in zip(runs, noises, strict=True):
        lines.append(
            f"{run.name:28}{run.train[-1]:16.2f}{run.test[-1]:12.2f}{run.log_likelihood:16.2f}"
            f"{start:26.2f}{end:8.2f}"
        )
    return "\n".join(lines)


def draw(out: Path, runs: Sequence[Run], test: Tensor, seed: int) -> None:
    """Write a picture: the bounds by epoch, test digits with their reconstructions, and new digits."""
    vae = runs[-1].vae
    shown = test[: ROWS // 2 * COLUMNS]
    with torch.no_grad():
        mean, _ = vae.encoder(shown)
    images = torch.zeros(2, ROWS // 2 * COLUMNS, PIXELS)
    images[0, : len(shown)], images[1, : len(shown)] = shown / LEVELS, vae.pixels(mean)
    pairs = images.reshape(2, ROWS // 2, COLUMNS, PIXELS).transpose(0, 1).flatten(0, 1)
    z = torch.randn(ROWS, COLUMNS, vae.latent, generator=torch.Generator().manual_seed(seed))
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.2, 1, 1])
    for run, colour in zip(runs, ("tab:orange", "tab:blue"), strict=True):
        epochs = range(1, len(run.test) + 1)
        left.plot(epochs, run.test, color=colour, label=f"{run.name}, test")
        left.plot(epochs, run.train, color=colour, linestyle=":", label=f"{run.name}, training")
    last = [values[-1] for run in runs for values in (run.train, run.test)]
    left.set(xlabel="epoch", ylabel="ELBO (nats per digit)", ylim=(min(last) - 30, max(last) + 5))
    left.legend(fontsize=8, loc="lower right")
    left.set_title("Two estimates of one bound", loc="left")
    middle.imshow(mosaic(pairs).numpy(), cmap="gray_r", vmin=0, vmax=1)
    middle.set_title("Test digits above their reconstructions", loc="left")
    right.imshow(mosaic(vae.pixels(z)).numpy(), cmap="gray_r", vmin=0, vmax=1)
    right.set_title("New digits: the decoder at draws of z", loc="left")
    for axes in (middle, right):
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(out, dpi=130)


def mosaic(images: Tensor) -> Tensor:
    """Images [R, C, 64] as one picture of R rows and C columns, with a margin of one pixel."""
    rows, columns, _ = images.shape
    framed = nn.functional.pad(images.reshape(rows, columns, 8, 8), (1, 1, 1, 1))
    return framed.permute(0, 2, 1, 3).reshape(rows * 10, columns * 10)


# ---- the program -----------------------------------------------------------------------------------------


def run(
    *, digits: int | None, latent: int, hidden: int, epochs: int, batch: int, seed: int, out: Path
) -> None:
    """Train with both losses, compare, draw."""
    train, test = load(digits, seed)
    print(f"training on {len(train)} digits, testing on {len(test)}; {latent} latent dimensions")
    losses = [Trace_ELBO(), TraceMeanField_ELBO()]
    sizes = {"latent": latent, "hidden": hidden, "epochs": epochs, "batch": batch, "seed": seed}
    runs = [train_vae(loss, train, test, **sizes) for loss in losses]
    sumprod.clear_param_store()
    sumprod.set_rng_seed(seed)
    places = [VAE(latent, hidden), runs[-1].vae]  # both losses are measured at the same parameters
    noises = [[measure(loss, vae, train[:batch], seed) for vae in places] for loss in losses]
    print("\n" + compare(runs, noises, independent_log_likelihood(train, test)))
    gap = runs[-1].log_likelihood - runs[-1].test[-1]
    print(
        "\nGradient noise: the standard deviation of a minibatch's gradient, relative to its length."
        "\nBoth losses end at the same bound. Where their noise is alike, it comes from reconstructing a draw"
        f"\nof z, which both do. The bound is at least {gap:.1f} nats below log p(x) because of the guide."
    )
    draw(out, runs, test, seed)
    print(f"\nwrote {out}")


def measure(loss: ELBO, vae: VAE, x: Tensor, seed: int) -> float:
    """`gradient_noise` at the parameters of `vae`, which may not be those in the store."""
    sumprod.clear_param_store()
    return gradient_noise(loss, vae, x, 200, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Train a variational autoencoder on handwritten digits.")
    add = parser.add_argument
    add("--digits", type=at_least(20), metavar="N", help="use only N digits (all 1797)")
    add("--latent", type=at_least(1), default=8, metavar="L", help="latent dimensions (%(default)s)")
    add("--hidden", type=at_least(1), default=128, metavar="H", help="hidden units (%(default)s)")
    add("--epochs", type=at_least(1), default=100, metavar="N", help="passes over the data (%(default)s)")
    add("--batch", type=at_least(1), default=64, metavar="N", help="digits per step (%(default)s)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of split, start and draws (%(default)s)")
    add("--out", type=picture, default="vae_digits.png", metavar="FILE", help="picture (%(default)s)")
    run(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
