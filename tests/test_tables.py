"""Tables in which rows that repeat are written once."""

from __future__ import annotations

from sumprod._tables import Row, clip, collapsed, columns, listed, wrapped


def row(name: str, other: str, fact: str = "f") -> Row:
    return Row.of(name, (name, other, fact), named=(0, 1))


def test_rows_are_alike_when_names_shift_together() -> None:
    first = row("z_5", "z_4 z_5")
    assert first.likeness == row("z_8", "z_7 z_8").likeness
    assert first.likeness == row("z_10", "z_9 z_10").likeness
    assert first.likeness != row("z_8", "z_6 z_8").likeness
    assert first.likeness != row("y_8", "y_7 y_8").likeness
    assert first.likeness != row("z_8", "z_7 z_8", "g").likeness


def test_each_number_of_a_name_shifts_by_itself() -> None:
    assert row("z_2_5", "z_2_4 row_5").likeness == row("z_3_9", "z_3_8 row_9").likeness
    assert row("z_2_5", "z_1_5").likeness != row("z_3_9", "z_3_9").likeness


def test_sizes_do_not_shift() -> None:
    assert row("z_2", "z_1=2").likeness == row("z_3", "z_2=2").likeness
    assert row("z_2", "z_1=2").likeness != row("z_3", "z_2=3").likeness


def test_names_without_numbers_stand_for_themselves() -> None:
    assert row("a", "b_1").likeness != row("a", "b_2").likeness
    assert row("a", "b_1").likeness == row("a", "b_1").likeness


def test_three_rows_collapse_and_two_do_not() -> None:
    head = ("name", "other", "fact")
    rows = [row(f"z_{i}", f"x_{i}") for i in range(3)]
    assert collapsed(head, rows) == [
        "name  other  fact",
        "z_0   x_0    f",
        "  z_1 ... z_2: same as z_0 (2 more)",
    ]
    assert len(collapsed(head, rows[:2])) == 3
    assert collapsed(head, rows, full=True)[1:] == ["z_0   x_0    f", "z_1   x_1    f", "z_2   x_2    f"]


def test_alternating_rows_collapse_apart() -> None:
    rows = [row(f"{kind}_{i}", "-") for i in range(50) for kind in "zx"]
    assert [line.split(":")[0].strip() for line in collapsed(("name", "other", "fact"), rows)] == [
        "name  other  fact",
        "z_0   -      f",
        "z_1 ... z_49",
        "x_0   -      f",
        "x_1 ... x_49",
    ]


def test_long_cells_are_cut_unless_everything_is_shown() -> None:
    rows = [row("a", "b" * 100)]
    assert len(collapsed(("name", "other", "fact"), rows)[1]) < 60
    assert "b" * 100 in collapsed(("name", "other", "fact"), rows, full=True)[1]
    assert clip("abcdef", 5) == "ab..."
    assert clip("abcde", 5) == "abcde"


def test_columns_and_lists() -> None:
    assert columns([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc  d"]
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed([str(i) for i in range(20)], most=4) == "'0', '1', ..., '19'"
    assert [len(line) <= 110 for line in wrapped("word " * 100, "  ").splitlines()] == [True] * 5
