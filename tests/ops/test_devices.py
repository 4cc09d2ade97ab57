"""Operators on a GPU: where tensors and generators may be, what makes the host wait, graphs, streams, sizes.

What is about the Python layer runs on a pretended GPU in every run; the rest needs `--device cuda`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import sumprod
from sumprod import ops, settings
from sumprod.ops import _devices, contraction
from tests import devices, pretend
from tests.ops.checks import HMM_OPERATORS, call, uniforms_for
from tests.ops.hmm_cases import INF, Case, Spec, build

on_a_gpu = pytest.mark.skipif(
    "config.getoption('--device') != 'cuda'", reason="needs a GPU: give --device cuda"
)


def moved(case: Case, device: torch.device) -> Case:
    lengths = None if case.lengths is None else case.lengths.to(device)
    return Case(*(part.to(device) for part in case.args), lengths)


@pytest.fixture
def gpu() -> torch.device:
    """The GPU under test, or a pretended one."""
    if devices.device().type == "cpu":
        # A device that torch learns of in the middle of a run would be in the way of other tests.
        pytest.skip("needs another device: give --device pretend, or cuda")
    return devices.device()


@pytest.fixture
def waits(gpu: torch.device) -> Callable[[Callable[[], object]], bool]:
    """Whether a call makes the host wait for the device."""

    def found(run: Callable[[], object]) -> bool:
        if gpu.type == pretend.NAME:
            with pretend.synchronisations() as noted:
                run()
            return bool(noted)
        run()  # what is made once
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return False

    return found


@pytest.fixture
def unchecked() -> Iterator[None]:
    with settings.context(validate_infer=False):
        yield


def everything(
    device: torch.device, dtype: torch.dtype = torch.float32, inputs: list[Tensor] | None = None
) -> dict[str, Callable[[], list[Tensor]]]:
    """A call of every operator, and one of its gradients where it has them; `inputs` gets what they read."""
    draw = torch.Generator().manual_seed(5)
    case = moved(build(Spec("dense", (3,), 9, 5, lengths_form="random", dtype=dtype, seed=4)), device)
    uniforms = uniforms_for(case, draw).to(device)
    table = torch.randn(4, 6, 5, generator=draw, dtype=dtype, device="cpu").to(device)
    other = torch.randn(5, 7, generator=draw, dtype=dtype, device="cpu").to(device)
    factors = [
        torch.randn(shape, generator=draw, dtype=dtype, device="cpu") for shape in [(3,), (3, 2), (2, 4)]
    ]
    factors = [factor.to(device) for factor in factors]
    dims = ["a", "ab", "bp"]
    numbers = torch.rand(2, generator=draw, dtype=torch.float64, device="cpu").to(device)

    if inputs is not None:
        inputs += [*case.args, uniforms, table, other, *factors, numbers]

    def gradients(function: Callable[..., Tensor], *arguments: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in arguments]
        return list(torch.autograd.grad(function(*leaves).sum(), leaves))

    def log_normalizer(*parts: Tensor) -> Tensor:
        return ops.hmm_log_normalizer(*parts, lengths=case.lengths)

    def total(*tensors: Tensor) -> Tensor:
        return contraction.contract(tensors, dims, "p")[0][1]

    def values(**keywords: object) -> list[Tensor]:
        drawn = contraction.draw(factors, dims, "p", **keywords)  # type: ignore[arg-type]
        return [value for _, value in (*drawn.values.values(), *drawn.totals)]

    found: dict[str, Callable[[], list[Tensor]]] = {
        name: (lambda name=name: list(call(name, case, uniforms).values()))  # type: ignore[misc]
        for name in HMM_OPERATORS
    }
    found.update(
        {
            "hmm_log_normalizer_backward": lambda: gradients(log_normalizer, *case.args),
            "logsumexp": lambda: [sumprod.logsumexp(table, 1), sumprod.logsumexp(table, (0, 2))],
            "logsumexp_backward": lambda: gradients(lambda x: sumprod.logsumexp(x, 1), table),
            "logmatmulexp": lambda: [ops.logmatmulexp(table, other)],
            "logmatmulexp_backward": lambda: gradients(ops.logmatmulexp, table, other),
            "maxmatmul": lambda: list(ops.maxmatmul(table, other)),
            "normalize_weights": lambda: list(ops.normalize_weights(table, 1)),
            "contract": lambda: [total(*factors)],
            "contract_backward": lambda: gradients(total, *factors),
            "contract_draw": lambda: values(uniforms=numbers),
            "contract_best": lambda: values(maximise=True),
        }
    )
    return found


NAMES = sorted(everything(torch.device("cpu")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_results_are_on_the_device_and_agree_with_the_cpu(
    name: str, dtype: torch.dtype, gpu: torch.device
) -> None:
    here = everything(gpu, dtype)[name]()
    with devices.off():
        there = everything(torch.device("cpu"), dtype)[name]()
    for actual, expected in zip(here, there, strict=True):
        assert actual.device == gpu
        assert actual.dtype == expected.dtype
        if not expected.is_floating_point():  # the same uniforms give the same samples
            assert torch.equal(actual.cpu(), expected)
            continue
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(actual.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_without_validation(
    name: str, gpu: torch.device, waits: Callable[[Callable[[], object]], bool]
) -> None:
    assert not waits(everything(gpu)[name])


CHECKED = ("hmm_sample", "hmm_viterbi")


@pytest.mark.parametrize("name", CHECKED)
def test_validation_waits(
    name: str, gpu: torch.device, waits: Callable[[Callable[[], object]], bool]
) -> None:
    assert waits(everything(gpu)[name])


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("hmm")])
def test_validation_costs_nothing_where_there_is_nothing_to_check(
    name: str, gpu: torch.device, waits: Callable[[Callable[[], object]], bool]
) -> None:
    assert not waits(everything(gpu)[name])


def example(gpu: torch.device, **fields: object) -> Case:
    return moved(build(Spec(batch=(3,), steps=6, seed=2, **fields)), gpu)  # type: ignore[arg-type]


def test_lengths_from_the_host_cost_no_waiting(
    gpu: torch.device, waits: Callable[[Callable[[], object]], bool]
) -> None:
    case = example(gpu)
    for lengths in ([0, 3, 6], torch.tensor([0, 3, 6], device="cpu")):
        run = lambda lengths=lengths: ops.hmm_log_normalizer(*case.args, lengths=lengths)  # noqa: E731
        expected = ops.hmm_log_normalizer(*case.args, lengths=torch.tensor([0, 3, 6], device="cpu").to(gpu))
        assert torch.equal(run(), expected)
        assert not waits(run)
    for wrong in ([0, 3, 7], torch.tensor([0, 3, 7], device="cpu")):
        with pytest.raises(ValueError, match=r"lengths must lie in \[0, 6\].* got 7 at sequence 2"):
            ops.hmm_log_normalizer(*case.args, lengths=wrong)


def test_lengths_of_the_device_are_checked_while_validation_is_on(gpu: torch.device) -> None:
    case = example(gpu)
    for wrong in (7, -1):
        lengths = torch.tensor([0, wrong, 3], device="cpu").to(gpu)
        with pytest.raises(ValueError, match=f"got {wrong} at sequence 1"):
            ops.hmm_filter(*case.args, lengths=lengths)


@pytest.mark.parametrize("name", CHECKED)
def test_impossible_sequences_raise_while_validation_is_on(name: str, gpu: torch.device) -> None:
    case = example(gpu)
    emission = case.emission.clone()
    emission[1, 4] = -INF
    run = {
        "hmm_sample": lambda: ops.hmm_sample(case.initial, case.transition, emission),
        "hmm_viterbi": lambda: ops.hmm_viterbi(case.initial, case.transition, emission),
    }[name]
    with pytest.raises(sumprod.SupportError, match="batch element 1 has no possible path: at time step 4"):
        run()
    with settings.context(validate_infer=False):
        run()


def test_on_the_cpu_checks_are_always_done() -> None:
    case = moved(build(Spec(batch=(2,), steps=3)), torch.device("cpu"))
    dead = torch.full((2, 3, 4), -INF, device="cpu")
    with settings.context(validate_infer=False), devices.off():
        with pytest.raises(sumprod.SupportError):
            ops.hmm_viterbi(case.initial, case.transition, dead)
        with pytest.raises(ValueError, match="lengths must lie in"):
            ops.hmm_viterbi(*case.args, lengths=[4, 1])


def test_devices_do_not_mix(gpu: torch.device) -> None:
    case, host = example(gpu), build(Spec(batch=(3,), steps=6, seed=2))
    initial = host.initial.cpu()
    with pytest.raises(ValueError, match=f"one device; emission is on {gpu}, initial on cpu"):
        ops.hmm_filter(initial, case.transition, case.emission)
    with pytest.raises(ValueError, match=f"x is on {gpu}, y on cpu"):
        ops.logmatmulexp(case.transition, torch.zeros(4, 4, device="cpu"))
    with pytest.raises(ValueError, match=f"uniforms are on cpu, emission on {gpu}"):
        ops.hmm_sample(*case.args, uniforms=torch.zeros(1, 3, 6, device="cpu"))
    with pytest.raises(ValueError, match="factor 1 is on cpu, factor 0 on"):
        contraction.contract([case.initial, initial], ["a", "a"])
    with pytest.raises(ValueError, match="draw: uniforms are on cpu, the factors on"):
        contraction.draw([case.initial], ["a"], uniforms=torch.zeros(1, dtype=torch.float64, device="cpu"))
    with pytest.raises(ValueError, match="one device; emission is on cpu, lengths on"), devices.off():
        ops.hmm_filter(*moved(case, torch.device("cpu")).args, lengths=torch.tensor([1, 2, 3]).to(gpu))


def test_a_generator_belongs_to_a_device(gpu: torch.device) -> None:
    case = example(gpu)
    for run in (
        lambda: ops.hmm_sample(*case.args, generator=torch.Generator()),
        lambda: contraction.draw([case.initial], ["a"], generator=torch.Generator()),
    ):
        with pytest.raises(ValueError, match=f"generator is on cpu, the tensors are on {gpu}; make it with"):
            run()


def test_a_build_without_cuda_kernels_says_so(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_devices, "_HAVE_KERNELS", {"cpu", "meta"})
    with pytest.raises(ValueError, match="logsumexp: there is no kernel for device"):
        sumprod.logsumexp(torch.zeros(2, device="cpu").to(gpu), 0)
    with pytest.raises(ValueError, match=r"this build of sumprod has no CUDA kernels.*nvcc"):
        _devices.require_kernels("contract", torch.device("cuda", 0))
    for run in everything(gpu).values():
        with pytest.raises(ValueError, match="there is no kernel for device"):
            run()


# ---- what only a GPU can show


@on_a_gpu
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", NAMES)
def test_a_captured_graph_repeats_the_call(name: str, gpu: torch.device) -> None:
    run = everything(gpu)[name]
    expected = [value.clone() for value in run()]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    for value in results:
        value.fill_(7)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for actual, value in zip(results, expected, strict=True):
        assert torch.equal(actual, value)


@on_a_gpu
@pytest.mark.parametrize("name", CHECKED)
def test_checks_stay_out_of_captured_graphs(name: str, gpu: torch.device) -> None:
    run = everything(gpu)[name]
    run()
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        run()  # validation is on, and does not look at a value


@on_a_gpu
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", NAMES)
def test_work_goes_to_the_current_stream(name: str, gpu: torch.device) -> None:
    inputs: list[Tensor] = []
    run = everything(gpu, inputs=inputs)[name]
    expected, values = run(), [x.clone() for x in inputs]
    for x in inputs:
        x.fill_(torch.nan)
    stream, done = torch.cuda.Stream(gpu), torch.cuda.Event()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # whatever does not wait for this reads NaN
        for x, value in zip(inputs, values, strict=True):
            x.copy_(value)
        results = run()
        done.record()
        assert not done.query(), "the host waited"
    stream.synchronize()
    for actual, value in zip(results, expected, strict=True):
        assert torch.equal(actual, value)


@on_a_gpu
def test_results_repeat_bit_by_bit(gpu: torch.device) -> None:
    case = moved(build(Spec("dense", (70,), 300, 33, lengths_form="random", seed=1)), gpu)
    leaf = case.requires_grad()

    def gradients() -> list[Tensor]:
        return list(
            torch.autograd.grad(ops.hmm_log_normalizer(*leaf.args, lengths=leaf.lengths).sum(), leaf.args)
        )

    first = gradients()
    for _ in range(5):
        for actual, value in zip(gradients(), first, strict=True):
            assert torch.equal(actual, value)


@on_a_gpu
@pytest.mark.slow
def test_more_than_two_to_the_31_elements(gpu: torch.device) -> None:
    rows, columns = 70_000, 32_768  # 2.3e9 floats, 9.2 GB
    table = torch.zeros(rows, columns, device=gpu)
    table[-1] = 1.0
    total = sumprod.logsumexp(table, 1)
    exact = torch.tensor(columns, dtype=torch.float64).log().item()
    torch.testing.assert_close(
        total[[0, -1]].cpu().double(), torch.tensor([exact, exact + 1], device="cpu").double()
    )
    assert torch.equal(total[1:-1], total[:1].expand(rows - 2))
    weights = ops.normalize_weights(table, 1)
    torch.testing.assert_close(weights.ess[-1].item(), float(columns))
    del table, weights
    torch.cuda.empty_cache()
    batch, steps, states = 2100, 16_384, 64  # 2.2e9 floats
    emission = torch.zeros(batch, steps, states, device=gpu)
    initial = torch.zeros(states, device=gpu).log_softmax(0)
    transition = torch.zeros(states, states, device=gpu).log_softmax(1)
    emission[-1, -1] = 1.0
    log_z = ops.hmm_log_normalizer(initial, transition, emission)
    torch.testing.assert_close(
        log_z[[0, -1]].cpu(), torch.tensor([0.0, 1.0], device="cpu"), atol=1e-2, rtol=0
    )
    emission[-1, -1, 3] = 2.0
    path, score = ops.hmm_viterbi(initial, transition, emission)
    assert path[-1, -1].item() == 3
    assert score[-1] > score[0]
