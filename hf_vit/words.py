"""Words for people: numbers with their nouns, long lists cut short."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def counted(number: int, plural: str) -> str:
    """A number and its noun, whose singular lacks the last letter: "1 image", "1,200 images"."""
    return f"{number:,} {plural[:-1] if number == 1 else plural}"


def listed(names: Sequence[str], most: int) -> str:
    """At most so many of the names, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(printable, names[:most])) + (f" and {more:,} more" if more > 0 else "")


def printable(text: str, keep: str = "") -> str:
    """A text of others for a terminal or a list of names: control characters, ends of lines and what reverses the
    direction of writing are escaped, `\\n` for instance, so that it can neither move a cursor nor look like another.

    Args:
        keep: characters that stay as they are.
    """
    return "".join(
        character.encode("unicode_escape").decode() if _steers(character) and character not in keep else character
        for character in text
    )


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS


def shortened(text: str, most: int = 80) -> str:
    """The beginning of a text that is longer."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
