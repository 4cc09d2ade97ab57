"""Peak memory of the HMM operators, each case in a fresh process.

Growth is the peak resident size during one call minus the resident size just before it (the input is
there already, and a small call has loaded the code and started the threads).  Limits: forward, the
output plus O(B*S); with gradients, the gradients plus O(B*T*S) once.  A fixed slack covers the allocator.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import sumprod
from _harness import Bench, DisagreementError, guarded
from _machine import limit_threads
from _memory import peak_growth
from _models import Model, with_gradient

SHAPES = ((64, 16384, 16), (64, 4096, 128), (256, 8192, 16))
# Allocator granularity, thread workspaces for one lane group, page-table noise.
SLACK_BYTES = 8 * 2**20
# "O(B*S)": a few messages per sequence.
MESSAGES = 64


def _run(name: str, model: Model) -> object:
    calls: dict[str, Callable[[], object]] = {
        "log_normalizer": lambda: sumprod.ops.hmm_log_normalizer(*model.parameters()),
        "forward and backward": lambda: with_gradient(
            sumprod.ops.hmm_log_normalizer, tuple(x.requires_grad_() for x in model.parameters())
        ),
        "filter": lambda: sumprod.ops.hmm_filter(*model.parameters()),
        "marginals": lambda: sumprod.ops.hmm_marginals(*model.parameters()),
        "viterbi": lambda: sumprod.ops.hmm_viterbi(*model.parameters()),
        "sample": lambda: sumprod.ops.hmm_sample(*model.parameters()),
    }
    return calls[name]()


def limit_bytes(name: str, shape: tuple[int, int, int]) -> float | None:
    """What the issue allows beyond the input, for the operators that it names."""
    batch, steps, states = shape
    if name == "log_normalizer":
        return 4.0 * batch * (1 + MESSAGES * states)
    if name == "forward and backward":
        # The gradient with respect to the emissions is an output; one such tensor more is allowed.
        return 2 * 4.0 * batch * steps * states + 4.0 * batch * MESSAGES * states
    return None


def child(name: str, shape: tuple[int, int, int], threads: int) -> int:
    """Measure one case and print the growth in bytes."""
    limit_threads(threads)
    _run(name, Model.random(shape[0], 8, shape[2]))
    model = Model.random(*shape)
    growth = peak_growth(lambda: _run(name, model))
    print(json.dumps({"growth": growth}))
    return 0


def measure(name: str, shape: tuple[int, int, int], threads: int) -> float:
    command = [sys.executable, __file__, "--child", name, *map(str, shape), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DisagreementError(f"memory case {name} {shape} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1])["growth"])


def main() -> int:
    bench = Bench("memory of the HMM operators", __doc__ or "")
    names = ("log_normalizer", "forward and backward", "filter", "marginals", "viterbi", "sample")
    for shape in SHAPES[:1] if bench.options.quick else SHAPES:
        for name in names:
            label = f"{name} {str(shape).replace(' ', '')}"
            if not bench.wants(label):
                continue
            growth = measure(name, shape, bench.options.threads)
            allowed = limit_bytes(name, shape)
            size = 4.0 * shape[0] * shape[1] * shape[2]
            row = {
                "case": label,
                "emissions MB": f"{size / 1e6:.1f}",
                "growth MB": f"{growth / 1e6:.1f}",
                "growth / emissions": f"{growth / size:.2f}",
            }
            if allowed is not None:
                met = growth <= allowed + SLACK_BYTES
                row["limit MB"] = f"{(allowed + SLACK_BYTES) / 1e6:.1f} ({bench.verdict(met)})"
            bench.add_row(row)
    return bench.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], tuple(map(int, sys.argv[3:6])), int(sys.argv[6])))  # type: ignore[arg-type]
    sys.exit(guarded(main))
