"""From a name or any checkpoint to a converted file: fetched and converted once, found in the cache ever after."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, parse_json, read_bytes, show_path
from ntt_jax.hub import cache, fetch, repository
from ntt_jax.hub.fetch import DownloadError
from ntt_jax.hub.names import Published, Repository, parse, suggestion
from ntt_jax.model_config import KINDS
from ntt_jax.text import show

META_URL = "https://dl.fbaipublicfiles.com"


def meta_url() -> str:
    """Where Meta's files are: NTT_JAX_META_URL (a mirror with the same paths), otherwise Meta's server."""
    return os.environ.get("NTT_JAX_META_URL", "").rstrip("/") or META_URL


def resolve(
    name_or_path: PathLike,
    kind: str | None = None,
    *,
    source: str = "auto",
    again: bool = False,
    key: str | None = None,
    prefix: str | None = None,
) -> Path:
    """The converted weight file of whatever a user names.

    Args:
        name_or_path: a name (`sam2_hiera_large`), an id of the Hugging Face Hub (`facebook/dinov2-large`,
            `owner/name@revision`), a converted file, Meta's .pt or .pth, a Hugging Face file or folder.
        kind: "sam2" or "dinov2": a name of the other model is refused before anything is fetched.
        source: of published models: "hub", "meta", or "auto": the Hub, and Meta if that fails.
        again: fetch a name anew even if it is in the cache.
        key, prefix: of a checkpoint with several models, which one: the dictionary, and what all names of its tensors
            start with (`weight_port.convert`). The path or id stands for that model from then on, also without them.

    Returns:
        A converted file itself; of everything else the converted file in the cache. A name that was fetched once stands
        for the same weights until `again`, without asking the network.

    Raises:
        InputError: no such file or name, nothing that can be converted, or a download that failed: says what to do.
    """
    what = parse(name_or_path, kind)
    reading = {name: text for name, text in (("key", key), ("prefix", prefix)) if text is not None}
    if isinstance(what, Path):
        return _of_path(what, reading)
    if reading and isinstance(what, Published):
        raise InputError(f"{what.name}: holds one model; there is nothing to choose with {' and '.join(reading)}")
    if not again and not reading and (found := cache.named(what.name)):
        return found.path
    return _of_name(what, source, again, reading)


def _of_path(path: Path, reading: Mapping[str, str]) -> Path:
    if _is_converted(path):
        if reading:
            raise InputError(f"{show_path(path)}: a converted file, which holds one model; there is nothing to choose")
        return path
    key = None if reading else cache.key_of_path(path)
    if key is None or (found := cache.entry(key)) is None:
        stamps = cache.stamps(path)
        key, found = _convert(path, given=_beside(path), reading=reading)
        cache.record_path(path, stamps, key)
    return found.path


def _is_converted(path: Path) -> bool:
    """By its header alone; a file that cannot be read at all is left to the converter, which says why."""
    from weight_port.store import FORMAT, read_safetensors

    if path.is_dir():
        return False
    try:
        return read_safetensors(path)[1].get("format") == FORMAT
    except InputError:
        return False


def _beside(path: Path) -> dict[str, Any] | None:
    """The configuration in NAME.json beside a checkpoint NAME.pt, if it is one of ours."""
    file = path.with_suffix(".json")
    if path.is_dir() or not file.is_file() or file == path:
        return None
    try:
        content = parse_json(read_bytes(file, max_bytes=2**20, what="configuration"), file, what="configuration")
    except InputError:
        return None
    return content if isinstance(content, dict) and content.get("model") in tuple(KINDS) else None


def _convert(
    path: Path,
    *,
    model: str | None = None,
    given: Mapping[str, Any] | None = None,
    expected: str | None = None,
    reading: Mapping[str, str] | None = None,
) -> tuple[str, cache.Entry]:
    """The key and the converted file of a checkpoint, converted now if the cache lacks it.

    expected: its sha256, if that is known. reading: which of its models, `key` and `prefix`. Raises `InputError` for
    what `weight_port.convert` refuses.
    """
    from weight_port.source import open_source

    try:
        opened = open_source(path, **(reading or {}))
    except InputError as error:
        if not reading and ("--key" in str(error) or "--prefix" in str(error)):
            raise InputError(f"{error}; `ntt-jax weights get` takes them, once for this file") from None
        raise
    if expected is not None and len(opened.files) == 1 and opened.sha256 != expected:
        raise InputError(
            f"{show_path(path)}: damaged: its sha256 is {opened.sha256[:12]}..., expected {expected[:12]}...; delete "
            f"{show_path(opened.files[0].resolve())} and start again"
        )
    beside = {"model": model, "given": given, "hints": opened.hints, **(reading or {})}
    key = cache.key_of(opened.sha256, {name: value for name, value in beside.items() if value})

    def write(target: Path) -> None:
        from weight_port.port import convert

        try:
            convert(path, target, model=model, given=given, **(reading or {}))
        except InputError as error:
            if "with --config" in str(error):
                raise InputError(f"{error} to `python -m weight_port convert`") from None
            raise
        show(f"ntt-jax: converted {show_path(path)}, once, into {show_path(target.parent)}", to=sys.stderr)

    return key, cache.store(key, opened.sha256, write)


def _of_name(what: Published | Repository, source: str, again: bool, reading: Mapping[str, str]) -> Path:
    lock = cache.folder() / "names" / f"{what.name.replace('/', '--')}.lock"
    cache.make_folder(lock.parent)
    with cache.locked(lock):
        if not again and not reading and (found := cache.named(what.name)):  # another process was quicker
            return found.path
        if isinstance(what, Repository):
            path, commit = _from_hub(what, what.id, what.revision, again)
            return _keep(what.name, path, f"{repository.endpoint()}/{what.id}", commit, reading=reading)
        reasons = []
        if source in ("auto", "hub"):
            try:
                path, commit = repository.fetch_repository(what.repository, refresh=again)
                return _keep(what.name, path, f"{repository.endpoint()}/{what.repository}", commit, what)
            except DownloadError as error:
                reasons.append(f"{repository.endpoint()}: {error}")
        if source in ("auto", "meta"):
            url = f"{meta_url()}/{what.meta_path}"
            target = cache.folder() / "downloads" / Path(what.meta_path).name
            try:
                fetch.fetch(url, target, size=what.size, sha256=what.sha256)
                path = _keep(what.name, target, url, None, what)
                target.unlink()  # the converted file holds every bit of it: `weight_port export` gives it back
                return path
            except DownloadError as error:
                reasons.append(f"{meta_url()}: {error}")
        raise InputError(_way_out(what, reasons))


def _from_hub(what: Repository, identifier: str, revision: str | None, again: bool) -> tuple[Path, str]:
    try:
        return repository.fetch_repository(identifier, revision, refresh=again)
    except DownloadError as error:
        advice = (
            suggestion(identifier)
            if "no such model" in str(error)
            else f"; where there is a network, `hf download {identifier} --local-dir FOLDER` fetches it: copy that "
            "folder here and give its path"
        )
        raise InputError(
            f"{what.name}: no file or folder of this name, and not to be had from {repository.endpoint()}: "
            f"{error}{advice}"
        ) from None


def _keep(
    name: str,
    path: Path,
    origin: str,
    commit: str | None,
    model: Published | None = None,
    reading: Mapping[str, str] | None = None,
) -> Path:
    """Convert what was fetched and note what the name stands for from now on."""
    expected = None
    if commit is not None:
        file = path / "model.safetensors" if path.is_dir() else path
        expected = repository.checksum(file) if file.exists() else None
    elif model is not None and model.sha256 is None:
        show(f"ntt-jax: {name}: no published checksum to compare with", to=sys.stderr)
    if model is None:
        key, found = _convert(path, expected=expected, reading=reading)
    elif model.given is not None:
        key, found = _convert(path, given=model.given, expected=expected)
    else:
        key, found = _convert(path, model=model.name, expected=expected)
    cache.record_name(name, key, origin=origin, commit=commit, source_sha256=found.source_sha256)
    return found.path


def _way_out(model: Published, reasons: list[str]) -> str:
    url = f"{META_URL}/{model.meta_path}"
    return (
        f"{model.name}: not in the cache ({show_path(cache.folder())}) and not to be had: {'; '.join(reasons)}. Where "
        f"there is a network: `curl -L -O {url}` or `hf download {model.repository} --local-dir {model.name}`; copy it "
        f"here and give its path in place of the name"
    )
