"""Stochastic variational inference: gradient steps on a loss of a model and its guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from sumprod import handlers
from sumprod.handlers.messenger import Messenger
from sumprod.handlers.trace_struct import Trace
from sumprod.infer._training import Callback, EarlyStop, Training
from sumprod.infer.abstract_infer import TracePosterior
from sumprod.infer.elbo import ELBO
from sumprod.infer.svi_checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sumprod.infer.util import torch_backward, torch_item, zero_grads
from sumprod.optim.optim import PyroOptim

__all__ = ["SVI"]

Loss = Any  # a float, or a tuple of floats when the loss returns tuples

_CONSTRUCTOR = object()  # "as given to the constructor"


class SVI(TracePosterior):
    """Fits a guide (and the model's own parameters) by stochastic gradients of a loss.

    After fitting, `run` makes it a posterior: traces of the model with latent values from the guide.

    Args:
        model: the model.
        guide: the guide.
        optim: an optimiser of `sumprod.optim`.
        loss: an `ELBO`, or a function `loss(model, guide, *args, **kwargs)` that returns a tensor, a float,
            or a tuple of them.
        loss_and_grads: a function like `loss` that also computes gradients. By default that of the ELBO, or
            `loss` followed by `backward` when its result requires grad.
        num_samples: how many traces `run` collects.
        num_steps: how many steps `run` makes first. With the default 0, `run` does not train.
        progress: show a progress bar with the loss in `fit` and `run`; a dict has options for `tqdm`.
        callbacks: functions `callback(svi, step, loss)`, called after each step of `fit` and `run`; `step`
            counts from 1.
        early_stop: an `EarlyStopping`, or a function `early_stop(svi, step, loss)`; training ends when it
            returns True.
        checkpoint: a path, or a `Checkpoint`: where `fit` and `run` save their state, and resume from.
        record: whether to keep the losses of all steps in `losses`.
        **kwargs: arguments of `TracePosterior`: `num_chains`.

    Attributes:
        losses: what each `step` returned.
        steps_done: the number of steps.

    Raises:
        ValueError: `optim` is not a `PyroOptim`.
        TypeError: an unknown argument; a loss that cannot be called.

    >>> import torch, sumprod
    >>> from sumprod.distributions import Normal
    >>> from sumprod.infer import SVI, TraceMeanField_ELBO
    >>> def model():
    ...     sumprod.sample("z", Normal(3., 1.))
    >>> def guide():
    ...     sumprod.sample("z", Normal(sumprod.param("loc", torch.tensor(0.)), 1.))
    >>> svi = SVI(model, guide, sumprod.optim.SGD({"lr": 0.1}), TraceMeanField_ELBO())
    >>> _ = svi.fit(100)
    >>> round(sumprod.param("loc").item(), 2)
    3.0
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: PyroOptim,
        loss: ELBO | Callable[..., Any],
        loss_and_grads: Callable[..., Any] | None = None,
        num_samples: int = 10,
        num_steps: int = 0,
        *,
        progress: bool | Mapping[str, Any] = False,
        callbacks: Iterable[Callback] = (),
        early_stop: EarlyStop | None = None,
        checkpoint: Checkpoint | str | Any | None = None,
        record: bool = True,
        **kwargs: Any,
    ) -> None:
        unknown = [name for name in kwargs if name != "num_chains"]
        if unknown:
            raise TypeError(
                f"SVI got an unexpected keyword argument '{unknown[0]}': it takes progress, callbacks,"
                " early_stop, checkpoint, record and num_chains; the model's arguments go to step, fit, run"
            )
        super().__init__(**kwargs)
        if not isinstance(optim, PyroOptim):
            raise ValueError(_explain_optimizer(optim))
        self.model = model
        self.guide = guide
        self.optim = optim
        self.num_samples = num_samples
        self.num_steps = num_steps
        self.loss, self.loss_and_grads = _choose_losses(loss, loss_and_grads)
        self.progress = progress
        self.callbacks = tuple(callbacks)
        self.early_stop = early_stop
        self.checkpoint = Checkpoint.of(checkpoint)
        self.record = record
        self.losses: list[Loss] = []
        self.steps_done = 0
        # Steps asked for so far, those cut off by early stopping included; and how many of the next ones
        # a checkpoint has done already.
        self._asked = 0
        self._credit = 0
        self._resumed = False

    # ---- single steps

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Loss:
        """The loss for the model's arguments, without gradients. Random numbers are drawn as in a step."""
        with torch.no_grad():
            return _to_floats(self.loss(self.model, self.guide, *args, **kwargs))

    def step(self, *args: Any, **kwargs: Any) -> Loss:
        """One gradient step, given the model's arguments; returns the loss before the step.

        Steps the parameters that model and guide use in this call, in the order of their first use.
        Their gradients are zeros afterwards.
        """
        with _Leaves() as seen:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        leaves = list(seen.leaves.values())
        self.optim(leaves)
        zero_grads(leaves)
        value = _to_floats(loss)
        self.steps_done += 1
        if self.record:
            self.losses.append(value)
        return value

    # ---- training

    def fit(
        self,
        num_steps: int,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        progress: Any = _CONSTRUCTOR,
        callbacks: Any = _CONSTRUCTOR,
        early_stop: Any = _CONSTRUCTOR,
        checkpoint: Any = _CONSTRUCTOR,
    ) -> SVI:
        """`num_steps` steps with the model's arguments `args` and `kwargs`; returns the object itself.

        The other options replace those of the constructor for this call. Ctrl-C takes effect between two
        steps, after a checkpoint has been saved; a second one takes effect at once.

        With a checkpoint whose file exists, the first call of a new object resumes from it: the steps in
        the file count towards `num_steps`, so that the same script, run again after a crash, ends with the
        same bits as an uninterrupted run.
        """
        if num_steps < 0:
            raise ValueError(f"num_steps must be at least 0, got {num_steps}")

        def choose(given: Any, default: Any) -> Any:
            return default if given is _CONSTRUCTOR else given

        training = Training(
            progress=choose(progress, self.progress),
            callbacks=choose(callbacks, self.callbacks),
            early_stop=choose(early_stop, self.early_stop),
            checkpoint=Checkpoint.of(choose(checkpoint, self.checkpoint)),
        )
        with handlers.block():
            training.run(self, num_steps, tuple(args), {} if kwargs is None else kwargs)
        return self

    def run(self, *args: Any, **kwargs: Any) -> SVI:
        """`num_steps` steps, then `num_samples` traces. All arguments are the model's; returns itself.

        The traces are of the model, with the guide's values, in `exec_traces`. They have equal weights.
        """
        if self.num_steps > 0:
            self.fit(self.num_steps, args=args, kwargs=kwargs)
        super().run(*args, **kwargs)
        return self

    def _traces(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Trace, float]]:
        for _ in range(self.num_samples):
            guide_trace = handlers.trace(self.guide).get_trace(*args, **kwargs)
            model_trace = handlers.trace(handlers.replay(self.model, trace=guide_trace)).get_trace(
                *args, **kwargs
            )
            yield model_trace, 1.0

    # ---- state

    def save_checkpoint(self, path: Any) -> None:
        """Write the state of training to a file, in one piece: an interrupted write leaves the old file.

        It holds the whole parameter store, the optimiser's state, the random generators, the losses and
        the numbers of steps, and is readable with `torch.load(weights_only=True)`.
        """
        save_checkpoint(self, path)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restore what `save_checkpoint` wrote, given arguments for the model.

        Model and guide run once, so that parameters which modules hold exist before they get their values.

        Raises:
            ValueError: the file is no checkpoint, or a parameter has another shape.
        """
        load_checkpoint(self, path, args, kwargs)

    def plot_losses(self, ax: Any = None, smooth: int = 1, **kwargs: Any) -> Any:
        """Plot the losses against the step and return the matplotlib axes.

        Args:
            ax: axes to draw into; new ones by default.
            smooth: show means over so many steps.
            **kwargs: passed to `ax.plot`.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there are fewer than `smooth` losses.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("plot_losses needs matplotlib: pip install matplotlib") from error
        if smooth < 1 or len(self.losses) < smooth:
            raise ValueError(
                f"smooth={smooth} needs at least {max(smooth, 1)} losses, there are {len(self.losses)}"
            )
        losses = torch.tensor(self.losses, dtype=torch.float64)
        means = losses.unfold(0, smooth, 1).mean(-1)
        if ax is None:
            _, ax = plt.subplots()
        first = self.steps_done - len(self.losses) + smooth
        ax.plot(range(first, first + len(means)), means.numpy(), **kwargs)
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        return ax


class _Leaves(Messenger):
    """Collects the unconstrained leaves of the param sites, each once, in the order of first use.

    It sees every message of a step, and so has no dispatch by type.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaves: dict[int, torch.Tensor] = {}

    def _process_message(self, msg: Any) -> None:
        pass

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "param":
            leaf = msg["value"].unconstrained()
            self.leaves[id(leaf)] = leaf


def _to_floats(loss: Any) -> Any:
    """A loss as a float; a tuple of losses as a tuple of floats."""
    if isinstance(loss, tuple):
        return tuple(torch_item(one) for one in loss)
    return torch_item(loss)


def _choose_losses(
    loss: Any, loss_and_grads: Callable[..., Any] | None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if isinstance(loss, ELBO):  # before anything else: it can be called, too
        return loss.loss, loss.loss_and_grads
    if not callable(loss):
        raise TypeError(f"loss must be an ELBO such as Trace_ELBO(), or a function, got {loss!r}")
    if isinstance(loss, type) and issubclass(loss, ELBO):
        raise TypeError(f"loss must be an instance, got the class: write {loss.__name__}()")
    if loss_and_grads is not None:
        return loss, loss_and_grads

    def backward_too(*args: Any, **kwargs: Any) -> Any:
        value = loss(*args, **kwargs)
        for part in value if isinstance(value, tuple) else (value,):
            torch_backward(part, retain_graph=True)
        return value

    return loss, backward_too


def _explain_optimizer(optim: Any) -> str:
    text = "Optimizer should be an instance of sumprod.optim.PyroOptim"
    kind = optim if isinstance(optim, type) else type(optim)
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
        defaults = getattr(optim, "defaults", {})
        options = {"lr": defaults["lr"]} if "lr" in defaults else {}
        return (
            f"{text}, not of torch.optim, since parameters appear while the program runs: write"
            f" sumprod.optim.{kind.__name__}({options or {'lr': 0.001}})"
        )
    return f"{text}, got {optim!r}"
