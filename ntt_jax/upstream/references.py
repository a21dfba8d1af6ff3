"""Import of upstream's reference pickle, `{category id: [{"img_id": id, "ann_ids": [id]}, ...]}`, as plain data."""

import io
import pickle
import pickletools
from typing import Any, NoReturn

from ntt_jax.datasets.dataset import CocoDataset
from ntt_jax.errors import InputError
from ntt_jax.files import PathLike, describe, read_bytes, show_path
from ntt_jax.references.sampling import ClassReferences, Reference, ReferenceSet

MAX_PICKLE_BYTES = 64 * 1024**2
MAX_REFERENCES = 1_000_000
# What dictionaries, lists, integers and text are pickled with, protocols 0 to 5. Nothing here can name, build or call
# anything; whatever can (GLOBAL, REDUCE, BUILD, INST, EXT, PERSID, ...) is absent. So are tuples: nested by reference
# and used as a key, a hundred of them would take for ever to hash.
_PLAIN_OPCODES = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK"),
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    }
)


class _PlainUnpickler(pickle.Unpickler):
    """The second lock: were an opcode that names something let through, the name is refused."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module_name}.{global_name}")


def import_upstream_references(path: PathLike, dataset: CocoDataset) -> ReferenceSet:
    """Read upstream's reference pickle for the annotation file it was made from.

    Nothing of the pickle is run: its opcodes are compared with the few that plain data needs before it is read. Names
    come from `dataset`. The references themselves are checked with `check_references`, like any others.

    Raises `InputError` naming the file if it is no pickle, holds anything but plain data in the form above, names a
    category that `dataset` lacks, or gives a reference several annotations (a reference is one instance: METHOD 1).
    """
    data = read_bytes(path, max_bytes=MAX_PICKLE_BYTES, what="reference pickle")
    return parse_upstream_references(data, path, dataset)


def parse_upstream_references(data: bytes, path: PathLike, dataset: CocoDataset) -> ReferenceSet:
    """`import_upstream_references` for a file's contents; `path` names them in messages."""
    name = show_path(path)
    content = _plain_data(data, name)
    if type(content) is not dict or not content:
        raise InputError(f"{name}: expected a dictionary by category id, found {describe(content)}")
    total = 0
    classes = []
    for category_id, entries in content.items():
        where = f"{name}: category {describe(category_id)}"
        if type(category_id) is not int or category_id not in dataset.categories:
            raise InputError(f"{where}: {show_path(dataset.path)} has no such category")
        if type(entries) is not list or not entries:
            raise InputError(f"{where}: expected a list of references, found {describe(entries)}")
        total += len(entries)  # a pickle may hold the same list many times over
        if total > MAX_REFERENCES:
            raise InputError(f"{name}: more than {MAX_REFERENCES} references")
        references = tuple(_reference(entry, f"{where}: reference {i}") for i, entry in enumerate(entries))
        if len(set(references)) != len(references):
            raise InputError(f"{where}: a reference occurs twice")
        classes.append(ClassReferences(category_id, dataset.categories[category_id].name, references))
    classes.sort(key=lambda c: c.category_id)
    return ReferenceSet(tuple(classes), shots=max(len(c.references) for c in classes))


def _plain_data(data: bytes, name: str) -> Any:
    """Unpickle after the opcodes have been found to be plain data."""
    opcodes = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            opcodes += 1
            if opcode.name not in _PLAIN_OPCODES:
                raise InputError(
                    f"{name}: refused: opcode {opcode.name} at byte {position} is not plain data; a reference pickle"
                    " holds only dictionaries, lists, integers and text"
                )
            # The unpickler allocates its memo up to the largest index named; longer keys can be made to collide.
            limit = len(data) if "PUT" in opcode.name else 2**63
            if isinstance(argument, int) and not -limit < argument < limit:
                raise InputError(
                    f"{name}: refused: {opcode.name} at byte {position}: {describe(argument)} is too large"
                )
        return _PlainUnpickler(io.BytesIO(data)).load()
    except InputError:
        raise
    except Exception as error:  # malformed pickles raise nearly anything, in both readers
        raise InputError(f"{name}: not a readable pickle ({type(error).__name__} after {opcodes} opcodes)") from error


def _reference(entry: Any, where: str) -> Reference:
    if type(entry) is not dict or set(entry) != {"img_id", "ann_ids"}:
        raise InputError(f'{where}: expected {{"img_id": id, "ann_ids": [id]}}, found {describe(entry)}')
    image_id, annotation_ids = entry["img_id"], entry["ann_ids"]
    if type(annotation_ids) is not list or len(annotation_ids) != 1:
        raise InputError(f'{where}: "ann_ids": expected a list of one annotation id, found {describe(annotation_ids)}')
    if not all(type(v) is int and 0 <= v < 2**63 for v in (image_id, annotation_ids[0])):
        raise InputError(f"{where}: expected integer ids, found {describe([image_id, annotation_ids[0]])}")
    return Reference(image_id, annotation_ids[0])
