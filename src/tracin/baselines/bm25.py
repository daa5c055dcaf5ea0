"""BM25: which training texts share rare words with a query."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from tracin.data import WithIds
from tracin.errors import DataError, QueryError
from tracin.plain_text import a_kind
from tracin.scoring.batch_size import BatchSize

Token: TypeAlias = str | int

_WORD = re.compile(r"\w+")


@final
@dataclass(frozen=True)
class BM25:
    """Shared words, rare ones and repeated ones counting more, long texts less. No model is used.

    Each query's token t that a text holds f times adds idf(t) f (k1 + 1) / (f + k1 (1 - b + b
    length / mean length)), with idf(t) = ln(1 + (N - n + 0.5) / (n + 0.5)) for n of N texts that
    hold it. Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009,
    https://doi.org/10.1561/1500000019; the 1 in the logarithm, which keeps idf positive, is that of
    Lucene.

    Where it finds as much as gradients do, the answer lies in the words, and this costs nothing.

    Args:
        k1: How soon repetitions of a word stop to count; from 0 on.
        b: How much long texts are held back, from 0 to 1.

    Raises:
        QueryError: A number is outside its range.

    Example:
        >>> from tracin.baselines import BM25
        >>> train = ["the cat sat", "the dog ran", "a cat and a cat"]
        >>> BM25().influence(train, ["cat"]).flatten().round(decimals=2).tolist()
        [0.51, 0.0, 0.59]
    """

    k1: float = 1.2
    b: float = 0.75

    def __post_init__(self) -> None:
        """Refuse numbers outside their range."""
        if not 0 <= self.k1 < math.inf or not 0 <= self.b <= 1:
            raise QueryError(
                f"k1 is a number from 0 on and b one from 0 to 1; k1={self.k1!r} and b={self.b!r} "
                "were given. 1.2 and 0.75 suit most."
            )

    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """How well each training text answers each query: [train, queries], from 0 on.

        Args:
            train: Texts, split into lower-case words; or lists of tokens; or token ids, [examples,
                positions]; or a mapping with these as "input_ids" and, if there is any, an
                "attention_mask" that is 0 at padding.
            queries: The same.
            batch_size: Nothing goes through a model.
            progress: There is none to show.

        Raises:
            DataError: It is no text, or there is no training text.
        """
        texts, asked = list(tokens_of(train, "train")), list(tokens_of(queries, "queries"))
        if not texts:
            raise DataError("train holds no text, so there is nothing to search in.")
        postings = self._postings(texts)
        found = np.zeros((len(texts), len(asked)))
        for query, tokens in enumerate(asked):
            held = [postings[token] for token in tokens if token in postings]
            if held:
                at, weights = (np.concatenate(each) for each in zip(*held, strict=True))
                found[:, query] = np.bincount(at, weights, minlength=len(texts))
        return torch.from_numpy(found)

    def _postings(
        self, texts: Sequence[Sequence[Token]]
    ) -> dict[Token, tuple[np.ndarray, np.ndarray]]:
        """For each token the texts that hold it, and its weight in each."""
        known: dict[Token, int] = {}
        tokens = np.array(
            [known.setdefault(token, len(known)) for text in texts for token in text],
            dtype=np.int64,
        )
        lengths = np.array([len(text) for text in texts])
        owner = np.repeat(np.arange(len(texts)), lengths)
        # One number per pair of a token and a text, sorted by token.
        pairs, times = np.unique(tokens * len(texts) + owner, return_counts=True)
        token, text = pairs // len(texts), pairs % len(texts)
        held_by = np.bincount(token, minlength=len(known))
        idf = np.log1p((len(texts) - held_by + 0.5) / (held_by + 0.5))
        mean = max(lengths.mean(), 1e-12)
        slack = self.k1 * (1 - self.b + self.b * lengths[text] / mean)
        weights = idf[token] * times * (self.k1 + 1) / (times + slack)
        ends = held_by.cumsum()
        return {
            name: (text[end - many : end], weights[end - many : end])
            for name, end, many in zip(known, ends, held_by, strict=True)
        }


def tokens_of(data: Any, name: str) -> Iterator[Sequence[Token]]:
    """The tokens of each text.

    Args:
        data: As for `BM25.influence`.
        name: What errors call the data.

    Raises:
        DataError: It is no text.

    Example:
        >>> list(tokens_of(["The cat, the hat"], "train"))
        [['the', 'cat', 'the', 'hat']]
        >>> import torch
        >>> ids, mask = torch.tensor([[7, 8, 0]]), torch.tensor([[1, 1, 0]])
        >>> list(tokens_of({"input_ids": ids, "attention_mask": mask}, "train"))
        [[7, 8]]
    """
    while isinstance(data, WithIds):
        data = data.dataset
    mask = None
    if isinstance(data, Mapping) and "input_ids" in data:
        data, mask = data["input_ids"], data.get("attention_mask")
    if isinstance(data, str | bytes | Mapping) or not hasattr(data, "__len__"):
        raise _no_texts(data, name)
    for at in range(len(data)):
        each = data[at]
        if isinstance(each, Mapping) and "input_ids" in each:
            mask, each = {at: each.get("attention_mask")}, each["input_ids"]
        if isinstance(each, str):
            yield _WORD.findall(each.lower())
            continue
        own = None if mask is None else mask[at]
        yield _listed(each, own, name)


def _listed(tokens: Any, mask: Any, name: str) -> list[Token]:
    listed = tokens.tolist() if isinstance(tokens, Tensor | np.ndarray) else tokens
    if not isinstance(listed, list | tuple) or not all(
        isinstance(each, str | int) for each in listed
    ):
        raise _no_texts(tokens, name)
    if mask is None:
        return list(listed)
    kept = mask.tolist() if isinstance(mask, Tensor | np.ndarray) else mask
    return [token for token, is_kept in zip(listed, kept, strict=True) if is_kept]


def _no_texts(given: Any, name: str) -> DataError:
    return DataError(
        f"BM25 compares texts: {name} holds texts, lists of tokens, or token ids [examples, "
        f"positions], also as 'input_ids'; {a_kind(given)} came."
    )
