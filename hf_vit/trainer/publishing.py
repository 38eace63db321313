"""Publishing a run on the Hub, at its end or as it goes."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_vit.config import argument

logger = logging.getLogger(__name__)


@dataclass
class HubArguments:
    _argument_group_name: ClassVar[str] = "Hub"

    push_to_hub: bool = argument(False, help="Publish the model, with the token of `hf auth login` or HF_TOKEN.")
    hub_model_id: str | None = argument(None, help="NAMESPACE/NAME, or NAME; the name of output_dir when not given.")
    hub_private_repo: bool = argument(False, help="Make a new repository private.")
    hub_revision: str | None = argument(None, help="The branch to commit to; main when not given.")
    hub_strategy: Literal["end", "every_save", "checkpoint"] = argument(
        "end", help="Publish the trained model; after every epoch too; and with it the checkpoint to resume from."
    )

    def __post_init__(self) -> None:
        if self.hub_model_id is not None:
            _validate(self.hub_model_id)


def _validate(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--hub_model_id, or the name of --output_dir without it: {error}") from None


class Publisher:
    """Publishes in the background what a run saves; of a run that is not to be published, nothing.

    Args:
        options: `hub_model_id` is completed to the repository's full id, which the records then hold.
        output_dir: the run's folder.

    Raises:
        hf_vit.hub.HubError: the Hub was not reached or refuses the token.
    """

    def __init__(self, options: HubArguments, output_dir: Path):
        self.strategy = options.hub_strategy
        self.output_dir = output_dir
        self._push = None
        if options.push_to_hub:
            repo_id = options.hub_model_id or output_dir.resolve().name
            _validate(repo_id)
            # Beside its arguments, which every help reads, the Hub is for the runs that go there.
            from hf_vit.hub.background import BackgroundPush
            from hf_vit.hub.publish import Destination

            destination = Destination(repo_id, private=options.hub_private_repo or None, revision=options.hub_revision)
            self._push = BackgroundPush(destination, output_dir)
            options.hub_model_id = self._push.repo_id

    def after_epoch(self, epoch: float, save: Callable[[Path], None], checkpoint: Path) -> None:
        """Publishes the model as it is if the strategy says so.

        Args:
            save: called with a folder, puts into it what `save_pretrained` writes and the records.
            checkpoint: the run's last.
        """
        if self._push is None or self.strategy == "end":
            return
        try:
            with tempfile.TemporaryDirectory() as folder:
                save(Path(folder))
                beside = checkpoint if self.strategy == "checkpoint" else None
                self._push.push(folder, commit_message=f"Epoch {epoch}", checkpoint=beside)
        except Exception as error:  # such as a full disk: what is trained is worth more than a push
            logger.warning("Epoch %s: not pushed: %s", epoch, error)

    def finish(self) -> None:
        """Publishes `output_dir`, and returns when it is done or the command that finishes it has been logged."""
        if self._push is not None:
            self._push.push(self.output_dir, commit_message="End of training", last=True)
            self._push.wait()
