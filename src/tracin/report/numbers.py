"""Numbers as a person reads them."""

import math

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def readable(value: float) -> str:
    """Three significant figures, with a minus as long as a plus; words where it is no number.

    Example:
        >>> readable(1234.5), readable(0.01234), readable(float("nan"))
        ('1,234', '0.0123', 'not a number')
    """
    value = float(value)
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    if "e" in text:
        mantissa, power = text.split("e")
        text = f"{mantissa} {TIMES} 10^{int(power)}"
    return text.replace("-", MINUS)


def percent(share: float) -> str:
    """A share, with a digit after the point where it is small.

    Example:
        >>> percent(0.5), percent(0.0123), percent(1.0), percent(0.999)
        ('50 %', '1.2 %', '100 %', '99.9 %')
    """
    text = f"{100 * share:.1f}"
    return f"{text.removesuffix('.0')} %"
