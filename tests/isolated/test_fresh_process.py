"""A process without the package: what it has, what it lacks, and how it ends."""

import os

import pytest

from hf_vit.isolated.fresh_process import ProcessError, fresh_process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "digits"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def process(folder):
    with fresh_process(folder, "someone/digits", hidden=["scipy"]) as process:
        yield process


def test_it_sees_the_folder_alone(process):
    code = "import os\nresult = [sorted(os.listdir(path)) for path in ('.', 'someone', 'someone/digits')]"
    assert process.run(code) == [["someone"], ["digits"], ["config.json"]]


def test_its_caches_are_empty_and_its_own(process):
    code = "import os\nresult = [os.environ[f'HF_{name}_CACHE'] for name in ('HUB', 'MODULES')]"
    caches = process.run(code)
    assert all(not os.path.exists(cache) and cache.startswith(str(process.folder.parent)) for cache in caches)


def test_values_go_in_and_come_out_and_variables_stay(process):
    process.run("kept = {**given, 'more': [1.5, None]}", given={"text": "grün"})
    assert process.run("result = kept") == {"text": "grün", "more": [1.5, None]}
    assert process.run("pass") is None


def test_a_program_knows_nothing_of_what_was_executed_before(process):
    process.run("known = 1")
    assert process.output_of("print('known' in globals(), __name__)") == "False __main__\n"


@pytest.mark.parametrize("name", ["hf_vit", "scipy"])
def test_hidden_modules_cannot_be_imported(process, name):
    with pytest.raises(ProcessError, match=f"^ModuleNotFoundError: import of {name}"):
        process.run(f"import {name}")


@pytest.mark.parametrize(
    "code, message",
    [
        ("input()", "EOFError"),
        ("1 / 0", "^ZeroDivisionError: division"),
        ("exit(3)", "^SystemExit: 3"),
        ("result = {1, 2}", "^TypeError: .*set is not JSON serializable"),
        ("raise KeyboardInterrupt", "Interrupt"),
    ],
)
def test_errors_come_back_and_it_goes_on(process, code, message):
    with pytest.raises(ProcessError, match=message):
        process.run(code)
    assert process.run("result = 1") == 1


def test_what_code_prints_is_no_answer(process):
    assert process.run("import os\nos.write(1, b'{}')\nprint('{}')\nos.system('echo {}')\nresult = 2") == 2


def test_the_package_can_be_let_in():
    with fresh_process() as process:
        process.let_in()
        assert process.run("import hf_vit.files\nresult = hf_vit.files.TEMPORARY") == ".tmp-"


@pytest.mark.parametrize(
    "code, message",
    [
        ("import os, sys\nprint('gone', file=sys.stderr, flush=True)\nos._exit(3)", "^the process ended: gone$"),
        ("import time\ntime.sleep(60)", "^the process ended: it took more than 2 s$"),
    ],
)
def test_a_process_that_ends_says_why(code, message):
    with fresh_process(timeout_s=2) as process, pytest.raises(ProcessError, match=message):
        process.run(code)
