"""An evaluation's outcome in words: what leads, by how much, and whether that is certain."""

import math
from collections.abc import Mapping

from tracin.evaluate.lds import LDS, LDSComparison

LOW_CEILING = 0.5  # below it, the truth itself is mostly noise


def recommended(
    comparison: LDSComparison | None, advice: Mapping[str, str], seconds: Mapping[str, float]
) -> str:
    """What to use, and how sure that is.

    Args:
        comparison: The linear datamodelling scores; None where nothing was retrained.
        advice: What to write to have each method.
        seconds: What each method cost.

    Example:
        >>> print(recommended(None, {}, {}))
        No method is recommended: only retraining says which scores predict it, and the checks above rule methods out, not in. Give a function that trains a model on a part of the data.
    """  # noqa: E501
    if comparison is None:
        return (
            "No method is recommended: only retraining says which scores predict it, and the "
            "checks above rule methods out, not in. Give a function that trains a model on a part "
            "of the data."
        )
    best = comparison.best
    leader = comparison[best]
    if leader.low <= 0:
        return (
            f"No method is recommended: the highest LDS, {best}'s {_figures(leader)}, is not "
            f"distinguishable from 0. {_more_truth(leader)}"
        )
    level = [
        name
        for name in comparison.scores
        if name != best and comparison.difference(best, name)[1] <= 0
    ]
    behind = [name for name in comparison.scores if name != best and name not in level]
    cheapest = min([best, *level], key=lambda name: seconds[name])
    sentences = []
    if not level:
        sentences.append(_lead(comparison, best, behind, advice))
    else:
        others = ", ".join(f"{name} {_figures(comparison[name])}" for name in level)
        choice = f"Use {advice[cheapest]}: it costs least of those that lead."
        sentences.append(
            f"{choice} {best}'s LDS {_figures(leader)} is the highest, but the difference to "
            f"{others} is within its 95 % interval: more subsets or queries would tell them apart."
        )
        if behind:
            nearest = max(behind, key=lambda name: comparison[name].value)
            sentences.append(f"Next is {nearest}'s {_figures(comparison[nearest])}.")
    sentences.append(_ceiling(leader))
    return " ".join(each for each in sentences if each)


def _lead(
    comparison: LDSComparison, best: str, behind: list[str], advice: Mapping[str, str]
) -> str:
    leader = comparison[best]
    if not behind:
        return f"Use {advice[best]}: its LDS is {_figures(leader)}."
    nearest = max(behind, key=lambda name: comparison[name].value)
    against = "TracIn" if "TracIn" in behind else nearest
    text = (
        f"Use {advice[best]}: its LDS {_figures(leader)} is above {against}'s "
        f"{_figures(comparison[against])}"
    )
    if against != nearest:
        text += f" and that of the next, {nearest}'s {_figures(comparison[nearest])}"
    difference, low, high = comparison.difference(best, nearest)
    return f"{text}; the difference to {nearest} is {difference:+.2f} [{low:+.2f} {high:+.2f}]."


def _ceiling(leader: LDS) -> str:
    if math.isnan(leader.ceiling):
        return "The ceiling is unknown: retrain each subset with a second seed."
    text = f"The ceiling is {leader.ceiling:.2f}."
    if leader.ceiling < LOW_CEILING:
        return f"{text} Most of the retrained losses' order is noise of seeds: use more seeds."
    return text


def _more_truth(leader: LDS) -> str:
    if not math.isnan(leader.ceiling) and leader.ceiling < LOW_CEILING:
        return f"The ceiling is {leader.ceiling:.2f}: retrain each subset with more seeds."
    return "Retrain more subsets, or look at more queries."


def _figures(found: LDS) -> str:
    return f"{found.value:.2f} [{found.low:.2f} {found.high:.2f}]"
