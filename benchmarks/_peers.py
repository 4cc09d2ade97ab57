"""The libraries a user would otherwise pick for HMMs, each in the fairest form it offers.

* dynamax (JAX, float32): the library's own function, vmapped over the batch and compiled together, returning
  only what is compared (XLA drops the rest), inputs already on the device, `block_until_ready` timed.  It
  takes probabilities, so `exp` of the parameters is not part of its time (in the gradient it is, because
  the compared gradients are with respect to log-potentials).
* hmmlearn (float64): sequences are concatenated, and as in `score()` with `implementation="scaling"` they
  are split by length and each is given to the compiled `_hmmc.forward_scaling` after `np.exp` of its frame
  log-probabilities; as in `decode()` each goes to `_hmmc.viterbi`.  What `score()` does around this
  (validation of the whole input) is left out in its favour.
* Pyro: `DiscreteHMM(...).log_prob(x)`.  Its latent chain starts one step before the first emission, so the
  first of T time-dependent transition matrices has the initial distribution in every row.  The emissions
  are fed as the observed value through a distribution whose log_prob is that value.
* torch, log space: the loop everybody writes; torch, scaled: a careful loop of `torch.mm` in linear space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from _harness import Call, optional_import
from _models import Model

jax = optional_import("jax")
dynamax = optional_import("dynamax.hidden_markov_model.inference") if jax else None
hmmlearn = optional_import("hmmlearn._hmmc")
pyro = optional_import("pyro.distributions")
PACKAGES = ("jax", "dynamax", "hmmlearn", "pyro-ppl")

if jax is not None:
    jax.config.update("jax_platforms", "cpu")


def to_torch(array: Any) -> Tensor:
    """A JAX or numpy array as a tensor of its own."""
    return torch.from_numpy(np.array(array))


def _device_inputs(model: Model, *, logs: bool = False) -> tuple[Any, Any, Any]:
    initial, transition, emission = model.parameters()
    given = (initial, transition, emission) if logs else (initial.exp(), transition.exp(), emission)
    return tuple(jax.block_until_ready(jax.device_put(x.numpy())) for x in given)  # type: ignore[union-attr]


def _dynamax(model: Model, one: Callable[[Any, Any, Any], Any]) -> Call | None:
    """`one` (initial, transition, frames of one sequence), vmapped, compiled and bound to `model`."""
    if jax is None or dynamax is None:
        return None
    compiled = jax.jit(jax.vmap(one, in_axes=(None, None, 0)))
    inputs = _device_inputs(model)
    return lambda: jax.block_until_ready(compiled(*inputs))


def dynamax_log_normalizer(model: Model) -> Call | None:
    return _dynamax(model, lambda i, a, x: dynamax.hmm_filter(i, a, x).marginal_loglik)  # type: ignore[union-attr]


def dynamax_viterbi(model: Model) -> Call | None:
    return _dynamax(model, lambda i, a, x: dynamax.hmm_posterior_mode(i, a, x))  # type: ignore[union-attr]


def dynamax_smoother(model: Model) -> Call | None:
    return _dynamax(model, lambda i, a, x: dynamax.hmm_smoother(i, a, x).smoothed_probs)  # type: ignore[union-attr]


def dynamax_two_filter(model: Model) -> Call | None:
    return _dynamax(model, lambda i, a, x: dynamax.hmm_two_filter_smoother(i, a, x).smoothed_probs)  # type: ignore[union-attr]


def dynamax_gradient(model: Model) -> Call | None:
    """Log normalisers' sum and its gradient with respect to the three log-potentials."""
    if jax is None or dynamax is None:
        return None

    def total(initial: Any, transition: Any, emission: Any) -> Any:
        first, matrix = jax.numpy.exp(initial), jax.numpy.exp(transition)
        one = jax.vmap(lambda x: dynamax.hmm_filter(first, matrix, x).marginal_loglik)
        return one(emission).sum()

    compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    inputs = _device_inputs(model, logs=True)
    return lambda: jax.block_until_ready(compiled(*inputs))


def dynamax_sample(model: Model, seed: int = 0) -> Callable[[], Any] | None:
    """One posterior path per sequence; every call draws anew, as ours does."""
    if jax is None or dynamax is None:
        return None

    def draw(key: Any, initial: Any, transition: Any, emission: Any) -> Any:
        next_key, own = jax.random.split(key)
        keys = jax.random.split(own, emission.shape[0])
        one = jax.vmap(lambda k, x: dynamax.hmm_posterior_sample(k, initial, transition, x)[1])
        return next_key, one(keys, emission)

    compiled = jax.jit(draw)
    inputs = _device_inputs(model)
    state = {"key": jax.random.PRNGKey(seed)}

    def call() -> Any:
        state["key"], paths = jax.block_until_ready(compiled(state["key"], *inputs))
        return paths

    return call


def _hmmlearn_inputs(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    batch, steps, states = model.emission.shape
    frames = np.ascontiguousarray(model.emission.double().numpy().reshape(batch * steps, states))
    cuts = np.cumsum(np.full(batch, steps))[:-1]
    return model.initial.double().exp().numpy(), model.transition.double().exp().numpy(), frames, cuts


def hmmlearn_log_normalizer(model: Model) -> Callable[[], list[float]] | None:
    if hmmlearn is None:
        return None
    start, matrix, frames, cuts = _hmmlearn_inputs(model)

    def call() -> list[float]:
        return [hmmlearn.forward_scaling(start, matrix, np.exp(x))[0] for x in np.split(frames, cuts)]

    return call


def hmmlearn_viterbi(model: Model) -> Callable[[], list[tuple[float, np.ndarray]]] | None:
    if hmmlearn is None:
        return None
    start, matrix, frames, cuts = _hmmlearn_inputs(model)
    return lambda: [hmmlearn.viterbi(start, matrix, x) for x in np.split(frames, cuts)]


def pyro_log_normalizer(model: Model) -> Callable[[], Tensor] | None:
    if pyro is None:
        return None

    class GivenLogProb(pyro.TorchDistribution):  # type: ignore[misc,name-defined]
        """An observation that is its own log-probability under each state."""

        arg_constraints: ClassVar[dict[str, Any]] = {}

        def __init__(self, states: int) -> None:
            super().__init__((states,), (states,), validate_args=False)

        def log_prob(self, value: Tensor) -> Tensor:
            return value.squeeze(-2)

    _, steps, states = model.emission.shape
    first = model.initial.expand(1, states, states)
    logits = torch.cat([first, model.transition.expand(steps - 1, states, states)])
    before = torch.zeros(states, device=model.initial.device)
    observed = GivenLogProb(states)
    return lambda: pyro.DiscreteHMM(before, logits, observed, validate_args=False).log_prob(model.emission)
