"""Whose tokens to look at: pairs of a query and a training example."""

import numpy as np

from tracin.data import Examples
from tracin.errors import DataError, QueryError
from tracin.plain_text import plain
from tracin.results.explanations import Explanations

MOST = 1024  # pairs, where nobody chose them


def token_pairs(
    train: Examples, queries: Examples, found: Explanations | None
) -> list[tuple[int, int]]:
    """(position in queries, position in train) of each pair, by query.

    Args:
        train: The training examples.
        queries: The queries.
        found: Whose proponents and opponents to take; None for every pair.

    Raises:
        QueryError: Explanations of something else than the loss of single queries, or more pairs
            than anybody looks at.
        DataError: The explanations are about other data.
    """
    if found is None:
        if len(train) * len(queries) > MOST:
            raise QueryError(
                f"{len(train):,} training examples and {len(queries):,} queries are "
                f"{len(train) * len(queries):,} pairs, and each takes several passes of its own. "
                "Pass found=run.explain(train, queries, k=3) for the tokens of the strongest "
                f"pairs, or at most {MOST:,} pairs."
            )
        return [(row, at) for row in range(len(queries)) for at in range(len(train))]
    if not isinstance(found, Explanations):
        raise QueryError(
            f"found is what run.explain(train, queries) returned, or None; {found!r} was given."
        )
    if found.target is not None:
        raise QueryError(
            f"found explains target={found.target}, and tokens carry shares of a loss. Pass "
            "explanations of the queries' loss: run.explain(train, queries) without target=."
        )
    places = {each: at for at, each in enumerate(queries.ids.tolist())}
    pairs: list[tuple[int, int]] = []
    for at, query in enumerate(found.query_ids.tolist()):
        if query not in places:
            raise DataError(
                f"found explains query {plain(query)}, but queries has no such id. Pass the "
                "queries that were explained; of a group, explain each query."
            )
        strongest = [*found.proponents.positions[at].tolist()]
        strongest += found.opponents.positions[at].tolist()
        # Where k is more than half of the examples, some are on both sides.
        pairs += [(places[query], position) for position in dict.fromkeys(strongest)]
    for side in (found.proponents, found.opponents):
        _refuse_other(train, side.positions.reshape(-1), side.ids.reshape(-1))
    return sorted(pairs, key=lambda pair: pair[0])


def _refuse_other(train: Examples, positions: np.ndarray, ids: np.ndarray) -> None:
    for position, given in zip(positions.tolist(), ids.tolist(), strict=True):
        if position >= len(train) or train.ids[position] != given:
            raise DataError(
                f"found has example {plain(given)} at position {position}, and train does not. "
                "Pass the training data that was explained by, with its ids."
            )
