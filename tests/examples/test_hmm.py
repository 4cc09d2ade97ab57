"""The example with five models: each is what its formula says, as a loop and with vectorised time."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

missing = [name for name in ("matplotlib", "music21", "tqdm") if find_spec(name) is None]
if missing:  # no skip: the test extra installs them, and a skipped example is an untested one
    pytest.fail(f'these tests need {", ".join(missing)}: pip install "sumprod[test]"', pytrace=False)

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import chorale_data as data  # noqa: E402
import hmm  # noqa: E402
import sumprod  # noqa: E402
from bach_chorales import Batch, independent_nll, split  # noqa: E402
from sumprod import handlers, ops  # noqa: E402
from sumprod.infer import TraceEnum_ELBO  # noqa: E402

CHORALES, STATES, EPOCHS = 6, 6, 20
NAMES = ["hmm", "autoregressive", "parallel", "factorial", "second_order"]
FORMS = [hmm.one_by_one, hmm.all_at_once]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that the tests of this file share."""
    return tmp_path_factory.mktemp("cache") / "sumprod"


@pytest.fixture(scope="module")
def chorales(folder: Path) -> dict[str, data.Roll]:
    return data.load_chorales(CHORALES, folder=folder)


@pytest.fixture(scope="module")
def batches(chorales: dict[str, data.Roll]) -> tuple[Batch, Batch]:
    """Training chorales of several lengths, and a test chorale."""
    return split(chorales, seed=0)


def family(name: str) -> hmm.Family:
    (found,) = (f for f in hmm.families(STATES) if f.body.__name__ == name)
    return found


def drawn_parameters(model: hmm.Family) -> hmm.Parameters:
    """Any parameters, no two rows alike; pytest's fixture has set the seed."""
    moves = {name: torch.randn(shape).softmax(-1) for name, shape in model.moves.items()}
    return {**moves, "keys": torch.randn(model.keys).sigmoid()}


def as_one_chain(name: str, p: hmm.Parameters, rolls: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same model of one chorale [T, 88] with one state at each step, a matrix of moves for each step.

    Returns:
        Probabilities [N], [T - 1, N, N], and log-probabilities of the keys [T, N], in float64.
    """
    p = {key: value.double() for key, value in p.items()}
    steps, rolls = len(rolls), rolls.double()
    coins = torch.distributions.Bernoulli(p["keys"]).log_prob
    if name in ("parallel", "factorial"):
        emission = coins(rolls[:, None, None]).sum(-1).flatten(1)
        if name == "parallel":
            first = torch.einsum("w,x->wx", p["first"], p["initial"])
            move = torch.einsum("uw,yx->uywx", p["moves"], p["transition"])
        else:
            first = torch.einsum("w,wx->wx", p["first"], p["initial"])
            move = torch.einsum("uw,wyx->uywx", p["moves"], p["transition"])
        return first.flatten(), move.flatten(2).flatten(0, 1).expand(steps - 1, -1, -1), emission
    if name == "second_order":  # the state is the pair of the last two; before the first it is (0, first)
        size = len(p["initial"])
        emission = coins(rolls[:, None]).sum(-1)[:, None].expand(-1, size, -1).flatten(1)
        first = torch.zeros(size, size, dtype=torch.double)
        first[0] = p["initial"]
        moves = p["transition"].expand(steps - 1, -1, -1, -1).clone()
        moves[0] = p["second"]  # whatever was before the first
        onward = torch.einsum("tuyx,yz->tuyzx", moves, torch.eye(size, dtype=torch.double))
        return first.flatten(), onward.flatten(3).flatten(1, 2), emission
    if name == "autoregressive":
        before = torch.cat([torch.zeros(1, 88, dtype=torch.double), rolls[:-1]])[:, None]
        chosen = torch.where(before > 0, p["keys"][:, 1], p["keys"][:, 0])  # [T, S, 88]
        emission = torch.distributions.Bernoulli(chosen).log_prob(rolls[:, None]).sum(-1)
    else:
        emission = coins(rolls[:, None]).sum(-1)
    return p["initial"], p["transition"].expand(steps - 1, -1, -1), emission


@pytest.mark.parametrize("times", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_what_its_formula_says(name: str, times: hmm.Times, batches: tuple[Batch, Batch]) -> None:
    batch, model = batches[0], family(name)
    p = drawn_parameters(model)
    expected = 0.0
    for roll, length in zip(batch.rolls, batch.lengths.tolist(), strict=True):
        first, moves, emission = as_one_chain(name, p, roll[:length])
        expected += float(ops.hmm_log_normalizer(first.log(), moves.log(), emission[None]))
    assert hmm.log_likelihood(model, p, batch, times) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_learn_alike(name: str, batches: tuple[Batch, Batch]) -> None:
    found = [hmm.fit(family(name), batches[1], 3, 0, times) for times in FORMS]
    for parameter, loop in found[0].items():
        torch.testing.assert_close(found[1][parameter], loop, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_vectorised_time_makes_few_sites(name: str, batches: tuple[Batch, Batch]) -> None:
    model, music = family(name), hmm.Music(batches[1])
    p = drawn_parameters(model)
    exact = handlers.enum(model.body, first_available_dim=-1 - hmm.PLATES)
    sites = [set(handlers.trace(exact).get_trace(p, music, times).nodes) for times in FORMS]
    history = 2 if name == "second_order" else 1
    hidden = {site for site in sites[1] if site[0] in "wx"}
    assert len(hidden) == (history + 1) * (2 if name in ("parallel", "factorial") else 1)
    assert f"x_slice({history}, {music.steps}, None)" in hidden
    assert f"x_{music.steps - 1}" in sites[0]


def test_the_program_adds_priors_and_weighs_the_music(batches: tuple[Batch, Batch]) -> None:
    model, music = family("factorial"), hmm.Music(batches[1])
    p = drawn_parameters(model)
    fixed = handlers.condition(hmm.program, data=p)
    loss = TraceEnum_ELBO(max_plate_nesting=hmm.PLATES).loss(
        fixed, lambda *_: None, model, music, hmm.all_at_once, 3.0
    )
    prior = sum(float(dist.log_prob(p[name])) for name, dist in model.priors().items())
    assert loss == pytest.approx(-3 * hmm.log_likelihood(model, p, batches[1]) - prior, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_learning_beats_the_model_without_states(name: str, batches: tuple[Batch, Batch]) -> None:
    train = batches[0]
    p = hmm.fit(family(name), train, EPOCHS, seed=0)
    assert set(p) == {*family(name).moves, "keys"}
    for key, value in p.items():
        assert not value.requires_grad
        if key != "keys":
            torch.testing.assert_close(value.sum(-1), torch.ones(value.shape[:-1]))
    steps = int(train.lengths.sum())
    baseline = -float(independent_nll(train, train).sum())
    assert hmm.log_likelihood(family(name), p, train) / steps > baseline / steps + 0.5


def test_a_prior_draw_runs_as_a_loop(batches: tuple[Batch, Batch]) -> None:
    """Nothing enumerates here, so `vectorized_markov` takes every step on its own."""
    model, music = family("second_order"), hmm.Music(batches[1])
    sumprod.set_rng_seed(0)
    sites = handlers.trace(model.body).get_trace(drawn_parameters(model), music, hmm.all_at_once).nodes
    for t in range(music.steps):
        assert sites[f"x_{t}"]["value"].shape == (1, 1, 1)


def test_the_program_from_the_command_line_to_the_table(
    folder: Path,
    chorales: dict[str, data.Roll],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
    hmm.main(["--chorales", str(CHORALES), "--states", "4", "--epochs", "2", "--seed", "1"])
    printed = capsys.readouterr()
    assert "training on 5 chorales" in printed.out
    lines = printed.out.split("ms per SVI step")[1].splitlines()[2:]
    assert [line.split(",")[0].strip() for line in lines[1:]] == [
        f.title.split(",")[0] for f in hmm.families(4)
    ]
    for line in lines[1:]:
        step, note, loop, vectorised, ratio = line.rsplit(maxsplit=5)[1:]
        assert float(step) < float(note) < 0
        assert float(loop) > 0
        assert float(vectorised) > 0
        assert ratio.endswith("x")
    for model in hmm.families(4):
        assert f"{model.title:28}: 100%|" in printed.err


def test_forms_that_disagree_are_an_error(
    chorales: dict[str, data.Roll], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hmm, "one_by_one", lambda steps, history: range(steps - 1))
    with pytest.raises(RuntimeError, match=r"with vectorised time, .* as a loop"):
        hmm.run(chorales, states=2, epochs=1, seed=0)


@pytest.mark.parametrize("states", [1, 2, 3])
def test_any_number_of_states(states: int, batches: tuple[Batch, Batch]) -> None:
    for model in hmm.families(states):
        p = model.start(torch.full((88,), 0.1))
        assert {name: tuple(p[name].shape) for name in model.moves} == model.moves
        scores = [hmm.log_likelihood(model, p, batches[1], times) for times in FORMS]
        assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--states", "0"], "argument --states: must be at least 1, not 0"),
        (["--chorales", "1"], "argument --chorales: must be at least 2, not 1"),
        (["--epochs", "0"], "argument --epochs: must be at least 1, not 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        hmm.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["music21", "tqdm"])
def test_a_missing_extra_is_named_in_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in {package, "hmm", "bach_chorales", "chorale_data", "options"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        __import__("hmm")
    assert stop.value.code == f'this example needs {package}: pip install "sumprod[examples]"'


def test_help_works_as_a_program() -> None:
    command = [sys.executable, str(EXAMPLES / "hmm.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for option in ("--states", "--chorales", "--epochs", "--seed"):
        assert option in done.stdout
