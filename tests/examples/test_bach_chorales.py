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

CHORALES, STATES, STEPS = 6, 4, 30


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
def fitted(batches: tuple[bach.Batch, bach.Batch]) -> tuple[bach.ChoraleHMM, list[float]]:
    return bach.fit(batches[0], STATES, STEPS, seed=0)


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


def test_the_emission_is_a_product_of_bernoullis(
    batches: tuple[bach.Batch, bach.Batch], generator: torch.Generator
) -> None:
    train = batches[0]
    model = bach.ChoraleHMM(STATES, bach.key_means(train), generator)
    initial, transition, emission = model.potentials(train.rolls)
    coins = torch.distributions.Bernoulli(logits=model.keys)
    expected = coins.log_prob(train.rolls[:, :, None]).sum(-1)
    torch.testing.assert_close(emission, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(initial.exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(transition.exp().sum(-1), torch.ones(STATES))


def test_the_baseline_is_the_best_model_with_one_state(
    batches: tuple[bach.Batch, bach.Batch], generator: torch.Generator
) -> None:
    train = batches[0]
    model = bach.ChoraleHMM(1, bach.key_means(train), generator)
    with torch.no_grad():
        model.keys.copy_(bach.key_means(train).logit())
    torch.testing.assert_close(-model(train), bach.independent_nll(train, train), rtol=1e-5, atol=1e-2)
    objective = (model(train).sum() + model.log_prior()) / train.lengths.sum()
    objective.backward()
    assert model.keys.grad is not None
    assert model.keys.grad.abs().max() < 1e-5  # a stationary point of a concave function


def test_fitting_lowers_the_loss_below_the_baseline(
    batches: tuple[bach.Batch, bach.Batch], fitted: tuple[bach.ChoraleHMM, list[float]]
) -> None:
    train = batches[0]
    model, history = fitted
    assert len(history) == STEPS
    assert all(math.isfinite(loss) for loss in history)
    assert history[-1] < history[0] - 1
    baseline = nll_per_step(bach.independent_nll(train, train), train)
    with torch.no_grad():
        fitted_nll = nll_per_step(-model(train), train)
    assert fitted_nll < baseline - 0.5


def test_fitting_again_gives_the_same_model(
    batches: tuple[bach.Batch, bach.Batch], fitted: tuple[bach.ChoraleHMM, list[float]]
) -> None:
    assert bach.fit(batches[0], STATES, 3, seed=0)[1] == pytest.approx(fitted[1][:3], rel=1e-6)


def test_states_are_numbered_by_use(
    batches: tuple[bach.Batch, bach.Batch], fitted: tuple[bach.ChoraleHMM, list[float]]
) -> None:
    use = bach.decode(fitted[0], batches[0], seed=0).marginals.sum(dim=(0, 1))
    assert use.tolist() == sorted(use.tolist(), reverse=True)


def test_decoded_paths_are_states_and_padding(
    batches: tuple[bach.Batch, bach.Batch], fitted: tuple[bach.ChoraleHMM, list[float]]
) -> None:
    train = batches[0]  # several lengths
    decoded = bach.decode(fitted[0], train, seed=0)
    rows, steps = train.rolls.shape[:2]
    real = torch.arange(steps) < train.lengths[:, None]
    assert decoded.path.shape == (rows, steps)
    assert decoded.samples.shape == (bach.SAMPLES, rows, steps)
    for paths in (decoded.path, *decoded.samples):
        assert paths.dtype == torch.int64
        assert (paths[~real] == -1).all()
        assert ((paths[real] >= 0) & (paths[real] < STATES)).all()
    assert decoded.marginals.shape == (rows, steps, STATES)
    torch.testing.assert_close(decoded.marginals.sum(-1), real.float(), rtol=1e-4, atol=1e-4)
    likely = decoded.marginals.gather(-1, decoded.path.clamp(min=0)[..., None])[..., 0][real]
    assert likely.mean() > 0.7  # the joint mode and the marginals tell nearly the same story
    assert set(decoded.seconds) == {"Viterbi", "sampling"}


# ---- names, picture, program -------------------------------------------------------------------------------


def test_states_are_named_by_their_closest_triad(generator: torch.Generator) -> None:
    model = bach.ChoraleHMM(3, torch.full((88,), 0.5), generator)
    with torch.no_grad():
        model.keys.fill_(-12.0)
        for state, tones in enumerate((["C3", "E4", "G4", "C5"], ["A2", "C4", "E4"], ["B3", "D4", "F5"])):
            for key in range(88):
                if data.pitch_name(key) in tones:
                    model.keys[state, key] = 12.0
    probabilities = bach.pitch_class_probabilities(model)
    assert probabilities.shape == (3, 12)
    assert probabilities[0].round().nonzero().flatten().tolist() == [0, 4, 7]
    assert [str(triad) for triad in bach.closest_triads(probabilities)] == ["C", "Am", "Bdim"]


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
    sizes = ["--chorales", str(CHORALES), "--states", str(STATES), "--steps", str(STEPS)]
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
    states: int, batches: tuple[bach.Batch, bach.Batch], tmp_path: Path, generator: torch.Generator
) -> None:
    train, test = batches
    model = bach.ChoraleHMM(states, bach.key_means(train), generator)
    decoded = bach.decode(model, test, seed=0)
    assert len(bach.describe_states(model, decoded.path).splitlines()) == states + 2
    triads = bach.closest_triads(bach.pitch_class_probabilities(model))
    bach.plot_chorale(tmp_path / "picture.png", test, decoded, triads, 0)
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--states", "0"], "argument --states: must be at least 1, not 0"),
        (["--states", "many"], "argument --states: invalid whole_number value: 'many'"),
        (["--steps", "0"], "argument --steps: must be at least 1, not 0"),
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
        if name.split(".")[0] in {package, "bach_chorales", "chorale_data"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        __import__("bach_chorales")
    assert stop.value.code == f'this example needs {package}: pip install "sumprod[examples]"'


def test_help_works_as_a_program() -> None:
    command = [sys.executable, str(EXAMPLES / "bach_chorales.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for option in ("--states", "--chorales", "--steps", "--seed", "--out"):
        assert option in done.stdout
