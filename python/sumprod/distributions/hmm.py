"""`DiscreteHMM`: a distribution over sequences that hides a chain of finitely many states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from sumprod import ops
from sumprod.distributions._feasible import feasible_point
from sumprod.distributions._hmm_parameters import (
    as_lengths,
    broadcast,
    broadcast_batches,
    check_states,
    known_steps,
    normalized,
)
from sumprod.distributions._hmm_posterior import Potentials, draw, held, last, raise_impossible
from sumprod.distributions.torch import Categorical
from sumprod.distributions.torch_distribution import MaskedDistribution, TorchDistribution

__all__ = ["DiscreteHMM"]


class DiscreteHMM(TorchDistribution):
    """Hidden Markov model with finitely many states and any observation distribution.

    The state before the first observation is drawn from `initial_logits`, so that the generative story is

        z_0 ~ initial,   z_t ~ transition[t - 1][z_{t-1}],   x_t ~ observation(z_t)   for t = 1..T.

    Other libraries (hmmlearn, dynamax) let the first state emit. `first_emits=True` selects their story:
    x_1 is emitted by z_1 ~ initial, and there is one transition fewer. Everything below speaks of the
    states z_1..z_T behind the observations; a silent z_0 is summed out exactly.

    The event is the whole sequence: `event_shape` is `(T,) + observation_dist.event_shape`. Where all
    parameters have a time dim of size 1 (or none) and no `duration` is given, the length is open: `T` shows
    as 1 and values of every length are accepted.

    Sums over the states run in the native operators (forward recursion: Rabiner 1989). -inf logits are
    exact: an impossible move has weight and gradient zero, an impossible sequence log-probability -inf.

    Args:
        initial_logits: [*B, S]. Logits are normalised here, over their last dim.
        transition_logits: [S, S] or [*B, K, S, S], row = from. K is 1, or the number of transitions: T,
            or T-1 with `first_emits`.
        observation_dist: a distribution of batch shape [S], or [*B, T or 1, S]; one batch element per state.
            Steps that its mask (see `mask`) hides from all states are missing data; they may hold NaN.
        validate_args: whether to check parameters and values.
        duration: T, for a model that does not say it otherwise; needed to `sample` from such a model.
        first_emits: whether the first observation comes from the initial state itself.
        lengths: integers, broadcastable to [*B]: the number of real steps of each sequence. Later steps of a
            value are padding and are not read, whatever they hold. Methods take a `lengths`, too, which
            comes before this one.

    `log_prob` is differentiable twice with respect to all parameters and the value.

    Raises:
        TypeError: logits are not floating-point tensors, lengths are not integers.
        ValueError: shapes that do not fit together; the message names them.

    Example:
        >>> import torch
        >>> from sumprod.distributions import DiscreteHMM, Normal
        >>> weather = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
        >>> hmm = DiscreteHMM(torch.zeros(2), weather, Normal(torch.tensor([20.0, 10.0]), 3.0))
        >>> degrees = torch.tensor([21.0, 19.0, 9.0, 12.0])
        >>> hmm.viterbi(degrees).path.tolist()
        [0, 0, 1, 1]
        >>> round(hmm.log_prob(degrees).item(), 3)
        -11.667
        >>> hmm.filter(degrees).probs.argmax().item()
        1
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "initial_logits": constraints.real,
        "transition_logits": constraints.real,
    }

    def __init__(
        self,
        initial_logits: Tensor,
        transition_logits: Tensor,
        observation_dist: Any,
        validate_args: bool | None = None,
        duration: int | None = None,
        *,
        first_emits: bool = False,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> None:
        check_states(initial_logits, transition_logits, observation_dist)
        self.lengths = None if lengths is None else as_lengths(lengths, initial_logits.device)
        batch_shape = broadcast_batches(initial_logits, transition_logits, observation_dist, self.lengths)
        self._steps = known_steps(transition_logits, observation_dist, duration, first_emits)
        self.duration = duration
        self.first_emits = bool(first_emits)
        self.observation_dist = observation_dist
        self.initial_logits = normalized(initial_logits)
        self.transition_logits = normalized(transition_logits)
        event_shape = torch.Size((1 if self._steps is None else self._steps, *observation_dist.event_shape))
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Sequences of supported observations."""
        return constraints.independent(self.observation_dist.support, 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiscreteHMM:
        """The same parameters, not copied, under a larger batch shape."""
        new: DiscreteHMM = self._get_checked_instance(DiscreteHMM, _instance)  # type: ignore[no-untyped-call]
        batch_shape = torch.Size(batch_shape)
        if broadcast(self.batch_shape, batch_shape) != batch_shape:
            raise ValueError(
                f"DiscreteHMM.expand: batch shape {list(self.batch_shape)} does not expand to "
                f"{list(batch_shape)}"
            )
        for name in ("lengths", "duration", "first_emits", "observation_dist"):
            setattr(new, name, getattr(self, name))
        new._steps = self._steps
        new.initial_logits = self.initial_logits
        new.transition_logits = self.transition_logits
        super(DiscreteHMM, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    # ---- densities and posteriors --------------------------------------------------------------

    def log_prob(self, value: Tensor, *, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """log p(x) of whole sequences, summed over all state paths.

        Args:
            value: [*, T, *observation event]; leading dims broadcast with the batch shape.
            lengths: integers, broadcastable to the batch, before those of the constructor.

        Returns:
            [*], -inf for an impossible sequence, 0 for one of length 0.
        """
        model = self._potentials(value, lengths)
        result = ops.hmm_log_normalizer(
            model.initial, model.transition, model.emission, lengths=model.lengths
        )
        return result.expand(model.batch_shape)

    def filter(
        self, value: Tensor, all: bool = False, *, lengths: Tensor | Sequence[int] | None = None
    ) -> Categorical:
        """The posterior of the last state, p(z_T | x_1..x_T), to go on from when more data arrives.

        Args:
            value: [*, T, *observation event].
            all: whether to return p(z_t | x_1..x_t) for every t.
            lengths: integers, broadcastable to the batch; the last state is that at a sequence's own end.

        Returns:
            A `Categorical` of batch shape [*], or [*, T] with `all`, where steps past a sequence's end
            repeat its last one. For a sequence of length 0 it is the initial distribution.

        Raises:
            SupportError: validation is on and a sequence is impossible; names it and the first time step
                that cannot be explained.
        """
        model = self._potentials(value, lengths)
        rows = ops.hmm_filter(model.initial, model.transition, model.emission, lengths=model.lengths)
        if all:
            return self._categorical("filter", model, held(rows, model.lengths, self.initial_logits), 1)
        return self._categorical("filter", model, last(rows, model.lengths, self.initial_logits), 0)

    def marginals(self, value: Tensor, *, lengths: Tensor | Sequence[int] | None = None) -> Categorical:
        """The posterior of each state given the whole sequence, p(z_t | x_1..x_T).

        Args:
            value: [*, T, *observation event].
            lengths: integers, broadcastable to the batch.

        Returns:
            A `Categorical` of batch shape [*, T]; steps past a sequence's end repeat its last one.

        Raises:
            SupportError: validation is on and a sequence is impossible.
        """
        model = self._potentials(value, lengths)
        rows = ops.hmm_marginals(model.initial, model.transition, model.emission, lengths=model.lengths)
        return self._categorical("marginals", model, held(rows, model.lengths, self.initial_logits), 1)

    def viterbi(self, value: Tensor, *, lengths: Tensor | Sequence[int] | None = None) -> ops.HMMViterbi:
        """The most probable states z_1..z_T and log p(z_1..z_T, x).

        Args:
            value: [*, T, *observation event].
            lengths: integers, broadcastable to the batch.

        Returns:
            `HMMViterbi(path [*, T] int64, score [*])`. Ties go to the lowest state; paths are -1 past a
            sequence's end.

        Raises:
            SupportError: a sequence is impossible.
        """
        model = self._potentials(value, lengths)
        path, score = ops.hmm_viterbi(model.initial, model.transition, model.emission, lengths=model.lengths)
        return ops.HMMViterbi(path.expand(*model.batch_shape, -1), score.expand(model.batch_shape))

    def sample_posterior(
        self,
        value: Tensor,
        sample_shape: Sequence[int] = (),
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Independent draws of the states z_1..z_T given the sequence (Scott 2002).

        Args:
            value: [*, T, *observation event].
            sample_shape: shape of independent draws per sequence.
            lengths: integers, broadcastable to the batch.

        Returns:
            sample_shape + [*, T], int64; -1 past a sequence's end.

        Raises:
            SupportError: a sequence is impossible.
        """
        model = self._potentials(value, lengths, copies=True)
        return draw(model, torch.Size(sample_shape))

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws whole sequences; steps past the end of one with `lengths` hold draws, too.

        Args:
            sample_shape: shape of independent draws.

        Returns:
            sample_shape + batch_shape + event_shape.

        Raises:
            ValueError: the length of the sequence is open.
        """
        if self._steps is None:
            raise ValueError(
                "DiscreteHMM.sample: the length is open, since every parameter has a time dim "
                f"of size 1 or none (transition_logits {list(self.transition_logits.shape)}, batch shape "
                f"of observation_dist {list(self.observation_dist.batch_shape)}); "
                "give DiscreteHMM(..., duration=T)"
            )
        sample_shape = torch.Size(sample_shape)
        states = self.transition_logits.shape[-1]
        grid = torch.Size((*self.batch_shape, self._steps, states))
        with torch.no_grad():
            free = self.initial_logits.new_zeros(()).expand(grid)
            model = Potentials(*self._first_emitter(), free, None, self.batch_shape)
            path = draw(model, sample_shape)
            # A batch of distributions cannot be indexed, so every state draws and one draw is kept.
            every = self.observation_dist.expand(grid).sample(sample_shape)
            event_shape = self.observation_dist.event_shape
            index = path.reshape(*path.shape, 1, *(1 for _ in event_shape))
            index = index.expand(*path.shape, 1, *event_shape)
            drawn: Tensor = every.gather(path.dim(), index).squeeze(path.dim())
        return drawn

    # ---- helpers ---------------------------------------------------------------------------------

    def _first_emitter(self) -> tuple[Tensor, Tensor]:
        """The distribution of the first state that emits, and the transitions after it."""
        transition = self.transition_logits
        if self.first_emits or (transition.dim() > 2 and transition.shape[-3] == 0):
            return self.initial_logits, transition
        first = transition if transition.dim() == 2 else transition[..., 0, :, :]
        initial = ops.logmatmulexp(self.initial_logits.unsqueeze(-2), first).squeeze(-2)
        heterogeneous = transition.dim() > 2 and transition.shape[-3] > 1
        return initial, transition[..., 1:, :, :] if heterogeneous else transition

    def _potentials(
        self, value: Tensor, lengths: Tensor | Sequence[int] | None, copies: bool = False
    ) -> Potentials:
        """Arguments for the operators; what a batch merely repeats is computed once, unless `copies`."""
        self._check_value_shape(value)
        real = self.lengths if lengths is None else as_lengths(lengths, value.device)
        size = () if real is None else real.shape
        full = broadcast(value.shape[: value.dim() - len(self.event_shape)], self.batch_shape, size)
        if full is None:
            given = "" if real is None else f" and lengths {list(real.shape)}"
            raise ValueError(
                f"DiscreteHMM: value {list(value.shape)}{given} do not broadcast with batch shape "
                f"{list(self.batch_shape)}; the last {len(self.event_shape)} dims of value are the event"
            )
        initial, transition = self._first_emitter()
        emission = self._emission(value, real)
        core = (
            None
            if copies
            else broadcast(emission.shape[:-2], initial.shape[:-1], transition.shape[:-3], size)
        )
        core = full if core is None else core
        emission = emission.expand(*core, emission.shape[-2], self.transition_logits.shape[-1])
        return Potentials(initial, transition, emission, None if real is None else real.expand(core), full)

    def _emission(self, value: Tensor, lengths: Tensor | None) -> Tensor:
        """log p(x_t | z_t), [*, T, S or 1]."""
        event_dim = len(self.observation_dist.event_shape)
        value = value.unsqueeze(-1 - event_dim)
        seen = self._seen(value.shape[-2 - event_dim], lengths)
        if seen is not None:
            value = self._without_unseen(value, seen)
        if self._validate_args and not self.observation_dist._validate_args:
            self._check_observations(value)
        result: Tensor = self.observation_dist.log_prob(value)
        return result

    def _seen(self, steps: int, lengths: Tensor | None) -> Tensor | None:
        """[*, T, 1]: which observations count; None when all do."""
        seen = None
        if lengths is not None:
            steps_of_all = torch.arange(steps, device=lengths.device)
            seen = (steps_of_all < lengths.unsqueeze(-1)).unsqueeze(-1)
        masked = isinstance(self.observation_dist, MaskedDistribution)
        if masked and isinstance(self.observation_dist._mask, Tensor):
            by_some_state = self.observation_dist._mask.any(-1, keepdim=True)
            seen = by_some_state if seen is None else seen & by_some_state
        return seen

    def _without_unseen(self, value: Tensor, seen: Tensor) -> Tensor:
        """`value` [*, T, 1, *event] with what does not count replaced: no check or gradient sees it."""
        event_shape = self.observation_dist.event_shape
        filler = feasible_point(self.observation_dist.support, value, event_shape)
        if filler is None:  # an unusual support: the sequence's own first step must do
            filler = value.narrow(-2 - len(event_shape), 0, min(1, value.shape[-2 - len(event_shape)]))
        return torch.where(seen.reshape(*seen.shape, *(1 for _ in event_shape)), value, filler)

    def _check_value_shape(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"DiscreteHMM: value must be a torch.Tensor, got {type(value).__name__}")
        event_dim = len(self.event_shape)
        steps = "T" if self._steps is None else str(self._steps)
        wanted = f"[*, {', '.join([steps, *map(str, self.event_shape[1:])])}]"
        tail = value.shape[value.dim() - event_dim :] if value.dim() >= event_dim else None
        fits = tail is not None and tail[1:] == self.event_shape[1:]
        if not fits or (tail is not None and self._steps not in (None, tail[0])):
            raise ValueError(
                "DiscreteHMM: The right-most size of value must match event_shape: value must have shape "
                f"{wanted} with * broadcastable to {list(self.batch_shape)}, got {list(value.shape)}"
            )

    def _check_observations(self, value: Tensor) -> None:
        valid = self.observation_dist.support.check(value)
        if not valid.all():
            raise ValueError(
                f"DiscreteHMM: Expected value argument (Tensor of shape {tuple(value.shape)}) to be within "
                f"the support ({self.observation_dist.support!r}) of observation_dist "
                f"{self.observation_dist!r}, but found invalid values"
            )

    def _categorical(self, method: str, model: Potentials, rows: Tensor, extra: int) -> Categorical:
        """Posterior rows as a distribution, its batch shape followed by `extra` dims of the rows."""
        if self._validate_args and bool((rows == -torch.inf).all(-1).any()):
            raise_impossible(method, model)
        kept = rows.shape[rows.dim() - 1 - extra :]
        rows = rows.expand(model.batch_shape + kept)
        # torch's checks cannot count the rows of an empty tensor.
        return Categorical(logits=rows, validate_args=self._validate_args and rows.numel() > 0)
