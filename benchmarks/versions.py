"""Tests of what depends on transformers, over every minor version of it from the oldest supported to the newest that
the package index offers, and once over the oldest torch.

    python benchmarks/versions.py [--transformers 5.17 5.24] [--no-torch] [--output benchmarks/results/versions.json]

Each row is an environment of its own, laid over the one that runs this script: the version asked for and what it wants
come from the package index (`pip`), all else is shared. The tests of a column run there in one process. Rows of
another run of this script that are not run again are kept; the table beside the JSON is written anew after each row.
The exit status is 1 if a test failed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import xml.etree.ElementTree
from pathlib import Path

from hf_vit.models.tested_versions import TESTED_TRANSFORMERS

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "benchmarks" / "results" / "versions.json"
# The tests of each column, by the names of their files.
COLUMNS = {
    "remote code": ("remote_code", "saved_folders"),
    "generation": (
        *("transformer_peers", "transformer_generation", "transformer_fast_generation"),
        *("transformer_past", "transformer_private_names"),
    ),
    "models": ("transformer_model", "transformer_input", "vit_model", "vit_peers", "vit_attention", "versions"),
    "linear layers": ("linear",),
    "Trainer": ("transformer_training", "vit_training"),
    "pipelines": ("translation_pipeline",),
}


def minors() -> list[str]:
    """The minor versions from the oldest supported to the newest on the index, such as "5.17", in order."""
    command = [sys.executable, "-m", "pip", "index", "versions", "transformers"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {tuple(map(int, pair)) for pair in re.findall(r"\b(\d+)\.(\d+)\.\d+\b", answer)}
    oldest = tuple(map(int, TESTED_TRANSFORMERS[0].split(".")))
    return [f"{major}.{minor}" for major, minor in sorted(found) if (major, minor) >= oldest]


def oldest_torch() -> str:
    """The oldest torch that pyproject.toml allows, as "2.6"."""
    return re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)


def environment(folder: Path, requirements: list[str]) -> Path:
    """The interpreter of a new environment with the requirements, laid over the packages of this one."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site_packages = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    shared = {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    shared.add(sysconfig.get_paths()["purelib"])
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(shared)]
    Path(site_packages, "shared.pth").write_text("\n".join(lines) + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def versions_of(python: Path) -> dict[str, str]:
    ask = "import json, torch, transformers as t; print(json.dumps([t.__version__, torch.__version__]))"
    answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout
    return dict(zip(("transformers", "torch"), json.loads(answer.splitlines()[-1])))


def run_tests(python: Path, names: tuple[str, ...]) -> dict:
    """How many tests of these files ran, and which failed."""
    files = [path for name in names for path in sorted((ROOT / "tests").rglob(f"test_{name}.py"))]
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        command = [python, "-m", "pytest", "--override-ini=addopts=", "-m", "not slow"]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
        options = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        options["HF_MODULES_CACHE"] = str(Path(directory, "modules"))
        subprocess.run([*command, *files], cwd=ROOT, env={**os.environ, **options}, stdout=subprocess.DEVNULL)
        cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    ran = [case for case in cases if case.find("skipped") is None]
    return {"tests": len(ran), "failed": failed}


def table(rows: list[dict]) -> str:
    lines = [
        "Tests passed of those that ran, by version (`python benchmarks/versions.py`); the range that the package "
        f"states is transformers {' to '.join(TESTED_TRANSFORMERS)}.",
        "",
        f"| transformers | torch | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---:|' * len(COLUMNS)}",
    ]
    for row in rows:
        cells = [f"{each['tests'] - len(each['failed'])} / {each['tests']}" for each in row["results"].values()]
        lines.append(f"| {row['transformers']} | {row['torch']} | {' | '.join(cells)} |")
    for row in rows:
        names = {name.partition("[")[0] for each in row["results"].values() for name in each["failed"]}
        if names:
            versions = f"transformers {row['transformers']} and torch {row['torch']}"
            lines += ["", f"Failed with {versions}: {', '.join(f'`{name}`' for name in sorted(names))}."]
    return "\n".join(lines) + "\n"


def key(row: dict) -> tuple:
    return tuple(tuple(int(part) for part in re.findall(r"\d+", row[name])[:2]) for name in ("torch", "transformers"))


def write(path: Path, rows: dict[tuple, dict]) -> None:
    ordered = [rows[each] for each in sorted(rows, reverse=True)]
    path.write_text(json.dumps(ordered, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(ordered))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", nargs="*", metavar="MINOR", help="these minors alone, such as 5.17")
    parser.add_argument("--no-torch", action="store_true", help="leave the oldest torch out")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    wanted = minors() if arguments.transformers is None else arguments.transformers
    runs = [[f"transformers=={minor}.*"] for minor in wanted]
    if not arguments.no_torch:
        runs.append([f"torch=={oldest_torch()}.*", "torchvision"])
    rows = {key(row): row for row in json.loads(arguments.output.read_text())} if arguments.output.exists() else {}
    write(arguments.output, rows)
    for requirements in runs:
        with tempfile.TemporaryDirectory() as directory:
            python = environment(Path(directory), requirements)
            row = versions_of(python)
            row["results"] = {name: run_tests(python, files) for name, files in COLUMNS.items()}
        rows[key(row)] = row
        write(arguments.output, rows)
        print(
            next(line for line in table([row]).splitlines() if line.startswith(f"| {row['transformers']} ")),
            flush=True,
        )
    return int(any(each["failed"] for row in rows.values() for each in row["results"].values()))


if __name__ == "__main__":
    sys.exit(main())
