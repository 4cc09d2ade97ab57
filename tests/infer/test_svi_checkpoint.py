"""Checkpoints of `SVI`, and Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sumprod
import sumprod.distributions as dist
from sumprod.infer import SVI, Checkpoint, EarlyStopping, Trace_ELBO
from sumprod.infer._training import Interrupts
from tests.infer.svi_programs import make, params

# ---- checkpoints


def everything(svi: SVI) -> tuple[Any, ...]:
    """All that a resumed run must share with an uninterrupted one, down to the bits."""
    state = svi.optim.get_state()
    moments = {name: [v.tolist() for v in _tensors(one)] for name, one in state.items()}
    return svi.losses, svi.steps_done, params(), moments, torch.rand(3).tolist()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def stop_at(last: int) -> Any:
    def callback(svi: SVI, step: int, loss: float) -> None:
        if step == last:
            raise ConnectionError("power cut")

    return callback


def start(path: Path | None, **kwargs: Any) -> SVI:
    """As a new process would: nothing in the store, another state of the generators."""
    sumprod.clear_param_store()
    sumprod.set_rng_seed(0)
    return make(checkpoint=None if path is None else Checkpoint(path, every=4), **kwargs)


@pytest.mark.parametrize("cut", [5, 6, 9, 13])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path: Path, cut: int) -> None:
    whole = start(None)
    whole.fit(9, args=(2.0,))
    whole.fit(5, args=(3.0,))
    expected = everything(whole)
    path = tmp_path / "svi.pt"
    first = start(path, callbacks=[stop_at(cut)])
    with pytest.raises(ConnectionError):
        first.fit(9, args=(2.0,)).fit(5, args=(3.0,))
    second = start(path)
    sumprod.set_rng_seed(99)
    second.fit(9, args=(2.0,))
    second.fit(5, args=(3.0,))
    assert everything(second) == expected
    third = start(path)
    third.fit(9, args=(2.0,)).fit(5, args=(3.0,))  # nothing left to do
    assert everything(third) == expected


def test_run_resumes_too(tmp_path: Path) -> None:
    path = tmp_path / "svi.pt"
    whole = start(path, num_steps=8, num_samples=3).run()
    expected = [trace.nodes["z"]["value"].item() for trace in whole.exec_traces]
    again = start(path, num_steps=8, num_samples=3)
    sumprod.set_rng_seed(4)
    again.run()
    assert [trace.nodes["z"]["value"].item() for trace in again.exec_traces] == expected
    assert again.losses == whole.losses


def test_early_stopping_resumes_where_it_was(tmp_path: Path) -> None:
    whole = start(None, early_stop=EarlyStopping(12))
    whole.fit(200, args=(2.0,))
    assert 12 < whole.steps_done < 200
    expected = everything(whole)
    path = tmp_path / "svi.pt"
    first = start(path, early_stop=EarlyStopping(12), callbacks=[stop_at(whole.steps_done - 1)])
    with pytest.raises(ConnectionError):
        first.fit(200, args=(2.0,))
    second = start(path, early_stop=EarlyStopping(12))
    second.fit(200, args=(2.0,))
    assert everything(second) == expected
    third = start(path, early_stop=EarlyStopping(12))
    third.fit(200, args=(2.0,))  # it has stopped already
    assert everything(third) == expected


def test_modules_get_their_saved_parameters(tmp_path: Path) -> None:
    """The network of a new process holds other tensors; the saved values must reach them."""

    def programs(seed: int) -> Any:
        torch.manual_seed(seed)
        net = torch.nn.Linear(2, 1)

        def network_model(x: Tensor) -> None:
            sumprod.module("net", net)
            sumprod.sample("x", dist.Normal(net(x).squeeze(-1), 1.0).to_event(1), obs=torch.ones(3))

        return network_model, net

    def network(path: Path, seed: int) -> Any:
        sumprod.clear_param_store()
        network_model, net = programs(seed)
        svi = SVI(
            network_model, lambda x: None, sumprod.optim.Adam({"lr": 0.1}), Trace_ELBO(), checkpoint=path
        )
        return svi, net

    x, path = torch.arange(6.0).reshape(3, 2), tmp_path / "svi.pt"
    svi, net = network(path, 1)
    svi.fit(5, args=(x,))
    trained = [p.tolist() for p in net.parameters()]
    svi, net = network(path, 2)
    assert [p.tolist() for p in net.parameters()] != trained
    svi.fit(5, args=(x,))
    assert [p.tolist() for p in net.parameters()] == trained
    before = svi.losses[-1]
    svi.fit(20, args=(x,))
    assert svi.losses[-1] < before


def test_checkpoint_files_hold_no_code(tmp_path: Path) -> None:
    path = tmp_path / "svi.pt"
    svi = make()
    svi.fit(3, checkpoint=path)
    content = torch.load(path, weights_only=True)
    assert content["losses"] == svi.losses
    assert content["steps_done"] == 3
    assert os.listdir(tmp_path) == ["svi.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "svi.pt"
    svi = make()
    svi.fit(3)
    svi.save_checkpoint(path)
    before = path.read_bytes()

    def full(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    svi.fit(2)
    monkeypatch.setattr(sumprod.infer.svi_checkpoint.PARAM_STORE, "save", lambda file: file.write(b"x"))
    with pytest.raises(OSError, match="No space left"):
        svi.save_checkpoint(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["svi.pt"]


def test_save_and_load_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "svi.pt"
    first = start(None)
    first.fit(4, args=(2.0,))
    first.save_checkpoint(path)
    first.fit(3, args=(2.0,))
    expected = everything(first)
    second = start(None)
    second.load_checkpoint(path, 2.0)
    assert second.steps_done == 4
    for _ in range(3):
        second.step(2.0)
    assert everything(second) == expected


def test_resume_false_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "svi.pt"
    start(path).fit(6)
    svi = start(None)
    svi.fit(3, checkpoint=Checkpoint(path, resume=False))
    assert svi.steps_done == 3
    assert torch.load(path, weights_only=True)["steps_done"] == 3


def test_a_file_of_another_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "svi.pt"
    start(path).fit(6)
    svi = start(path)
    svi.step()
    with pytest.raises(FileExistsError, match="this SVI has made 1 steps already"):
        svi.fit(3)
    assert torch.load(path, weights_only=True)["steps_done"] == 6


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "svi.pt"
    start(path).fit(2)
    sumprod.clear_param_store()
    sumprod.param("loc", torch.zeros(3))
    with pytest.raises(ValueError, match=r"parameter 'loc' has shape \(\) .* there, \(3,\) .* here"):
        SVI(lambda: None, lambda: None, sumprod.optim.SGD({"lr": 0.1}), Trace_ELBO()).load_checkpoint(path)


@pytest.mark.parametrize("content", ["nothing", "text", "other", "half"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: str) -> None:
    path = tmp_path / "svi.pt"
    if content == "other":
        torch.save({"a": 1}, path)
    elif content == "half":
        make().fit(2, checkpoint=path)
        path.write_bytes(path.read_bytes()[:500])
    else:
        path.write_text("" if content == "nothing" else "some text")
    with pytest.raises(ValueError, match="is no checkpoint of SVI"):
        make().load_checkpoint(path)


def test_resuming_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "svi.pt"
    start(path).fit(2)
    with caplog.at_level(logging.INFO, logger="sumprod"):
        start(path).fit(2)
    assert f"Resumed from {path} after 2 steps" in caplog.text


def test_checkpoint_checks_its_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Checkpoint(tmp_path / "svi.pt", every=0)


# ---- Ctrl-C


def press_at(*steps: int) -> Any:
    def callback(svi: SVI, step: int, loss: float) -> None:
        if step in steps:
            os.kill(os.getpid(), signal.SIGINT)
            if step == steps[-1] and len(steps) > 1:
                raise AssertionError("the second Ctrl-C takes effect at once")

    return callback


@pytest.fixture
def _ctrl_c_interrupts() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which a run in the background may lack."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_interrupts")
def test_ctrl_c_ends_training_between_steps_with_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "svi.pt"
    svi = start(path, callbacks=[press_at(6)])
    with pytest.raises(KeyboardInterrupt):
        svi.fit(10, args=(2.0,))
    assert svi.steps_done == len(svi.losses) == 6
    assert torch.load(path, weights_only=True)["steps_done"] == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    whole = start(None)
    whole.fit(10, args=(2.0,))
    expected = everything(whole)
    resumed = start(path)
    resumed.fit(10, args=(2.0,))
    assert everything(resumed) == expected


@pytest.mark.usefixtures("_ctrl_c_interrupts")
def test_second_ctrl_c_takes_effect_at_once() -> None:
    def press_twice(svi: SVI, step: int, loss: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        make(callbacks=[press_twice]).fit(10)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_the_program_for_ctrl_c_stay() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        svi = make(callbacks=[press_at(2)])
        svi.fit(4)
        assert svi.steps_done == 4
        assert seen == [1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_works_in_another_thread() -> None:
    result: list[Any] = []

    def work() -> None:
        with Interrupts() as interrupts:
            result.append(interrupts.pending)
        result.append(make().fit(2).steps_done)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert result == [False, 2]


@pytest.mark.slow
def test_a_killed_process_resumes(tmp_path: Path) -> None:
    """A process that dies without warning, and the same script again."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, sys, torch, sumprod
import sumprod.distributions as dist
from sumprod.infer import SVI, Checkpoint, Trace_ELBO
sumprod.set_rng_seed(3)
def model():
    z = sumprod.sample("z", dist.Normal(0., 1.))
    sumprod.sample("x", dist.Normal(z, 1.), obs=torch.tensor(2.))
def guide():
    sumprod.sample("z", dist.Normal(sumprod.param("loc", torch.tensor(0.)), 0.7))
def die(svi, step, loss):
    if step == int(sys.argv[2]):
        os._exit(9)
checkpoint = Checkpoint(sys.argv[1], every=3) if sys.argv[1] != "none" else None
svi = SVI(model, guide, sumprod.optim.Adam({"lr": 0.1}), Trace_ELBO(), checkpoint=checkpoint, callbacks=[die])
svi.fit(20)
print(svi.losses, sumprod.param("loc").item().hex())
"""
    )

    def execute(path: str, dies_at: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script), path, str(dies_at)], capture_output=True, text=True, check=False
        )

    whole = execute("none", -1)
    path = str(tmp_path / "svi.pt")
    assert execute(path, 11).returncode == 9
    resumed = execute(path, -1)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout
