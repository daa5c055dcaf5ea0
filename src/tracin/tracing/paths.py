"""Where along a step the queries' gradients are taken: the amounts that a trace records."""

from enum import Enum


class Quadrature(Enum):
    """How a step's effect is shared among its examples.

    Along the straight line from w_t to w_{t+1} an example's share of a query's loss drop is its
    part of the step times the query's gradient, integrated over the line. The members are
    quadratures of that integral: (position on the line, weight), positions from 0 to 1.

    - FIRST_ORDER: the query's gradient at w_t alone (paper, section 3.2 and equation for
      minibatches). The gap to the real loss drop is O(rate^2) per step, and it adds up.
    - MIDPOINT: at the middle; the gap is O(rate^3), for one gradient and one product per step.
    - TRAPEZOID: the mean of both ends; the gap is O(rate^3). The gradient at the far end is that
      of the next step's start, so it costs one more product.
    - SIMPSON: both ends and the middle; the gap is O(rate^5), for one more gradient and product.

    All but the first make Lemma 3.1 hold for minibatches: summed over examples and steps, scores
    come close to the query's real loss drop (Aumann-Shapley shares).

    Example:
        >>> Quadrature.TRAPEZOID.points
        ((0.0, 0.5), (1.0, 0.5))
    """

    FIRST_ORDER = "first_order"
    MIDPOINT = "midpoint"
    TRAPEZOID = "trapezoid"
    SIMPSON = "simpson"

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """(position, weight) of each gradient that is taken; the weights sum to 1."""
        return _POINTS[self]


_POINTS = {
    Quadrature.FIRST_ORDER: ((0.0, 1.0),),
    Quadrature.MIDPOINT: ((0.5, 1.0),),
    Quadrature.TRAPEZOID: ((0.0, 0.5), (1.0, 0.5)),
    Quadrature.SIMPSON: ((0.0, 1 / 6), (0.5, 4 / 6), (1.0, 1 / 6)),
}
