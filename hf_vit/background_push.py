"""Publishing while a training goes on."""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from model_cards.records import RUN_FILE

from .doctor import LAST_CHECKPOINT, published_files
from .hub import COMMIT_MESSAGE, Destination, create_repository, explained, push
from .staging import write_card_for

logger = logging.getLogger(__name__)


class BackgroundPush:
    """Pushes the folder of a running training without holding it up.

    One push is under way at a time. A folder that is handed over meanwhile waits for its turn and is replaced by the
    next one: the last always gets through. Failures are logged, with the command that finishes the job.

    Args:
        destination: as for `push`; the repository is created at once, so that a wrong token is known before training.

    Attributes:
        repo_id: the full id of the repository.

    Raises:
        HubError: the Hub said no, or was not reached.
    """

    def __init__(self, destination: Destination):
        with explained(destination):
            self.repo_id = create_repository(destination)
        self.destination = replace(destination, repo_id=self.repo_id)
        self._lock = threading.Lock()
        self._waiting: tuple[tempfile.TemporaryDirectory, Callable] | None = None
        self._thread: threading.Thread | None = None

    def push(
        self,
        folder: str | os.PathLike,
        *,
        commit_message: str = COMMIT_MESSAGE,
        checkpoint: str | os.PathLike | None = None,
        load: bool = False,
    ) -> None:
        """Copies what is published of `folder`, has it pushed, and returns; never raises.

        The card is written in the copy, in the background.

        Args:
            checkpoint: a folder that is published as `last-checkpoint`, from which training can be resumed.
            load: as for `push`; meant for the last push, since it takes much of a processor for a while.
        """
        snapshot = tempfile.TemporaryDirectory(prefix="hf_vit-push-")
        try:
            copy = Path(snapshot.name, Path(folder).resolve().name)
            for name in published_files(folder):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(folder, name), copy / name)
            if checkpoint is not None:
                shutil.copytree(checkpoint, copy / LAST_CHECKPOINT)
        except OSError as error:
            snapshot.cleanup()
            self._log_failure(error, folder)
            return

        def work() -> None:
            try:
                if (copy / RUN_FILE).is_file():
                    write_card_for(copy, self.repo_id)
                info = push(copy, self.destination, commit_message=commit_message, load=load)
                logger.info("pushed to %s", info.commit_url)
            except Exception as error:
                self._log_failure(error, folder, copy)
            finally:
                snapshot.cleanup()

        with self._lock:
            replaced, self._waiting = self._waiting, (snapshot, work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work)
                self._thread.start()
        if replaced is not None:
            replaced[0].cleanup()

    def wait(self) -> None:
        """Returns when the last folder handed over was pushed or has failed to be."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                waiting, self._waiting = self._waiting, None
                if waiting is None:
                    self._thread = None
                    return
            waiting[1]()

    def _log_failure(self, error: Exception, folder: str | os.PathLike, copy: Path | None = None) -> None:
        message = str(error) if copy is None else str(error).replace(str(copy), os.fspath(folder))
        logger.warning("%s was not pushed: %s", folder, message)
