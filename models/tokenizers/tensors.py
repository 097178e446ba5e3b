"""The tensors in a checkpoint, whatever it is, with no code of it run.

PyTorch's files are pickles, and a pickle names functions to be called. Here it calls none: every
name in it becomes a record of its own (`_Stub`), but for the few that describe tensors, and these
become descriptions of a piece of the file (`_Piece`), which are read afterwards. So whole modules,
Lightning's callbacks, argparse's namespaces, NumPy's scalars and TorchScript are read alike, and
code that a file would run is never called.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from scaling.errors import UserError

_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
}  # fmt: skip
_MAGIC = 0x1950A86A20F9469CFC6C  # of the files that PyTorch wrote before 1.6
_NO_CHECKPOINTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file: run `git lfs pull` beside it"),
    (b"<", "a web page: the download was answered by one (a log-in, a licence to accept)"),
    (b"\x1f\x8b", "compressed (gzip): unpack it first"),
    (b"\x89HDF", "a Keras or HDF5 file; give weights of PyTorch"),
    (b"GGUF", "a GGUF file, whose weights are of a language model"),
    (b"{", "JSON, as configurations are: give the file of weights beside it"),
)


@dataclass(frozen=True)
class _Storage:
    """Numbers in the file, told by their key."""

    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class _Piece:
    """A tensor: which numbers of a storage it is made of."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Stub:
    """Stands for any class, function or object that a pickle names; keeps what it is given."""

    name = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.held: dict[Any, Any] = dict(enumerate(arguments)) | named

    def __new__(cls, *arguments: Any, **named: Any) -> _Stub:
        return super().__new__(cls)

    def __call__(self, *arguments: Any, **named: Any) -> _Stub:
        return type(self)(*arguments, **named)

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.setdefault("held", {}).update(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("held", {})[key] = value

    def append(self, value: Any) -> None:
        held = self.__dict__.setdefault("held", {})
        held[len(held)] = value

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)

    add = append


@dataclass
class Content:
    """What a checkpoint holds: nested dicts, lists and modules, tensors described."""

    tree: Any
    read: Callable[[_Piece], Tensor] = field(repr=False)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The named tensors of a checkpoint, and what was taken of it; no code in the file is run.

    Raises UserError that says what the file is, if it is no checkpoint, is cut off or has no
    tensors.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
            size = path.stat().st_size
            _refuse(path, head)
            if _is_safetensors(head, size):
                return _safetensors(path, head, size), []
            content = _zip(path) if head.startswith(b"PK") else _legacy(file, path)
            return _chosen(content, path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def header(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; {} of any other file. Raises UserError: it cannot be
    read."""
    try:
        with path.open("rb") as file:
            if not _is_safetensors(file.read(64), path.stat().st_size):
                return {}
        with safe_open(path, framework="pt") as held:
            return dict(held.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}). {_AGAIN}") from error


def _refuse(path: Path, head: bytes) -> None:
    if not head:
        raise UserError(f"{path} is empty: the download did not begin. Get it again.")
    for start, what in _NO_CHECKPOINTS:
        if head.lstrip().startswith(start):
            raise UserError(f"{path} is {what}.")


def _is_safetensors(head: bytes, size: int) -> bool:
    """By its first bytes, not its name: the length of a header, and the header's brace."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32


def _safetensors(path: Path, head: bytes, size: int) -> dict[str, Tensor]:
    if int.from_bytes(head[:8], "little") + 8 > size:
        raise UserError(f"{path} is cut off: {size:,} bytes, fewer than its header has. {_AGAIN}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({error}): is it cut off? {_AGAIN}"
        ) from error


_AGAIN = "Get it again, whole."


# -- pickles ---------------------------------------------------------------------------------------


class _Ordered(dict[Any, Any]):
    """An OrderedDict, whose attributes (PyTorch's `_metadata`) are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


# Builders are objects without a dict: a pickle can set attributes of whatever it can name.
class _BuildPiece:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
        if not isinstance(storage, _Storage):
            return _Stub()
        dtype = next((r for r in rest if isinstance(r, torch.dtype)), storage.dtype)
        return _Piece(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)), dtype)


class _BuildFirst:
    __slots__ = ()

    def __call__(self, data: Any, *rest: Any) -> Any:
        return data


_BUILDERS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _BuildPiece(),
    ("torch._utils", "_rebuild_tensor_v2"): _BuildPiece(),
    ("torch._utils", "_rebuild_tensor_v3"): _BuildPiece(),
    ("torch._utils", "_rebuild_parameter"): _BuildFirst(),
    ("torch._utils", "_rebuild_parameter_with_state"): _BuildFirst(),
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): _Ordered,
} | {("torch", name): held for name, held in vars(torch).items() if isinstance(held, torch.dtype)}


class _Reader(pickle.Unpickler):
    """Builds numbers, texts, lists, dicts, `_Piece` and `_Stub`, and calls nothing else."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin-1")
        self.itemsizes: dict[str, int] = {}  # bytes of a number, of each storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _BUILDERS:
            return _BUILDERS[module, name]
        if module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES:
            return _STORAGES[name]
        return type("stub", (_Stub,), {"name": f"{module}.{name}"})

    def persistent_load(self, told: Any) -> Any:
        if not isinstance(told, tuple) or not told:
            return _Stub()
        if told[0] == "module" and len(told) > 1:  # older files: (class, file, source)
            return told[1]
        if told[0] == "storage" and len(told) >= 5 and isinstance(told[1], torch.dtype):
            if len(told) > 5 and told[5] is not None:
                raise UserError("views of storages, as PyTorch before 0.4 wrote them")
            self.itemsizes[str(told[2])] = told[1].itemsize
            return _Storage(str(told[2]), told[1])
        return _Stub(*told)


def _unpickled(file: IO[bytes], path: Path) -> tuple[Any, dict[str, int]]:
    reader = _Reader(file)
    try:
        return reader.load(), reader.itemsizes
    except UserError as error:
        raise UserError(f"{path} holds {error}; save it again with a newer PyTorch.") from None
    except EOFError as error:
        raise UserError(f"{path} is cut off. {_AGAIN}") from error
    except (
        pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError,
        UnicodeDecodeError, OverflowError, MemoryError, RecursionError,
    ) as error:  # fmt: skip
        raise UserError(
            f"{path} cannot be read: it is no checkpoint (PyTorch, safetensors), or is damaged "
            f"({error})."
        ) from error


def _zip(path: Path) -> Content:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is cut off: its list of contents is missing. {_AGAIN}") from error
    names = archive.namelist()
    index = next((name for name in names if name.endswith("/data.pkl")), None)
    if index is None:
        inside = ", ".join(names[:3])
        raise UserError(f"{path} is an archive of {inside} ..., and no checkpoint: unpack it.")
    root = index[: -len("data.pkl")]
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") == b"big":
        raise UserError(f"{path} was written on a big-endian machine; save it again on this one.")

    def read(piece: _Piece) -> Tensor:
        try:
            return _of_bytes(archive.read(f"{root}data/{piece.storage.key}"), piece, path)
        except (KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged: {error}. {_AGAIN}") from error

    return Content(_unpickled(io.BytesIO(archive.read(index)), path)[0], read)


def _legacy(file: IO[bytes], path: Path) -> Content:
    """A file of PyTorch before 1.6: five pickles, then the numbers."""
    file.seek(0)
    first, _ = _unpickled(file, path)
    if first != _MAGIC:  # a plain pickle
        return Content(first, lambda piece: _of_bytes(b"", piece, path))
    for _ in ("protocol", "system"):
        _unpickled(file, path)
    tree, itemsizes = _unpickled(file, path)
    keys, _ = _unpickled(file, path)
    places: dict[str, tuple[int, int]] = {}
    end = path.stat().st_size
    for key in keys if isinstance(keys, list) else []:
        length = int.from_bytes(file.read(8), "little") * itemsizes.get(str(key), 1)
        places[str(key)] = (file.tell(), length)
        if file.tell() + length > end:
            raise UserError(f"{path} is cut off. {_AGAIN}")
        file.seek(length, io.SEEK_CUR)

    def read(piece: _Piece) -> Tensor:
        start, length = places.get(piece.storage.key, (0, 0))
        with path.open("rb") as again:
            again.seek(start)
            return _of_bytes(again.read(length), piece, path)

    return Content(tree, read)


def _of_bytes(held: bytes, piece: _Piece, path: Path) -> Tensor:
    """A copy of the tensor's numbers; what lies outside of its storage is never read."""
    if math.prod(piece.shape) == 0:
        return torch.empty(piece.shape, dtype=piece.dtype)
    steps = [(n - 1) * s for n, s in zip(piece.shape, piece.stride, strict=False)]
    last = piece.offset + sum(steps)
    numbers = len(held) // piece.dtype.itemsize
    wrong = len(piece.shape) != len(piece.stride) or min(piece.offset, *steps, 0) < 0
    if wrong or last >= numbers:
        raise UserError(
            f"{path} is damaged: a tensor of shape {piece.shape} has {numbers:,} numbers. {_AGAIN}"
        )
    flat = torch.frombuffer(bytearray(held), dtype=piece.dtype, count=numbers)
    return flat.as_strided(piece.shape, piece.stride, piece.offset).clone()


# -- which of them ---------------------------------------------------------------------------------


def _chosen(content: Content, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the state_dict that is meant, and what was chosen."""
    told: list[str] = []
    tree = content.tree
    while isinstance(tree, dict):
        inner = {
            str(key): value
            for key, value in tree.items()
            if isinstance(value, (dict, _Stub)) and next(_pieces(value, ()), None)
        }
        own = any(isinstance(value, _Piece) for value in tree.values())
        first = next((key for key in _NESTED if key in inner), None)
        if own or first is None:
            break
        others = [key for key in inner if key != first and key not in _TRAINING]
        left = f" ({', '.join(others)} left out)" if others else ""
        told.append(f"`{first}` of the file was taken{left}")
        tree = inner[first]
    found = {".".join(name): piece for name, piece in islice(_pieces(tree, ()), _MOST)}
    if not found:
        raise UserError(f"{path} holds {_kind(tree)} and no tensors; give weights (a state_dict).")
    return {name: content.read(piece) for name, piece in found.items()}, told


Found = tuple[tuple[str, ...], _Piece]
_MOST = 100_000  # tensors
_DEEPEST = 40  # modules within modules
_NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "params",
    "module",
    "net",
    "params_ema",
    "ema",
)
_TRAINING = ("optimizer", "optimizer_states", "lr_schedulers", "callbacks", "loops", "scaler")


def _kind(tree: Any) -> str:
    return tree.name if isinstance(tree, _Stub) else type(tree).__name__


def _pieces(tree: Any, prefix: tuple[str, ...], above: tuple[int, ...] = ()) -> Iterator[Found]:
    """(name in parts, piece) of all tensors below a dict, a module, or TorchScript's module."""
    if isinstance(tree, _Piece):
        yield prefix, tree
        return
    items: Mapping[Any, Any] = {}
    if isinstance(tree, dict):
        items = tree
    elif isinstance(tree, _Stub):
        held = tree.__dict__.get("held", {})
        own = [held.get(part) for part in ("_parameters", "_buffers", "_modules")]
        if any(isinstance(part, dict) for part in own):
            items = {k: v for part in own if isinstance(part, dict) for k, v in part.items()}
        else:
            items = held
    if id(tree) in above or len(above) > _DEEPEST:
        return
    for key, value in items.items():
        if isinstance(key, str):
            yield from _pieces(value, (*prefix, key), (*above, id(tree)))
