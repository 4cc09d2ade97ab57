"""Programs with discrete variables under sumprod and under Pyro: equal gradients first, then the race.

A workload is a function of the library to use that gives model, guide, loss and arguments.  Before anything
is timed, loss and gradients of all parameters must agree at the same start, and the losses of the first steps
of `SVI` after that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sumprod
from _harness import Bench, Peer, guarded, optional_import, require, require_close
from _svi import PACKAGES, THREADS, Step, SviProgram, require_equal_losses, started, stepper


class Parts(NamedTuple):
    """What an ELBO is called with."""

    model: Any
    guide: Any
    loss: Any
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Workload:
    """A row of a table; `at_least` is how many times faster than Pyro a step must be."""

    label: str
    parts: Callable[[Any], Parts]
    at_least: float
    heavy: bool = False

    def program(self) -> SviProgram:
        def build(pyro: Any) -> Step:
            model, guide, loss, args = self.parts(pyro)
            return stepper(pyro, model, guide, loss, pyro.optim.Adam({"lr": 0.01}), args)

        return SviProgram(self.label, build, self.at_least)


def loss_and_gradients(workload: Workload, library: ModuleType) -> tuple[float, dict[str, Tensor]]:
    """The loss at the start, and its gradients with respect to the unconstrained parameters."""
    library.clear_param_store()
    library.set_rng_seed(0)
    model, guide, loss, args = workload.parts(library)
    value = loss.loss_and_grads(model, guide, *args)
    store = library.get_param_store()
    return value, {name: parameter.grad for name, parameter in store.named_parameters()}


def require_equal_gradients(workload: Workload, pyro: ModuleType) -> None:
    """Stop unless both libraries give the same loss and gradients."""
    loss, ours = loss_and_gradients(workload, sumprod)
    peer_loss, theirs = loss_and_gradients(workload, pyro)
    require_close(f"{workload.label}: loss", torch.tensor(loss), torch.tensor(peer_loss))
    require(set(ours) == set(theirs), f"{workload.label}: parameters {set(ours)}, Pyro's {set(theirs)}")
    for name, expected in theirs.items():
        # Both are sums in float32 over all of the data.
        allowed = 1e-4 * float(expected.abs().max())
        require_close(f"{workload.label}: gradient of {name}", ours[name], expected, rtol=1e-3, atol=allowed)


def race_workloads(title: str, description: str, workloads: Sequence[Workload]) -> int:
    """Check and time the workloads that the command line asks for; returns the exit status."""

    def main() -> int:
        bench = Bench(title, description, PACKAGES, threads=THREADS)
        pyro = optional_import("pyro")
        for workload in workloads:
            if not bench.wants(workload.label, heavy=workload.heavy):
                continue
            program = workload.program()
            if pyro is not None:
                require_equal_gradients(workload, pyro)
            ours, our_losses = started(program, sumprod)
            peer = None
            if pyro is not None:
                peer, peer_losses = started(program, pyro)
                require_equal_losses(program, our_losses, peer_losses)
            bench.case(workload.label, ours, [Peer("Pyro", peer, workload.at_least)])
        return bench.finish()

    return guarded(main)


# ---- hidden Markov models


def piano_rolls(batch: int, steps: int, keys: int = 88) -> Tensor:
    """Zeros and ones [batch, steps, keys] like rolls of four voices: notes last, most keys are off."""
    draw = torch.Generator().manual_seed(0)
    voices = torch.randint(20, 65, (batch, 1, 4), generator=draw)
    moves = torch.randint(-4, 5, (batch, steps, 4), generator=draw)
    moves *= torch.rand(batch, steps, 4, generator=draw) < 0.6
    pitches = (voices + moves.cumsum(1)).remainder(keys)
    return torch.zeros(batch, steps, keys).scatter_(2, pitches, 1.0)


def hmm_guide(pyro: Any, model: Any) -> Any:
    """Point estimates of the transitions and of the keys' probabilities."""
    return pyro.infer.autoguide.AutoDelta(pyro.poutine.block(model, expose=["transition", "keys"]))


def hmm_priors(pyro: Any, states: int, keys: int) -> tuple[Tensor, Tensor]:
    """Transitions [states, states] and probabilities [states, keys] of the music model of the tutorials."""
    dist = pyro.distributions
    transition = pyro.sample("transition", dist.Dirichlet(0.9 * torch.eye(states) + 0.1).to_event(1))
    return transition, pyro.sample("keys", dist.Beta(0.1, 0.9).expand([states, keys]).to_event(2))


def hmm_of_events(rolls: Tensor, states: int) -> Callable[[Any], Parts]:
    """A loop over time in which a step's keys are one event."""
    batch, steps, keys = rolls.shape

    def parts(pyro: Any) -> Parts:
        dist = pyro.distributions

        def model(rolls: Tensor) -> None:
            transition, probabilities = hmm_priors(pyro, states, keys)
            with pyro.plate("sequences", batch, dim=-1):
                z: Any = 0
                for t in pyro.markov(range(steps)):
                    z = pyro.sample(f"z{t}", dist.Categorical(transition[z]), infer={"enumerate": "parallel"})
                    pyro.sample(f"x{t}", dist.Bernoulli(probabilities[z]).to_event(1), obs=rolls[:, t])

        loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
        return Parts(model, hmm_guide(pyro, model), loss, (rolls,))

    return parts


def hmm_of_tones(rolls: Tensor, states: int) -> Callable[[Any], Parts]:
    """A loop over time in which the keys are a plate."""
    batch, steps, keys = rolls.shape

    def parts(pyro: Any) -> Parts:
        dist = pyro.distributions

        def model(rolls: Tensor) -> None:
            transition, probabilities = hmm_priors(pyro, states, keys)
            tones = pyro.plate("tones", keys, dim=-1)
            with pyro.plate("sequences", batch, dim=-2):
                z: Any = torch.zeros(1, dtype=torch.long)
                for t in pyro.markov(range(steps)):
                    z = pyro.sample(f"z{t}", dist.Categorical(transition[z]), infer={"enumerate": "parallel"})
                    with tones:
                        pyro.sample(f"x{t}", dist.Bernoulli(probabilities[z.squeeze(-1)]), obs=rolls[:, t])

        loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=2)
        return Parts(model, hmm_guide(pyro, model), loss, (rolls,))

    return parts
