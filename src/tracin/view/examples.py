"""What an example looks like: a text and a picture, packed beforehand into one Parquet file."""

import functools
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from tracin.decisions.cells import Cells
from tracin.decisions.ranked_table import RankedTable
from tracin.errors import DecisionError, OutputError
from tracin.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image
    from pyarrow.parquet import ParquetFile

FILE = "examples.parquet"
OF = "tracin"  # the key of what a file says of itself, in its metadata
SIZES = (64, 256)  # pixels of a side: in the table, and of the example that is looked at
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # none that is script or reaches other files
# Rows that are read at once: few where they have pictures.
_OF_PICTURES, _OF_TEXTS = 256, 4096
_GREY = (128, 128, 128)


def save_examples(
    folder: str | os.PathLike[str],
    *,
    pictures: Sequence[Any] | None = None,
    texts: Sequence[str] | None = None,
    positions: Sequence[int] | np.ndarray | None = None,
) -> Path:
    """Write what `tracin view` shows of examples, next to a ranking: `examples.parquet`.

    Args:
        folder: The folder of the ranking.
        pictures: [examples]: arrays or tensors [height, width], [height, width, 3] or [1 or 3,
            height, width], whose numbers become brightness as in a report (docs/report.md); Pillow
            images; the bytes of a PNG, JPEG, WebP, GIF or BMP file; or None for an example without
            a picture.
        texts: [examples].
        positions: [examples]: where each is in the training data, such as the top of a ranking;
            None for all of it, in its order.

    Returns:
        The file.

    Raises:
        OutputError: The lengths differ, a picture is of another shape, or the disk refuses.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save_examples(folder, pictures=np.zeros((3, 8, 8)), texts=["a", "b", "c"]).name
        'examples.parquet'
    """
    if pictures is None and texts is None:
        raise OutputError("There is nothing to show: give pictures, texts, or both.")
    encoded = None if pictures is None else list(_all_encoded(pictures))
    written = None if texts is None else [str(one) for one in texts]
    first = written if encoded is None else encoded
    count = 0 if first is None else len(first)
    at = np.arange(count) if positions is None else np.asarray(positions, dtype=np.int64)
    path = Path(folder) / FILE
    write_pack(path, Pack(at, encoded, written))
    return path


@final
@dataclass(frozen=True, eq=False)
class Pack:
    """What some examples look like, as `examples.parquet` has it.

    Attributes:
        positions: [examples]: where each is in the training data.
        pictures: [examples]: the bytes of an image file each, None for one without; None for none.
        texts: [examples]; None for none.
        about: What else the file says of itself.
    """

    positions: np.ndarray
    pictures: Sequence[bytes | None] | None
    texts: Sequence[str | None] | None
    about: Mapping[str, str] = field(default_factory=dict)


def write_pack(path: Path, pack: Pack) -> None:
    """Write the file: whole, or not at all.

    Raises:
        OutputError: The lengths differ, or the disk refuses.
    """
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, Any] = {}
    if pack.pictures is not None:
        columns["image"] = pyarrow.array(pack.pictures, pyarrow.binary())
    if pack.texts is not None:
        # Half a character, as a broken file may have, is no UTF-8: it is spelled out.
        safe = [
            None if one is None else one.encode("utf-8", "backslashreplace").decode()
            for one in pack.texts
        ]
        columns["text"] = pyarrow.array(safe, pyarrow.large_string())
    lengths = {name: len(values) for name, values in columns.items()}
    lengths["positions"] = len(pack.positions)
    if len(set(lengths.values())) > 1:
        raise OutputError(f"One of each per example is needed; got {lengths}.")
    try:
        with replacing(path) as unfinished:
            table = pyarrow.table({"position": pack.positions, **columns})
            table = table.replace_schema_metadata({OF: json.dumps(dict(pack.about))})
            size = _OF_TEXTS if pack.pictures is None else _OF_PICTURES
            parquet.write_table(table, unfinished, row_group_size=size)
    except OSError as error:
        raise OutputError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error


def read_pack(path: Path) -> Pack:
    """The file as a whole.

    Raises:
        DecisionError: It is damaged.
    """
    table = _pack(path).read()
    metadata = table.schema.metadata or {}
    try:
        about = json.loads(metadata.get(OF.encode(), b"{}"))
    except ValueError:
        about = {}
    lists = {name: table[name].to_pylist() for name in table.column_names}
    return Pack(
        np.array(lists["position"], dtype=np.int64),
        lists.get("image"),
        lists.get("text"),
        about if isinstance(about, dict) else {},
    )


@final
class ShownExamples:
    """Texts and pictures by row of a ranking, as far as there are any.

    Args:
        table: The ranking; a file `examples.parquet` lies next to it, or its own first column of
            texts is shown.

    Attributes:
        has_texts: Whether there are texts.
        has_pictures: Whether there are pictures.

    Raises:
        DecisionError: The file is damaged.
    """

    def __init__(self, table: RankedTable) -> None:
        path = table.path.with_name(FILE)
        self._lock = threading.Lock()
        self._column = "text"
        if path.is_file():
            self._file = _pack(path)
            self._places = _places(self._file, table)
        else:
            self._file, self._places = _opened(table.path), table.file_rows
            self._column = table.texts[0] if table.texts else ""
        names = self._file.schema_arrow.names
        self.has_texts = self._column in names
        self.has_pictures = path.is_file() and "image" in names
        groups = range(self._file.num_row_groups)
        self._ends = np.cumsum([self._file.metadata.row_group(at).num_rows for at in groups])
        self.picture = functools.lru_cache(maxsize=4000)(self._picture)
        self._group = functools.lru_cache(maxsize=128)(self._read_group)

    def load(self) -> None:
        """Read all texts, so that nobody waits for them later."""
        if self.has_texts:
            # Arrow's first search for words takes a quarter of a second more than the next.
            self._texts.taken(np.arange(1)).containing("a")
            if not self.has_pictures:
                self._group.cache_clear()  # it may hold all texts once more

    def text(self, row: int) -> str | None:
        """The text of a row, if it has one."""
        place = int(self._places[row])
        if not self.has_texts or place < 0:
            return None
        # The first page must not wait for a million texts.
        is_loaded = "_texts" in self.__dict__
        value = self._texts[place] if is_loaded else self._at(place, self._column)
        return None if value is None else str(value)

    def containing(self, words: str) -> np.ndarray:
        """Whether the text of each row contains the words, in any case: [rows], bool."""
        if not self.has_texts:
            return np.zeros(len(self._places), dtype=bool)
        return self._by_row(self._texts.containing(words))

    def alike(self, row: int, most: int) -> list[int]:
        """Other rows with the same text, letter by letter; the first so many."""
        text = self.text(row)
        if not text:
            return []
        found = np.flatnonzero(self._by_row(self._texts.equal(text)))
        return found[found != row][:most].tolist()

    def has_picture(self, row: int) -> bool:
        """Whether a row has a picture."""
        return self.has_pictures and bool(self._places[row] >= 0)

    @functools.cached_property
    def _texts(self) -> Cells:
        """All texts, in the order of the file."""
        with self._lock:
            column = self._file.read([self._column], use_threads=False)[self._column]
        return Cells.of(column)

    def _by_row(self, found: np.ndarray) -> np.ndarray:
        return found[self._places] & (self._places >= 0)

    def _picture(self, row: int, side: int) -> bytes:
        """A row's picture as WebP, at most `side` pixels wide and high: never the bytes given."""
        place = int(self._places[row])
        return shown_picture(self._at(place, "image") if place >= 0 else None, side)

    def _at(self, place: int, column: str) -> Any:
        number = int(np.searchsorted(self._ends, place, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        return self._group(number, column)[place - first].as_py()

    def _read_group(self, number: int, column: str) -> Any:
        with self._lock:
            return self._file.read_row_group(number, [column])[column]


def shown_picture(content: bytes | None, side: int) -> bytes:
    """A picture of any origin, decoded and encoded again; a grey tile for one that is broken.

    Args:
        content: The bytes of a file.
        side: The largest width and height, in pixels. Smaller pictures are enlarged.
    """
    from PIL import Image

    try:
        if content is None:
            raise ValueError("no picture")
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or 0):
                raise ValueError("too large")
            opened.draft("RGB", (side, side))
            picture = opened.convert("RGBA" if "transparency" in opened.info else "RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        MemoryError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ):
        picture = Image.new("RGB", (side, side), _GREY)
    scale = side / max(picture.size)
    size = tuple(max(1, round(scale * length)) for length in picture.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    out = io.BytesIO()
    picture.resize((size[0], size[1]), how).save(out, "WEBP", quality=85, method=0)
    return out.getvalue()


def _all_encoded(pictures: Sequence[Any]) -> Iterator[bytes | None]:
    for at, one in enumerate(pictures):
        try:
            yield _encoded(one)
        except ValueError as error:  # such as one of 0 x 0 pixels
            raise OutputError(
                f"Picture {at} cannot be encoded ({error}). Pass None for an example without one."
            ) from error


def _encoded(picture: Any) -> bytes | None:
    if picture is None or isinstance(picture, bytes):
        return picture
    from PIL import Image

    image = picture if isinstance(picture, Image.Image) else _from_array(picture)
    out = io.BytesIO()
    image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB").save(out, "PNG")
    return out.getvalue()


def _from_array(picture: Any) -> "Image":
    from PIL import Image

    # Imported late: with torch, which the viewer itself does not need.
    from tracin.report.pictures import pixels

    image = pixels(picture if hasattr(picture, "detach") else np.asarray(picture))
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())


def _pack(path: Path) -> "ParquetFile":
    import pyarrow

    try:
        found = _opened(path)
        if "position" not in found.schema_arrow.names:
            raise ValueError("it has no column 'position'")
        return found
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DecisionError(
            f"{path} cannot be read ({error}). Write it again by tracin.view.save_examples, or "
            "delete it."
        ) from error


def _opened(path: Path) -> "ParquetFile":
    from pyarrow import parquet

    return parquet.ParquetFile(path, pre_buffer=False)


def _places(file: "ParquetFile", table: RankedTable) -> np.ndarray:
    """[rows]: where each row of the table is in the file; -1 where it is not."""
    positions = Cells.of(file.read(["position"], use_threads=False)["position"]).array()
    if len(positions) == 0:
        return np.full(len(table), -1, dtype=np.int32)
    if np.array_equal(positions, table.positions):
        return np.arange(len(table), dtype=np.int32)
    order = np.argsort(positions, kind="stable").astype(np.int32)
    rising = positions[order]
    at = np.minimum(np.searchsorted(rising, table.positions), len(order) - 1)
    return np.where(rising[at] == table.positions, order[at], np.int32(-1))
