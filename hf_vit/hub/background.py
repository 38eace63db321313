"""Publishing while a training goes on."""

import logging
import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from hf_vit.hub.doctor import LAST_CHECKPOINT, published_files
from hf_vit.hub.publish import COMMIT_MESSAGE, Destination, create_repository, explained, push
from hf_vit.hub.staging import write_card_for
from hf_vit.record import RUN_FILE

logger = logging.getLogger(__name__)


class BackgroundPush:
    """Pushes what a running training has saved without holding it up, and without ever raising into it.

    One push is under way at a time. A folder that is handed over meanwhile waits for its turn and is replaced by the
    next one: the last always gets through. Failures are logged.

    Args:
        destination: as for `push`. The repository is created at once: a wrong token is known before training.
        output_dir: the folder of the run, which the message after a failed last push says how to publish.

    Attributes:
        repo_id: the full id of the repository; the run's records should hold it as `hub_model_id`.

    Raises:
        HubError: the Hub said no, or was not reached.
    """

    def __init__(self, destination: Destination, output_dir: str | os.PathLike):
        with explained(destination):
            self.repo_id = create_repository(destination)
        self.output_dir = Path(output_dir)
        self._destination = replace(destination, repo_id=self.repo_id)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hf_vit-push")
        self._last: tuple[Future[None], tempfile.TemporaryDirectory] | None = None

    def push(
        self,
        folder: str | os.PathLike,
        *,
        commit_message: str = COMMIT_MESSAGE,
        checkpoint: str | os.PathLike | None = None,
        last: bool = False,
    ) -> None:
        """Copies what is published of `folder`, has it pushed, and returns. The copy gets its card in the background.

        Args:
            folder: what `save_pretrained` wrote, with the run's records; it may change or vanish afterwards.
            checkpoint: a folder that is published as `last-checkpoint`, from which training can be resumed.
            last: whether the model is loaded before and after, which takes much of a processor for some seconds.
        """
        snapshot = tempfile.TemporaryDirectory(prefix="hf_vit-push-")
        copy = Path(snapshot.name, self.output_dir.resolve().name)
        try:
            copy.mkdir()
            for name in published_files(folder):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(folder, name), copy / name)
            if checkpoint is not None:
                shutil.copytree(checkpoint, copy / LAST_CHECKPOINT)
        except OSError as error:
            snapshot.cleanup()
            logger.warning("%s: not pushed: %s", commit_message, error)
            return

        def work() -> None:
            try:
                if (copy / RUN_FILE).is_file():
                    write_card_for(copy, self.repo_id)
                info = push(copy, self._destination, commit_message=commit_message, load=last)
                logger.info("%s: pushed to %s", commit_message, info.commit_url)
            except Exception as error:
                reason = str(error).replace(str(copy), str(self.output_dir))
                logger.warning("%s: not pushed: %s", commit_message, reason if last else reason.partition("\n")[0])
            finally:
                snapshot.cleanup()

        if self._last is not None and self._last[0].cancel():  # it was still waiting
            self._last[1].cleanup()
        self._last = self._worker.submit(work), snapshot

    def wait(self) -> None:
        """Returns when the last folder handed over was pushed or has failed to be."""
        if self._last is not None:
            wait([self._last[0]])
