"""The page as a Space of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from hf_vit import __version__
from hf_vit.extras import extra
from hf_vit.files import check_new_folder, write_folder

_APP = '''\
"""{title}"""

from hf_vit.demo.answers import load
from hf_vit.demo.page import MAX_UPLOAD, build

page = build([load(name) for name in {models!r}])
page.launch(max_file_size=MAX_UPLOAD)
'''


def write_space(models: list[str], folder: Path, title: str | None = None) -> Path:
    """Write a folder that can be pushed as a Space: `app.py`, `requirements.txt` and `README.md`.

    Args:
        models: ids on the Hub, which the Space can load.
        folder: a new one.
        title: of the Space; the models' names unless given.

    Raises:
        ValueError: a model is a folder of this computer, or `folder` is there already.
    """
    with extra("demo"):
        import gradio
    for name in models:
        if Path(name).exists() or name.count("/") != 1:
            raise ValueError(f"model must be an id on the Hub, NAMESPACE/NAME, for a Space to load it, got {name!r}")
    check_new_folder(folder)
    title = title or " and ".join(models)
    front = {"title": title, "sdk": "gradio", "sdk_version": gradio.__version__, "app_file": "app.py"}
    lines = [f"{key}: {_quoted(value)}" for key, value in front.items()]
    lines += ["models:", *(f"- {_quoted(name)}" for name in models)]

    def write(stage: Path) -> None:
        stage.mkdir()
        (stage / "app.py").write_text(_APP.format(title=title.replace('"', "'"), models=models), encoding="utf-8")
        (stage / "requirements.txt").write_text(f"hf_vit[demo]>={__version__}\n", encoding="utf-8")
        head = "\n".join(["---", *lines, "---"])
        (stage / "README.md").write_text(f"{head}\n\n# {title}\n\nMade by `hf-vit demo`.\n", encoding="utf-8")

    return write_folder(folder, write)


def _quoted(value: str) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
