"""The training loop of `SVI.fit`: progress bar, callbacks, early stopping, checkpoints, Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

from sumprod.infer.svi_checkpoint import Checkpoint, resume_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from sumprod.infer.svi import SVI

__all__ = ["EarlyStopping", "Training"]

Callback = Callable[["SVI", int, Any], Any]
EarlyStop = Callable[["SVI", int, Any], bool]


class EarlyStopping:
    """Says when the loss has stopped to improve: give it to `SVI(early_stop=...)`.

    Args:
        patience: how many steps without improvement end the training.
        min_delta: by how much a loss must be less than the best one to be an improvement.
        window: compare means over so many steps, since losses of single steps are noisy.

    Attributes:
        best: the least mean loss so far.
        waited: steps since then.

    >>> stop = EarlyStopping(patience=2)
    >>> [stop(None, step, loss) for step, loss in enumerate([3., 2., 2., 2.], 1)]
    [False, False, False, True]
    """

    def __init__(self, patience: int = 100, min_delta: float = 0.0, window: int = 1) -> None:
        if patience < 1 or window < 1 or not min_delta >= 0:
            raise ValueError(
                "expected patience >= 1, window >= 1 and min_delta >= 0, got"
                f" patience={patience}, window={window}, min_delta={min_delta}"
            )
        self.patience = patience
        self.min_delta = min_delta
        self.window = window
        self.reset()

    def reset(self) -> None:
        """Forget all losses."""
        self.best = float("inf")
        self.waited = 0
        self._recent: list[float] = []

    def __call__(self, svi: Any, step: int, loss: Any) -> bool:
        """Take the loss of one step (the sum, for a tuple); whether to stop. A NaN is no improvement."""
        self._recent.append(float(sum(loss) if isinstance(loss, tuple) else loss))
        if len(self._recent) < self.window:
            return False
        mean = sum(self._recent) / self.window
        del self._recent[0]
        if mean < self.best - self.min_delta:
            self.best, self.waited = mean, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """The state, for checkpoints."""
        return {"best": self.best, "waited": self.waited, "recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self.best, self.waited, self._recent = state["best"], state["waited"], list(state["recent"])


class Training:
    """One call of `fit`: the options, and the loop."""

    def __init__(
        self,
        progress: bool | Mapping[str, Any],
        callbacks: Iterable[Callback],
        early_stop: EarlyStop | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.progress = progress
        self.callbacks = tuple(callbacks)
        self.early_stop = early_stop
        self.checkpoint = checkpoint

    def run(self, svi: SVI, num_steps: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Make the steps that a checkpoint has not made already."""
        if self.checkpoint is not None:
            resume_checkpoint(svi, self.checkpoint, self.early_stop, args, kwargs)
        done = min(svi._credit, num_steps)
        svi._credit -= done
        remaining = num_steps - done
        if remaining == 0:
            return
        reset = getattr(self.early_stop, "reset", None)
        if done == 0 and reset is not None:
            reset()
        with Interrupts() as interrupts, self._bar(num_steps, done) as bar:
            while remaining:
                loss = svi.step(*args, **kwargs)
                svi._asked += 1
                remaining -= 1
                bar.update()
                if not bar.disable:
                    bar.set_postfix_str(f"loss={_show(loss)}", refresh=False)
                if self._stops(svi, loss):
                    svi._asked += remaining
                    remaining = 0
                self._save(svi, last=remaining == 0 or interrupts.pending)
                if interrupts.pending:
                    raise KeyboardInterrupt

    def _stops(self, svi: SVI, loss: Any) -> bool:
        for callback in self.callbacks:
            callback(svi, svi.steps_done, loss)
        return self.early_stop is not None and bool(self.early_stop(svi, svi.steps_done, loss))

    def _save(self, svi: SVI, last: bool) -> None:
        checkpoint = self.checkpoint
        if checkpoint is not None and (last or svi.steps_done % checkpoint.every == 0):
            save_checkpoint(svi, checkpoint.path, self.early_stop)

    def _bar(self, num_steps: int, done: int) -> Any:
        options: dict[str, Any] = {"disable": not self.progress, "desc": "SVI", "unit": "step"}
        if isinstance(self.progress, Mapping):
            options = {**options, "disable": False, **self.progress}
        return tqdm(total=num_steps, initial=done, **options)


def _show(loss: Any) -> str:
    return ", ".join(f"{one:.6g}" for one in (loss if isinstance(loss, tuple) else (loss,)))


class Interrupts:
    """Holds back the first Ctrl-C inside a `with` block, so that no step is torn apart.

    Only where Python's own handler is in place, in the main thread; elsewhere it does nothing.

    Attributes:
        pending: whether Ctrl-C was pressed. The next one takes effect at once.
    """

    def __init__(self) -> None:
        self.pending = False
        self._active = False

    def __enter__(self) -> Interrupts:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._note)
            self._active = True
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        self._release()

    def _release(self) -> None:
        if self._active:
            self._active = False
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()
