"""Read what a PyTorch pickle says without executing it.

`pickletools.genops` only splits the byte stream into instructions. This interprets those that `torch.save` writes, over
plain data: a call is looked up in a table of three names, and whatever else a pickle would build becomes an `Opaque`,
which is a name and nothing more. It finds out which tensors the file claims to hold, so that every claim can be checked
against the archive's real sizes.
"""

import math
import pickletools
import warnings
from dataclasses import dataclass
from typing import Any

from ntt_jax.errors import InputError

STORAGE_TYPES = {
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "DoubleStorage": ("float64", 8),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
_CALLS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict")
MAX_INSTRUCTIONS = 1_000_000
"""Of one pickle: some thirty belong to a tensor, and a training checkpoint has a few thousand tensors."""


@dataclass(frozen=True)
class Global:
    name: str  # "module attribute"


@dataclass(frozen=True, eq=False)
class Opaque:
    """An object that is not built: what the pickle asks for, "module.attribute"."""

    asks_for: str


@dataclass(frozen=True, eq=False)
class OddKey:
    """A dictionary key that is neither a string nor a number: the name of its type."""

    kind: str


@dataclass(frozen=True)
class Storage:
    dtype: str
    itemsize: int
    key: str  # name of the record that holds the bytes
    numel: int


@dataclass(frozen=True, eq=False)
class TensorClaim:
    """A tensor as the pickle describes it: a strided view into a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    odd: bool = False  # stored negated or conjugated

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.itemsize


class _Mark:
    pass


_MARK = _Mark()


def scan(data: bytes, where: str) -> Any:
    """The object a pickle describes, as dicts, lists, tuples, numbers, strings, `TensorClaim`s and `Opaque`s.

    Raises:
        InputError: the pickle is damaged, of more than `MAX_INSTRUCTIONS`, or of a kind that torch.save never writes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pickletools warns about odd escapes in strings: damage, like all the rest
            return _Scanner(where).run(data)
    except InputError:
        raise
    except Exception as e:  # pickletools and the stack below raise many types on damaged input, all meaning the same
        raise InputError(f"{where}: damaged pickle ({type(e).__name__})") from None


class _Scanner:
    def __init__(self, where: str):
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name == "STOP":
                (root,) = self.stack
                return root
            if number >= MAX_INSTRUCTIONS:
                raise InputError(f"{self.where}: its pickle has more than {MAX_INSTRUCTIONS:,} instructions")
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                raise InputError(f"{self.where}: pickle instruction {opcode.name}, which torch.save never writes")
            handler(self, argument)
        raise ValueError("no STOP")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(top := self.stack.pop(), _Mark):
            items.append(top)
        return items[::-1]

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("stack underflow")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def find(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        known = name in _CALLS or (module == "torch" and attribute in STORAGE_TYPES)
        self.push(Global(name) if known else Opaque(f"{module}.{attribute}"))

    def find_on_stack(self, _: Any) -> None:
        module, attribute = self.pop(2)
        if type(module) is not str or type(attribute) is not str:
            raise ValueError("not a name")
        self.find(f"{module} {attribute}")

    def call(self, _: Any) -> None:
        function, arguments = self.pop(2)
        if isinstance(function, Opaque):
            self.push(function)
            return
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is not a function")
        if function.name == "collections OrderedDict" and arguments == ():
            self.push({})
        elif function.name == "torch._utils _rebuild_tensor_v2":
            self.push(self.tensor(arguments))
        elif function.name == "torch._utils _rebuild_parameter" and isinstance(arguments[0], (TensorClaim, Opaque)):
            self.push(arguments[0])
        else:
            raise InputError(f"{self.where}: the pickle calls {function.name.replace(' ', '.')} with odd arguments")

    def new(self, count: int) -> None:
        function, *_ = self.pop(count)
        self.push(function if isinstance(function, Opaque) else Opaque(_name_of(function)))

    def tensor(self, arguments: tuple[Any, ...]) -> TensorClaim | Opaque:
        storage, offset, shape, stride = arguments[:4]
        if isinstance(storage, Opaque):  # of a type that is not read
            return storage
        sizes = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 8
        if not isinstance(storage, Storage) or not sizes:
            raise ValueError("not a tensor")
        if not all(type(v) is int and 0 <= v < 2**48 for v in (offset, *shape, *stride)):
            raise ValueError("not a tensor")
        marks = arguments[6] if len(arguments) > 6 else None
        if marks is not None and not isinstance(marks, (dict, Opaque)):
            raise ValueError("not a tensor")
        return TensorClaim(storage, offset, shape, stride, odd=bool(marks))

    def persistent(self, _: Any) -> None:
        kind, storage_type, key, _, numel = self.stack.pop()
        if kind != "storage" or type(key) is not str or type(numel) is not int:
            raise ValueError("not a storage")
        if isinstance(storage_type, Opaque):
            self.push(storage_type)
            return
        module, _, attribute = storage_type.name.partition(" ")
        if module != "torch":
            raise ValueError("not a storage")
        self.push(Storage(*STORAGE_TYPES[attribute], key, numel))

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            return
        if type(target) is not dict:
            raise ValueError("items of something that is not a dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Others, such as nested tuples whose hash can take forever, are never hashed.
            plain = key is None or type(key) in (str, int, bool, float, bytes)
            target[key if plain else OddKey(type(key).__name__)] = value

    def extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], Opaque):
            return
        if not isinstance(self.stack[-1], list):
            raise ValueError("append to something that is not a list")
        self.stack[-1].extend(values)

    def build(self, _: Any) -> None:
        target, _ = self.pop(2)  # the attributes of a state dict (`_metadata`: versions of its modules) are not weights
        if not isinstance(target, (dict, Opaque)):
            raise InputError(f"{self.where}: the pickle sets attributes of {type(target).__name__}")
        self.push(target)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.put(len(self.memo))


def _name_of(function: Any) -> str:
    return function.name.replace(" ", ".") if isinstance(function, Global) else type(function).__name__


def _constant(value: Any) -> Any:
    return lambda scanner, _: scanner.push(value)


def _argument(scanner: _Scanner, argument: Any) -> None:
    scanner.push(argument)


_HANDLERS: dict[str, Any] = {
    "PROTO": lambda scanner, _: None,
    "FRAME": lambda scanner, _: None,
    "MARK": _constant(_MARK),
    "EMPTY_DICT": lambda scanner, _: scanner.push({}),
    "EMPTY_LIST": lambda scanner, _: scanner.push([]),
    "EMPTY_TUPLE": _constant(()),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_SET": lambda scanner, _: scanner.push(Opaque("builtins.set")),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2"), _argument),
    **dict.fromkeys(("LONG1", "LONG4", "BINFLOAT", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _argument),
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), _argument),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Scanner.put),
    "MEMOIZE": _Scanner.memoize,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda scanner, index: scanner.push(scanner.memo[index])),
    "GLOBAL": _Scanner.find,
    "STACK_GLOBAL": _Scanner.find_on_stack,
    "REDUCE": _Scanner.call,
    "NEWOBJ": lambda scanner, _: scanner.new(2),
    "NEWOBJ_EX": lambda scanner, _: scanner.new(3),
    "ADDITEMS": lambda scanner, _: scanner.pop_to_mark(),
    "FROZENSET": lambda scanner, _: (scanner.pop_to_mark(), scanner.push(Opaque("builtins.frozenset"))),
    "BINPERSID": _Scanner.persistent,
    "BUILD": _Scanner.build,
    "TUPLE": lambda scanner, _: scanner.push(tuple(scanner.pop_to_mark())),
    "TUPLE1": lambda scanner, _: scanner.push(tuple(scanner.pop(1))),
    "TUPLE2": lambda scanner, _: scanner.push(tuple(scanner.pop(2))),
    "TUPLE3": lambda scanner, _: scanner.push(tuple(scanner.pop(3))),
    "SETITEM": lambda scanner, _: scanner.set_items(scanner.pop(2)),
    "SETITEMS": lambda scanner, _: scanner.set_items(scanner.pop_to_mark()),
    "APPEND": lambda scanner, _: scanner.extend(scanner.pop(1)),
    "APPENDS": lambda scanner, _: scanner.extend(scanner.pop_to_mark()),
}
