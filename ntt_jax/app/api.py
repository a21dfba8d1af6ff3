"""The address to call, version 1: classes, references, predictions on uploaded images."""

import asyncio
import contextlib
import errno
import json
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, FastAPI, File, Form, HTTPException, Path, Query, Request, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

import ntt_jax
from ntt_jax.app import uploads
from ntt_jax.app.guard import BUSY
from ntt_jax.app.metrics import Metrics
from ntt_jax.app.queueing import Busy, PredictionQueue
from ntt_jax.compiled.prompt_masker import Prompt
from ntt_jax.errors import InputError
from ntt_jax.files import reason
from ntt_jax.segmenter.inputs import as_mask
from ntt_jax.segmenter.prediction import Prediction
from ntt_jax.segmenter.segmenter import Segmenter
from ntt_jax.text import one_line, show_lines

STATIC = resources.files("ntt_jax.app") / "static"
SCRIPTS = {"masks.js": "ntt_jax.report", "dom.js": "ntt_jax.report"}
"""What the page shares with the report."""
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
_MAX_DETAIL = 500
_MAX_NAME = 100
DESCRIPTION = """\
Instances of classes that are given by a few references each, in any image.

Every request but those for `/v1/health` carries the token that the program printed, as `Authorization: Bearer TOKEN`.
An image is a file of up to 64 MB in any usual format; it is turned upright as its EXIF data says, and coordinates are
pixels of the upright image. Masks are COCO's compressed run lengths: `pycocotools.mask.decode` reads them. Every error
is JSON with a `detail` of one line for people; with 429 and 503 the header `Retry-After` says after how many seconds to
come again."""


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(description="one line for people")


class Health(BaseModel):
    """That the server is alive."""

    status: Literal["ok"] = "ok"
    version: str = Field(description="of ntt-jax")


class Mask(BaseModel):
    """A mask as COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="height and width in pixels")
    counts: str


class Detection(BaseModel):
    """One instance, best scores first."""

    class_name: str
    category_id: int
    score: float
    bbox: tuple[float, float, float, float] = Field(description="x, y, width, height in pixels")
    segmentation: Mask


class Predicted(BaseModel):
    """What was found in an image of this height and width in pixels, photos turned upright."""

    height: int
    width: int
    detections: list[Detection]
    seconds: float = Field(description="from the request's arrival, waiting included")


class ClassInfo(BaseModel):
    """A class and the number of its references."""

    name: str
    category_id: int
    references: int
    negatives: int


@dataclass
class Service:
    """What the routes of both programs work with.

    segmenter: what finds. limit: images that may wait; at_once: images in one go; seconds: an answer may take.
    """

    segmenter: Segmenter
    limit: int = 64
    at_once: int = 16
    seconds: float = 120.0
    metrics: Metrics = field(default_factory=Metrics)
    edits: threading.Lock = field(default_factory=threading.Lock)
    queue: PredictionQueue = field(init=False)
    adding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    """Images of references that are decoded, or wait to be learned."""

    def __post_init__(self) -> None:
        self.queue = PredictionQueue(self.predict, self.metrics, limit=self.limit, at_once=self.at_once)

    def predict(self, images: Iterable[np.ndarray]) -> Iterator[Prediction]:
        """`Segmenter.predict`, with the classes of this moment."""
        with self.edits:
            return self.segmenter.predict(iter(images))

    def busy(self, path: str) -> int | None:
        """After how many seconds a path may be asked again; None: now."""
        return self.queue.patience if path == "/v1/predict" and self.queue.full else None

    def classes(self) -> list[ClassInfo]:
        """All classes, in class index order."""
        with self.edits:
            known, negatives = self.segmenter.classes, self.segmenter.negatives
            ids = self.segmenter.category_ids
        return [
            ClassInfo(name=name, category_id=ids[name], references=count, negatives=negatives[name])
            for name, count in known.items()
        ]


class _Application(FastAPI):
    """FastAPI's, with a description that programs which write clients understand: files are `format: binary`."""

    def openapi(self) -> dict[str, Any]:
        found = super().openapi()
        _mark_files(found["components"]["schemas"])
        return found


def _mark_files(schema: Any) -> None:
    if isinstance(schema, dict) and schema.get("contentMediaType") == "application/octet-stream":
        schema["format"] = "binary"
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _mark_files(part)


def make_application(service: Service, *routers: APIRouter, title: str, home: str) -> FastAPI:
    """An application with the routes of version 1 and further ones; every error is JSON with a `detail` of one line.

    home: the page at the printed address.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.queue.close)

    app = _Application(
        title=title,
        description=DESCRIPTION,
        responses=_REFUSED,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
        version=ntt_jax.__version__,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # FastAPI's page takes its scripts from elsewhere: /docs is our own
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_exception_handler(InputError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(TimeoutError, _late)
    app.add_exception_handler(OSError, _unwritten)
    app.add_exception_handler(Exception, _fault)
    app.include_router(_health())
    for router in (_version_1(service), *routers):
        app.include_router(router, dependencies=[_TOKEN])
    app.add_api_route("/", lambda: static(home), include_in_schema=False)
    app.add_api_route("/docs", lambda: static("docs.html"), include_in_schema=False)
    app.add_api_route("/static/{name}", static, include_in_schema=False)
    return app


def static(name: str) -> Response:
    """A file of the page; nothing but what lies in its folder."""
    folder = resources.files(SCRIPTS[name]) if name in SCRIPTS else STATIC
    names = {entry.name for entry in STATIC.iterdir()} | set(SCRIPTS)
    suffix = name[name.rfind(".") :]
    if name not in names or suffix not in _TYPES:
        raise HTTPException(404, "no such file")
    return Response((folder / name).read_bytes(), media_type=_TYPES[suffix])


def mask_model(rle: Mapping[str, Any]) -> Mask:
    """Run lengths as the API gives them."""
    return Mask(size=(rle["size"][0], rle["size"][1]), counts=rle["counts"])


def predicted(found: Prediction, seconds: float) -> Predicted:
    """A prediction as the API gives it."""
    rows = zip(found.to_coco(0), found.class_names, strict=True)
    detections = [
        Detection(
            class_name=name,
            category_id=row["category_id"],
            score=row["score"],
            bbox=row["bbox"],
            segmentation=mask_model(row["segmentation"]),
        )
        for row, name in rows
    ]
    return Predicted(height=found.height, width=found.width, detections=detections, seconds=round(seconds, 3))


def _health() -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/health", summary="Whether the server is alive; needs no token")
    def health() -> Health:
        return Health(version=ntt_jax.__version__)

    return router


def _version_1(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/metrics", response_class=PlainTextResponse, summary="Counts for Prometheus")
    def metrics() -> str:
        return service.metrics.text(service.queue.waiting)

    @router.get("/classes", summary="The classes that are known")
    def classes() -> list[ClassInfo]:
        return service.classes()

    @router.post("/predict", summary="Find the instances in an image", responses=ERRORS | _LATE)
    async def predict(
        image: Annotated[UploadFile, File(description="JPEG, PNG, WebP, TIFF, ...")],
        score_threshold: Annotated[
            float, Query(ge=0, le=1, description="detections of lower scores are left out")
        ] = 0.5,
        max_detections: Annotated[
            int | None, Query(ge=1, le=10_000, description="the best ones; all without it")
        ] = None,
        classes: Annotated[list[str] | None, Query(description="only these; the others compete all the same")] = None,
    ) -> Predicted:
        started = time.perf_counter()
        pixels = await uploads.picture(await image.read())
        found: Prediction = await service.queue(pixels, service.seconds)
        wanted = found.chosen(score_threshold=score_threshold, max_detections=max_detections, classes=classes)
        return predicted(wanted, time.perf_counter() - started)

    return router


def editing_router(service: Service, changed: Callable[[], None] = lambda: None) -> APIRouter:
    """Routes that add and remove references; changed: called after each."""
    router = APIRouter(prefix="/v1")

    @router.post(
        "/classes/{name}/references", summary="Add a reference, and the class if new", responses=ERRORS | _LATE
    )
    async def add_reference(
        name: Annotated[str, Path(description="of the class", max_length=_MAX_NAME)],
        image: Annotated[UploadFile, File(description="JPEG, PNG, WebP, TIFF, ...")],
        mask: Annotated[
            UploadFile | None, File(description="one instance: an image of the same size, 0 where background")
        ] = None,
        box: Annotated[str | None, Form(description="[x, y, width, height] in pixels, in place of a mask")] = None,
        points: Annotated[str | None, Form(description="[[x, y], ...] on the object, in place of a mask")] = None,
        kind: Annotated[
            Literal["reference", "negative"], Form(description="negative: it looks like the class, and is none of it")
        ] = "reference",
    ) -> list[ClassInfo]:
        if sum(given is not None and given != "" for given in (mask, box or points)) != 1:
            raise InputError("expected a mask, or a box or points in its place")
        async with asyncio.timeout(service.seconds) as waiting, service.adding:
            waiting.reschedule(None)  # it is this one's turn
            pixels = await uploads.picture(await image.read())
            given: Any
            if mask is not None:
                given = await uploads.decoded(await mask.read(), "mask", as_mask)
            else:
                numbers = _json(points, "points") if points else ()
                given = Prompt(_json(box, "box") if box else None, numbers)
            await asyncio.to_thread(_add, service, name, pixels, given, kind)
        changed()
        return await asyncio.to_thread(service.classes)  # it waits while another reference is encoded

    @router.delete("/classes/{name}", summary="Forget a class", responses=ERRORS)
    def remove_class(name: Annotated[str, Path(description="of the class", max_length=_MAX_NAME)]) -> list[ClassInfo]:
        with service.edits:
            service.segmenter.remove(name)
        changed()
        return service.classes()

    return router


def _add(service: Service, name: str, image: np.ndarray, given: Any, kind: str) -> None:
    with service.edits:
        add = service.segmenter.add if kind == "reference" else service.segmenter.add_negative
        add(name, [(image, given)])


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{what}: expected numbers as JSON, found {text!r:.60}") from None


def _problems(**reasons: str) -> dict[int | str, dict[str, Any]]:
    return {int(status[1:]): {"model": Problem, "description": text} for status, text in reasons.items()}


_TOKEN = Security(HTTPBearer(auto_error=False, description="the token that the program printed"))
"""Says in the description that a token is needed. The guard has seen it already."""
_REFUSED = _problems(
    _401="the token is missing or wrong",
    _403="the request comes from another page",
    _421="the server is not called by the name in the Host header",
)
ERRORS = _problems(
    _400="the input cannot be used",
    _408="the request did not arrive in time",
    _413="too many bytes",
    _422="a parameter is missing or of another type",
    _429="too much to do; come again",
    _507="the server's disk is full, or cannot be written",
)
"""Of what takes input."""
_LATE = _problems(_503="no answer in time")
_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def _say(status: int, detail: str, **headers: str) -> Response:
    # In ASCII: what a request held may be text that UTF-8 has no bytes for.
    content = json.dumps({"detail": one_line(" ".join(detail.split()), _MAX_DETAIL)})
    return Response(content, status, headers, "application/json")


async def _refused(request: Request, error: Exception) -> Response:
    unwritten = isinstance(error.__cause__, OSError) and error.__cause__.errno in _UNWRITTEN
    return _say(507 if unwritten else 400, str(error))


async def _unwritten(request: Request, error: Exception) -> Response:
    if not isinstance(error, OSError) or error.errno not in _UNWRITTEN:
        raise error
    return _say(507, f"the server cannot keep what was sent: {reason(error)}")


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first.get("loc", ()))
    return _say(422, f"{where}: {first.get('msg', 'not as expected')}")


async def _busy(request: Request, error: Exception) -> Response:
    assert isinstance(error, Busy)
    return _say(429, BUSY, **{"retry-after": str(error.seconds)})


async def _late(request: Request, error: Exception) -> Response:
    return _say(503, "no answer in time; the server is busy", **{"retry-after": "10"})


async def _fault(request: Request, error: Exception) -> Response:
    show_lines("".join(traceback.format_exception(error)).rstrip(), to=sys.stderr)
    return _say(500, "a fault of the server; its terminal says more")
