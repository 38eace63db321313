"""The program of a `FreshProcess`: on each line of standard input a request with `code` and `variables`, on standard
output its answer. Its arguments are the modules that must not be found."""

import contextlib
import io
import json
import os
import sys

requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
# What is executed finds its standard input at the end, and cannot write among the answers.
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
for name in sys.argv[1:]:
    sys.modules[name] = None  # type: ignore[assignment]  # importing it fails, as it does for those who do not have it


def output_of(code: str) -> str:
    """Run a program and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {"__name__": "__main__"})
    return printed.getvalue()


variables = {"__name__": "__main__", "output_of": output_of}
for line in requests:
    request = json.loads(line)
    variables.update(request["variables"])
    variables.pop("result", None)
    try:
        exec(request["code"], variables)
        answer = {"result": variables.get("result")}
        text = json.dumps(answer)
    except BaseException as error:
        text = json.dumps({"error": f"{type(error).__name__}: {error}"})
    print(text, file=answers, flush=True)
