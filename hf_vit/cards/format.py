"""How every value of a card is written: the one place where numbers are rounded and text is made harmless.

Each function here is a Jinja filter of the same name. None of them accepts a missing or non-finite number: a card
leaves out what was not measured, so such a value reaching this module is a fault in the template.
"""

import json
import math
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from hf_vit.words import printable

MAX_NAME_LENGTH = 80
NO_BREAK = "\u00a0"  # between a number and its unit
_LAYOUT = "\n\t"  # of code
_MARKDOWN = re.compile(r"([\\`*\[\]#~|$]|(?<![^\W_])_|_(?![^\W_]))")
_AUTOLINK = re.compile(r"(?<=[a-z]):(?=//)|(?<=www)\.|@", re.IGNORECASE)


def _finite(value: float) -> float:
    if value is None or not math.isfinite(value):
        raise ValueError(f"a card can only show finite numbers, found {value!r}")
    return value


def number(value: float) -> str:
    """Four significant digits, zeros too; whole numbers in full with a comma between thousands."""
    if isinstance(_finite(value), int):
        return f"{value:,}"
    return f"{value:#.4g}".removesuffix(".")


def percent(value: float) -> str:
    """A fraction in [0, 1] as a percentage with two decimals."""
    return f"{100 * _finite(value):.2f}{NO_BREAK}%"


def scaled(value: float) -> str:
    """Large counts with an SI prefix and three significant digits: 21.7 M, 4.61 G."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if _finite(value) >= limit * 0.9995:  # 999,950 reads 1.00 M, not 1000 k
            digits = max(0, 2 - int(math.log10(value / limit * 1.0005)))
            return f"{value / limit:.{digits}f}{NO_BREAK}{suffix}"
    return number(value)


def duration(seconds: float) -> str:
    """Seconds as a reader would say them: 42.3 s, 1 min 05 s, 2 h 03 min."""
    if round(_finite(seconds), 1) < 60:
        return f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NO_BREAK}min {rest:02d}{NO_BREAK}s"
    return f"{minutes // 60:,}{NO_BREAK}h {minutes % 60:02d}{NO_BREAK}min"


def memory(num_bytes: int) -> str:
    """Bytes in MiB or GiB."""
    gib = _finite(num_bytes) / 2**30
    return f"{gib:.2f}{NO_BREAK}GiB" if gib >= 1 else f"{num_bytes / 2**20:.0f}{NO_BREAK}MiB"


def energy(kilowatt_hours: float) -> str:
    """Kilowatt hours, in Wh below one."""
    value, unit = (kilowatt_hours, "kWh") if _finite(kilowatt_hours) >= 1 else (1000 * kilowatt_hours, "Wh")
    return f"{value:.3g}{NO_BREAK}{unit}"


def mass(kilograms: float) -> str:
    """Kilograms, in grams below one."""
    value, unit = (kilograms, "kg") if _finite(kilograms) >= 1 else (1000 * kilograms, "g")
    return f"{value:.3g}{NO_BREAK}{unit}"


def shorten(text: str, length: int = MAX_NAME_LENGTH) -> str:
    """One line of at most `length` characters, cut with an ellipsis."""
    text = printable(" ".join(str(text).split()))
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def markdown(text: str) -> str:
    """Any text as one harmless line of Markdown prose or table cell: shown as written, never read as markup."""
    text = shorten(text, 10_000).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKDOWN.sub(r"\\\1", text)
    return _AUTOLINK.sub(lambda match: f"&#{ord(match.group())};", text)


def name(text: str) -> str:
    """A class or data set name: as `markdown`, cut to `MAX_NAME_LENGTH` characters."""
    return markdown(shorten(text))


def uncapitalize(text: str) -> str:
    """A label within a sentence: Loss becomes loss, BLEU and chrF stay."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def code(text: str) -> str:
    """Inline code that is safe in a table cell."""
    text = shorten(text, 200).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def fence(text: str, language: str = "") -> str:
    """A fenced code block whose fence is longer than any in the text."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{printable(text, keep=_LAYOUT).rstrip()}\n{ticks}"


def local(value: Any) -> Any:
    """The texts in a value with each path that is absolute or starts with `../` cut to its last part: a card never
    tells where its author keeps files."""
    if isinstance(value, dict):
        return {name: local(item) for name, item in value.items()}
    if isinstance(value, list):
        return [local(item) for item in value]
    if not isinstance(value, str):
        return value
    if _is_absolute(value) or value.startswith("../"):
        return _last_part(value)
    # A path starts a word or follows a quote, an equals sign or a comma; the slashes of a URL do not.
    path = r"""(?<![^\s"'=,])(?:[A-Za-z]:\\|~?/|\.\./)[^\s"',]+"""
    return re.sub(path, lambda match: _last_part(match.group()), value)


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def _last_part(path: str) -> str:
    return PureWindowsPath(path).name if PureWindowsPath(path).drive else PurePosixPath(path).name


def metric(measured: Any) -> str:
    """The value of a `facts.Metric` in the unit of its kind."""
    return {"percent": percent, "number": number}[measured.kind](measured.value)


def argument(value: Any) -> str:
    """The value of an argument as inline code, without the author's folders."""
    value = local(value)
    return code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def table(rows: str, *columns: str) -> str:
    """Rows of `| cell | cell |` under a header; nothing without rows. A column named `">Name"` aligns right."""
    if not rows.strip():
        return ""
    header = "".join(f"| {column.lstrip('>')} " for column in columns)
    rule = "".join("|---:" if column.startswith(">") else "|---" for column in columns)
    return f"{header}|\n{rule}|\n{rows.strip()}\n"


def section(body: str, title: str) -> str:
    """The body under its heading (`"## Title"`); nothing without a body."""
    return f"{title}\n\n{body.strip()}\n" if body.strip() else ""


FILTERS = {
    function.__name__: function
    for function in (
        number,
        percent,
        scaled,
        duration,
        memory,
        energy,
        mass,
        markdown,
        name,
        uncapitalize,
        code,
        fence,
        local,
        metric,
        argument,
        table,
        section,
    )
}
