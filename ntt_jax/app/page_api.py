"""What the page asks for beside the API: the state of the project, pictures, masks of clicks, the search, exports."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field

from ntt_jax.app.api import Mask, Service, mask_model
from ntt_jax.app.project import Photo
from ntt_jax.app.search import Search
from ntt_jax.app.workbench import Workbench, jpeg
from ntt_jax.compiled.prompt_masker import Prompt
from ntt_jax.errors import InputError
from ntt_jax.images.rle import encode_masks, sample_rle
from ntt_jax.text import one_line

_MAX_POINTS = 64
_THUMBNAILS = ThreadPoolExecutor(1, "thumbnails")
"""Of their own: they come by the dozen, and clicks are not to wait behind them."""


class PromptBody(BaseModel):
    """Clicks and a box, in pixels of the picture; labels: 1 on the object, 0 beside it."""

    points: list[tuple[float, float]] = Field(default=[], max_length=_MAX_POINTS)
    labels: list[Literal[0, 1]] = Field(default=[], max_length=_MAX_POINTS)
    box: tuple[float, float, float, float] | None = None

    def prompt(self) -> Prompt:
        """Checked. Raises `InputError`."""
        return Prompt(self.box, tuple(self.points), tuple(self.labels))


class Choice(BaseModel):
    """One of the masks that a prompt may mean."""

    mask: Mask
    predicted_iou: float


class ReferenceBody(BaseModel):
    """A reference to add: what its mask is, one of three, and what it shows."""

    class_name: str = Field(max_length=200)
    kind: Literal["reference", "negative"] = "reference"
    mask: Mask | None = Field(default=None, description="of the picture's size")
    prompt: PromptBody | None = None
    choice: int = Field(default=0, ge=0, le=3, description="which of the prompt's masks")
    detection: int | None = Field(default=None, ge=0, description="one of the photo's detections by its number")


class FindBody(BaseModel):
    """Photos to search, by id; all without any."""

    photos: list[str] | None = Field(default=None, max_length=1_000_000)


class ThresholdsBody(BaseModel):
    """The score from which a detection counts, by class."""

    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]]


class ExportBody(BaseModel):
    """Formats of `ntt-jax segment --format`."""

    formats: list[str] = Field(min_length=1, max_length=16)


def page_router(service: Service, bench: Workbench, search: Search) -> APIRouter:
    """The routes of the page."""
    router = APIRouter(prefix="/v1")
    project = bench.project

    @router.get("/project", summary="Photos, classes, references and the search, as they are now")
    def state(since: Annotated[str | None, Query(max_length=64)] = None) -> dict[str, Any]:
        now = f"{bench.revision}-{search.revision}"
        if since == now:
            return {"revision": now, "search": search.status()}
        return {
            "revision": now,
            "folder": str(project.folder.resolve()),
            "home": str(project.home.resolve()),
            "photos": [_photo_state(bench, search, photo) for photo in project.photos.values()],
            "classes": _class_states(bench, service),
            "references": _reference_states(bench),
            "notes": list(project.notes.lines()),
            "search": search.status(),
        }

    @router.get(
        "/photos/{id}/thumbnail", response_class=Response, summary="A small JPEG; none of a photo that cannot be read"
    )
    async def thumbnail(id: str) -> Response:
        photo = project.photo(id)
        try:
            data = await asyncio.get_running_loop().run_in_executor(_THUMBNAILS, bench.thumbnail, photo)
        except InputError:  # no fault of who asks: the page asks for all photos, and says what is wrong with this one
            return Response(status_code=204)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    @router.get("/photos/{id}/picture", response_class=Response, summary="The photo as it is clicked on, a JPEG")
    async def picture(id: str) -> Response:
        data = await asyncio.to_thread(lambda: jpeg(bench.picture(project.photo(id)).pixels))
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    @router.post("/photos/{id}/encoding", summary="Prepare a photo for clicks")
    async def encode(id: str) -> dict[str, Any]:
        photo = project.photo(id)
        picture = await asyncio.to_thread(bench.picture, photo)
        await asyncio.to_thread(bench.encode, photo)
        height, width = picture.pixels.shape[:2]
        return {"width": width, "height": height, "photo_width": picture.width, "photo_height": picture.height}

    @router.post("/photos/{id}/masks", summary="The masks that clicks or a box may mean")
    async def masks(id: str, body: PromptBody) -> list[Choice]:
        return await asyncio.to_thread(_choices, bench, project.photo(id), body.prompt())

    @router.get("/photos/{id}/detections", summary="What was found in a photo, all scores")
    async def detections(
        id: str, side: Annotated[int | None, Query(ge=16, le=4096, description="longest side of the masks")] = None
    ) -> dict[str, Any]:
        return await asyncio.to_thread(_detections, bench, search, project.photo(id), side)

    @router.post("/photos/{id}/references", summary="Show one instance: a reference, or a hard negative")
    async def add(id: str, body: ReferenceBody) -> dict[str, Any]:
        photo = project.photo(id)
        added = await asyncio.to_thread(_add, bench, search, photo, body)
        return {"id": added}

    @router.delete("/references/{id}", summary="Forget a reference")
    async def remove(id: int) -> dict[str, Any]:
        await asyncio.to_thread(bench.remove, id)
        return {}

    @router.put("/thresholds", summary="Set thresholds of classes")
    async def thresholds(body: ThresholdsBody) -> dict[str, Any]:
        await asyncio.to_thread(project.set_thresholds, body.thresholds)
        bench.revision += 1
        return {}

    @router.post("/search", summary="Search photos; those that are searched already with this memory are passed over")
    async def find(body: FindBody) -> dict[str, Any]:
        photos = list(project.photos.values()) if body.photos is None else [project.photo(id) for id in body.photos]
        await asyncio.to_thread(search.start, photos)
        return search.status()

    @router.delete("/search", summary="Stop the search; what was found stays")
    async def stop() -> dict[str, Any]:
        await asyncio.to_thread(search.stop)
        return search.status()

    @router.post("/exports", summary="Write what was found, from each class's threshold on, in formats of other tools")
    async def export(body: ExportBody) -> dict[str, Any]:
        return {"folder": await asyncio.to_thread(search.export, body.formats)}

    return router


def _photo_state(bench: Workbench, search: Search, photo: Photo) -> dict[str, Any]:
    return {"id": photo.id, "name": one_line(photo.name), **search.photo_status(photo)}


def _class_states(bench: Workbench, service: Service) -> list[dict[str, Any]]:
    known = {one.name: one for one in service.classes()}
    thresholds = bench.project.thresholds
    return [
        {
            "name": name,
            "category_id": id,
            "references": known[name].references if name in known else 0,
            "negatives": known[name].negatives if name in known else 0,
            "threshold": thresholds.get(name),
        }
        for name, id in bench.project.categories.items()
    ]


def _reference_states(bench: Workbench) -> list[dict[str, Any]]:
    words = bench.diagnoses()
    return [
        {
            "id": one.id,
            "kind": one.kind,
            "class_name": one.class_name,
            "photo": bench.project.id_of(one),
            "photo_name": one_line(one.photo),
            "problem": bench.problems.get(one.id),
            **words.get(one.id, {}),
        }
        for one in bench.project.references.values()
    ]


def _choices(bench: Workbench, photo: Photo, prompt: Prompt) -> list[Choice]:
    found, picture = bench.choices(photo, prompt), bench.picture(photo)
    height, width = picture.pixels.shape[:2]
    count = len(found.logits)
    rles = encode_masks(np.stack([found.mask(i, height, width) for i in range(count)]))
    return [
        Choice(mask=mask_model(rle), predicted_iou=round(float(iou), 4))
        for rle, iou in zip(rles, found.predicted_ious, strict=True)
    ]


def _detections(bench: Workbench, search: Search, photo: Photo, side: int | None) -> dict[str, Any]:
    found = search.found(photo)
    if side is None or found is None:
        height, width = bench.picture(photo).pixels.shape[:2]
    else:  # without reading the photo
        scale = min(1.0, side / max(found.height, found.width, 1))
        height, width = max(1, round(found.height * scale)), max(1, round(found.width * scale))
    references = [one for one in bench.project.references.values() if one.photo == photo.name]
    return {
        "width": width,
        "height": height,
        "detections": [
            {"class_name": name, "score": round(float(score), 4), "mask": sample_rle(rle, height, width)}
            for name, score, rle in (
                () if found is None else zip(found.class_names, found.scores, found.rles, strict=True)
            )
        ],
        "references": [
            {
                "id": one.id,
                "kind": one.kind,
                "class_name": one.class_name,
                "mask": sample_rle(one.mask, height, width),
            }
            for one in references
        ],
    }


def _add(bench: Workbench, search: Search, photo: Photo, body: ReferenceBody) -> int:
    given: Sequence[Any] = (body.mask, body.prompt, body.detection)
    if sum(one is not None for one in given) != 1:
        raise InputError("expected one of mask, prompt and detection")
    if body.mask is not None:
        mask = bench.full_mask(photo, {"size": list(body.mask.size), "counts": body.mask.counts})
    elif body.prompt is not None:
        choices, picture = bench.choices(photo, body.prompt.prompt()), bench.picture(photo)
        if body.choice >= len(choices.logits):
            raise InputError(f"choice: this prompt has {len(choices.logits)} masks")
        mask = encode_masks(choices.mask(body.choice, picture.height, picture.width)[None])[0]
    else:
        found = search.found(photo)
        if found is None or body.detection is None or body.detection >= len(found):
            raise InputError("detection: the photo has no such detection; it may have been searched again")
        mask = found.rles[body.detection]
    return bench.add(body.kind, photo, body.class_name, mask).id
