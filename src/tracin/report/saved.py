"""Reads results back from a folder of saved tables, each known by its columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from tracin.errors import QueryError, TracInError
from tracin.files import read_json
from tracin.plain_text import first_line, plain
from tracin.report.found_labels import FoundRanking
from tracin.report.write import NamedResult, results_of
from tracin.results.example_facts import ExampleFacts
from tracin.results.explanations import Explanations, TopInfluences
from tracin.results.suspects import Suspects
from tracin.results.token_shares import PairTokens, TextShares, TokenShares
from tracin.tracing import Trace

OF_EXPLANATIONS = ("query", "kind", "rank", "id", "position", "score")
OF_TOKENS = ("query", "id", "position", "score", "text", "place", "token", "share")
OF_SUSPECTS = ("ids", "positions", "given_labels", "suggested_labels")
OF_CURVES = ("score", "inspected", "found")
TAKEN = "explanations, shares of tokens, suspects or found curves"
SHARE = "score at "  # and a checkpoint's name
TRACE = "trace.json"
EXAMPLES = "examples.parquet"  # what the viewer shows of examples: no result

Columns = Mapping[str, np.ndarray]


@final
@dataclass(frozen=True)
class SavedResults:
    """What a folder holds.

    Attributes:
        results: What a report can show.
        notes: Which files it cannot show, and why.
    """

    results: tuple[NamedResult, ...]
    notes: tuple[str, ...]


def saved_results(folder: Path) -> SavedResults:
    """Read every table of a folder that a report can show, and a Tracer's trace.

    Args:
        folder: Where the command line, `Suspects.save` or `Explanations.save` wrote Parquet files,
            or the folder of a Tracer.

    Raises:
        QueryError: There is no such folder, or nothing in it can be shown.
    """
    if folder.is_file():
        raise QueryError(
            f"{folder} is a file. A report reads all results of a folder: give "
            f"'{plain(folder.parent)}', or a RUN.toml."
        )
    if not folder.is_dir():
        raise QueryError(f"{folder} is not a folder with results, nor a RUN.toml.")
    results, notes = [], []
    for path in sorted(folder.glob("*.parquet")):
        if path.name == EXAMPLES:
            continue
        columns, settings = {}, _settings(path)
        try:
            columns = _columns(path)
            result = _result(columns, settings)
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{plain(path.name)} cannot be read: {first_line(error)}")
            continue
        if result is None:
            notes.append(f"{plain(path.name)} is {_other(columns, settings)}")
        else:
            results.append(NamedResult(result, path.stem))
    if (folder / TRACE).is_file():
        results += [NamedResult(each, "trace") for each in results_of(Trace.open(folder))]
    if not results:
        found = f" ({'; '.join(notes)})" if notes else ""
        raise QueryError(
            f"{folder} holds no results that a report can show{found}. A report takes {TAKEN}; "
            "'tracin mislabelled RUN.toml' and 'tracin explain RUN.toml --query 0' write some."
        )
    return SavedResults(tuple(_unnamed(results)), tuple(notes))


def _other(columns: Columns, settings: Mapping[str, Any]) -> str:
    """What a table is that no report shows."""
    if columns and not len(next(iter(columns.values()))):
        return "empty"
    command = settings.get("command")
    if isinstance(command, str):
        return f"what 'tracin {plain(command)}' wrote, which a report does not show"
    return f"no table of {TAKEN}"


def _unnamed(results: list[NamedResult]) -> list[NamedResult]:
    """A result that is the only one of its kind needs no name."""
    kinds = [type(one.result) for one in results]
    return [
        NamedResult(one.result, one.name if kinds.count(kind) > 1 else "")
        for one, kind in zip(results, kinds, strict=True)
    ]


def _columns(path: Path) -> Columns:
    from pyarrow import parquet

    table = parquet.read_table(path)
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


def _settings(path: Path) -> Mapping[str, Any]:
    """What the command line wrote beside a table; empty where there is nothing of use."""
    try:
        return read_json(path.with_name(f"{path.stem}.settings.json"), QueryError)
    except TracInError:
        return {}


def _result(columns: Columns, settings: Mapping[str, Any]) -> Any:
    if not len(next(iter(columns.values()), ())):
        return None
    if all(name in columns for name in OF_EXPLANATIONS):
        return explanations_of(columns, settings)
    if all(name in columns for name in OF_TOKENS):
        return token_shares_of(columns)
    if all(name in columns for name in OF_SUSPECTS):
        return suspects_of(columns, settings)
    if all(name in columns for name in OF_CURVES):
        return _curves(columns)
    return None


def explanations_of(columns: Columns, settings: Mapping[str, Any]) -> Explanations:
    """The explanations that `Explanations.columns` made a table of."""
    names, query = np.unique(columns["query"], return_inverse=True)
    first = np.sort(np.unique(query, return_index=True)[1])  # as the table has them
    place = np.empty(len(names), dtype=np.int64)
    place[query[first]] = np.arange(len(names))
    is_opponent = columns["kind"] != "proponent"
    order = np.lexsort((columns["rank"], place[query], is_opponent))
    k, rest = divmod(len(order), 2 * len(names))
    if rest or is_opponent.sum() * 2 != len(order) or (np.bincount(query) != 2 * k).any():
        raise ValueError("its queries have different numbers of proponents and opponents")
    checkpoints = [name for name in columns if name.startswith(SHARE)]
    shares = np.stack([columns[name] for name in checkpoints], 1) if checkpoints else None

    def side(rows: np.ndarray) -> TopInfluences:
        cut = rows.reshape(len(names), k)
        scores = torch.from_numpy(np.asarray(columns["score"][cut], dtype=np.float64))
        each = scores[:, :, None] if shares is None else torch.from_numpy(shares[cut] * 1.0)
        errors = torch.from_numpy(columns["error"][cut] * 1.0) if "error" in columns else None
        bounds = torch.from_numpy(columns["bound"][cut][:, 0] * 1.0) if "bound" in columns else None
        sure = None
        if "is_certain" in columns:
            sure = torch.from_numpy(np.asarray(columns["is_certain"][cut], dtype=bool))
        facts = _facts(columns, "", cut)
        return TopInfluences(
            columns["id"][cut], columns["position"][cut], scores, each, errors, bounds, sure,
            facts=facts,
        )  # fmt: skip

    half = len(order) // 2
    notes, target = settings.get("notes", ()), settings.get("target")
    return Explanations(
        columns["query"][first],
        side(order[:half]),
        side(order[half:]),
        tuple(name.removeprefix(SHARE) for name in checkpoints) or ("all",),
        notes=tuple(map(str, notes)) if isinstance(notes, list) else (),
        query_facts=_facts(columns, "query ", first),
        target=target if isinstance(target, str) else None,
    )


def _facts(columns: Columns, of: str, rows: np.ndarray) -> ExampleFacts | None:
    """What a table says of the examples in some of its rows: of the shape of `rows`."""
    found = {
        name: torch.from_numpy(np.array(columns[of + name][rows]))
        for name in ("loss", "label", "predicted")
        if of + name in columns and columns[of + name].dtype.kind in "if"
    }
    if "loss" not in found:
        return None
    return ExampleFacts(found["loss"], found.get("label"), found.get("predicted"))


def token_shares_of(columns: Columns) -> TokenShares:
    """The shares of tokens that `TokenShares.columns` made a table of."""
    place, text = columns["place"], columns["text"]
    starts = np.flatnonzero(place == 0)
    texts = np.split(np.arange(len(place)), starts[1:])
    is_whole = [(place[rows] == np.arange(len(rows))).all() for rows in texts]
    if text[starts].tolist() != ["query", "train"] * (len(starts) // 2) or not all(is_whole):
        raise ValueError("its rows are not the whole texts of pairs, in their order")

    def side(rows: np.ndarray) -> TextShares:
        shares = torch.from_numpy(np.array(columns["share"][rows], dtype=np.float64))
        return TextShares(tuple(map(str, columns["token"][rows])), shares)

    return TokenShares(
        tuple(
            PairTokens(
                columns["query"][train[0]],
                columns["id"][train[0]],
                int(columns["position"][train[0]]),
                float(columns["score"][train[0]]),
                side(query),
                side(train),
            )
            for query, train in zip(texts[::2], texts[1::2], strict=True)
        )
    )


def suspects_of(columns: Columns, settings: Mapping[str, Any]) -> Suspects:
    """The suspects that `Suspects.columns` made a table of; columns of fractions are scores."""
    scores = {
        name: torch.from_numpy(np.array(values))
        for name, values in columns.items()
        if name not in OF_SUSPECTS and values.dtype.kind == "f"
    }
    if not scores:
        raise ValueError("it has no column of scores")
    table = settings.get("mislabelled")
    chosen = table.get("rank_by") if isinstance(table, Mapping) else None
    led = chosen if chosen in scores else _leading(scores)
    ids, positions, given, suggested = (columns[name] for name in OF_SUSPECTS)
    return Suspects(ids, positions, given, suggested, scores=scores, ranked_by=led)


def _leading(scores: Mapping[str, torch.Tensor]) -> str:
    """The score that the rows are ordered by, high or low first."""
    for name, values in scores.items():
        steps = values.diff()
        if bool((steps <= 0).all()) or bool((steps >= 0).all()):
            return name
        steps = values.abs().diff()
        if bool((steps <= 0).all()):
            return name
    return next(iter(scores))


def _curves(columns: Columns) -> tuple[FoundRanking, ...]:
    names = list(dict.fromkeys(columns["score"].tolist()))
    rows = {name: columns["score"] == name for name in names}
    return tuple(
        FoundRanking(str(name), columns["inspected"][each] * 1.0, columns["found"][each] * 1.0)
        for name, each in rows.items()
    )
