"""Arguments about the data of every task; apart from what loads data, which takes long to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_vit.config import argument, check_range


@dataclass
class SourceArguments:
    """Arguments about the data of every task."""

    _argument_group_name: ClassVar[str] = "Data"

    dataset_name: str | None = argument(None, help="A dataset of the Hub or a local folder.")
    dataset_config_name: str | None = argument(None, help="The dataset's configuration.")
    dataset_revision: str | None = argument(None, help="Branch, tag or commit of a dataset of the Hub.")
    train_val_split: float = argument(
        0.1,
        help="Part of the training split kept for validation when there is no validation split; with 0 the test "
        "split is followed during training instead.",
    )
    max_train_samples: int | None = argument(None, help="Use only this many training samples.")
    max_eval_samples: int | None = argument(None, help="Use only this many samples of each evaluation split.")
    card_num_samples: int = argument(
        4, help="Samples of the evaluated split saved with the model and shown on its card with its answers."
    )
    dataloader_num_workers: int = argument(0, help="Processes that load and augment; 0 loads in the main process.")
    dataloader_prefetch_factor: int | None = argument(
        None, help="Batches that each of these processes loads ahead; 2 when not given."
    )

    def __post_init__(self) -> None:
        check_range("train_val_split", self.train_val_split, 0, 0.9)
        check_range("card_num_samples", self.card_num_samples, 0)
        check_range("dataloader_num_workers", self.dataloader_num_workers, 0)
        check_range("dataloader_prefetch_factor", self.dataloader_prefetch_factor, 1)
        if self.dataloader_prefetch_factor is not None and self.dataloader_num_workers == 0:
            raise ValueError("--dataloader_prefetch_factor needs --dataloader_num_workers >= 1, found 0")
        check_range("max_train_samples", self.max_train_samples, 1)
        check_range("max_eval_samples", self.max_eval_samples, 1)
