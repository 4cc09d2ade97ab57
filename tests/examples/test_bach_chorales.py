"""The Bach example on a few chorales: the same path as the whole program, from the scores to the picture."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

missing = [name for name in ("matplotlib", "music21", "tqdm") if find_spec(name) is None]
if missing:  # no skip: the test extra installs them, and a skipped example is an untested one
    pytest.fail(f'these tests need {", ".join(missing)}: pip install "sumprod[test]"', pytrace=False)

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import matplotlib.image  # noqa: E402
from music21 import chord, meter, note, stream  # noqa: E402

import bach_chorales as bach  # noqa: E402
import chorale_data as data  # noqa: E402
import chorale_picture as pictures  # noqa: E402
import sumprod  # noqa: E402
from sumprod import handlers, ops  # noqa: E402
from sumprod.infer import TraceEnum_ELBO  # noqa: E402

CHORALES, STATES, EPOCHS = 6, 4, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that the tests of this file share."""
    return tmp_path_factory.mktemp("cache") / "sumprod"


@pytest.fixture(scope="module")
def chorales(folder: Path) -> dict[str, data.Roll]:
    return data.load_chorales(CHORALES, folder=folder)


@pytest.fixture(scope="module")
def batches(chorales: dict[str, data.Roll]) -> tuple[bach.Batch, bach.Batch]:
    return bach.split(chorales, seed=0)


@pytest.fixture(scope="module")
def fitted(batches: tuple[bach.Batch, bach.Batch]) -> tuple[bach.Parameters, list[float]]:
    return bach.fit(batches[0], STATES, EPOCHS, seed=0)


def sounding(roll: data.Roll, step: int) -> list[str]:
    return [data.pitch_name(key) for key in np.flatnonzero(roll[step])]


def nll_per_step(nll: torch.Tensor, batch: bach.Batch) -> float:
    return float(nll.sum() / batch.lengths.sum())


# ---- from the scores to the rolls --------------------------------------------------------------------------


def test_keys_have_the_names_of_a_piano() -> None:
    assert [data.pitch_name(key) for key in (0, 1, 39, 48, 87)] == ["A0", "Bb0", "C4", "A4", "C8"]


def test_chorales_are_boolean_rolls_of_88_keys_with_four_voices(chorales: dict[str, data.Roll]) -> None:
    assert len(chorales) == CHORALES
    assert next(iter(chorales)) == "bach/bwv269"
    for roll in chorales.values():
        assert roll.dtype == np.bool_
        assert roll.ndim == 2
        assert roll.shape[1] == 88
        assert 1 <= roll.sum(axis=1).max() <= 4


def test_the_first_bar_of_a_known_chorale(chorales: dict[str, data.Roll]) -> None:
    """BWV 269, "Aus meines Herzens Grunde": an upbeat of one quarter, then a bar of three."""
    roll = chorales["bach/bwv269"]
    assert [sounding(roll, step) for step in range(4)] == [
        ["G2", "B3", "D4", "G4"],
        ["G3", "B3", "D4", "G4"],
        ["E3", "C4", "E4", "G4"],  # the tenor's second eighth, B3, falls between two beats
        ["F#3", "A3", "D4", "D5"],
    ]


def test_every_step_holds_what_the_score_sounds_on_that_beat(chorales: dict[str, data.Roll]) -> None:
    """music21's own vertical slices of the score are an independent witness."""
    for name in ("bach/bwv269", "bach/bwv347"):
        slices = data.parse_score(name).chordify().flatten().notes
        for step in range(len(chorales[name])):
            heard = {
                pitch.midi - data.LOWEST_KEY
                for slice_ in slices
                if slice_.offset <= step < slice_.offset + slice_.quarterLength
                for pitch in slice_.pitches
            }
            assert set(np.flatnonzero(chorales[name][step]).tolist()) == heard, (name, step)


def test_short_notes_count_only_on_the_beat() -> None:
    part = stream.Part([meter.TimeSignature("4/4")])
    for item in (
        note.Note("C4", quarterLength=0.5),  # on the beat: kept
        note.Note("D4", quarterLength=0.5),  # between two beats: left out
        note.Note("E4", quarterLength=1.5),  # on two beats
        note.Note("F4", quarterLength=1.5),  # starts between the beats, sounds on the last
        note.Rest(quarterLength=1),
        chord.Chord(["G4", "B4"], quarterLength=1 / 3),
    ):
        part.append(item)
    part.insert(1, note.Note("A4").getGrace())  # has no length
    roll = data.piano_roll(stream.Score([part]))
    assert [sounding(roll, step) for step in range(6)] == [["C4"], ["E4"], ["E4"], ["F4"], [], ["G4", "B4"]]
    assert len(roll) == 6


# ---- the cache ---------------------------------------------------------------------------------------------


def refuse(name: str) -> None:
    raise AssertionError(f"parsed {name} again")


def test_the_cache_replaces_the_scores(
    chorales: dict[str, data.Roll], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "parse_score", refuse)
    for limit in (CHORALES, 2):
        again = data.load_chorales(limit, folder=folder)
        assert list(again) == list(chorales)[:limit]
        assert all(np.array_equal(again[name], chorales[name]) for name in again)
    assert [path.name for path in folder.iterdir()] == ["bach_chorales.npz"]


def test_the_cache_grows_without_parsing_twice(
    chorales: dict[str, data.Roll], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    original = data.parse_score

    def watch(name: str) -> stream.Score:
        parsed.append(name)
        return original(name)

    monkeypatch.setattr(data, "parse_score", watch)
    data.load_chorales(1, folder=tmp_path)
    grown = data.load_chorales(2, folder=tmp_path)
    assert parsed == list(grown) == list(chorales)[:2]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "not a zip file": lambda content: b"a text somebody put here",
    "one byte flipped": lambda content: content[:700] + bytes([content[700] ^ 255]) + content[701:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_made_anew_with_a_message(
    damage: Callable[[bytes], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = data.load_chorales(1, folder=tmp_path)
    path = tmp_path / "bach_chorales.npz"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = data.load_chorales(1, folder=tmp_path)
    assert "cannot use the cached chorales" in capsys.readouterr().err
    assert np.array_equal(again["bach/bwv269"], first["bach/bwv269"])
    data.load_chorales(1, folder=tmp_path)
    assert capsys.readouterr().err == ""


def test_a_cache_of_another_version_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data.load_chorales(1, folder=tmp_path)
    monkeypatch.setattr(data, "CACHE_KEY", "sumprod chorales 1000")
    data.load_chorales(1, folder=tmp_path)
    assert "this program wants 'sumprod chorales 1000'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_costs_only_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    assert len(data.load_chorales(1, folder=tmp_path / "file")) == 1
    assert "cannot cache the chorales" in capsys.readouterr().err


# ---- the model ---------------------------------------------------------------------------------------------


def test_batches_are_padded_disjoint_and_seeded(chorales: dict[str, data.Roll]) -> None:
    train, test = bach.split(chorales, seed=0)
    assert sorted(train.names + test.names) == sorted(chorales)
    assert len(test.names) == 1
    for batch in (train, test):
        assert batch.rolls.shape == (len(batch.names), int(batch.lengths.max()), 88)
        for name, roll, length in zip(batch.names, batch.rolls, batch.lengths.tolist(), strict=True):
            assert np.array_equal(roll[:length].numpy(), chorales[name])
            assert not roll[length:].any()
    assert bach.split(chorales, seed=0)[0].names == train.names
    assert any(bach.split(chorales, seed=seed)[0].names != train.names for seed in range(1, 5))


def drawn_parameters(states: int) -> bach.Parameters:
    """Any parameters; pytest's fixture has set the seed."""
    rows = torch.randn(states, states).softmax(-1)
    return bach.Parameters(torch.randn(states).softmax(-1), rows, torch.randn(states, 88).sigmoid())


def potentials(parameters: bach.Parameters, batch: bach.Batch) -> tuple[torch.Tensor, ...]:
    """The log-potentials that the operators for hidden Markov models take: an independent witness."""
    coins = torch.distributions.Bernoulli(parameters.keys)
    emission = coins.log_prob(batch.rolls[:, :, None]).sum(-1)
    return parameters.initial.log(), parameters.transition.log(), emission


def test_a_selection_is_cut_to_its_longest(batches: tuple[bach.Batch, bach.Batch]) -> None:
    train = batches[0]
    shortest = train.lengths.argsort()[:2]
    part = bach.select(train, shortest)
    assert part.names == [train.names[row] for row in shortest.tolist()]
    assert part.rolls.shape == (2, int(part.lengths.max()), 88)
    assert torch.equal(part.rolls, train.rolls[shortest, : part.rolls.shape[1]])
    assert part.rolls.shape[1] < train.rolls.shape[1]


def test_the_loss_is_the_log_normaliser(batches: tuple[bach.Batch, bach.Batch]) -> None:
    train = batches[0]  # several lengths
    parameters = drawn_parameters(STATES)
    expected = -ops.hmm_log_normalizer(*potentials(parameters, train), lengths=train.lengths)
    assert bach.nll(parameters, train) == pytest.approx(float(expected.sum()), rel=1e-5)
    alone = [bach.nll(parameters, bach.select(train, row)) for row in torch.arange(5)[:, None]]
    assert alone == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_whole_program_adds_the_prior_of_the_keys(batches: tuple[bach.Batch, bach.Batch]) -> None:
    test = batches[1]
    parameters = drawn_parameters(STATES)
    fixed = handlers.condition(bach.program, data=parameters._asdict())
    loss = TraceEnum_ELBO(max_plate_nesting=2).loss(fixed, lambda *_: None, test, STATES, 3.0)
    keys = parameters.keys.double()
    one = 1 + bach.PSEUDO_COUNT
    beta = torch.lgamma(torch.tensor(2 * one)) - 2 * torch.lgamma(torch.tensor(one))
    prior = (bach.PSEUDO_COUNT * (keys.log() + (1 - keys).log()) + beta).sum()
    prior += (STATES + 1) * math.lgamma(STATES)  # flat on simplices
    assert loss == pytest.approx(3 * bach.nll(parameters, test) - float(prior), rel=1e-4)


def test_the_baseline_is_the_best_model_with_one_state(batches: tuple[bach.Batch, bach.Batch]) -> None:
    train = batches[0]
    keys = bach.key_means(train).requires_grad_()
    parameters = bach.Parameters(torch.ones(1), torch.ones(1, 1), keys[None])
    baseline = float(bach.independent_nll(train, train).sum())
    assert bach.nll(parameters, train) == pytest.approx(baseline, rel=1e-5)
    fixed = handlers.condition(bach.program, data=parameters._asdict())
    loss = TraceEnum_ELBO(max_plate_nesting=2).differentiable_loss(fixed, lambda *_: None, train, 1, 1.0)
    (slope,) = torch.autograd.grad(loss, keys)
    logit_slope = slope * keys * (1 - keys)
    assert logit_slope.abs().max() < 1e-5 * train.lengths.sum()  # a stationary point of a concave function


def test_fitting_lowers_the_loss_below_the_baseline(
    batches: tuple[bach.Batch, bach.Batch], fitted: tuple[bach.Parameters, list[float]]
) -> None:
    train = batches[0]
    parameters, history = fitted
    assert len(history) == EPOCHS
    assert all(math.isfinite(loss) for loss in history)
    assert history[-1] < history[0] - 1
    baseline = nll_per_step(bach.independent_nll(train, train), train)
    assert bach.nll(parameters, train) / int(train.lengths.sum()) < baseline - 0.5
    for probabilities in parameters:
        assert not probabilities.requires_grad
        assert probabilities.min() > 0
    torch.testing.assert_close(parameters.initial.sum(), torch.tensor(1.0))
    torch.testing.assert_close(parameters.transition.sum(-1), torch.ones(STATES))


def test_fitting_again_gives_the_same_model(batches: tuple[bach.Batch, bach.Batch]) -> None:
    first, again = (bach.fit(batches[0], STATES, 2, seed=3) for _ in range(2))
    assert again[1] == first[1]
    assert all(torch.equal(x, y) for x, y in zip(first[0], again[0], strict=True))


def test_states_are_numbered_by_use(
    batches: tuple[bach.Batch, bach.Batch], fitted: tuple[bach.Parameters, list[float]]
) -> None:
    use = bach.smoothed(fitted[0], batches[0]).sum(dim=(0, 1))
    assert use.tolist() == sorted(use.tolist(), reverse=True)


def test_paths_and_marginals_are_those_of_the_operators(
    batches: tuple[bach.Batch, bach.Batch], fitted: tuple[bach.Parameters, list[float]]
) -> None:
    train = batches[0]  # several lengths: no end may tell on what comes before
    given = potentials(fitted[0], train)
    decoded = bach.decode(fitted[0], train, seed=0)
    assert torch.equal(decoded.path, ops.hmm_viterbi(*given, lengths=train.lengths).path)
    marginals = ops.hmm_marginals(*given, lengths=train.lengths).exp()
    torch.testing.assert_close(decoded.marginals, marginals, rtol=1e-3, atol=1e-4)
    assert set(decoded.seconds) == {"Viterbi", "sampling"}


def test_samples_are_states_and_padding(
    batches: tuple[bach.Batch, bach.Batch], fitted: tuple[bach.Parameters, list[float]]
) -> None:
    train = batches[0]
    sumprod.set_rng_seed(0)
    samples = torch.cat([bach.drawn_paths(fitted[0], train) for _ in range(20)])
    real = bach.sounding(train)
    assert samples.shape == (20 * bach.SAMPLES, *train.rolls.shape[:2])
    assert samples.dtype == torch.int64
    assert (samples[:, ~real] == -1).all()
    assert ((samples[:, real] >= 0) & (samples[:, real] < STATES)).all()
    found = (samples[..., None] == torch.arange(STATES)).double().mean(dim=(0, 1, 2))
    expected = bach.smoothed(fitted[0], train).double().mean(dim=(0, 1))
    # 30,000 states, most of them nearly certain: 0.02 is more than five standard errors, though correlated.
    assert (found - expected).abs().max() < 0.02


# ---- names, picture, program -------------------------------------------------------------------------------


def test_states_are_named_by_their_closest_triad() -> None:
    keys = torch.full((3, 88), 1e-5)
    for state, tones in enumerate((["C3", "E4", "G4", "C5"], ["A2", "C4", "E4"], ["B3", "D4", "F5"])):
        for key in range(88):
            if data.pitch_name(key) in tones:
                keys[state, key] = 1 - 1e-5
    probabilities = pictures.pitch_class_probabilities(keys)
    assert probabilities.shape == (3, 12)
    assert probabilities[0].round().nonzero().flatten().tolist() == [0, 4, 7]
    assert [str(triad) for triad in pictures.closest_triads(probabilities)] == ["C", "Am", "Bdim"]


def test_the_program_from_the_command_line_to_the_picture(
    folder: Path,
    chorales: dict[str, data.Roll],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
    monkeypatch.setattr(data, "parse_score", refuse)
    out = tmp_path / "small.png"
    sizes = ["--chorales", str(CHORALES), "--states", str(STATES), "--epochs", str(EPOCHS)]
    bach.main([*sizes, "--seed", "1", "--out", str(out)])

    printed = capsys.readouterr()
    assert "training on 5 chorales" in printed.out
    assert f"HMM, {STATES} states" in printed.out
    assert "of 1 test chorales" in printed.out
    table = printed.out.split("state  triad")[1].split("\n\n")[0].splitlines()[1:]
    assert [int(line.split()[0]) for line in table] == list(range(STATES))
    assert "fitting: 100%|" in printed.err
    image = matplotlib.image.imread(out)
    assert min(image.shape[:2]) > 600
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 20


@pytest.mark.parametrize("states", [1, 50])
def test_the_picture_and_the_table_take_any_number_of_states(
    states: int, batches: tuple[bach.Batch, bach.Batch], tmp_path: Path
) -> None:
    test = batches[1]
    parameters = drawn_parameters(states)
    path, marginals = bach.best_paths(parameters, test), bach.smoothed(parameters, test)
    table = pictures.describe_states(parameters.transition, parameters.keys, path)
    assert len(table.splitlines()) == states + 2
    triads = pictures.closest_triads(pictures.pitch_class_probabilities(parameters.keys))
    out = tmp_path / "picture.png"
    pictures.plot_chorale(out, test.names[0], test.rolls[0], path, marginals[0], triads)
    assert out.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--states", "0"], "argument --states: must be at least 1, not 0"),
        (["--states", "many"], "argument --states: invalid whole_number value: 'many'"),
        (["--epochs", "0"], "argument --epochs: must be at least 1, not 0"),
        (["--chorales", "1"], "argument --chorales: must be at least 2, not 1"),
        (["--seed", "-1"], "argument --seed: must be at least 0, not -1"),
        (["--out", "bach.xyz"], "argument --out: 'bach.xyz' must end in one of ."),
        (["--out", "no/such/folder/bach.png"], "argument --out: there is no folder"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        bach.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["music21", "matplotlib", "tqdm"])
def test_a_missing_extra_is_named_in_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in {package, "bach_chorales", "chorale_data", "chorale_picture", "options"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        __import__("bach_chorales")
    assert stop.value.code == f'this example needs {package}: pip install "sumprod[examples]"'


def test_help_works_as_a_program() -> None:
    command = [sys.executable, str(EXAMPLES / "bach_chorales.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for option in ("--states", "--chorales", "--epochs", "--seed", "--out"):
        assert option in done.stdout
