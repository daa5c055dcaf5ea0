"""Typing errors in prices, planted to see whether they are found."""

from collections.abc import Callable

import torch
from torch import Tensor


def with_typos(dollars: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Spoil a random share of prices, with as many errors of each kind.

    Args:
        dollars: [homes], whole numbers.
        share: How many of them.
        seed: Decides which, and the digits typed.

    Returns:
        The prices as typed, [homes], and the number of the kind of error in `KINDS`, -1 where the
        price is right: [homes].
    """
    generator = torch.Generator().manual_seed(seed)
    count = round(share * len(dollars) / len(KINDS)) * len(KINDS)
    chosen = torch.randperm(len(dollars), generator=generator)[:count]
    typed, kinds = dollars.clone(), torch.full((len(dollars),), -1)
    for place, home in enumerate(chosen.tolist()):
        kind = place % len(KINDS)
        digit = int(torch.randint(1, 9, (), generator=generator))
        typed[home] = float(list(KINDS.values())[kind](f"{int(dollars[home])}", digit))
        kinds[home] = kind
    return typed, kinds


def _another_digit(price: str, digit: int) -> str:
    """The first digit is another one: [1-9] without its own, all equally likely."""
    own = int(price[0])
    return f"{digit if digit < own else digit + 1}{price[1:]}"


def _swapped(price: str, digit: int) -> str:
    """The first two neighbours that differ change places."""
    for at in range(len(price) - 1):
        if price[at] != price[at + 1]:
            return f"{price[:at]}{price[at + 1]}{price[at]}{price[at + 2 :]}"
    return _another_digit(price, digit)


KINDS: dict[str, Callable[[str, int], str]] = {
    "a zero too many": lambda price, digit: f"{price}0",
    "a zero too few": lambda price, digit: price[:-1],
    "another first digit": _another_digit,
    "two digits swapped": _swapped,
}
