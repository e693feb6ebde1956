"""Escape names from outside, such as those of files and classes, before they are printed."""

from __future__ import annotations


def printable(text: object) -> str:
    r"""Return the text on one line, with every character that a terminal would act on escaped as in Python's `repr`.

    These are control characters, marks that turn the direction of the text, and bytes of a file's name that are not
    UTF-8. An escape sequence would run; a newline would forge a line.

    Example:
        >>> from batchnorm.escape import printable
        >>> print(printable("a\nb\x1b[31m, größe"))
        a\nb\x1b[31m, größe
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
