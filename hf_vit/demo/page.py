"""The page: one or two models side by side, and whatever their task needs beside them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from hf_vit.demo.answers import Model, align, classify, explains, find, heat_map, read, translate
from hf_vit.extras import extra
from hf_vit.sources import own_name

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
with extra("demo"):
    import gradio as gr

MAX_UPLOAD = "20mb"
_HEIGHT = 360  # of an image on the page, in pixels
_TOP = 5  # classes that are shown with their probabilities
_INTRODUCTIONS = {
    "image-classification": "Choose an image, and see what it shows.",
    "object-detection": "Choose an image, and see the objects in it.",
    "image-segmentation": "Choose an image, and see what each part of it is.",
    "image-to-text": "Choose an image, and see what is written of it.",
    "translation": "Write a text, a sentence a line, and see its translations.",
}


def build(models: Sequence[Model]) -> gr.Blocks:
    """The page of one model, or of two of one task beside each other.

    Raises:
        ValueError: there are none, more than two, or two of different tasks.
    """
    if not 1 <= len(models) <= 2:
        raise ValueError(f"models must be one or two, got {len(models)}")
    tasks = {model.task for model in models}
    if len(tasks) > 1:
        raise ValueError(f"models must be of one task to be compared, got {' and '.join(sorted(tasks))}")
    (task,) = tasks
    with gr.Blocks(title=" and ".join(_called(model) for model in models), analytics_enabled=False) as page:
        gr.Markdown(f"# {' and '.join(_plain(_called(model)) for model in models)}\n\n{_INTRODUCTIONS[task]}")
        _PAGES[task](models)
    return page


def _called(model: Model) -> str:
    """The id of a model, or the name of its folder."""
    return own_name(model.name) if Path(model.name).is_dir() else model.name


def _plain(name: str) -> str:
    """A name in Markdown, as it is written."""
    return "".join(f"\\{each}" if each in r"\`*_{}[]()#+-.!|<>" else each for each in name)


def _told(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The same, what is wrong with the input told on the page."""

    def answered(*inputs: Any) -> Any:
        try:
            return answer(*inputs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answered


def _upload() -> Any:
    """Where an image is chosen; of a file that is none the page says so."""
    image = gr.Image(type="pil", label="Image", sources=["upload", "clipboard"], height=_HEIGHT)
    read = image.preprocess

    def checked(payload: Any) -> Any:
        try:
            return read(payload)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise gr.Error("this file is no image that can be read: choose another", print_exception=False) from error

    image.preprocess = checked  # type: ignore[method-assign]
    return image


def _classification(models: Sequence[Model]) -> None:
    with gr.Row():
        image = _upload()
        for model in models:
            with gr.Column():
                shown: list[Any] = [gr.Label(num_top_classes=min(_TOP, len(model.class_names)), label=_called(model))]
                if explains(model):
                    classes = gr.Radio([], label="What speaks for (orange) or against (purple)")
                    over = gr.Image(label="Heat map", interactive=False, height=_HEIGHT)
                    classes.input(_told(partial(heat_map, model)), [image, classes], over)
                    shown += [classes, over]
            image.change(_told(partial(_classes, model)), image, shown)
            image.clear(partial(_classes, model, None), None, shown)


def _classes(model: Model, image: Any) -> Any:
    """What is shown of an image: its classes, and where there are maps a button for each and that of the likeliest."""
    if not explains(model):
        return None if image is None else classify(model, image)
    if image is None:
        return None, gr.Radio(choices=[], value=None), None
    found = classify(model, image)
    likeliest = sorted(found, key=lambda name: -found[name])[:_TOP]
    return found, gr.Radio(choices=likeliest, value=likeliest[0]), heat_map(model, image, likeliest[0])


def _objects(models: Sequence[Model]) -> None:
    with gr.Row():
        with gr.Column():
            image = _upload()
            threshold = gr.Slider(0, 1, models[0].threshold, step=0.01, label="Least score")
            button = gr.Button("Find", variant="primary")
        for model in models:
            with gr.Column():
                drawn = gr.Image(label=_called(model), interactive=False, height=_HEIGHT)
                rows = gr.Dataframe(headers=["object", "score"], label="Objects", interactive=False)
            button.click(_told(partial(find, model)), [image, threshold], [drawn, rows])


def _readings(models: Sequence[Model]) -> None:
    with gr.Row():
        with gr.Column():
            image = _upload()
            count = gr.Slider(1, 5, 1, step=1, label="Texts of the image")
            button = gr.Button("Read", variant="primary")
        for model in models:
            with gr.Column():
                rows = gr.Dataframe(headers=["text", "score"], label=_called(model), interactive=False, wrap=True)
                gr.Markdown("Where it looked for each token:")
                looked = gr.Image(label="Attention to the image", show_label=False, interactive=False)
            button.click(_told(partial(_reading, model)), [image, count], [rows, looked])


def _reading(model: Model, image: Any, count: float) -> Any:
    return read(model, image, int(count))


def _texts(models: Sequence[Model]) -> None:
    text = gr.Textbox(lines=4, label="Text")
    count = gr.Slider(1, 5, 1, step=1, label="Translations of each sentence")
    button = gr.Button("Translate", variant="primary")
    for model in models:
        rows = gr.Dataframe(
            headers=["text", "translation", "score"], label=_called(model), interactive=False, wrap=True
        )
        gr.Markdown("What was read for each token of the first translation:")
        read = gr.Image(
            label="Attention to the text", show_label=False, interactive=False
        )  # a label would lie over it
        button.click(_told(partial(_translations, model)), [text, count], [rows, read])


def _translations(model: Model, text: str, count: float) -> tuple[list[list[Any]], Any]:
    if not text.strip():
        raise ValueError("write a text first")
    rows = translate(model, text, int(count))
    return rows, align(model, *rows[0][:2])


_PAGES = {
    "image-classification": _classification,
    "object-detection": _objects,
    "image-segmentation": _objects,
    "image-to-text": _readings,
    "translation": _texts,
}


def check_port(host: str, port: int) -> None:
    """Raises `ValueError` for a port that is taken, before a model is loaded for it."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise ValueError(f"--port must be free, {port} on {host} is taken: {error}; name another") from None


def launch(page: gr.Blocks, host: str, port: int, *, opens_browser: bool = False, blocks: bool = True) -> str:
    """Serve the page until it is interrupted; files of more than 20 MB are refused.

    Args:
        host: on which it is served; 127.0.0.1 is this computer alone.
        port: the exact one.
        opens_browser: open it in a browser, too.
        blocks: return only when it is over.

    Returns:
        Its address.

    Raises:
        ValueError: the port is taken, or the server does not start.
    """
    check_port(host, port)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_UPLOAD,
            inbrowser=opens_browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ValueError(f"the page cannot be served at {host}:{port}: {error}") from error
    if blocks:
        print(f"{address} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return address
