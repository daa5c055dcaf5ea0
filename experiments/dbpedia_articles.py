"""DBPedia-14 (Zhang, Zhao and LeCun, 2015): abstracts of Wikipedia articles, of 14 kinds.

Tokens are pieces of words that sentencepiece learns from the training articles alone.
"""

import csv
import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.real_data import downloaded, held

# X. Zhang's own file; the checksum is the one that torchtext published for it.
ARCHIVE = "https://drive.google.com/uc?export=download&id=0Bz8a_Dbh9QhbQ2Vic1kxMmZZQ1k&confirm=t"
CHECKSUM = "md5:dca7b1ae12b1091090db52aa7ec5ca64"
TRAIN, TEST = 9_861, 7_600  # so many are read of the whole, too
PIECES, LONGEST, PADDING = 8_000, 96, 0  # 8,000 pieces are sentencepiece's default


@dataclass(frozen=True)
class Articles:
    """Articles with their classes.

    Attributes:
        texts: Title and abstract.
        labels: [articles], the number of the class.
    """

    texts: list[str]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def few(self, count: int) -> "Articles":
        """The first of them."""
        return Articles(self.texts[:count], self.labels[:count])


@dataclass(frozen=True)
class DBPedia:
    """A subset of the data: about 10,000 of 560,000 training articles.

    Attributes:
        train: The first articles to train on.
        test: The first articles to test on.
        classes: The names of the 14 classes.
    """

    train: Articles
    test: Articles
    classes: list[str]


def open_dbpedia() -> DBPedia:
    """The subset in the folder `dbpedia14` that TRACIN_DATA names, or one of the same size.

    Raises:
        DataError: The file cannot be downloaded.
    """
    folder = held("dbpedia14")
    if folder is not None:
        parts = [gzip.decompress((folder / f"{part}.csv.gz").read_bytes()) for part in PARTS]
        names = (folder / "classes.txt").read_text()
        return DBPedia(
            _articles(list(csv.DictReader(io.StringIO(parts[0].decode()))), 0),
            _articles(list(csv.DictReader(io.StringIO(parts[1].decode()))), 0),
            names.split(),
        )
    path: Path = downloaded(ARCHIVE, CHECKSUM)
    with tarfile.open(path) as archive:
        files = {
            Path(each.name).name: archive.extractfile(each) for each in archive if each.isfile()
        }
        texts = {name: file.read().decode() for name, file in files.items() if file is not None}
    found = []
    for part, count in zip(PARTS, (TRAIN, TEST), strict=True):
        rows = list(csv.DictReader(io.StringIO(texts[f"{part}.csv"]), fieldnames=COLUMNS))
        # The file is sorted by class: an even step takes as many of each.
        found.append(_articles(rows[:: len(rows) // count][:count], 1))
    return DBPedia(found[0], found[1], texts["classes.txt"].split())


PARTS, COLUMNS = ("train", "test"), ("label", "title", "text")


def _articles(rows: list[dict[str, str]], first: int) -> Articles:
    texts = []
    for row in rows:
        title, text = row["title"].strip(), row["text"].strip()
        texts.append(text if text.startswith(title) else f"{title} {text}")
    return Articles(texts, torch.tensor([int(row["label"]) - first for row in rows]))


def pieces_of(train: list[str], others: list[list[str]]) -> list[Tensor]:
    """Learn pieces from `train`, and split it and others into them.

    Returns:
        Per list of texts the numbers of its pieces, 0 where a text has ended: [texts, 96].
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(train),
        model_writer=model,
        vocab_size=PIECES,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    split = []
    for texts in (train, *others):
        rows = torch.full((len(texts), LONGEST), PADDING)
        for row, pieces in zip(rows, processor.encode(texts), strict=True):
            # Number 0 is the unknown piece, of which padding is made.
            kept = [piece for piece in pieces if piece != PADDING][:LONGEST]
            row[: len(kept)] = torch.tensor(kept)
        split.append(rows)
    return split
