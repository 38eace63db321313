"""The verbs of everyday use: `predict`, `embed`, `search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_vit.cli.app import app, quiet_loading
from hf_vit.files import check_model_source

Inputs = Annotated[
    list[str] | None,
    typer.Argument(help="Images: files, folders, patterns, addresses; - reads such names from standard input."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code in the model's folder or repository.")]
BatchSize = Annotated[int, typer.Option(help="Inputs at a time.")]
Revision = Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")]


@app.command()
def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="A classifier of images, a detector, one that writes texts of images or a translator: its id on the "
            "Hub, or folder."
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images: files, folders, patterns, addresses; - reads such names from standard input. Of a "
            "translator files of texts, a text a line; - reads the texts."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="A new .csv or .jsonl, or a new folder of pictures; prints the predictions if none."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Predictions of an input, the likeliest first.")] = 5,
    threshold: Annotated[float | None, typer.Option(help="The least score, between 0 and 1.")] = None,
    apply_temperature: Annotated[
        bool,
        typer.Option("--apply-temperature", help="Divide a classifier's logits by the temperature in its config."),
    ] = False,
    test_time_augmentation: Annotated[
        str | None, typer.Option(help="Average a classifier's probabilities over views: flip, five_crop or ten_crop.")
    ] = None,
    batch_size: BatchSize = 16,
    revision: Revision = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
) -> None:
    """Say what images show, write their texts, or translate texts. Inputs that cannot be read are named and skipped. A
    run that was interrupted goes on when it is started again."""
    from hf_vit.inputs import check_output
    from hf_vit.predict import OUTPUTS, predict_to, told
    from hf_vit.predict import predict as predict_all

    check_model_source("model", model)
    if output is not None:
        check_output(output, OUTPUTS, overwrite)
    quiet_loading()
    options: dict[str, Any] = {
        "top_k": top_k,
        "threshold": threshold,
        "batch_size": batch_size,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "apply_temperature": apply_temperature,
        "test_time_augmentation": test_time_augmentation,
    }
    if output is not None:
        print(predict_to(output, model, inputs or [], **options))
        return
    for row in predict_all(model, inputs or [], **options):
        print(told(row))


@app.command()
def embed(
    model: Annotated[str, typer.Argument(help="A Vision Transformer: its id on the Hub, or folder.")],
    output: Annotated[Path, typer.Option(help="A new .parquet, or .npy with a .json of names.")],
    inputs: Inputs = None,
    batch_size: BatchSize = 16,
    revision: Revision = None,
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
) -> None:
    """Write the pooled vectors of images. Images that cannot be read are named and skipped."""
    from hf_vit.embed import OUTPUTS, write_embeddings
    from hf_vit.embed import embed as embed_images
    from hf_vit.inputs import check_output

    check_model_source("model", model)
    check_output(output, OUTPUTS, overwrite)
    if output.suffix == ".npy":
        check_output(output.with_suffix(".json"), [".json"], overwrite)
    quiet_loading()
    options: dict[str, Any] = {"batch_size": batch_size, "revision": revision, "trust_remote_code": trust_remote_code}
    print(write_embeddings(embed_images(model, inputs or [], **options), output))


@app.command()
def search(
    file: Annotated[Path, typer.Argument(help="What `hf-vit embed` wrote.")],
    image: Annotated[str, typer.Argument(help="A file, or an address.")],
    top_k: Annotated[int, typer.Option(help="How many to list.")] = 5,
    trust_remote_code: Trust = False,
) -> None:
    """List the images nearest to one, and the cosine between their vectors and its own."""
    from hf_vit.embed import read_embeddings
    from hf_vit.embed import search as search_images

    quiet_loading()
    for name, cosine in search_images(read_embeddings(file), image, top_k=top_k, trust_remote_code=trust_remote_code):
        print(f"{cosine:.3f} {name}")
