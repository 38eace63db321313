"""Runs the commands of documentation in forks of a process that has imported the package once.

`python command_server.py SOCKET MODULE...` imports the modules and serves. `link_commands` writes the programs that a
shell finds in its PATH: each hands its words, folder, environment and open files over to a fork and ends with its
status. Training launched there stays in its process, and is cut short where SNIPPETS_CUT is set.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path

COMMANDS = ("accelerate", "hf-vit", "pip", "python", "session")
_SAMPLES = {"max_train_samples": 200, "max_eval_samples": 20, "card_num_samples": 2}
_LINK = """#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({path!r})
    request = json.dumps([sys.argv[1:], {command!r}, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [request], [0, 1, 2])
    sys.exit(int(server.recv(16) or 1))
"""


def link_commands(folder, path):
    """Writes a program for each of COMMANDS into `folder`, which the server at the socket `path` runs."""
    folder.mkdir()
    for command in COMMANDS:
        program = folder / command
        program.write_text(_LINK.format(python=sys.executable, path=str(path), command=command))
        program.chmod(0o755)


def _hf_vit(words):
    from hf_vit.cli import main

    sys.argv = ["hf-vit", *words]
    main()


def _accelerate(words):
    from accelerate.commands.accelerate_cli import main

    sys.argv = ["accelerate", *words]
    main()


def _python(words):
    first, rest = words[0], words[1:]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def _pip(words):
    """Installs nothing, for it is installed: asks for a folder of a project, and extras that this one has."""
    import re
    from importlib.metadata import metadata

    target = words[-1]
    name, _, extras = target.partition("[")
    assert words[0] == "install" and (name == "hf_vit" or Path(name, "pyproject.toml").is_file()), words
    unknown = set(re.findall(r"[\w-]+", extras)) - set(metadata("hf_vit").get_all("Provides-Extra"))
    assert not unknown, f"no such extras: {unknown}"


def _session(words):
    """Runs the Python snippets of a page one after another: each line of standard input holds one as JSON, a list of
    [statement, number of its first line], and the answer is what each statement printed, and a traceback or None."""
    if "without" in words:
        sys.modules["hf_vit"] = None
    names = {"__name__": "__main__"}
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        printed, error = [], None
        for code, number in json.loads(line):
            output = io.StringIO()
            try:
                with contextlib.redirect_stdout(output):
                    exec(compile("\n" * (number - 1) + code, "snippet", "exec"), names)
            except BaseException:
                error = traceback.format_exc()
                break
            finally:
                printed.append(output.getvalue())
        answers.write(json.dumps([printed, error]) + "\n")
        answers.flush()


def _launch_here(arguments):
    """Does as Accelerate's launcher, in this process."""
    from hf_vit import train
    from hf_vit.cards import measure

    if arguments.config_file is not None:
        assert Path(arguments.config_file).is_file(), f"there is no {arguments.config_file}"
    words = list(arguments.training_script_args)
    if os.environ.get("SNIPPETS_CUT"):
        groups = vars(train.parse(words)).values()
        known = {
            field.name for group in groups if dataclasses.is_dataclass(group) for field in dataclasses.fields(group)
        }
        samples = {} if "--streaming" in words else {name: _SAMPLES[name] for name in _SAMPLES if name in known}
        cut = {"max_train_steps": 2, "dataloader_num_workers": 0, **samples}
        words += [f"--{name}={value}" for name, value in cut.items() if name in known]
        measure.measure = lambda *args: None  # in a process that imports everything anew
    os.environ["ACCELERATE_USE_CPU"] = "true"
    _python([*(["-m"] if arguments.module else []), arguments.training_script, *words])


def _serve(connection):
    """Runs one command, in a fork of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
    words, command, folder, environment = json.loads(request)
    for file, number in zip(files, range(3)):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = 0
    try:
        if "HF_VIT_TASKS_PATH" in environment:
            importlib.reload(importlib.import_module("hf_vit.tasks"))
        if command != "session":
            import accelerate.commands.launch

            accelerate.commands.launch.launch_command = _launch_here
        globals()["_" + command.replace("-", "_")](words)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(str(status).encode())
    os._exit(0)


def main(path, *modules):
    """Imports the modules, and serves until it is killed."""
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(path)
        server.listen(8)
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _serve(connection)
            connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
