"""What a file is that is no checkpoint, in words, and what to do about it."""

from collections.abc import Iterable

from ntt_jax.safetensors_file import MAX_HEADER_BYTES
from weight_port.files import InputFile

_AGAIN = "download the file itself again"
RESAVE = (
    'load it in a PyTorch you trust it with and save it again: python -c "import torch; '
    "torch.save(torch.load('OLD', weights_only=True, map_location='cpu'), 'NEW.pt')\""
)

_STARTS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file itself; run `git lfs pull` in its repository, or download the file itself",
    ),
    (b"\xff\xd8\xff", "a JPEG image, not a checkpoint; did you mix up two arguments?"),
    (b"\x89PNG", "a PNG image, not a checkpoint; did you mix up two arguments?"),
    (b"GIF8", "a GIF image, not a checkpoint; did you mix up two arguments?"),
    (b"RIFF", "a WebP image or a sound, not a checkpoint; did you mix up two arguments?"),
    (b"II*\0", "a TIFF image, not a checkpoint; did you mix up two arguments?"),
    (b"MM\0*", "a TIFF image, not a checkpoint; did you mix up two arguments?"),
    (b"%PDF", "a PDF document, not a checkpoint"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first: gzip -d FILE.gz, or tar -xzf FILE.tar.gz"),
    (b"BZh", "compressed with bzip2; unpack it first: bzip2 -d FILE.bz2"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first: xz -d FILE.xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first: zstd -d FILE.zst"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras, older TensorFlow), not a PyTorch or safetensors checkpoint"),
    (b"\x93NUMPY", "one numpy array, not a checkpoint"),
    (b"GGUF", "a GGUF file, not a PyTorch or safetensors checkpoint"),
    (b"\x7fELF", "a program, not a checkpoint"),
    (b"PK\x05\x06", "an empty zip archive; " + _AGAIN),
    (b"PK\x07\x08", "one part of a zip archive of several; join the parts first"),
)
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file starts that torch before 1.6 wrote, and newer ones with `_use_new_zipfile_serialization=False`."""


def describe_stranger(file: InputFile) -> str | None:
    """What the file is, from its first bytes, and what to do; None where nothing speaks against a safetensors file."""
    start = file.content(0, 1024)
    if int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES and start[8:9] == b"{":
        return None  # some lengths of a safetensors header are also the first bytes of other kinds
    for magic, words in _STARTS:
        if start.startswith(magic):
            return words
    if start.startswith(_LEGACY):
        return f"no checkpoint that is read, but one written by torch before 1.6, expected a zip archive; {RESAVE}"
    if start[257:262] == b"ustar":
        return f"a tar archive; unpack it first (a checkpoint of torch before 0.2: {RESAVE})"
    if start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5" and int.from_bytes(start[:8], "little") > 2**32:
        return f"no checkpoint that is read: a Python pickle, or one written by torch before 1.6; {RESAVE}"
    if not start.strip(b"\0"):
        return f"nothing but zeros at its start: a download that did not finish; {_AGAIN}"
    return _describe_text(start, file.size)


def _describe_text(start: bytes, size: int) -> str | None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    page = f", not a checkpoint: what a server answers instead of the file; {_AGAIN}, signed in where that is asked for"
    if text.startswith((b"<!doctype", b"<html", b"<head")) or b"<html" in text:
        return f"an HTML page{page}"
    if text.startswith(b"<"):
        return f"an XML page{page}"
    printable = all(byte >= 32 or byte in b"\t\n\r" for byte in start)
    if printable and (text.startswith((b"{", b"[")) or size < 10_000):
        kind = "JSON text" if text.startswith((b"{", b"[")) else "a text file"
        return f"{kind}, not a checkpoint: a configuration, an index or a server's answer; {_AGAIN}"
    return None


def describe_archive(names: Iterable[str]) -> str:
    """What a sound zip archive is that is no checkpoint of `torch.save`."""
    names = list(names)
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "not a checkpoint of torch.save (a TorchScript model or another archive); expected a state dict: "
            "torch.save(torch.jit.load('FILE').state_dict(), 'weights.pt')"
        )
    if names and all(name.endswith(".npy") for name in names):
        return "not a checkpoint of torch.save (a numpy .npz file or another archive); expected a state dict"
    inside = next((n for n in names if n.endswith((".pt", ".pth", ".ckpt", ".bin", ".safetensors"))), None)
    hint = "" if inside is None else f"; unpack it and give {inside[:80]!r}"
    return (
        f"not a checkpoint of torch.save (a TorchScript model or another archive); expected a state dict saved with "
        f"torch.save{hint}"
    )
