"""hmm_marginals (log smoothing marginals) against dynamax's two smoothers."""

from __future__ import annotations

import sys

from torch import Tensor

import _peers
import sumprod
from _harness import Bench, Floor, Peer, guarded, require_close
from _models import Model, flops, scaled_loop, with_gradient

CASES: tuple[tuple[tuple[int, int, int], float | None], ...] = (
    ((64, 256, 16), 8.0),
    ((64, 1024, 32), None),
    ((64, 256, 128), None),
)


def torch_marginals(model: Model, leaf: Tensor) -> Tensor:
    """Smoothing marginals as the gradient of the torch scaled loop (probabilities, not logs)."""
    return with_gradient(lambda x: scaled_loop(model.initial, model.transition, x), (leaf,))[1]


def check(label: str, model: Model, contenders: list[Peer]) -> None:
    exact = model.double()
    expected = torch_marginals(exact, exact.emission.requires_grad_())
    ours = sumprod.ops.hmm_marginals(*model.parameters())
    require_close(f"{label} ours", ours.double().exp(), expected, rtol=0, atol=1e-4)
    for peer in contenders:
        if peer.run is not None:
            answer = peer.run()
            theirs = answer if isinstance(answer, Tensor) else _peers.to_torch(answer)
            require_close(f"{label} {peer.name}", theirs, expected, rtol=0, atol=2e-3)


def add_case(bench: Bench, label: str, shape: tuple[int, int, int], target: float | None) -> None:
    model = Model.random(*shape)
    leaf = model.emission.clone().requires_grad_()
    contenders = [
        Peer("dynamax smoother", _peers.dynamax_smoother(model), target),
        Peer("dynamax two-filter smoother", _peers.dynamax_two_filter(model)),
        Peer("torch scaled loop, gradient", lambda: torch_marginals(model, leaf)),
    ]
    check(label, model, contenders)
    floor = Floor(2 * flops(model), 8.0 * model.emission.numel())
    bench.case(label, lambda: sumprod.ops.hmm_marginals(*model.parameters()), contenders, floor)


def main() -> int:
    bench = Bench("hmm_marginals", __doc__ or "", _peers.PACKAGES[:2])
    for shape, target in CASES:
        label = str(shape).replace(" ", "")
        if not bench.wants(label, heavy=shape[2] >= 128):
            continue
        add_case(bench, label, shape, target)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(guarded(main))
