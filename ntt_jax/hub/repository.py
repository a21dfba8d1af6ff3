"""A model's files from the Hugging Face Hub into its own cache (HF_HOME), where other programs find them too.

`huggingface_hub` answers what there is, where, and with which token. Large files come by `fetch`, which goes on after a
kill and checks their sha256; they are placed where that library looks for them.
"""

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ntt_jax.errors import InputError
from ntt_jax.files import parse_json, read_bytes, show_path, write_bytes
from ntt_jax.hub import fetch
from ntt_jax.hub.fetch import DownloadError, StorageError

_INDEX = "model.safetensors.index.json"
_TORCH = (".pt", ".pth", ".bin")
_ATTEMPTS = 3
_T = TypeVar("_T")


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT or https://huggingface.co."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT


def fetch_repository(identifier: str, revision: str | None = None, *, refresh: bool = False) -> tuple[Path, str]:
    """Bring a model's weights and configuration into the Hub's cache.

    Args:
        identifier: `owner/name`.
        revision: branch, tag or commit (default: main).
        refresh: do not fall back to what an earlier download left when the Hub cannot be reached.

    Returns:
        What `weight_port` can open (a folder with model.safetensors or its shards, otherwise one file), and the commit.

    Raises:
        DownloadError: it cannot be had; says why.
        StorageError: the disk is full or cannot be written.
        InputError: the repository has no weights that can be read.
    """
    try:
        info = _answer(
            lambda timeout: _api().model_info(identifier, revision=revision, files_metadata=True, timeout=timeout)
        )
    except DownloadError:
        if refresh or (found := local(identifier, revision)) is None:
            raise
        return found
    commit = str(info.sha)
    files = {one.rfilename: one for one in info.siblings or []}
    chosen = _weights(identifier, list(files))
    if "config.json" in files:
        _bring(identifier, commit, files["config.json"])
    path = _bring(identifier, commit, files[chosen])
    if chosen == _INDEX:
        for shard in _shards(path):
            if shard not in files:
                raise InputError(f"{identifier}: its {_INDEX} names {shard!a:.120}, which is not there")
            _bring(identifier, commit, files[shard])
    if (branch := revision or "main") != commit:  # so that the name alone finds it without a network
        _write_reference(identifier, branch, commit)
    return (path.parent if chosen in ("model.safetensors", _INDEX) else path), commit


def local(identifier: str, revision: str | None = None) -> tuple[Path, str] | None:
    """What an earlier download, by whatever program, has left in the Hub's cache; None if it is not whole."""
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> Path | None:
        found = try_to_load_from_cache(identifier, name, revision=revision, cache_dir=cache_folder())
        return Path(found) if isinstance(found, str) else None

    if path := cached("model.safetensors"):
        return path.parent, path.parent.name
    if path := cached(_INDEX):
        whole = all((path.parent / shard).is_file() for shard in _shards(path))
        return (path.parent, path.parent.name) if whole else None
    return None


def checksum(path: Path) -> str | None:
    """The sha256 that the Hub gives a file of its cache, where the cache tells it (it does on Linux and macOS)."""
    name = path.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def _weights(identifier: str, names: list[str]) -> str:
    """The file to read, of those in a repository."""
    for name in ("model.safetensors", _INDEX):
        if name in names:
            return name
    for suffixes in ((".safetensors",), _TORCH):
        found = [name for name in names if name.endswith(suffixes) and "/" not in name]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(
                f"{identifier}: has several checkpoints ({', '.join(sorted(found)[:5])}); download one of them "
                f"(`hf download {identifier} FILE`) and give its path"
            )
    raise InputError(f"{identifier}: no .safetensors, .pt, .pth or .bin file in this repository; is it a model?")


def _shards(index: Path) -> list[str]:
    what = "index of shards"
    try:
        content = parse_json(read_bytes(index, max_bytes=16 * 2**20, what=what), index, what=what)
        names = sorted({str(name) for name in content["weight_map"].values()})
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{show_path(index)}: not an {what}") from None
    if any(re.fullmatch(r"[\w.-]+\.safetensors", name) is None for name in names):
        raise InputError(f"{show_path(index)}: names of shards must be plain names of .safetensors files")
    return names


def _bring(identifier: str, commit: str, file: Any) -> Path:
    """One file of a commit into the Hub's cache."""
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    name = file.rfilename
    found = try_to_load_from_cache(identifier, name, revision=commit, cache_dir=cache_folder())
    if isinstance(found, str):
        return Path(found)
    if file.lfs is not None:
        digest, size = file.lfs.sha256, file.lfs.size
        blob = _storage(identifier) / "blobs" / digest
        url = hf_hub_url(identifier, name, revision=commit, endpoint=endpoint())
        try:
            fetch.fetch(url, blob, size=size, sha256=digest, headers=build_hf_headers(), what=f"{identifier}: {name}")
        except DownloadError as error:
            raise DownloadError(f"{name}: {error}") from None
    return Path(
        _answer(
            lambda _: hf_hub_download(identifier, name, revision=commit, cache_dir=cache_folder(), endpoint=endpoint())
        )
    )


def _storage(identifier: str) -> Path:
    """A repository's folder in the Hub's cache, whose layout is documented (blobs, refs, snapshots)."""
    from huggingface_hub.file_download import repo_folder_name

    return cache_folder() / repo_folder_name(repo_id=identifier, repo_type="model")


def _write_reference(identifier: str, branch: str, commit: str) -> None:
    with contextlib.suppress(OSError, InputError):
        reference = _storage(identifier) / "refs" / branch
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(reference, commit.encode())


def cache_folder() -> Path:
    """The Hub's own cache on this machine."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint())


def _answer(ask: Callable[[float], _T]) -> _T:
    """What the Hub answers, asked again while it is only busy. Raises `DownloadError` or `StorageError`."""
    from huggingface_hub import constants

    for attempt in range(_ATTEMPTS):
        try:
            return ask(constants.HF_HUB_ETAG_TIMEOUT)
        except Exception as error:
            reason, again = _reason(error)
            if not again or attempt == _ATTEMPTS - 1:
                raise reason from None
            time.sleep(fetch.WAIT * 2**attempt)
    raise AssertionError


def _reason(error: Exception) -> tuple[Exception, bool]:
    """What to tell the user, and whether it is worth to ask again."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _reason(error.__cause__)
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            "gated: accept its terms on its page, then `hf auth login` or set HF_TOKEN (or the token is another user's)"
        ), False
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError("there is no such revision"), False
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError("there is no such model, or it is private (then `hf auth login` or set HF_TOKEN)"), False
    if isinstance(error, errors.HfHubHTTPError):
        try:
            fetch.check_status(error.response)
        except DownloadError as found:
            return found, False
        except fetch.Temporary as found:
            return DownloadError(str(found)), error.response.status_code != 429
    if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError)):
        return DownloadError(fetch.explain(error)), False  # Meta may have it: no waiting here
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageError(
                "the disk of the Hub's cache is full; free some space or set HF_HOME to another one"
            ), False
        if error.errno is not None:
            return StorageError(
                f"{error.filename or cache_folder()}: the Hub's cache cannot be written: {error.strerror}; "
                "set HF_HOME to a folder of yours"
            ), False
    if isinstance(error, (errors.HFValidationError, OSError, ValueError)):
        return DownloadError(f"the answer makes no sense ({' '.join(str(error).split())[:120]})"), False
    return error, False
