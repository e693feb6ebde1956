"""Names from outside cannot act on the terminal."""

import unicodedata

import pytest

from batchnorm.escape import printable


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nbatchnorm: wrote b\r\t", r"a\nbatchnorm: wrote b\r\t"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("\u202egpj.exe\u2066\u2028", r"\u202egpj.exe\u2066\u2028"),
        ("bad \udcff byte", r"bad \udcff byte"),
        ("größe ±0.5 中文 C:\\x", "größe ±0.5 中文 C:\\x"),
        (3, "3"),
    ],
)
def test_characters_that_a_terminal_acts_on_are_escaped(text, escaped):
    assert printable(text) == escaped


def test_no_control_or_direction_character_passes():
    acting = {"Cc", "Cs", "Zl", "Zp"}
    bidirectional = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    found = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) in acting]
    found += [c for c in map(chr, range(0x110000)) if unicodedata.bidirectional(c) in bidirectional]
    assert len(found) > 2000  # surrogates are most of them
    assert not set(found) & set(printable("".join(found)))
