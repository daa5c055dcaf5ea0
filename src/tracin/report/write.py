"""`write_report`: results in, one HTML file out."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

from tracin.analysis import FoundComparison, FoundCurve
from tracin.errors import OutputError, QueryError
from tracin.plain_text import a_kind, plain
from tracin.report.found_labels import FoundRanking, FoundSection, found_section, rankings_of
from tracin.report.html import html
from tracin.report.limits import LARGEST, PageLimits
from tracin.report.seen import Seen
from tracin.report.token_maps import TokensSection, tokens_section
from tracin.report.trust import TrustSection, trust_section
from tracin.report.why import WhySection, why_section
from tracin.report.wrong_labels import SuspectsSection, suspects_section
from tracin.results.explanations import Explanations
from tracin.results.saving import write_whole
from tracin.results.shown import ClassNames, Showing, Shown, one_line
from tracin.results.suspects import Suspects
from tracin.results.token_shares import TokenShares
from tracin.tracing import Trace, TraceDiagnostics

Result: TypeAlias = (
    Explanations | TokenShares | Suspects | FoundCurve | FoundComparison | TraceDiagnostics
)
Section: TypeAlias = WhySection | TokensSection | SuspectsSection | FoundSection | TrustSection
OF_TRACE = 10  # proponents and opponents of each query of a trace
ORDER = (WhySection, TokensSection, SuspectsSection, FoundSection, TrustSection)
TITLES = {
    WhySection: "Which training examples made the model say this?",
    TokensSection: TokensSection.title,
    SuspectsSection: "Which labels are wrong?",
    FoundSection: "How many wrong labels does the ranking find?",
    TrustSection: "Can the trace be believed?",
}


@final
@dataclass(frozen=True)
class WrittenReport:
    """A report on the disk. Printing it says where it is and what it leaves out.

    Attributes:
        path: The file.
        size: Its bytes.
        left_out: What was too much for one file, in words.
    """

    path: Path
    size: int
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        kept = "".join(f"; {text}" for text in self.left_out)
        return f"{plain(self.path)} ({self.size / 1000:,.0f} kB{kept})"


@final
@dataclass(frozen=True, eq=False)
class NamedResult:
    """A result with the name that it has among others of its kind; "" for none."""

    result: Result | Sequence[FoundRanking]
    name: str = ""


def write_report(
    path: str | os.PathLike[str],
    *results: Result | Trace,
    train: Any = None,
    queries: Any = None,
    labels: ClassNames | None = None,
    show: Callable[[Any], Shown | str] | None = None,
    decode: Callable[[list[int]], str] | None = None,
    title: str | None = None,
) -> WrittenReport:
    """Write results as one HTML file that opens in any browser and asks for nothing outside.

    Explanations show each query with its proponents and opponents side by side, suspects become a
    table to sort and filter; each part begins with a sentence that says what to do. What would
    make the file larger than 10 MB is left out, and the page says so.

    Args:
        path: The file, such as "why.html"; written whole or not at all.
        results: `Explanations`, `TokenShares`, `Suspects`, found curves of `tracin.analysis`, a
            trace and the diagnostics of one, in any order. A trace gives its explanations and its
            diagnostics. A ranking of suspects also tells the explanations which labels the model
            doubts.
        train: The training data that the results are about, to show pictures, texts and labels;
            None shows ids.
        queries: The data of the explained queries; None shows ids.
        labels: The classes' names, by class.
        show: Makes a `tracin.Shown` (or a text) of an example as the data set gives it; None goes
            by its type.
        decode: Makes a text of a list of token ids, such as `tokenizer.decode`.
        title: On top of the page; None for one that fits the results.

    Returns:
        Where the file is, its size, and what it leaves out.

    Raises:
        QueryError: No result, or something that is none.
        DataError: `train` is not the data that a result is about.
        OutputError: The file cannot be written.

    Example:
        >>> import tempfile, torch, tracin
        >>> model = torch.nn.Linear(2, 2)
        >>> run = tracin.TracIn(
        ...     model, "cross_entropy", [model.state_dict()], learning_rates="equal"
        ... )
        >>> train = torch.randn(20, 2), torch.randint(2, (20,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = tracin.write_report(
        ...         f"{folder}/why.html", run.find_mislabelled(train), train=train
        ...     )
        >>> report.left_out
        ()
    """
    named: list[NamedResult] = []
    for each in results:
        if isinstance(each, Trace):
            named += map(NamedResult, results_of(each))
        elif isinstance(each, Result):
            named.append(NamedResult(each))
        else:
            raise QueryError(
                "A report shows Explanations, TokenShares, Suspects, found curves "
                "(tracin.analysis.found_curve, compare_found), a trace and its goodness(); got "
                f"{a_kind(each)}."
            )
    how = Showing(labels, decode, show)
    return write_page(path, named, train=train, queries=queries, how=how, title=title)


def results_of(trace: Trace) -> tuple[Explanations, TraceDiagnostics]:
    """What a report shows of a trace: the strongest of each query, and whether to believe them.

    Raises:
        QueryError: The trace has no queries.
    """
    return trace.explain(min(OF_TRACE, trace.about.train)), trace.goodness()


def write_page(
    path: str | os.PathLike[str],
    results: Sequence[NamedResult],
    *,
    train: Any,
    queries: Any,
    how: Showing,
    title: str | None,
    notes: Sequence[str] = (),
) -> WrittenReport:
    """As `write_report`, for results with names.

    Args:
        path: The file.
        results: What to show.
        train: The training data; None for none.
        queries: The data of the queries; None for none.
        how: How an example becomes a `Shown`.
        title: On top; None for one that fits the results.
        notes: What else to say at the end of the page.
    """
    if not results:
        raise QueryError(
            "A report needs something to show: pass what explain(), find_mislabelled(), "
            "compare_found() or trace.goodness() returned."
        )
    if not isinstance(path, str | os.PathLike):
        raise OutputError(f"Expected a path such as 'why.html' to write a report to; got {path!r}.")
    limits = PageLimits()
    seen = Seen(train, queries, how, limits.side)
    while True:
        parts = _parts(results, seen, limits)
        left_out = [text for part, _ in parts for text in part.left_out]
        heading = TITLES[type(parts[0][0])] if title is None else one_line(title)
        text = html(heading, parts, _facts(parts), notes)
        size = len(text.encode())
        if size <= LARGEST or limits.is_least:
            break
        limits = limits.halved()
    target = Path(path)
    write_whole(target, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    return WrittenReport(target, size, tuple(left_out))


def _parts(
    results: Sequence[NamedResult], seen: Seen, limits: PageLimits
) -> list[tuple[Section, str]]:
    suspects = next((one.result for one in results if isinstance(one.result, Suspects)), None)
    made = []
    for at, one in enumerate(results):
        section = _section(one.result, f"part-{at + 1}", seen, suspects, limits)
        made.append((section, one_line(one.name)))
    return sorted(made, key=lambda each: ORDER.index(type(each[0])))


def _section(
    result: Result | Sequence[FoundRanking],
    key: str,
    seen: Seen,
    suspects: Suspects | None,
    limits: PageLimits,
) -> Section:
    if isinstance(result, Explanations):
        return why_section(result, key, seen, suspects, limits)
    if isinstance(result, TokenShares):
        return tokens_section(result, key, limits)
    if isinstance(result, Suspects):
        return suspects_section(result, key, seen, limits)
    if isinstance(result, TraceDiagnostics):
        return trust_section(result, key)
    if isinstance(result, FoundCurve | FoundComparison):
        return found_section(rankings_of(result), key)
    return found_section(result, key)


def _facts(parts: Sequence[tuple[Section, str]]) -> list[tuple[str, str]]:
    """What holds for the whole page: facts that no two parts tell differently."""
    facts = list(dict.fromkeys(fact for part, _ in parts for fact in part.facts))
    names = [name for name, _ in facts]
    return [(name, value) for name, value in facts if names.count(name) == 1]
