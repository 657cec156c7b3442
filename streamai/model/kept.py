"""Weights files that were served, kept by digest: what a restart resumes with and a replay goes back to.

A worker maps its own copy, never the file it was given: that one may be written over in its place.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from streamai.errors import ModelError
from streamai.model import weights


class Kept:
    """DIGEST.weights files of a folder; several processes may share it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, digest: str) -> Path:
        """Where the model of this digest lies or would lie."""
        return self.folder / f"{digest}.weights"

    def has(self, digest: str) -> bool:
        return self.path(digest).exists()

    def keep(self, given: str | Path) -> Path:
        """Copy a weights file here; returns the copy's path. ModelError if it is not a good one.

        The copy gets its name when it is whole, and it is the copy that is read and named: a file that is
        being written over meanwhile is refused or kept as one of the two, never as a mixture of both.
        """
        draft = self.folder / f".{os.getpid()}.{os.urandom(4).hex()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given, draft)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise ModelError(
                f"{given}: cannot be copied to {self.folder}: {error}. The worker serves from its own copy; "
                "is the file there, and is there room?"
            ) from error
        try:
            place = self.path(weights.read(draft).digest)
            os.replace(draft, place)
        except ModelError as error:
            raise ModelError(str(error).replace(str(draft), str(given))) from error
        finally:
            draft.unlink(missing_ok=True)
        return place

    def found(self, digest: str) -> Path:
        """The model of this digest; ModelError if it is not here."""
        if not self.has(digest):
            raise ModelError(
                f"no model {digest} in {self.folder}; expected {self.path(digest).name}, as a worker keeps "
                "it in state/models. Copy it there, or name the right folder"
            )
        return self.path(digest)
