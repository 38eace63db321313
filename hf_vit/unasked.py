"""Libraries that ask before they run foreign code are answered by a person or not at all."""

import contextlib
import io
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """Standard input is at its end within, unless it is a terminal: what a program is given to translate, or what a
    script pipes into it, never says yes to transformers' question whether to run a repository's code."""
    given = sys.stdin
    if given is None or not given.isatty():
        sys.stdin = io.StringIO()
    try:
        yield
    finally:
        sys.stdin = given
