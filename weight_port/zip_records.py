"""The zip archive that `torch.save` writes, read by one strict reader.

Readers of zip files differ in what they take for the directory and for a name, and whoever scans with one and loads
with another may load what was never scanned. This one reads the end record, the directory that ends exactly where the
end record begins, and the header before every record, and demands that they tell one story: records are stored as they
are, one after the other from the first byte of the file, none inside another, their names differing in more than case.
"""

import struct
import unicodedata
from typing import NamedTuple

from ntt_jax.errors import InputError
from ntt_jax.files import show_path
from ntt_jax.safetensors_file import MAX_TENSORS
from weight_port.files import InputFile

MAGIC = b"PK\x03\x04"
_MAX_RECORDS = MAX_TENSORS + 100
_MAX_DIRECTORY_BYTES = 32 * 2**20
_END, _END64, _LOCATOR = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
_ENTRY, _LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
_ENCRYPTED, _DESCRIPTOR = 0x2041, 0x0008
_MAX_DESCRIPTOR = 24
_AGAIN = "download it again"


class Record(NamedTuple):
    """Where the bytes of a record lie in the file."""

    offset: int
    size: int
    crc: int


class _Entry(NamedTuple):
    name: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    header: int


def read_records(file: InputFile) -> dict[str, Record]:
    """All records by name.

    Raises:
        InputError: damaged, truncated, compressed, encrypted, or built so that two readers may disagree about it.
    """
    where = show_path(file.path)
    try:
        directory, count, start = _find_directory(file, where)
        entries = _read_entries(directory, count, where)
        return _locate(file, entries, start, where)
    except (struct.error, IndexError):
        raise InputError(f"{where}: damaged or truncated archive: a header is cut off; {_AGAIN}") from None


def _find_directory(file: InputFile, where: str) -> tuple[bytes, int, int]:
    """The bytes of the central directory, its number of entries and its offset."""
    at = file.size - _END.size
    tail = file.content(max(0, at), _END.size)
    if len(tail) < _END.size or not tail.startswith(b"PK\x05\x06"):
        last = file.content(max(0, file.size - 66_000), 66_000)
        if 0 <= last.rfind(b"PK\x05\x06") <= len(last) - _END.size:
            raise InputError(
                f"{where}: bytes or a comment after the archive's end record, which torch.save never writes"
            )
        raise InputError(f"{where}: damaged or truncated archive: its end record is missing; {_AGAIN}")
    _, disk, disk_of_directory, here, count, size, offset, comment = _END.unpack(tail)
    narrow = (disk, disk_of_directory, here, count, size, offset)
    wide = narrow
    locator = file.content(at - _LOCATOR.size, _LOCATOR.size) if at >= _LOCATOR.size + _END64.size else b""
    if locator.startswith(b"PK\x06\x07"):
        at -= _LOCATOR.size + _END64.size
        _, locator_disk, position, disks = _LOCATOR.unpack(locator)
        signature, length, _, _, *fields = _END64.unpack(file.content(at, _END64.size))
        wide = tuple(fields)
        limits = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
        agree = all(n in (w, limit) for n, w, limit in zip(narrow, wide, limits, strict=True))
        exact = signature == b"PK\x06\x06" and length == _END64.size - 12 and position == at
        if not (agree and exact and locator_disk == 0 and disks <= 1):
            raise InputError(f"{where}: damaged or truncated archive: its end records contradict each other; {_AGAIN}")
    disk, disk_of_directory, here, count, size, offset = wide
    if disk or disk_of_directory or here != count or comment:
        raise InputError(f"{where}: an archive of several parts or with a comment, which torch.save never writes")
    if offset + size != at:
        raise InputError(
            f"{where}: damaged or truncated archive: its directory ends at byte {offset + size}, its end record begins "
            f"at {at}; {_AGAIN}"
        )
    if not 0 < count <= _MAX_RECORDS:
        raise InputError(f"{where}: {count} records in the archive, expected 1 to {_MAX_RECORDS}")
    if size > _MAX_DIRECTORY_BYTES:
        raise InputError(
            f"{where}: a directory of {size} bytes in the archive, expected at most {_MAX_DIRECTORY_BYTES}"
        )
    return file.content(offset, size), count, offset


def _read_entries(directory: bytes, count: int, where: str) -> list[_Entry]:
    entries, position = [], 0
    for _ in range(count):
        fields = _ENTRY.unpack_from(directory, position)
        signature, _, _, flags, method, _, _, crc, stored, size, n, extra, comment, disk, _, _, header = fields
        position += _ENTRY.size
        if signature != b"PK\x01\x02" or disk not in (0, 0xFFFF):
            raise InputError(f"{where}: damaged or truncated archive: its directory is not one; {_AGAIN}")
        name = directory[position : position + n]
        wide = _wide(directory[position + n : position + n + extra], (size, stored, header), where)
        position += n + extra + comment
        entries.append(_Entry(name, flags, method, crc, wide[1], wide[0], wide[2]))
    if position != len(directory):
        raise InputError(f"{where}: damaged or truncated archive: its directory has bytes over; {_AGAIN}")
    return entries


def _wide(extra: bytes, fields: tuple[int, ...], where: str) -> tuple[int, ...]:
    """The fields, those that say 0xFFFFFFFF as the 64-bit extra field has them."""
    position, found = 0, None
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            if found is not None or position + 4 + length > len(extra):
                raise InputError(
                    f"{where}: damaged or truncated archive: sizes of a record are not to be read; {_AGAIN}"
                )
            found = extra[position + 4 : position + 4 + length]
        position += 4 + length
    if 0xFFFFFFFF not in fields:
        return fields
    out, position = [], 0
    for value in fields:
        if value == 0xFFFFFFFF:
            (value,) = struct.unpack_from("<Q", found or b"", position)
            position += 8
        out.append(value)
    return tuple(out)


def _locate(file: InputFile, entries: list[_Entry], end: int, where: str) -> dict[str, Record]:
    """Compare every entry with the header before its bytes; the records must follow each other from byte 0 on."""
    out: dict[str, Record] = {}
    folded: dict[str, str] = {}
    position, slack = 0, 0
    for entry in sorted(entries, key=lambda e: e.header):
        name = _name(entry.name, where)
        plain = unicodedata.normalize("NFKC", name).casefold()
        if plain in folded:
            raise InputError(f"{where}: two records of the archive have the same name but for case: {name!r:.80}")
        folded[plain] = name
        if entry.method or entry.stored != entry.size or entry.flags & _ENCRYPTED:
            raise InputError(f"{where}: record {name!r:.80} is compressed or encrypted; torch.save does neither")
        if entry.header < position:
            raise InputError(f"{where}: record {name!r:.80} overlaps another")
        if entry.header > position + slack:
            raise InputError(f"{where}: {entry.header - position} bytes before record {name!r:.80} belong to no record")
        local = file.content(entry.header, _LOCAL.size)
        signature, _, flags, method, _, _, crc, stored, size, n, extra = _LOCAL.unpack(local)
        start = entry.header + _LOCAL.size + n + extra
        rest = file.content(entry.header + _LOCAL.size, n + extra)
        size, stored = _wide(rest[n:], (size, stored), where)
        later = bool(flags & _DESCRIPTOR)  # sizes follow after the data, and may be 0 here
        same = (crc, stored, size) == (entry.crc, entry.stored, entry.size) or (later and not (crc or stored or size))
        if signature != MAGIC or rest[:n] != entry.name or method != entry.method or flags & _ENCRYPTED or not same:
            raise InputError(f"{where}: record {name!r:.80} is another in its own header than in the directory")
        position, slack = start + entry.size, _MAX_DESCRIPTOR if later else 0
        if position > end:
            raise InputError(f"{where}: record {name!r:.80} overlaps the end of the file or the directory")
        out[name] = Record(start, entry.size, entry.crc)
    if end > position + slack:
        raise InputError(f"{where}: {end - position} bytes before the archive's directory belong to no record")
    return out


def _name(raw: bytes, where: str) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    parts = name.removesuffix("/").split("/")
    if not name.isprintable() or "\\" in name or not all(p.strip() and p.strip(".") for p in parts):
        raise InputError(f"{where}: a record of the archive has the odd name {raw[:80]!r}")
    return name
