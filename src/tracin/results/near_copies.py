"""Folds near-copies in a ranked list of texts under the first of them."""

import re
from collections.abc import Collection, Sequence

_WORD = re.compile(r"\w+")


def words_in_all(texts: Collection[str]) -> frozenset[str]:
    """The words that every text holds, such as those of a chat template; none of a single text.

    Example:
        >>> sorted(words_in_all(["User: what is rain?", "User: what is snow?"]))
        ['is', 'user', 'what']
    """
    held = [_words(text) for text in dict.fromkeys(texts)]
    return frozenset.intersection(*held) if len(held) > 1 else frozenset()


def near_copies(
    texts: Sequence[str], overlap: float, common: frozenset[str] = frozenset()
) -> list[list[int]]:
    """Which texts say nearly the same: groups of positions, each led by its first.

    Two texts are near-copies if their words are the same but for case and punctuation, or if the
    words of both are at least a share of the words of either (their Jaccard index). A text
    is compared with the first of each group, so that chains of small changes do not grow.

    Args:
        texts: In the order of their rank.
        overlap: The share of words in common, above 0 and up to 1.
        common: Words that do not count, since all texts hold them.

    Example:
        >>> near_copies(["Rain is wet.", "Snow is cold.", "rain is wet"], overlap=0.8)
        [[0, 2], [1]]
    """
    groups: list[list[int]] = []
    firsts: list[tuple[str, frozenset[str]]] = []
    for at, text in enumerate(texts):
        normal, words = " ".join(_WORD.findall(text.lower())), _words(text) - common
        for group, (first, held) in zip(groups, firsts, strict=True):
            either = len(words | held)
            is_alike = either > 0 and len(words & held) >= overlap * either
            if normal == first or is_alike:
                group.append(at)
                break
        else:
            groups.append([at])
            firsts.append((normal, words))
    return groups


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))
