"""Training images read as a stream of shards (parquet, webdataset), for data larger than the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info

from hf_vit.files import digest
from hf_vit.sample_keys import SampleKey
from hf_vit.sources import VALIDATION_NAMES, limit_samples
from hf_vit.tasks.image_classification.arguments import DataArguments
from hf_vit.tasks.image_classification.data import BUILT_IN, LabelledImages, labelled
from hf_vit.vision.columns import find_class_names, find_image_column, find_label_column, label_namer
from hf_vit.vision.decoding import decode_pixels
from hf_vit.vision.folders import Unused, is_of_images, load_image_folder, load_split_folder


class ImageStream(IterableDataset):
    """One process's share of an epoch, in batches that the `DataLoader`'s workers take turns to fill.

    Shards are dealt out to processes and workers, and samples are shuffled within a buffer, so the order depends on
    both numbers; with the same ones it is fixed by seed and epoch. An epoch is as long as is stated. A reader whose
    shards end sooner starts over, so that every batch is full.

    Args:
        stream: columns `image` (not decoded) and `label`.
        class_index: a label to its class index.
        transform: as of `ImageView`. A key's index is the sample's position in the epoch.
        samples_per_epoch: of all processes together; rounded up to whole optimizer steps.
        batch_size: samples of one process in one forward pass.
        batches_per_step: processes times accumulated batches.
        seed: decides the order of shards and samples.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        class_index: Callable[[Any], int],
        transform: Callable[[list[torch.Tensor], list[SampleKey]], Sequence[torch.Tensor] | torch.Tensor],
        *,
        samples_per_epoch: int,
        batch_size: int,
        batches_per_step: int,
        buffer_size: int,
        seed: int,
        num_channels: int = 3,
    ):
        state = PartialState()
        stream = stream.shuffle(seed=seed, buffer_size=buffer_size)
        self.stream = split_dataset_by_node(stream, state.process_index, state.num_processes)
        self.class_index = class_index
        self.num_channels = num_channels
        self.transform = transform
        self.batch_size = self.samples_per_batch = batch_size
        self.samples_per_step = batch_size * batches_per_step
        self.steps_per_epoch = -(-samples_per_epoch // self.samples_per_step)
        self.num_batches = self.steps_per_epoch * batches_per_step // state.num_processes
        self.process = (state.process_index, state.num_processes)
        self.epoch = 0
        self.first_batch = 0

    @property
    def max_workers(self) -> int:
        """Loader workers beyond the shards of this process would have nothing to read."""
        return self.stream.num_shards

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.stream.set_epoch(epoch)

    def __len__(self) -> int:
        """Samples of this process in an epoch."""
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rank, num_processes = self.process
        rows = self._rows()
        for batch in range(worker_id, self.num_batches, num_workers):
            for position in range(self.batch_size):
                index = (batch * num_processes + rank) * self.batch_size + position
                # Batches before the first one are thrown away by whoever resumes: nothing is decoded for them.
                yield self._view(next(rows), SampleKey(self.epoch, index, 0), skip=batch < self.first_batch)

    def _rows(self) -> Iterator[dict[str, Any]]:
        while True:
            empty = True
            for row in self.stream:
                empty = False
                yield row
            if empty:
                raise ValueError("a process or worker has no sample to read: use fewer, or more shards")

    def _view(self, row: dict[str, Any], key: SampleKey, *, skip: bool) -> dict[str, torch.Tensor]:
        if skip:
            return {"sample_key": torch.tensor(key)}
        return {
            "pixel_values": self.transform([decode_pixels(row["image"], key.index, self.num_channels)], [key])[0],
            "labels": torch.tensor(self.class_index(row["label"])),
            "sample_key": torch.tensor(key),
        }


class _ClassIndex:
    """A label to its class index; can be sent to a worker."""

    def __init__(self, feature: Any, class_names: list[str], given_names: list[str] | None):
        self.feature, self.given_names = feature, given_names
        self.index_of = {name: index for index, name in enumerate(class_names)}

    def __call__(self, label: Any) -> int:
        name = label_namer(self.feature, self.given_names)(label)
        if name not in self.index_of:
            raise ValueError(f"the train split has a label without a class: {name}")
        return self.index_of[name]


@dataclass
class StreamedImages(LabelledImages):
    """`splits` are those evaluated on; the training images are `stream`, with columns `image` and `label`."""

    stream: Any = None  # a `datasets.IterableDataset`
    class_index: Any = None  # a label to its class index
    samples_per_epoch: int = 0

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        origin = f"{self.name} {self.revision} {self.stream.num_shards} {self.class_names} {self.samples_per_epoch}"
        train = {
            "num_examples": self.samples_per_epoch,
            "num_shards": self.stream.num_shards,
            "fingerprint": digest([origin.encode()])[:16],
        }
        return {**described, "splits": {"train": train, **described["splits"]}}


_NUM_SHARDS = 8  # of what is on this machine as a whole


def _open(arguments: DataArguments) -> tuple[dict[str, datasets.IterableDataset], int, dict[str, Unused]]:
    """The streams, the number of training samples where it is known, else 0, and the files that are not used."""
    name: Any = arguments.dataset_name or arguments.train_dir
    if name in BUILT_IN:
        whole: Mapping[str, datasets.Dataset] = BUILT_IN[name]()
        unused: dict[str, Unused] = {}
    elif Path(name).is_dir() and is_of_images(Path(name), arguments.train_dir is None):
        whole, unused = load_image_folder(name)
    else:
        options = {"revision": arguments.dataset_revision, "streaming": True}
        found = dict(datasets.load_dataset(name, arguments.dataset_config_name, **options))
        known = (found["train"].info.splits or {}).get("train") if "train" in found else None
        return found, known.num_examples if known else 0, {}
    streams = {
        split: dataset.to_iterable_dataset(num_shards=min(_NUM_SHARDS, len(dataset)))
        for split, dataset in whole.items()
    }
    return streams, len(whole["train"]) if "train" in whole else 0, unused


def load_streamed_images(arguments: DataArguments) -> StreamedImages:
    """Opens the training split as a stream, and reads the splits to evaluate on, which must exist.

    Raises:
        ValueError: no train split or none to evaluate on, no image or label column, no class names, or an epoch of
            unknown length.
    """
    name: Any = arguments.dataset_name or arguments.train_dir
    found, num_train, unused = _open(arguments)
    if "train" not in found:
        raise ValueError(f"{name!r} has no train split; it has {', '.join(found)}")
    train = found["train"]
    image_column = find_image_column(train, arguments.image_column_name)
    label_column = find_label_column(train, arguments.label_column_name, image_column)
    class_names = find_class_names(train, label_column, arguments.class_names)
    samples_per_epoch = arguments.train_samples_per_epoch or num_train
    if not samples_per_epoch:
        raise ValueError(f"--streaming: {name!r} does not say how long an epoch is: give --train_samples_per_epoch")
    splits = {"validation" if split in VALIDATION_NAMES else split: stream for split, stream in found.items()}
    kept: dict[str, datasets.Dataset] = {
        split: _read(splits[split]) for split in ("validation", "test") if split in splits
    }
    for split in ("validation", "test"):
        if split in arguments.folders:
            kept[split], unused[split] = load_split_folder(arguments.folders[split], split)
    if not kept:
        raise ValueError(f"--streaming: {name!r} has no validation or test split, and none can be made from a stream")
    images = labelled(arguments, kept, class_names)
    images.unused = unused
    images.revision, images.license = arguments.dataset_revision, train.info.license or None  # copies know neither
    limit_samples(images.splits, arguments, seed=0)
    stream = train.select_columns([image_column, label_column])
    stream = stream.cast_column(image_column, datasets.Image(decode=False))
    names = {image_column: "image", label_column: "label"}
    return StreamedImages(
        **vars(images),
        stream=stream.rename_columns({old: new for old, new in names.items() if old != new}),
        class_index=_ClassIndex(train.features[label_column], class_names, arguments.class_names),
        samples_per_epoch=samples_per_epoch,
    )


def _read(stream: datasets.IterableDataset) -> datasets.Dataset:
    """The whole of a stream, in `datasets`' cache."""
    image_columns = [name for name, feature in stream.features.items() if isinstance(feature, datasets.Image)]
    for name in image_columns:
        stream = stream.cast_column(name, datasets.Image(decode=False))
    read = datasets.Dataset.from_generator(stream.__iter__, features=stream.features)
    for name in image_columns:
        read = read.cast_column(name, datasets.Image())
    return read
