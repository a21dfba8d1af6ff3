"""The project's `found` folder as `ntt-jax segment` writes it: the commands go on where the page stopped, and back.

The page keeps what was found with earlier references too, in photos.records. What was found with the memory of now is
written beside it as a run of `segment` after every search: `ntt-jax segment FOLDER --out FOLDER/ntt-jax/found` does the
photos that are left, `ntt-jax report FOLDER/ntt-jax/found` shows all, and the page takes over what `segment` did.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntt_jax.app.project import Photo, Project
from ntt_jax.config import DetectConfig
from ntt_jax.errors import InputError
from ntt_jax.memory.bank import MemoryBank, load_memory
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.models import Compute, describe_start
from ntt_jax.runs.observer import SILENT
from ntt_jax.runs.segment_job import photo_id, run_identity
from ntt_jax.runs.segment_output import Found, Shown, write_output
from weight_port.files import sha256


@dataclass(frozen=True)
class SegmentFolder:
    """The run of `segment` in a project. sam2, dinov2: the models' files. config, compute: how the page searches."""

    project: Project
    sam2: Path
    dinov2: Path
    config: DetectConfig
    compute: Compute

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.project.home / "found"

    def recorded(self, memory: str, photos: Iterable[Photo]) -> Iterator[tuple[Photo, dict[str, Any]]]:
        """Photos that `segment` has recorded with the memory file of this sha256, and the record of each."""
        with contextlib.suppress(InputError), FolderLock(self.folder) as lock:  # in use, or of another memory
            bank = self._bank(memory)
            if bank is None or not (self.folder / "finished.records").exists():
                return
            with RunFolder(lock, self._identity(bank)) as run:
                for photo in photos if len(run.records) else ():
                    with contextlib.suppress(OSError):
                        id = photo_id(photo.path)
                        if id in run.records and not run.records.skipped(id):
                            yield photo, run.records.read(id)

    def write(self, memory: str, found: Iterable[tuple[Photo, dict[str, Any]]]) -> None:
        """Record what was found with the memory file of this sha256, and write detections.json.

        found: photos and their records. Nothing is written if the memory has changed since. Raises `InputError` if
        another program works in the folder.
        """
        bank = self._bank(memory)
        if bank is None:
            return
        started, identity = time.time(), self._identity(bank)
        with FolderLock(self.folder) as lock:
            try:
                run = RunFolder(lock, identity)
            except InputError:  # of an earlier memory
                run = RunFolder(lock, identity, restart=True)
            with run:
                before = run.records.added
                places: dict[str, tuple[Path, int]] = {}
                unread: dict[str, str] = {}
                for photo, record in found:
                    id = record["image_id"]
                    if id not in run.records or run.records.skipped(id):
                        run.records.append([record])
                    places[photo.name] = photo.path, id
                    if "skipped" in record:
                        unread[photo.name] = record["skipped"]
                files = {"sam2": self.sam2, "dinov2": self.dinov2, "memory": self.project.memory}
                files["images"] = self.project.folder
                run.note_start(describe_start(self.compute, started, run.records.added - before, files))
                least = np.array([self.project.threshold(name) for name in bank.class_names], np.float32)
                write_output(self.folder, Found(run, places, unread, "upright"), bank, Shown(least, None, ()), SILENT)

    def _bank(self, memory: str) -> MemoryBank | None:
        """The project's memory, if its file is the one of this sha256."""
        path = self.project.memory
        return load_memory(path) if path.exists() and sha256(path) == memory else None

    def _identity(self, bank: MemoryBank) -> dict[str, Any]:
        return run_identity(self.sam2, self.dinov2, bank, self.config, self.compute.dtype, "upright")
