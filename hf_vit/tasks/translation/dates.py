"""Dates as people write them in 35 languages, by the Unicode CLDR as Babel has it, and the same dates in ISO 8601."""

from __future__ import annotations

import re
from datetime import date, timedelta
from functools import partial

import numpy as np
from babel import Locale
from babel.dates import format_date
from datasets import Dataset, DatasetDict

SOURCE, TARGET = "text", "iso8601"
LANGUAGES = "ar bg ca cs da de el en es et fi fr he hi hr hu id it ja ko lt lv nb nl pl pt ro ru sk sl sv tr uk vi zh"
FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2099, 12, 31)
NUM_EXAMPLES = {"train": 60_000, "validation": 500, "test": 2_000}
_SEED = 0
_QUOTED = re.compile(r"'[^']*'")


def is_unambiguous(pattern: str) -> bool:
    """Whether a CLDR date pattern gives day, month and year, and can be read in one way only.

    A year of two digits can be of any century. A month in digits can be taken for the day, unless the year comes
    first or full stops stand between: in `LANGUAGES`, all read 2021-03-04 and 4.3.2021 alike, but not 3/4/2021.
    """
    fields = _QUOTED.sub("", pattern)
    if not all(re.search(field, fields) for field in ("d", "[ML]", "y")) or re.search(r"(?<!y)yy(?!y)", fields):
        return False
    month_in_digits = not re.search(r"MMM|LLL", fields)
    return not month_in_digits or fields.lstrip().startswith("y") or bool(re.search(r"d\.\s*M", fields))


def patterns(language: str) -> list[str]:
    """The unambiguous patterns that a language writes dates in, sorted."""
    locale = Locale.parse(language)
    found = {str(style.pattern) for style in locale.date_formats.values()}
    found |= {style.pattern for name, style in locale.datetime_skeletons.items() if set(name) <= set("yMdE")}
    return sorted(pattern for pattern in found if is_unambiguous(pattern))


def _examples(days: list[date], count: int, generator: np.random.Generator) -> Dataset:
    """Days in a random language and pattern of it, one in four in lower case."""
    known = {language: patterns(language) for language in LANGUAGES.split()}
    texts, targets = [], []
    for index in range(count):
        day = days[index % len(days)]
        language = str(generator.choice(list(known)))
        pattern = known[language][generator.integers(len(known[language]))]
        text = format_date(day, pattern, locale=language)
        texts.append(text.lower() if generator.random() < 0.25 else text)
        targets.append(day.isoformat())
    return Dataset.from_dict({SOURCE: texts, TARGET: targets})


def load_dates() -> DatasetDict:
    """`train`, `validation` and `test`, always the same; no date is in two of them, in whatever language."""
    generator = np.random.default_rng(_SEED)
    days = [FIRST_DAY + timedelta(int(n)) for n in generator.permutation((LAST_DAY - FIRST_DAY).days + 1)]
    num_test, num_validation = NUM_EXAMPLES["test"], NUM_EXAMPLES["validation"]
    make = partial(_examples, generator=generator)
    return DatasetDict(
        test=make(days[:num_test], num_test),
        validation=make(days[num_test : num_test + num_validation], num_validation),
        train=make(days[num_test + num_validation :], NUM_EXAMPLES["train"]),
    )
