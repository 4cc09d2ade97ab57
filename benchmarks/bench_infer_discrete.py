"""`infer_discrete` on a hidden Markov model written as a loop, T=200, B=16, S=8, against Pyro.

Temperature 0 gives the most probable path, temperature 1 a draw from the joint posterior. The data are
numbers with normal noise around a level for each state. Paths of temperature 0 must be those of
`hmm_viterbi`; the frequencies of the states in draws must be their smoothing marginals.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import sumprod
from _harness import Bench, Peer, guarded, optional_import, require
from _svi import PACKAGES, THREADS

STEPS, BATCH, STATES = 200, 16, 8
AT_LEAST = 10.0
CHECKED_DRAWS = 8
# Standard errors: the chance that one of the 1,600 frequencies is further off is below 1e-5.
ALLOWED_ERRORS = 6.0


class Setting:
    """Parameters and data [B, T], drawn from the model's own levels with random jumps."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.initial = torch.full((STATES,), 1 / STATES)
        self.transition = (torch.randn(STATES, STATES, generator=draw) + 2 * torch.eye(STATES)).softmax(-1)
        self.levels = torch.arange(float(STATES))
        jumps = torch.randint(-1, 2, (BATCH, STEPS), generator=draw)
        states = jumps.cumsum(1).remainder(STATES)
        self.data = self.levels[states] + torch.randn(BATCH, STEPS, generator=draw)

    def potentials(self) -> tuple[Tensor, Tensor, Tensor]:
        """The log-potentials that the native operators take."""
        emission = torch.distributions.Normal(self.levels, 1.0).log_prob(self.data[..., None])
        return self.initial.log(), self.transition.log(), emission

    def inferred(self, pyro: Any, temperature: int) -> Callable[[], Tensor]:
        """A function that gives states [T, B]."""
        dist = pyro.distributions

        def model(data: Tensor) -> Tensor:
            states = []
            with pyro.plate("sequences", BATCH, dim=-1):
                for t in pyro.markov(range(STEPS)):
                    probabilities = self.transition[states[-1]] if states else self.initial
                    marked = {"enumerate": "parallel"}
                    states.append(pyro.sample(f"z{t}", dist.Categorical(probabilities), infer=marked))
                    pyro.sample(f"x{t}", dist.Normal(self.levels[states[-1]], 1.0), obs=data[:, t])
            # The first pass has all states at once; its result is not used.
            return torch.stack(states) if len({z.shape for z in states}) == 1 else states[0]

        decoded = pyro.infer.infer_discrete(model, first_available_dim=-2, temperature=temperature)
        return partial(decoded, self.data)


def require_best_paths(setting: Setting, paths: Tensor, who: str) -> None:
    """Stop unless the paths [T, B] are the most probable ones."""
    best = sumprod.ops.hmm_viterbi(*setting.potentials()).path.T
    require(torch.equal(paths, best), f"{who}: {int((paths != best).sum())} states are not on the best path")


def require_marginals(setting: Setting, draw: Callable[[], Tensor], who: str) -> None:
    """Stop unless the states of some draws are as frequent as they should be, at each step."""
    marginals = sumprod.ops.hmm_marginals(*setting.potentials()).double().exp().transpose(0, 1)
    draws = torch.stack([draw() for _ in range(CHECKED_DRAWS)])
    found = torch.nn.functional.one_hot(draws, STATES).double().mean((0, 2))
    expected = marginals.mean(1)
    variance = (marginals * (1 - marginals)).mean(1) / (BATCH * CHECKED_DRAWS)
    # A state that is hardly ever met has too few events for a normal law: one event more or less is allowed.
    excess = (found - expected).abs() - 1 / (BATCH * CHECKED_DRAWS)
    worst = float((excess / variance.clamp(min=1e-12).sqrt()).max())
    require(worst < ALLOWED_ERRORS, f"{who}: a state's frequency is {worst:.1f} standard errors off")


def main() -> int:
    bench = Bench("infer_discrete: HMM as a loop", __doc__ or "", PACKAGES, threads=THREADS)
    libraries: list[tuple[str, ModuleType | None]] = [("ours", sumprod), ("Pyro", optional_import("pyro"))]
    setting = Setting()
    for temperature, check in ((0, require_best_paths), (1, require_marginals)):
        label = f"T={STEPS}, B={BATCH}, S={STATES}, temperature {temperature}"
        if not bench.wants(label):
            continue
        calls = {}
        for name, library in libraries:
            if library is not None:
                library.set_rng_seed(0)
                calls[name] = setting.inferred(library, temperature)
                check(setting, calls[name]() if temperature == 0 else calls[name], f"{name}, {label}")
        bench.case(label, calls["ours"], [Peer("Pyro", calls.get("Pyro"), AT_LEAST)])
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
