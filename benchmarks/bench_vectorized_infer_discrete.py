"""`infer_discrete` on a hidden Markov model with vectorised time, T=200, B=16, S=8, against Pyro's loop.

Temperature 0 gives the most probable path, temperature 1 a draw from the joint posterior. The data are
numbers with normal noise around a level for each state. Paths of temperature 0 must be those of
`hmm_viterbi`; the frequencies of the states in draws must be their smoothing marginals.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from torch import Tensor

import sumprod
from _harness import Bench, Peer, guarded, optional_import
from _svi import PACKAGES, THREADS
from bench_infer_discrete import BATCH, STATES, STEPS, Setting, require_best_paths, require_marginals
from sumprod.distributions import Categorical, Normal

AT_LEAST = 100.0


def inferred(setting: Setting, temperature: int) -> Callable[[], Tensor]:
    """A function that gives states [T, B], as `Setting.inferred` does by a loop."""

    def step(before: Tensor | None, now: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = setting.initial if before is None else setting.transition[before]
        state = sumprod.sample("z", Categorical(probabilities), infer={"enumerate": "parallel"})
        sumprod.sample("x", Normal(setting.levels[state], 1.0), obs=now)
        return state, state

    def model(data: Tensor) -> Tensor:
        with sumprod.plate("sequences", BATCH, dim=-1):
            states: Tensor = sumprod.scan(step, None, data, dim=-2)[1]
        return states

    decoded = sumprod.infer.infer_discrete(model, first_available_dim=-3, temperature=temperature)
    return partial(decoded, setting.data.T.contiguous())


def main() -> int:
    bench = Bench("infer_discrete: HMM with vectorised time", __doc__ or "", PACKAGES, threads=THREADS)
    pyro = optional_import("pyro")
    setting = Setting()
    for temperature, check in ((0, require_best_paths), (1, require_marginals)):
        label = f"T={STEPS}, B={BATCH}, S={STATES}, temperature {temperature}"
        if not bench.wants(label):
            continue
        calls = {"ours": inferred(setting, temperature)}
        if pyro is not None:
            calls["Pyro"] = setting.inferred(pyro, temperature)
        for name, call in calls.items():
            (sumprod if name == "ours" else pyro).set_rng_seed(0)  # type: ignore[union-attr]
            check(setting, call() if temperature == 0 else call, f"{name}, {label}")
        bench.case(label, calls["ours"], [Peer("Pyro loop", calls.get("Pyro"), AT_LEAST)])
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
