"""Files of torch.save, read without being trusted: nothing that a file names is imported, and nothing is called.

The opcodes of its pickle are taken one by one (`pickletools` parses them). Tensors, numbers, text and plain containers
are rebuilt by the code below; an object of any other class becomes a `Placeholder`, whatever the file wants done with
it. The work is proportional to the size of the file.
Formats: torch/serialization.py (zip since 1.6, before that a row of pickles), torch/_utils.py (tensors).
"""

import collections
import io
import os
import pickletools
import zipfile

import torch

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what a file from before the zip format begins with
_REPEATED = 2**24  # numbers of a tensor that has more than its storage, because strides are 0
_LINE = 2**16  # bytes of one textual argument
_WORK = 2**22  # items and letters of which functions make other objects, all together


class Unreadable(ValueError):
    """What is wrong with a file, and what to do, in one line."""


class Placeholder:
    """Stands for a class, a function or an object that is not rebuilt; name: that of the class or function."""

    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name


def read(path):
    """The object in a file of torch.save, with tensors on the CPU.

    Raises Unreadable or, of damaged bytes, what `zipfile` and `pickletools` raise.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(512)
        file.seek(0)
        _refuse_other_files(head, size)
        return _read_zip(file, size) if head.startswith(b"PK") else _read_legacy(file, size)


def _refuse_other_files(head, size):
    again = "the download or the copy went wrong: get it again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise Unreadable(f"is empty: {again}")
    if head.startswith(b"version https://git-lfs"):
        raise Unreadable(f"is the pointer of Git LFS ({size} bytes), not the file: run `git lfs pull` where it is from")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise Unreadable("is a web page, no checkpoint (a login or an error page): download the file itself")
    if not head.startswith((b"PK", b"\x80")):
        raise Unreadable(f"is no file of torch.save: it begins with {head[:8]!r}")


# -------------------------------------------------------------------------------------------------- the two formats


def _read_zip(file, size):
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        raise Unreadable(f"is cut or damaged: the end of the zip file is missing after {size} bytes: get it again")
    records = {info.filename: info for info in archive.infolist()}
    main = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(main) != 1:
        raise Unreadable("is a zip file without data.pkl: torch.save did not write it")
    folder = main[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in records:
        raise Unreadable("is a TorchScript program, wanted the state dict of its network")
    if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
        raise Unreadable("is a compressed zip file, which torch.save does not write")
    if sum(info.file_size for info in records.values()) > size:
        raise Unreadable("is damaged: its parts are together larger than the file")
    if (order := records.get(f"{folder}byteorder")) and _record(file, order, size) == b"big":
        raise Unreadable("was written on a big-endian machine: save it again on another")

    def load(key, count):
        name = f"{folder}data/{key}"
        if name not in records or records[name].file_size < count:
            got = f"{records[name].file_size} bytes" if name in records else "nothing"
            raise Unreadable(f"is damaged: its part {f'data/{key}'[:99]!r} has {got}, wanted {count} bytes")
        file.seek(_position(file, records[name], size))
        return _filled(torch.empty(count, dtype=torch.uint8), file)

    return _Machine(load).run(_Upto(io.BytesIO(_record(file, records[main[0]], size)), size))


def _position(file, info, size):
    """Where the bytes of a stored record begin."""
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise Unreadable(f"is damaged: no part begins at byte {info.header_offset}")
    begin = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if begin + info.file_size > size:
        raise Unreadable("is damaged: a part ends behind the end of the file")
    return begin


def _record(file, info, size):
    file.seek(_position(file, info, size))
    return file.read(info.file_size)


def _filled(numbers, file):
    """The tensor `numbers` (uint8), with the next bytes of a file in it."""
    if file.readinto(memoryview(numbers.numpy())) != len(numbers):
        raise Unreadable("is cut: its end is missing: get it again")
    return numbers


class _Upto:
    """The part of a file from where it is to its end, of which no one can read more than there is."""

    def __init__(self, file, size):
        self.file, self.size = file, size

    def read(self, count):
        return self.file.read(min(count, self.size))

    def readline(self):
        return self.file.readline(_LINE)


def _read_legacy(file, size):
    """A row of pickles: magic number, version, system, the object, names of its storages; then the storages."""
    storages, left = {}, size
    stream = _Upto(file, size)

    def load(key, count):
        nonlocal left
        left -= count
        if left < 0:
            raise Unreadable("is cut or damaged: it is smaller than its tensors: get it again")
        return storages.setdefault(key, torch.empty(count, dtype=torch.uint8))

    if _Machine(None).run(stream) != _MAGIC or _Machine(None).run(stream) != _PROTOCOL:
        raise Unreadable("is a pickle that torch.save did not write")
    system = _Machine(None).run(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Unreadable("was written on a big-endian machine: save it again on another")
    machine = _Machine(load)
    content, keys = machine.run(stream), _Machine(None).run(stream)
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or set(keys) != set(storages):
        raise Unreadable("is damaged: it does not list the storages of its tensors")
    for key in keys:
        length, count = file.read(8), len(machine.storages[key])
        if len(length) == 8 and int.from_bytes(length, "little") != count:
            raise Unreadable("is damaged: a storage has two sizes")
        _filled(storages[key], file)
    return content


# ------------------------------------------------------------------------------------------------------ the pickle


class _Machine:
    """The stack machine of a pickle; load(key, count) gives the `count` bytes of a storage, None: there is none."""

    def __init__(self, load):
        self.load, self.storages, self.work = load, {}, 0
        self.stack, self.marks, self.memo = [], [], {}

    def run(self, stream):
        """The object that a pickle describes; afterwards the stream is behind it."""
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name == "STOP":
                if self.marks or len(self.stack) != 1:
                    raise Unreadable("is damaged: its pickle ends in the middle of an object")
                return self.stack.pop()
            if name in _LITERALS:
                self.stack.append(argument if name not in _CONSTANTS else _CONSTANTS[name]())
            elif name in _COLLECTIONS:
                self.stack.append(_COLLECTIONS[name](self.above_mark()))
            elif name in _TUPLES:
                self.stack.append(tuple(self.take(_TUPLES[name])))
            elif name in _FILLS:
                self.fill(name)
            elif name not in ("PROTO", "FRAME"):
                self.other(name, argument)
        raise Unreadable("is cut: its pickle has no end")

    def take(self, count):
        """The last `count` objects, which leave the stack; those before the last mark stay."""
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) - count < floor:
            raise Unreadable("is damaged: its pickle takes what it has not made")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def above_mark(self):
        """The objects since the last mark, which leave the stack."""
        if not self.marks:
            raise Unreadable("is damaged: its pickle takes what it has not made")
        taken = self.take(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return taken

    def top(self):
        (value,) = self.take(1)
        self.stack.append(value)
        return value

    def fill(self, name):
        """Put objects into the container before them; what is no container takes them and stays as it is."""
        kind, many = _FILLS[name]
        items = self.above_mark() if many else self.take(2 if kind == "pairs" else 1)
        target = self.top()
        if kind == "items" and isinstance(target, list):
            target.extend(items)
        elif kind == "pairs" and isinstance(target, dict):
            target.update(_dict(items))
        elif kind == "members" and isinstance(target, set):
            target.update(_set(items))
        elif not isinstance(target, Placeholder):
            raise Unreadable("is damaged: its pickle fills what is no container")

    def other(self, name, argument):
        if name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if argument is None else argument] = self.top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise Unreadable("is damaged: its pickle recalls what it has not made")
            self.stack.append(self.memo[argument])
        elif name == "DUP":
            self.stack.append(self.top())
        elif name == "POP":  # it takes a mark where nothing stands behind it
            self.marks.pop() if self.marks and self.marks[-1] == len(self.stack) else self.take(1)
        elif name == "POP_MARK":
            self.above_mark()
        elif name == "GLOBAL":
            self.stack.append(_named(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            self.stack.append(_named(*self.take(2)))
        elif name in ("PERSID", "BINPERSID"):
            self.stack.append(self.storage(argument if name == "PERSID" else self.take(1)[0]))
        else:
            self.make(name, argument)

    def make(self, name, argument):
        """An object that the pickle wants made by a class or function, or with a state."""
        if name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            self.call(*self.take(2 if name != "NEWOBJ_EX" else 3)[:2])
        elif name == "INST":
            self.call(_named(*argument.split(" ", 1)), tuple(self.above_mark()))
        elif name == "OBJ":
            function, *arguments = self.above_mark() or [None]
            self.call(function, tuple(arguments))
        elif name == "BUILD":  # attributes, which no plain object has
            self.take(1)
            self.top()
        else:  # EXT1, EXT2, EXT4: a number of the writer's registry; NEXT_BUFFER, READONLY_BUFFER
            raise Unreadable(f"is no file of torch.save: its pickle has the opcode {name}")

    def call(self, function, arguments):
        """What stands for function(*arguments). The same long list may be an argument again and again."""
        if isinstance(arguments, tuple):
            self.work += sum(len(item) for item in arguments if isinstance(item, (list, tuple, str)))
        if self.work > _WORK:
            raise Unreadable("is damaged or malicious: its pickle makes far more objects than there are")
        self.stack.append(_made(function, arguments))

    def storage(self, name):
        """The numbers of a storage as a tensor (numel,); name: ("storage", type, key, device, numel[, part])."""
        if isinstance(name, tuple) and name[:1] == ("module",):  # a class, with its source, in old files
            return Placeholder("torch.nn.Module")
        whole = isinstance(name, tuple) and len(name) in (5, 6) and name[0] == "storage" and self.load is not None
        kind = getattr(name[1], "name", "").rpartition(".")[2] if whole else None
        if kind not in _STORAGES or type(name[2]) is not str or not _is_count(name[4]):
            raise Unreadable(f"is damaged or of an unknown kind: its pickle has the storage {kind!r}"[:200])
        dtype, (_, _, key, _, count) = _STORAGES[kind], name[:5]
        if key not in self.storages:
            self.storages[key] = self.load(key, count * dtype.itemsize).view(dtype)
        found = self.storages[key]
        if found.dtype != dtype or len(found) != count:
            raise Unreadable("is damaged: a storage has two types or sizes")
        if len(name) == 5 or name[5] is None:
            return found
        return _strided(found, name[5][1], (name[5][2],), (1,)) if _is_part(name[5]) else Placeholder("torch storage")


# ----------------------------------------------------------------------------------------------------- the objects


def _named(module, name):
    """What stands for a class or function; a dtype is one."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Unreadable("is damaged: its pickle names a class by what is no text")
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    return Placeholder(f"{module}.{name}")


def _made(function, arguments):
    """The object that `function` would make of `arguments`: rebuilt here if it is known, else a Placeholder."""
    if not (isinstance(function, Placeholder) and isinstance(arguments, tuple)):
        raise Unreadable("is damaged: its pickle calls what is no class or function")
    known = _REBUILT.get(function.name)
    if known is None:
        return Placeholder(function.name)
    try:
        return known(*arguments)
    except TypeError:  # other arguments than these functions have
        raise Unreadable(f"is damaged: it has other arguments for {function.name} than torch.save writes") from None


def _tensor(storage, offset, size, stride, *_):
    """The arguments of torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    if not isinstance(storage, torch.Tensor):
        raise Unreadable("is damaged: a tensor without a storage")
    return _strided(storage, offset, size, stride)


def _tensor_of_type(storage, offset, size, stride, requires_grad, hooks, dtype, *_):
    """The arguments of torch._utils._rebuild_tensor_v3: types that have no storage of their own, as float8."""
    if not (isinstance(storage, torch.Tensor) and isinstance(dtype, torch.dtype)) or len(storage) % dtype.itemsize:
        raise Unreadable("is damaged: a tensor without a storage of its type")
    return _strided(storage.view(dtype), offset, size, stride)


def _strided(numbers, offset, size, stride):
    """A view of the tensor `numbers` (numel,); Unreadable where it would reach out of it."""
    tuples = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 64
    if not tuples or not all(map(_is_count, (offset, *size, *stride))):
        raise Unreadable("is damaged: a tensor has no proper sizes and strides")
    total = 1
    for length in size:
        total *= length
    last = offset + sum((length - 1) * step for length, step in zip(size, stride)) if total else -1
    if last >= len(numbers) or total > max(len(numbers), _REPEATED) or max((offset, *size, *stride)) >= 2**62:
        raise Unreadable(f"is damaged: a tensor of {list(size)[:8]} reaches out of its {len(numbers)} numbers"[:300])
    return torch.as_strided(numbers, size, stride, offset) if total else numbers.new_empty(size)


def _is_count(value):
    return type(value) is int and value >= 0


def _is_part(part):
    return isinstance(part, tuple) and len(part) == 3


def _key(value):
    """A key of a dict or member of a set: what has a quick hash, as tuples of tuples and endless integers have not."""
    if all(map(_is_quick, value)) if type(value) is tuple and len(value) < 16 else _is_quick(value):
        return value
    raise Unreadable(f"has a key that is a {type(value).__name__}, wanted text or a number")


def _is_quick(value):
    if type(value) is int:
        return abs(value) < 2**64
    return isinstance(value, (str, float, bool, bytes, type(None), torch.dtype, Placeholder))


def _dict(items, kind=dict):
    """{key: value} of [key, value, key, value ...]."""
    if len(items) % 2:
        raise Unreadable("is damaged: its pickle has a key without a value")
    return kind((_key(key), value) for key, value in zip(items[::2], items[1::2]))


def _set(items, kind=set):
    return kind(map(_key, items))


def _ordered(pairs=()):
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise Unreadable("is damaged: an OrderedDict that is not made of pairs")
    return _dict([value for pair in pairs for value in pair], collections.OrderedDict)


def _plain(kind):
    """A function that makes a list, tuple or set of a list or tuple."""

    def made(items=()):
        if not isinstance(items, (list, tuple)):
            raise Unreadable(f"is damaged: a {kind.__name__} that is not made of a list")
        return _set(items, kind) if kind in (set, frozenset) else kind(items)

    return made


def _bytes(text="", encoding="latin1"):
    """What protocol 2 of Python 3 writes of bytes."""
    if type(text) is not str or encoding != "latin1":
        raise Unreadable("is damaged: bytes that are not made of text")
    return text.encode("latin1")


def _size(sizes=()):
    if not isinstance(sizes, (list, tuple)) or not all(map(_is_count, sizes)) or max((*sizes, 0)) >= 2**62:
        raise Unreadable("is damaged: a size that is not made of numbers")
    return torch.Size(sizes)


def _first(value, *_):
    return value


def _of_type(function, _, arguments, *__):
    """The arguments of torch._tensor._rebuild_from_type_v2, for subclasses and tensors with attributes."""
    return _made(function, arguments)


_REBUILT = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": _size,
    "collections.defaultdict": lambda *_: {},  # its items follow
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _bytes,
    **{
        f"{module}.{kind.__name__}": _plain(kind) for module in ("builtins", "__builtin__") for kind in (set, frozenset)
    },
}
_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_LITERALS = frozenset((*_CONSTANTS, *_NUMBERS, *_BYTES, *_TEXTS))
_COLLECTIONS = {"LIST": list, "TUPLE": tuple, "DICT": _dict, "FROZENSET": lambda items: _set(items, frozenset)}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FILLS = {
    "APPEND": ("items", False),
    "APPENDS": ("items", True),
    "SETITEM": ("pairs", False),
    "SETITEMS": ("pairs", True),
    "ADDITEMS": ("members", True),
}
