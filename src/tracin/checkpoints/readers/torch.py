"""Files of `torch.save`, read without ever running the code that a pickle can hold.

`torch.load` reads a storage as long as the pickle says, whatever the file holds, and never compares
the CRC-32 that `torch.save` writes with each. Here both are checked first.
"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import torch

from tracin.errors import CheckpointError, CheckpointWarning
from tracin.files import Stamp, stamp_of
from tracin.plain_text import first_line, listed

SAFE_SINCE = (2, 10)
# Names of values often saved with weights, which run nothing when they are loaded.
PLAIN_VALUES = (
    "argparse.Namespace",
    "numpy._core.multiarray.",
    "numpy.core.multiarray.",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.",
    "datetime.",
    "builtins.slice",
)
PICKLE = "data.pkl"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of files from before torch 1.6
LEGACY_HEADERS = 2  # its protocol version and its machine's properties come before the content
BLOCK = 1 << 20


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, tensors on the CPU, in memory that the file does not share."""
    warn_of_old_torch(path)
    content = unpickled(path, "cpu")
    refuse_other_checksums(path, stamp_of([path]))
    return content


def look_into(path: Path) -> Any:
    """What `torch.save` wrote, with the shapes of tensors alone."""
    warn_of_old_torch(path)
    return unpickled(path, "meta")


def warn_of_old_torch(path: Path) -> None:
    """Warn that this release of torch could run what a hostile file holds."""
    if torch_version() < SAFE_SINCE:
        warnings.warn(
            f"torch {torch.__version__} reads {path.name}: releases before 2.10 have known ways "
            "around weights_only=True. Update torch, or keep weights as .safetensors.",
            CheckpointWarning,
            stacklevel=3,
        )


def unpickled(path: Path, place: str) -> Any:
    """`torch.load` of a file that was checked before, with errors that say what to do."""
    try:
        with warnings.catch_warnings():
            # What torch warns of here, a foreign pickle or a TorchScript program, it then refuses.
            warnings.simplefilter("ignore", UserWarning)
            refuse_unsound(path)
            # Never mapped: a training that writes the file anew would end this process.
            return torch.load(path, map_location=place, weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        # torch raises whatever its parser stumbles over: EOFError, KeyError, struct.error, ...
        code = code_within(error)
        if code and (values := plain_values(path)):
            raise CheckpointError(
                f"{path} holds values other than weights, {listed(values)}, which torch.load "
                "refuses unless they are allowed. If you trust the file, put the call into: with "
                f"torch.serialization.safe_globals([{', '.join(values)}]). Or save the weights "
                "only, by torch.save(model.state_dict(), path)."
            ) from error
        if code:
            raise CheckpointError(
                f"{path} holds {code} that would run on loading, so it was not loaded. Save the "
                "weights only, by torch.save(model.state_dict(), path) or as .safetensors."
            ) from error
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {first_line(error)}): it is "
            "truncated, damaged or was not written by torch.save. Write it again, or leave it out."
        ) from error


def plain_values(path: Path) -> list[str]:
    """What stands in the way of loading, if it is known to run nothing: settings, NumPy numbers."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of a file from before torch 1.6, or a damaged one, no names can be read
        return []
    if not all(name.startswith(PLAIN_VALUES) for name in names):
        return []
    # Of NumPy's numbers torch asks for their type as well, but does not list it.
    return names + ["numpy.dtypes.Float64DType"] * ("numpy.dtype" in names)


def code_within(error: Exception) -> str:
    """How to call the code that torch refused to run, or nothing where it refused none."""
    message = str(error)
    if "TorchScript" in message:
        return "a TorchScript program, code"
    if not isinstance(error, pickle.UnpicklingError):
        return ""
    if named := re.search(r"GLOBAL ([\w.]+)", message):
        return f"code ({named.group(1)})"
    if "Unsupported operand" in message or "Unsupported class" in message:
        return "a pickle that torch.save did not write, which may have code"
    return ""


def torch_version() -> tuple[int, int]:
    """The major and minor version of torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


class Inert:
    """Stands for whatever a pickle names, so that nothing in it is imported or run."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> "Inert":
        """Take what a pickle would call a function with."""
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Take what a pickled list subclass holds."""

    def extend(self, values: object) -> None:
        """Take what a pickled list subclass holds."""

    def add(self, value: object) -> None:
        """Take what a pickled set subclass holds."""


class InertBytes(Inert):
    """Stands for a bytearray, which would take as much memory as a number says."""

    def __init__(self, *args: object) -> None:
        if any(isinstance(one, int) for one in args):
            raise pickle.UnpicklingError(f"a bytearray of {args[0]} bytes")
        super().__init__()


class StorageKind(str):
    """The name of a storage's class."""

    __slots__ = ()

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        """Take what a pickle would make a storage of."""
        return Inert()


# The one written in C would take as much memory as a damaged file says.
class StorageNames(pickle._Unpickler):
    """Reads from a pickle which storages it asks for, by key, and of how many bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The name itself for a kind of storage; nothing that could run for all else."""
        if name == "bytearray":
            return InertBytes
        return StorageKind(name) if name.endswith("Storage") else Inert

    def persistent_load(self, pid: Any) -> Inert:
        """Note one storage."""
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
            _, kind, key, _, count = pid[:5]
            size = count * item_size(kind)
            if not isinstance(size, int) or size < 0:
                raise pickle.UnpicklingError(f"a storage of {count!r} numbers")
            self.sizes[str(key)] = max(size, self.sizes.get(str(key), 0))
        return Inert()


def item_size(kind: Any) -> int:
    """How many bytes one number takes in a storage such as "FloatStorage"."""
    sizes = {
        "DoubleStorage": 8,
        "FloatStorage": 4,
        "HalfStorage": 2,
        "BFloat16Storage": 2,
        "LongStorage": 8,
        "IntStorage": 4,
        "ShortStorage": 2,
        "ComplexDoubleStorage": 16,
        "ComplexFloatStorage": 8,
        "QInt32Storage": 4,
    }
    return sizes.get(str(kind), 1)


def refuse_unsound(path: Path) -> None:
    """Refuse a file of `torch.save` whose storages are compressed, cut short, or absurdly large."""
    if not zipfile.is_zipfile(path):
        refuse_cut(path, legacy_storages(path), path.stat().st_size)
        return
    with zipfile.ZipFile(path) as archive:
        drop_unused_checksums(archive)
        records = {name_within(entry.filename): entry for entry in archive.infolist()}
        squeezed = [one for one in records.values() if one.compress_type != zipfile.ZIP_STORED]
        if squeezed:
            raise CheckpointError(
                f"{path} is compressed ({squeezed[0].filename}), as torch.save never writes it: "
                "its numbers cannot be read in place. Write it again: "
                "torch.save(torch.load(path, weights_only=True), path)."
            )
        if PICKLE not in records:
            return  # of another kind, which torch names
        # Read whole, and so compared with its checksum, before anything in it is believed.
        unpickler = StorageNames(io.BytesIO(archive.read(records[PICKLE])))
        unpickler.load()
    for key, size in unpickler.sizes.items():
        record = records.get(f"data/{key}")
        if record is None or record.file_size < size:
            available = None if record is None else record.file_size
            raise cut(path, f"storage {key} needs {size:,} bytes", available)


def drop_unused_checksums(archive: zipfile.ZipFile) -> None:
    """Forget the zeros that stand for checksums under `set_crc32_options(False)`."""
    entries = archive.infolist()
    if not any(entry.CRC for entry in entries):
        for entry in entries:
            del entry.CRC  # then zipfile compares none


def name_within(name: str) -> str:
    """The name of a record without the folder that all of them lie in."""
    return name.partition("/")[2]


def legacy_storages(path: Path) -> Mapping[str, int]:
    """The storages of a file from before torch 1.6: several pickles, then the numbers."""
    with path.open("rb") as file:
        if pickle_number(file) != LEGACY_MAGIC:
            return {}  # of another kind, which torch names
        for _ in range(LEGACY_HEADERS):
            StorageNames(file).load()
        unpickler = StorageNames(file)
        unpickler.load()
    return unpickler.sizes


def pickle_number(file: IO[bytes]) -> Any:
    """What the first pickle of a file holds, or nothing."""
    try:
        return StorageNames(file).load()
    except Exception:  # whatever is not a pickle, which torch refuses in its own words
        return None


def refuse_cut(path: Path, sizes: Mapping[str, int], available: int) -> None:
    """Refuse storages that are larger than the file, before memory is taken for them."""
    total = sum(sizes.values())
    if total > available:
        raise cut(path, f"its tensors need {total:,} bytes", available)


def cut(path: Path, needed: str, available: int | None) -> CheckpointError:
    """The error for a file that holds less than it says."""
    rest = f"{available:,} are there" if available is not None else "it is not there"
    return CheckpointError(
        f"{path} is truncated or damaged: {needed}, and {rest}. Write it again, or leave it out."
    )


@lru_cache(maxsize=256)
def refuse_other_checksums(path: Path, stamp: Stamp) -> None:
    """Compare every record of an archive with its CRC-32, once for each version of a file."""
    if not zipfile.is_zipfile(path):
        return  # from before torch 1.6: without checksums
    with zipfile.ZipFile(path) as archive:
        drop_unused_checksums(archive)
        for entry in archive.infolist():
            try:
                with archive.open(entry) as file:
                    while file.read(BLOCK):
                        pass
            except Exception as error:  # also names that are not text, and other damage
                raise CheckpointError(
                    f"{path} is damaged: {entry.filename} is not as torch.save wrote it ({error}). "
                    "Write it again, or leave it out."
                ) from error
