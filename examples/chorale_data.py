"""Bach's four-part chorales as piano rolls, from the scores that `music21` ships.

A roll is a boolean array of shape [T, 88]: one row per quarter note of the score, one column per piano key
from A0 to C8. A key is on at step t when a note sounds *at the instant* t quarters after the start: the rolls
hold what one hears on every beat. A long note is on at every beat it covers; a note shorter than a quarter is
on if it sounds on a beat, and is left out if it begins and ends between two beats (passing notes, grace
notes), so that a step never mixes two successive harmonies. Two notes of one pitch in a row look like one
long note, and repeats are not unfolded.

Reading the scores takes the better part of a minute, so they are read once and kept in the user's cache
folder.
"""

import os
import sys
import tempfile
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import music21
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

KEYS = 88
LOWEST_KEY = 21  # the MIDI number of A0
PITCH_CLASSES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")

# Files written under another key are read again: raise the number whenever a roll would come out differently.
CACHE_KEY = f"sumprod chorales 1, music21 {music21.__version__}"

Roll = NDArray[np.bool_]


def pitch_name(key: int) -> str:
    """The name of a piano key, such as "C4" for the middle C (key 39)."""
    return f"{PITCH_CLASSES[(key + LOWEST_KEY) % 12]}{(key + LOWEST_KEY) // 12 - 1}"


def piano_roll(score: music21.stream.Score) -> Roll:
    """The piano roll of a score: [quarters, 88], as the module's first lines describe it."""
    roll = np.zeros((ceil(score.highestTime), KEYS), dtype=np.bool_)
    for part in score.parts:
        for note in part.flatten().notes:  # chords too: a voice that divides has several pitches at once
            start, end = note.offset, note.offset + note.quarterLength
            for pitch in note.pitches:
                # The beats t with start <= t < end. Offsets are exact numbers, so the rounding is safe.
                roll[ceil(start) : ceil(end), pitch.midi - LOWEST_KEY] = True
    return roll


def corpus_names() -> list[str]:
    """The chorales in the order of Riemenschneider's edition, such as "bach/bwv269", each named once."""
    return list(dict.fromkeys(music21.corpus.chorales.Iterator(returnType="filename")))


def parse_score(name: str) -> music21.stream.Score:
    """The score of one of the `corpus_names`."""
    # forceSource: without it music21 leaves a pickle of every score in the system's temporary folder.
    return music21.corpus.parse(name, forceSource=True)


@dataclass
class _Parsed:
    """What has been read so far: the first `examined` names of the corpus gave these rolls."""

    examined: int = 0
    rolls: dict[str, Roll] = field(default_factory=dict)


def load_chorales(limit: int | None = None, *, folder: Path | None = None) -> dict[str, Roll]:
    """The first `limit` four-part chorales (all of them by default), by name.

    Scores with further parts (horns, timpani, a continuo) are left out, and so are chorales that equal an
    earlier one note for note, because the same music must not stand in the training and in the test set.
    The cache file in `folder` (default: `cache_folder()`) is extended when it holds too few, and made anew,
    with a message, when it cannot be read.
    """
    path = (cache_folder() if folder is None else folder) / "bach_chorales.npz"
    parsed = _read_cache(path)
    names = corpus_names()
    wanted = len(names) if limit is None else limit
    if len(parsed.rolls) < wanted and parsed.examined < len(names):
        try:
            _parse_more(parsed, names, wanted)
        finally:  # an interrupted run keeps what it has read
            _write_cache(path, parsed)
    return dict(list(parsed.rolls.items())[:wanted])


def _parse_more(parsed: _Parsed, names: list[str], wanted: int) -> None:
    known = {roll.tobytes() for roll in parsed.rolls.values()}
    total = min(wanted, len(names))
    with tqdm(total=total, initial=len(parsed.rolls), desc="reading scores", unit="chorale") as bar:
        for name in names[parsed.examined :]:
            if len(parsed.rolls) >= wanted:
                break
            score = parse_score(name)
            roll = piano_roll(score)
            parsed.examined += 1
            if len(score.parts) == 4 and roll.tobytes() not in known:
                known.add(roll.tobytes())
                parsed.rolls[name] = roll
                bar.update()
            else:
                # One candidate fewer: the bar's end is the most that can still be reached.
                bar.total = min(wanted, len(parsed.rolls) + len(names) - parsed.examined)
                bar.refresh()


def cache_folder() -> Path:
    """Where the user's programs keep what they can make again: $XDG_CACHE_HOME, or the platform's custom."""
    custom = {"win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local"), "darwin": "~/Library/Caches"}
    base = os.environ.get("XDG_CACHE_HOME") or custom.get(sys.platform, "~/.cache")
    return Path(base).expanduser() / "sumprod"


def _read_cache(path: Path) -> _Parsed:
    if not path.exists():
        return _Parsed()
    try:
        # Opened here, for np.load leaves a file open that turns out not to be what it wants.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            if str(file["key"]) != CACHE_KEY:
                raise ValueError(f"it was written as {str(file['key'])!r}, this program wants {CACHE_KEY!r}")
            names, steps = file["names"].tolist(), file["steps"]
            rows = np.unpackbits(file["rows"], axis=1, count=KEYS).astype(np.bool_)
            if len(names) != len(steps) or steps.sum() != len(rows):
                raise ValueError(f"{len(names)} names, {len(steps)} lengths, {len(rows)} steps do not fit")
            rolls = dict(zip(names, np.split(rows, np.cumsum(steps)[:-1]), strict=True))
            return _Parsed(examined=int(file["examined"]), rolls=rolls)
    except Exception as error:  # zip, zlib, struct and numpy all have their own words for a damaged file
        _say(f"cannot use the cached chorales in {path} ({error}); reading the scores again")
        return _Parsed()


def _write_cache(path: Path, parsed: _Parsed) -> None:
    """Write beside the file's place, then move it there: readers see the old file or the new, never half."""
    if not parsed.rolls:
        return
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(
                file,
                key=np.array(CACHE_KEY),
                examined=np.array(parsed.examined),
                names=np.array(list(parsed.rolls), dtype=np.str_),
                steps=np.array([len(roll) for roll in parsed.rolls.values()], dtype=np.int64),
                rows=np.packbits(np.concatenate(list(parsed.rolls.values())), axis=1),
            )
        os.replace(temporary, path)
        temporary = None
    except (
        OSError
    ) as error:  # a full disk or a read-only home costs the next run its time, not this one its life
        _say(f"cannot cache the chorales in {path} ({error}); the next run will read the scores again")
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _say(message: str) -> None:
    print(message, file=sys.stderr)
