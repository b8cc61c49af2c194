"""Text that others chose: what does not print is marked, what computes in a sheet is text there."""

import pytest

from tapline.models.foreign_text import clean, sheet_cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("camera 1, Küche", "camera 1, Küche"),
        ("\x1b[31mred\x1b]0;title\x07", "�[31mred�]0;title�"),
        ("a\nb\rc\td\x00\x7f\x9b", "a�b�c�d���"),
        ("\u202egnp.exe", "�gnp.exe"),  # right-to-left override
        ("\u2028", "�"),
        ("\ud800", "�"),
    ],
)
def test_what_does_not_print_is_marked(text, shown):
    assert clean(text) == shown


def test_long_text_is_cut():
    assert clean("x" * 300) == "x" * 255 + "…"
    assert clean("line\nline\x1b", keep="\n") == "line\nline�"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(text):
    assert sheet_cell(text)[0] == "'"
    assert [sheet_cell(one) for one in ("DNS", "-", "")] == ["DNS", "-", ""]
