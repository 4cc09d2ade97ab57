"""HMMs, logsumexp and contraction on one GPU, against floors, torch loops in CUDA graphs, Pyro and the CPU.

Shapes are (B, T, S), float32. The floor is that of an H200: bytes over 4.3 TB/s, flops over 67 TFLOP/s, or
70 ns per dependent step, whichever is most. "ours" is called from Python; "ours captured" is one CUDA graph.
Answers are compared with float64 on the CPU before anything is timed. Checks that make the host wait for the
GPU are off.

    python benchmarks/bench_gpu.py --device cpu --tiny      only compares answers, small ones, anywhere
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import sumprod
from _gpu import Contender, bytes_floor, captured, hmm_floor, race, ratio
from _harness import guarded, optional_import, render, require, require_close
from _machine import machine_line
from _models import Model, scaled_loop
from bench_hmm_viterbi import score, torch_viterbi
from sumprod import ops, settings
from sumprod.ops.contraction import contract

SHAPES = ((256, 1000, 64), (64, 512, 512), (1, 1_000_000, 8), (4096, 128, 16))
TINY_SHAPES = ((3, 10, 4), (1, 50, 3))
TARGET_SHAPE = (256, 1000, 64)
FLOOR_AT_MOST, LOOP_AT_LEAST, CPU_AT_LEAST = 4.0, 20.0, 20.0
LONGEST_LOOP = 5000  # steps of a torch loop that a CUDA graph can be made of
CPU_THREADS = 16
LOGSUMEXP = (((1000, 1000), -1), ((64, 100_000), -1), ((256, 128, 64), 1))
TINY_LOGSUMEXP = (((5, 7), -1), ((3, 4, 5), 1))
CHAIN, TINY_CHAIN = (200, 16, 64), (6, 3, 2)  # variables, states, plate


class Table:
    """The rows, and how many targets were met."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rows: list[dict[str, str]] = []
        self.met = self.missed = 0

    def wants(self, label: str) -> bool:
        return self.options.only in label

    def verdict(self, met: bool) -> str:
        self.met, self.missed = self.met + met, self.missed + (not met)
        return "PASS" if met else "**FAIL**"

    def add(self, label: str, contenders: list[Contender], floor: float | None) -> None:
        """Times a case whose answers have been checked; without a GPU there is nothing to time."""
        if not self.options.timed:
            print(f"{label}: answers agree", file=sys.stderr, flush=True)
            return
        times = race(contenders, self.options.budget, 5 if self.options.quick else 15)
        mine = times["ours"]
        row = {"case": label, "ours ms": f"{1e3 * statistics.median(mine):.4f}"}
        if floor is not None:
            over = statistics.median(mine) / floor
            row["ours / floor"] = f"{over:.2f} of {1e3 * floor:.4f} ms"
            row["ours / floor"] += f" (<= {FLOOR_AT_MOST:g} {self.verdict(over <= FLOOR_AT_MOST)})"
        for contender in contenders[1:]:
            if contender.run is None:
                row[f"{contender.name} / ours"] = contender.absent
                continue
            times_faster = ratio(times[contender.name], mine)
            text = f"{times_faster:.3g}x"
            if contender.at_least is not None:
                text += f" (>= {contender.at_least:g}x {self.verdict(times_faster >= contender.at_least)})"
            row[f"{contender.name} / ours"] = text
        self.rows.append(row)
        print("  ".join(f"{name}: {text}" for name, text in row.items()), file=sys.stderr, flush=True)


def on(device: torch.device, model: Model) -> Model:
    return Model(*(x.to(device) for x in model.parameters()))


def in_graph(table: Table, function: Callable[[], object]) -> Callable[[], object] | None:
    return captured(function) if table.options.timed else None


# ---- hidden Markov models


def log_normalizer_gradient(leaves: tuple[Tensor, ...]) -> list[Tensor]:
    value = ops.hmm_log_normalizer(*leaves)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def check_hmm(label: str, model: Model, here: Model, uniforms: Tensor) -> None:
    """All four operators on the device against float64 on the CPU."""
    exact = model.double()
    rows = len(model.emission)
    require_close(
        f"{label} forward",
        ops.hmm_log_normalizer(*here.parameters()).cpu(),
        ops.hmm_log_normalizer(*exact.parameters()),
        rtol=1e-5,
        atol=1e-4,
    )
    ours = log_normalizer_gradient(here.parameters(grad=True))
    expected = log_normalizer_gradient(exact.parameters(grad=True))
    for name, actual, wanted in zip(
        ("initial", "transition", "emission"), ours[1:], expected[1:], strict=True
    ):
        # Sums over the batch and, for the transition, over time.
        scale = float(wanted.abs().max()) + 1.0
        require_close(
            f"{label} gradient of {name}", actual.cpu() / scale, wanted / scale, rtol=1e-4, atol=1e-5
        )
    best = ops.hmm_viterbi(*exact.parameters())
    path, value = (x.cpu() for x in ops.hmm_viterbi(*here.parameters()))
    require_close(f"{label} score", value, best.score, rtol=1e-5, atol=1e-3)
    require_close(f"{label} score of our path", score(model, path), best.score, rtol=1e-6, atol=1e-2)
    drawn = ops.hmm_sample(*here.parameters(), uniforms=uniforms).cpu()
    wanted = ops.hmm_sample(*exact.parameters(), uniforms=uniforms.cpu())
    same = float((drawn == wanted).double().mean())
    # A uniform that falls between two sums, rounded differently, may change the rest of its path.
    require(
        same > 0.98, f"{label}: {same:.2%} of the sampled states are those of float64, with {rows} sequences"
    )


def hmm_cases(table: Table, device: torch.device, shape: tuple[int, int, int]) -> None:
    batch, steps, states = shape
    label = str(shape).replace(" ", "")
    names = ("forward", "forward and backward", "Viterbi", "sampling")
    if not any(table.wants(f"{label} {name}") for name in names):
        return
    model = Model.random(*shape)
    here = on(device, model)
    uniforms = torch.rand(1, batch, steps, generator=torch.Generator().manual_seed(1)).to(device)
    check_hmm(label, model, here, uniforms)
    given, cells = here.parameters(), float(batch * steps)
    leaves, host_leaves = here.parameters(grad=True), model.parameters(grad=True)
    calls: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "forward": (
            lambda: ops.hmm_log_normalizer(*given),
            lambda: ops.hmm_log_normalizer(*model.parameters()),
        ),
        "forward and backward": (
            lambda: log_normalizer_gradient(leaves),
            lambda: log_normalizer_gradient(host_leaves),
        ),
        "Viterbi": (lambda: ops.hmm_viterbi(*given), lambda: ops.hmm_viterbi(*model.parameters())),
        "sampling": (
            lambda: ops.hmm_sample(*given, uniforms=uniforms),
            lambda: ops.hmm_sample(*model.parameters(), uniforms=uniforms_on_host),
        ),
    }
    uniforms_on_host = uniforms.cpu()
    read = 4 * cells * states
    floors = {
        "forward": hmm_floor(*shape, size=read),
        "forward and backward": hmm_floor(*shape, size=3 * read, passes=3),
        "Viterbi": hmm_floor(*shape, size=read + 8 * cells),
        "sampling": hmm_floor(*shape, size=read + 12 * cells, chains=2),
    }
    for name, (ours, on_cpu) in calls.items():
        if table.wants(f"{label} {name}"):
            peers = hmm_peers(table, name, here, shape)
            cpu = Contender("CPU", on_cpu, False, CPU_AT_LEAST if shape == TARGET_SHAPE else None)
            ours_captured = Contender("ours captured", in_graph(table, ours))
            table.add(f"{label} {name}", [Contender("ours", ours), ours_captured, *peers, cpu], floors[name])


def hmm_peers(table: Table, name: str, here: Model, shape: tuple[int, int, int]) -> list[Contender]:
    """The torch loop in a CUDA graph, and Pyro; both after their answers have been compared."""
    loops: dict[str, Callable[..., Tensor]] = {"forward": scaled_loop, "Viterbi": torch_viterbi}
    loop, given = loops.get(name), here.parameters()
    if loop is None:
        return []
    target = LOOP_AT_LEAST if shape == TARGET_SHAPE else None
    found = []
    if shape[1] > LONGEST_LOOP:
        found.append(Contender("torch loop", None, absent="too long for a graph"))
    else:
        answer = loop(*given)
        if name == "forward":
            require_close("torch loop", answer, ops.hmm_log_normalizer(*given), rtol=2e-5, atol=1e-2)
        else:
            require_close(
                "torch loop", score(here, answer), score(here, ops.hmm_viterbi(*given).path), atol=1e-2
            )
        found.append(Contender("torch loop", in_graph(table, partial(loop, *given)), at_least=target))
    if name == "forward":
        found.append(pyro_peer(here, shape))
    return found


def pyro_peer(here: Model, shape: tuple[int, int, int]) -> Contender:
    batch, steps, states = shape
    if optional_import("pyro") is None:
        return Contender("Pyro", None, absent="not installed")
    if batch * steps * states**2 > 2**31:
        return Contender("Pyro", None, absent="too big")
    import _peers

    run = _peers.pyro_log_normalizer(here)
    assert run is not None
    require_close("Pyro", run(), ops.hmm_log_normalizer(*here.parameters()), rtol=2e-5, atol=1e-2)
    return Contender("Pyro", run)


# ---- logsumexp and contraction


def logsumexp_case(table: Table, device: torch.device, shape: Sequence[int], dim: int) -> None:
    label = f"logsumexp {tuple(shape)} dim {dim}".replace(", ", ",")
    if not table.wants(label):
        return
    host = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(2))
    x = host.to(device)
    exact = torch.logsumexp(host.double(), dim)
    require_close(label, sumprod.logsumexp(x, dim).cpu(), exact, rtol=1e-5, atol=1e-5)
    contenders = [
        Contender("ours", lambda: sumprod.logsumexp(x, dim)),
        Contender("ours captured", in_graph(table, lambda: sumprod.logsumexp(x, dim))),
        Contender("torch", lambda: torch.logsumexp(x, dim), at_least=1.0),
        Contender("CPU", lambda: sumprod.logsumexp(host, dim), False),
    ]
    table.add(label, contenders, bytes_floor(4.0 * (host.numel() + exact.numel())))


def chain_loop(tensors: Sequence[Tensor]) -> Tensor:
    first, *rest = tensors
    message = first
    for pair, own in zip(rest[0::2], rest[1::2], strict=True):
        message = torch.logsumexp(message.unsqueeze(-1) + pair, -2) + own
    return message.logsumexp(-1)


def contract_case(table: Table, device: torch.device, sizes: tuple[int, int, int]) -> None:
    variables, states, plate = sizes
    label = f"contract {variables} x {states} states, plate {plate}"
    if not table.wants(label):
        return
    draw = torch.Generator().manual_seed(3)
    host, dims = [torch.randn(plate, states, generator=draw)], [("p", 0)]
    for t in range(1, variables):
        host += [torch.randn(states, states, generator=draw), torch.randn(plate, states, generator=draw)]
        dims += [("p", t - 1, t), ("p", t)]  # type: ignore[list-item]
    here = [x.to(device) for x in host]

    def ours(tensors: Sequence[Tensor]) -> Tensor:
        return contract(tensors, dims, ["p"], kept=["p"])[0][1]

    def gradients(function: Callable[[Sequence[Tensor]], Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(function(leaves).sum(), leaves))

    exact = [x.double().requires_grad_() for x in host]
    leaves = [x.detach().requires_grad_() for x in here]
    require_close(label, ours(here).cpu(), chain_loop(exact), rtol=1e-5, atol=1e-3)
    for actual, wanted in zip(gradients(ours, leaves), gradients(chain_loop, exact), strict=True):
        require_close(f"{label}: gradient", actual.cpu(), wanted, rtol=1e-3, atol=1e-3)
    for name, on_gpu, on_cpu in (
        ("forward", partial(ours, here), partial(ours, host)),
        ("gradients", partial(gradients, ours, leaves), None),
    ):
        loop = partial(chain_loop, here) if name == "forward" else partial(gradients, chain_loop, leaves)
        contenders = [
            Contender("ours", on_gpu),
            Contender("ours captured", in_graph(table, on_gpu)),
            Contender("torch loop", in_graph(table, loop)),
            Contender("CPU", on_cpu, False, absent="-"),
        ]
        table.add(f"{label}, {name}", contenders, None)


# ---- the program


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu: only compare answers (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the program")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--threads", type=int, default=CPU_THREADS, help="for the CPU (default 16)")
    parser.add_argument(
        "--budget", type=float, default=2.0, help="seconds per contender and case (default 2)"
    )
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--only", default="", help="run only cases whose label contains this text")
    options = parser.parse_args(argv)
    options.timed = options.device != "cpu"
    return options


def main() -> int:
    options = parse()
    if options.timed and not torch.cuda.is_available():
        print("bench_gpu: there is no GPU here, so nothing was measured", file=sys.stderr)
        return 0
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    table = Table(options)
    with settings.context(validate_infer=False):
        for shape in TINY_SHAPES if options.tiny else SHAPES:
            attempt(f"{shape}", table, lambda shape=shape: hmm_cases(table, device, shape))  # type: ignore[misc]
        for sizes, dim in TINY_LOGSUMEXP if options.tiny else LOGSUMEXP:
            logsumexp_case(table, device, sizes, dim)
        contract_case(table, device, TINY_CHAIN if options.tiny else CHAIN)
    if options.timed:
        report(table)
    return int(options.strict and table.missed > 0)


def attempt(label: str, table: Table, cases: Callable[[], None]) -> None:
    """One workload that does not fit into memory does not take the others along; it is a missed target."""
    try:
        cases()
    except torch.cuda.OutOfMemoryError as error:
        table.missed += 1
        table.rows.append({"case": label, "ours ms": f"out of memory: {str(error).splitlines()[0]}"})


def report(table: Table) -> None:
    columns: list[str] = []
    for row in table.rows:
        columns += [name for name in row if name not in columns]
    name = torch.cuda.get_device_name()
    lines = ["# One GPU", "", (__doc__ or "").strip().split("\n\n")[1].replace("\n", " "), ""]
    lines += [f"{name}, CUDA {torch.version.cuda}. {machine_line(table.options.threads, ())}.", ""]
    lines += render(columns, table.rows)
    lines += ["", f"Targets: {table.met} met, {table.missed} missed."]
    print("\n" + "\n".join(lines), flush=True)
    if table.options.markdown is not None:
        table.options.markdown.parent.mkdir(parents=True, exist_ok=True)
        table.options.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
