"""The frame of every durable job: the folder's lock, what it is a run of, what is left, the work, and what it made.

A job states its identity (all that its numbers depend on), opens its folder with `durable`, does what has no record yet
in groups that never change, records each result, and writes its outcome from the records alone. Stopped at any moment,
the same call goes on and ends in the same bytes.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.images.remote import Location
from ntt_jax.runs.cluster import map_groups
from ntt_jax.runs.cluster_worker import GroupWork
from ntt_jax.runs.folder import RunFolder
from ntt_jax.runs.images import Boxes, ImageWork, groups_to_do, image_record, segment_images
from ntt_jax.runs.inputs import sendable
from ntt_jax.runs.lock import FolderLock
from ntt_jax.runs.models import Compute, TargetPass, describe_start
from ntt_jax.runs.observer import Observer, warn, work


@contextlib.contextmanager
def durable(
    place: Path | FolderLock,
    identity: dict[str, Any],
    observer: Observer,
    *,
    restart: bool = False,
    key: str = "image_id",
) -> Iterator[RunFolder]:
    """The run in a folder, locked here or by the caller, for as long as the block lasts. Arguments as `RunFolder`."""
    with contextlib.ExitStack() as stack:
        lock = place if isinstance(place, FolderLock) else stack.enter_context(FolderLock(place))
        run = stack.enter_context(RunFolder(lock, identity, restart=restart, key=key))
        if run.records.dropped:
            warn(observer, "the last record of an earlier start was cut off; that work is done again")
        yield run


def segment_left(
    run: RunFolder,
    dataset: CocoDataset,
    images: Location,
    target: TargetPass,
    todo: set[int],
    *,
    what: str,
    compute: Compute,
    files: Mapping[str, Location | None],
    observer: Observer,
    record: Callable[[int, Any], dict[str, Any]] = image_record,
    boxes: Boxes | None = None,
) -> None:
    """Segment the images `todo` and record what is found; note the start in run.json.

    what: the work in words. files: what the job was given, by the names of its options. record, boxes: as for
    `segment_images`.
    """
    started, before = time.time(), run.records.added
    groups = groups_to_do(list(dataset.images.values()), lambda image: image.id in todo, compute.batch_size)
    predictor = target.load(compute) if compute.ray is None else None
    total = len(dataset.images)
    with work(observer, what, total, done=total - len(todo)):
        try:
            if predictor is None:
                sent = ImageWork(target, sendable(dataset), images, record, boxes)
                record_from_cluster(run, sent, groups, todo, compute, observer)
                return
            segment_images(
                run,
                dataset,
                images,
                predictor,
                images=list(chain.from_iterable(groups)),
                todo=todo,
                window=compute.batch_size * len(compute.used()),
                observer=observer,
                record=record,
                boxes=boxes,
            )
        finally:
            run.note_start(describe_start(compute, started, run.records.added - before, files))


def record_from_cluster(
    run: RunFolder,
    work: GroupWork,
    groups: Sequence[Sequence[Any]],
    todo: Container[int],
    compute: Compute,
    observer: Observer,
) -> None:
    """Record what the workers of a cluster send back, of what is `todo`, as it comes."""
    for records in map_groups(work, groups, compute):
        wanted = [record for record in records if record[run.records.key] in todo]
        for record in wanted:
            if "skipped" in record:
                observer.note(f"skipped: {record['skipped']}")
        run.records.append(wanted)
        observer.step(len(wanted))


def parts_folder(out: Path, identity: dict[str, Any]) -> Path:
    """The folder beside a file in the making in which finished work waits; no other identity has the same one."""
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    return out.with_name(f"{out.name}.{digest}.parts")
