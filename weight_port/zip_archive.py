"""The zip archive that `torch.save` writes, read by one reader that allows one reading.

Two programs can read one archive differently: names that differ in case, a second directory, a record that two entries
share. So nothing is searched for here: the end record is the end of the file, the directory ends where the end records
begin, every entry's own header says what the directory says, and no two entries share a byte.
"""

import struct
import unicodedata
import zlib
from typing import NamedTuple

from ntt_jax.errors import InputError
from ntt_jax.files import describe, show_path
from weight_port.tensors import InputFile

MAX_ENTRIES = 20_100
MAX_DIRECTORY_BYTES = 64 * 2**20
_END, _END64, _LOCATOR, _CENTRAL, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"
_ZIP64 = 1  # number of the extra field that holds sizes of 4 GB and more


class Record(NamedTuple):
    """Where the bytes of one entry lie."""

    offset: int
    size: int
    crc: int


def read_directory(file: InputFile) -> dict[str, Record]:
    """All entries of the archive by name, every one checked.

    Raises:
        InputError: damaged, truncated, or an archive that could be read in another way.
    """
    where = show_path(file.path)
    start, size, count, limit = _end(file, where)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise InputError(f"{where}: {count} records in the archive, expected at most {MAX_ENTRIES}")
    if start + size != limit:
        raise damaged(where, "its directory does not end where its end record says")
    directory, position = file.read(start, size), 0
    records: dict[str, Record] = {}
    folded: set[str] = set()
    extents: list[tuple[int, int, str]] = []
    for _ in range(count):
        name, record, header, position = _entry(file, directory, position, start, where)
        if name in records or (key := unicodedata.normalize("NFKC", name).casefold()) in folded:
            raise InputError(f"{where}: two records of the archive have the same name, {describe(name)}")
        folded.add(key)
        records[name] = record
        extents.append((header, record.offset + record.size, name))
    if position != size:
        raise damaged(where, "its directory holds more than its entries")
    end = 0
    for first, last, name in sorted(extents):
        if first < end or last > start:
            raise InputError(f"{where}: record {describe(name)} overlaps another or the directory")
        end = last
    return records


def read_record(file: InputFile, record: Record) -> bytes:
    """The bytes of one entry, checked against their checksum. Raises `InputError`."""
    data = bytes(file.read(record.offset, record.size))
    if zlib.crc32(data) != record.crc:
        raise damaged(show_path(file.path), "a checksum does not fit")
    return data


def damaged(where: str, why: str) -> InputError:
    return InputError(f"{where}: damaged or truncated archive: {why}; download it again")


def _end(file: InputFile, where: str) -> tuple[int, int, int, int]:
    """Start and size of the directory, number of entries, and where it has to end."""
    if file.size < 22:
        raise damaged(where, "it is too short")
    at = file.size - 22
    magic, disk, first_disk, here, count, size, start, comment = struct.unpack("<4s4H2IH", file.read(at, 22))
    if magic != _END or comment:
        raise damaged(where, "it does not end in an end record")
    if disk or first_disk or here != count:
        raise damaged(where, "it is one of several parts")
    if file.size < 22 + 20 + 56 or bytes(file.read(at - 20, 4)) != _LOCATOR:
        if 0xFFFF in (count,) or 0xFFFFFFFF in (size, start):
            raise damaged(where, "an end record is missing")
        return start, size, count, at
    # torch writes the wide end record always, beside the narrow one; both must say the same.
    _, disk, wide_at, disks = struct.unpack("<4sIQI", file.read(at - 20, 20))
    if disk or disks != 1 or wide_at != at - 20 - 56:
        raise damaged(where, "its wide end record lies elsewhere")
    magic, length, _, _, disk, first_disk, here, wide_count, wide_size, wide_start = struct.unpack(
        "<4sQ2H2I4Q", file.read(wide_at, 56)
    )
    same = all(
        narrow in (wide, most)
        for narrow, wide, most in (
            (count, wide_count, 0xFFFF),
            (size, wide_size, 0xFFFFFFFF),
            (start, wide_start, 0xFFFFFFFF),
        )
    )
    if magic != _END64 or length != 44 or disk or first_disk or here != wide_count or not same:
        raise damaged(where, "its end records disagree")
    return wide_start, wide_size, wide_count, wide_at


def _entry(file: InputFile, directory: bytearray, at: int, limit: int, where: str) -> tuple[str, Record, int, int]:
    """One entry and its own header: name, record, where the header begins, and where the next entry does."""
    if at + 46 > len(directory):
        raise damaged(where, "its directory is cut off")
    magic, flags, method, crc, packed, size, lengths, disk, offset = (
        bytes(directory[at : at + 4]),
        *struct.unpack_from("<2H", directory, at + 8),
        *struct.unpack_from("<3I", directory, at + 16),
        struct.unpack_from("<3H", directory, at + 28),
        *struct.unpack_from("<H", directory, at + 34),
        *struct.unpack_from("<I", directory, at + 42),
    )
    end = at + 46 + sum(lengths)
    if magic != _CENTRAL or end > len(directory) or disk not in (0, 0xFFFF):
        raise damaged(where, "its directory is cut off")
    raw = bytes(directory[at + 46 : at + 46 + lengths[0]])
    name = _name(raw, where)
    extra = bytes(directory[at + 46 + lengths[0] : at + 46 + lengths[0] + lengths[1]])
    size, packed, offset = _wide(extra, [size, packed, offset], where)
    if method or packed != size or flags & ~(0x0008 | 0x0800):
        raise InputError(f"{where}: record {describe(name)} is compressed or encrypted; torch.save does neither")
    if offset + 30 > limit:
        raise InputError(f"{where}: record {describe(name)} overlaps another or the end of the file")
    header = file.read(offset, 30)
    magic, own_flags, own_method = bytes(header[:4]), *struct.unpack_from("<2H", header, 6)
    own_crc, own_packed, own_size = struct.unpack_from("<3I", header, 14)
    name_length, extra_length = struct.unpack_from("<2H", header, 26)
    data = offset + 30 + name_length + extra_length
    if data + size > limit:
        raise InputError(f"{where}: record {describe(name)} overlaps another or the end of the file")
    if magic != _LOCAL or own_flags != flags or own_method or bytes(file.read(offset + 30, name_length)) != raw:
        raise damaged(where, f"record {describe(name)} and the directory disagree")
    if not flags & 0x0008:  # else the sizes stand behind the data
        own = _wide(bytes(file.read(offset + 30 + name_length, extra_length)), [own_size, own_packed], where)
        if own != [size, size] or own_crc != crc:
            raise damaged(where, f"record {describe(name)} and the directory disagree")
    return name, Record(data, size, crc), offset, end


def _name(raw: bytes, where: str) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    parts = name.split("/")
    if not name or not name.isprintable() or "\\" in name or name.startswith("/") or ".." in parts or len(name) > 500:
        raise InputError(f"{where}: a record of the archive has the name {describe(raw.decode('latin-1'))}")
    return name


def _wide(extra: bytes, values: list[int], where: str) -> list[int]:
    """Sizes and offset, in this order, those that do not fit 32 bits taken from the extra field."""
    if 0xFFFFFFFF not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        number, length = struct.unpack_from("<2H", extra, at)
        if number == _ZIP64 and at + 4 + length <= len(extra):
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            try:
                return [next(wide) if value == 0xFFFFFFFF else value for value in values]
            except (StopIteration, RuntimeError):
                break
        at += 4 + length
    raise damaged(where, "sizes of 4 GB and more are missing")
