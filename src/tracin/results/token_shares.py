"""Which tokens of a query, and which of a training text, carry the score of the two."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.plain_text import plain
from tracin.printed import Printed
from tracin.results.heat_map import heat_map
from tracin.results.table import aligned, cell, numbers
from tracin.results.tabular import Tabular

PRINTED = 5  # tokens of each text in a printed table
DRAWN = 20  # pairs in a notebook


@final
@dataclass(frozen=True, eq=False)
class TextShares:
    """One text of a pair, and what each of its tokens adds to the pair's score.

    Attributes:
        tokens: [positions]: each token as text, or its number in the vocabulary; empty where the
            data shows neither.
        shares: [positions]; they sum to the score. Positive: with its part of the text's loss,
            the pair's proponent or query would lower the other's loss; 0 for padding and for
            tokens that nothing predicts.
    """

    tokens: tuple[str, ...]
    shares: Tensor

    def __len__(self) -> int:
        return len(self.shares)

    def strongest(self, k: int) -> list[int]:
        """The positions of the k largest shares, of either sign, in the order of the text."""
        by_size = torch.sort(self.shares.abs(), descending=True, stable=True).indices[:k]
        return sorted(int(each) for each in by_size if self.shares[each] != 0)

    def named(self) -> list[str]:
        """Each token as text; its position where the data does not show it."""
        return list(self.tokens) if self.tokens else [str(at) for at in range(len(self))]


@final
@dataclass(frozen=True, eq=False, repr=False)
class PairTokens(Printed):
    """What the tokens of one query and of one training example add to their score.

    Printing it gives a table of the tokens with the largest shares; a notebook shows both texts
    as heat maps.

    Attributes:
        query_id: The query's id.
        id: The training example's id.
        position: The training example's position in train.
        score: The influence of the training example on the query: what both texts' shares sum to.
        query: The query's tokens.
        train: The training example's tokens.
    """

    query_id: Any
    id: Any
    position: int
    score: float
    query: TextShares
    train: TextShares

    def __str__(self) -> str:
        rows: list[list[Any]] = []
        for text, side in (("query", self.query), ("train", self.train)):
            names = side.named()
            rows += [
                [text, at, f"'{names[at]}'" if side.tokens else "", float(side.shares[at])]
                for at in side.strongest(PRINTED)
            ]
        table = aligned(["text", "place", "token", "share"], rows)
        return f"{self.in_words}\n{table}"

    @property
    def in_words(self) -> str:
        """The pair and its score, such as "query 0, example 3, score 0.5"."""
        return f"query {plain(self.query_id)}, example {plain(self.id)}, score {cell(self.score)}"

    def _repr_html_(self) -> str:
        texts = (("query", self.query), ("train", self.train))
        maps = "".join(
            f"<p>{name}: {heat_map(side.named(), side.shares.tolist())}</p>" for name, side in texts
        )
        return f"<div><p><b>{escape(self.in_words)}</b></p>{maps}</div>"


@final
@dataclass(frozen=True, eq=False, repr=False)
class TokenShares(Tabular):
    """What each token of pairs of a query and a training example adds to the pair's score.

    polars, pandas and pyarrow take it as it is, one row per token: `polars.DataFrame(shares)`.
    A notebook shows heat maps.

    Attributes:
        pairs: One per pair of a query and a training example, queries in order.
    """

    pairs: tuple[PairTokens, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, pair: int) -> PairTokens:
        return self.pairs[pair]

    def __iter__(self) -> Iterator[PairTokens]:
        return iter(self.pairs)

    @property
    def scores(self) -> Tensor:
        """The pairs' scores: [pairs]."""
        return torch.tensor([pair.score for pair in self.pairs], dtype=torch.float64)

    def columns(self) -> dict[str, np.ndarray]:
        """One row per token: query, id, position, score, text, place, token, share.

        "text" is "query" or "train", "place" the token's position in it.
        """
        sides = [
            (pair, text, side)
            for pair in self.pairs
            for text, side in (("query", pair.query), ("train", pair.train))
        ]
        lengths = [len(side) for _, _, side in sides]

        def repeated(values: list[Any]) -> np.ndarray:
            return np.repeat(np.array(values), lengths)

        return {
            "query": repeated([pair.query_id for pair, _, _ in sides]),
            "id": repeated([pair.id for pair, _, _ in sides]),
            "position": repeated([pair.position for pair, _, _ in sides]),
            "score": repeated([pair.score for pair, _, _ in sides]),
            "text": repeated([text for _, text, _ in sides]),
            "place": np.concatenate([np.arange(length) for length in lengths]),
            "token": np.array([name for _, _, side in sides for name in side.named()]),
            "share": np.concatenate([numbers(side.shares) for _, _, side in sides]),
        }

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.pairs))

    def _repr_html_(self) -> str:
        drawn = "".join(pair._repr_html_() for pair in self.pairs[:DRAWN])
        more = len(self.pairs) - DRAWN
        return drawn + (f"<p>{more:,} more pairs</p>" if more > 0 else "")
