"""Text from other people's files on a terminal: without control characters, in whatever encoding the terminal has."""

from __future__ import annotations

import re
import sys

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters other than tab and line feed, marks that reorder a line, and bytes that are not UTF-8."""


def printable(text: str) -> str:
    """The text with everything escaped that could move a cursor, change colours or reorder a line."""
    return _UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def forgive_encodings() -> None:
    """Let standard output and error escape what their encoding cannot say, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
