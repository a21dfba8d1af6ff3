"""COCO 2017 on the disk: what is there, and what is missing from COCO's own addresses.

Of the training images only those that serve as references are fetched, one by one: some hundreds, not 19 GB.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.hub.fetch import DownloadError, fetch, megabytes
from ntt_jax.reproduce.archive import Archive, unpack

COCO_URL = "http://images.cocodataset.org"
_CONNECTIONS = 8
_IMAGE_BYTES = 170_000
"""Of a training image, on average."""
_MAX_IMAGE_BYTES = 20_000_000
"""Of any; the largest of COCO has less than one million."""


ANNOTATIONS = Archive(
    "annotations/annotations_trainval2017.zip",
    252_907_541,
    470_000_000,
    ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    2,
)
VAL_IMAGES = Archive("zips/val2017.zip", 815_585_330, 820_000_000, ("val2017/",), 5000)


@dataclass(frozen=True)
class Coco:
    """A folder with COCO's usual layout."""

    folder: Path

    @property
    def train_annotations(self) -> Path:
        """annotations/instances_train2017.json"""
        return self.folder / "annotations" / "instances_train2017.json"

    @property
    def val_annotations(self) -> Path:
        """annotations/instances_val2017.json"""
        return self.folder / "annotations" / "instances_val2017.json"

    @property
    def train_images(self) -> Path:
        """train2017"""
        return self.folder / "train2017"

    @property
    def val_images(self) -> Path:
        """val2017"""
        return self.folder / "val2017"

    def lacks_annotations(self) -> bool:
        """Whether one of the two annotation files is not there."""
        return not (self.train_annotations.is_file() and self.val_annotations.is_file())


def coco_url() -> str:
    """NTT_JAX_COCO_URL (a mirror with the same paths), otherwise COCO's server."""
    return os.environ.get("NTT_JAX_COCO_URL", "").rstrip("/") or COCO_URL


def _file_of(dataset: CocoDataset, folder: Path, image_id: int) -> Path:
    place = dataset.image_path(folder, image_id)
    assert isinstance(place, Path)  # no address: the folder is on this machine
    return place


def missing_images(dataset: CocoDataset, folder: Path, wanted: Iterable[int]) -> list[int]:
    """Ids of the `wanted` images whose file is not in `folder` or is empty."""

    def size(image_id: int) -> int:
        try:
            return _file_of(dataset, folder, image_id).stat().st_size
        except OSError:
            return 0

    return [image_id for image_id in wanted if not size(image_id)]


def require_space(folder: Path, archives: list[Archive], images: int, say: Callable[[str], None]) -> None:
    """Say how much will come, and raise `InputError` if the disk has not the room for it."""
    stays = sum(one.unpacked for one in archives) + images * _IMAGE_BYTES
    passing = max((one.size for one in archives), default=0)
    free = shutil.disk_usage(folder).free
    what = (
        f"{megabytes(sum(one.size for one in archives) + images * _IMAGE_BYTES)} to download into {show_path(folder)}"
    )
    room = f"{megabytes(stays + passing)} of space needed, {megabytes(stays)} of it for good, {megabytes(free)} free"
    say(f"COCO: about {what}; {room}")
    if free < stays + passing:
        raise InputError(f"--data: {show_path(folder)}: not enough space: {room}")


def fetch_archive(coco: Coco, archive: Archive) -> None:
    """Fetch a zip, unpack what is wanted of it and delete it. Killed at any point, the next call goes on from there.

    Raises `InputError` for what cannot be fetched or is damaged.
    """
    url = f"{coco_url()}/{archive.path}"
    target = coco.folder / "downloads" / PurePosixPath(archive.path).name
    try:
        fetch(url, target, max_bytes=archive.max_size)
    except DownloadError as error:
        raise InputError(
            f"{url}: {error}; or fetch it by other means and unpack it in {show_path(coco.folder)}"
        ) from None
    unpack(target, coco.folder, archive)
    target.unlink()
    with contextlib.suppress(OSError):
        target.parent.rmdir()


def fetch_images(coco: Coco, dataset: CocoDataset, wanted: list[int], step: Callable[[], None] = lambda: None) -> None:
    """Fetch training images one by one, several at a time. Raises `InputError` naming the first that did not come."""

    def bring(image_id: int) -> None:
        name = dataset.images[image_id].file_name
        url = f"{coco_url()}/train2017/{name}"
        try:
            fetch(url, _file_of(dataset, coco.train_images, image_id), max_bytes=_MAX_IMAGE_BYTES, quiet=True)
        except DownloadError as error:
            raise InputError(f"{url}: {error}") from None

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        jobs = [pool.submit(bring, image_id) for image_id in wanted]
        try:
            for job in jobs:
                job.result()
                step()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
