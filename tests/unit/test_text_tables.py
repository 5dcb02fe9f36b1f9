"""Tables for terminals."""

from fxloom.text_tables import ruled, shortened, sparkline, wrapped

ROWS = [
    ["layer", "LUT", "cycles"],
    ["encoder.layers.0.self_attn.linear_1", "12,345", "8 (6 to 9)"],
    ["head", "1", "2"],
    ["total", "12,346", "10"],
]


def test_without_a_width_nothing_is_left_out() -> None:
    lines = list(ruled(ROWS, 1))
    assert len(lines) == 5
    assert set(lines[3]) == {"-"}
    assert lines[1].startswith("encoder.layers.0.self_attn.linear_1")


def test_wide_tables_shorten_names_and_then_continue_below() -> None:
    lines = list(ruled(ROWS, 1, 50))
    assert max(len(line) for line in lines) <= 50
    assert len(lines) == 5
    assert "\N{HORIZONTAL ELLIPSIS}" in lines[1]
    assert "linear_1" in lines[1]
    narrow = list(ruled(ROWS, 1, 36))
    assert max(len(line) for line in narrow) <= 36
    assert len(narrow) == 2 * 5 + 1
    assert {cell for row in ROWS for cell in row[1:]} <= set("  ".join(narrow).split("  ")) | {
        cell.strip() for line in narrow for cell in line.split("  ")
    }


def test_names_keep_both_ends() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghij", 7) == "ab\N{HORIZONTAL ELLIPSIS}ghij"


def test_what_is_not_zero_shows_in_a_sparkline() -> None:
    line = sparkline([0, 0.001, 1, 2])
    assert len(line) == 4
    assert (line[0], line[-1]) == (" ", "\N{FULL BLOCK}")
    assert line[1] == "\N{LOWER ONE EIGHTH BLOCK}"
    assert sparkline([]) == ""


def test_sentences_wrap_with_an_indent() -> None:
    assert wrapped("one two three", None) == ["one two three"]
    assert wrapped("one two three", 8) == ["one two", "  three"]
    assert wrapped("one two", 0)[:2] == ["one", "  t"]
