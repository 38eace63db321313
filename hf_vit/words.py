"""Words for people: numbers with their nouns, long lists cut short."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, plural: str) -> str:
    """A number and its noun, whose singular lacks the last letter: "1 image", "1,200 images"."""
    return f"{number:,} {plural[:-1] if number == 1 else plural}"


def listed(names: Sequence[str], most: int) -> str:
    """At most so many of the names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def shortened(text: str, most: int = 80) -> str:
    """The beginning of a text that is longer."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
