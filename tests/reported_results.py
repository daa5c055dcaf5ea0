"""Results to report: small, made by hand."""

import numpy as np
import torch

from tracin import Explanations, Suspects
from tracin.results.explanations import TopInfluences
from tracin.tracing import Quadrature, TraceDiagnostics

# Texts that a page, a screen or a template could obey.
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "{{ 7*7 }}{% raw %}",
    "\u202egnp.exe",
    "\x1b[2J\x1b]0;title\x07",
    "nul\x00and\x08",
    "\u05e9\u05dc\u05d5\u05dd",
    "\U0001f469\u200d\U0001f469\u200d\U0001f466",
    "half \ud800 character",
    "a" * 1_000_000,
    "=1+1",
    "]]><!-- &amp;",
]


def explanations_of(
    queries: int = 2, k: int = 3, train: int = 12, checkpoints: int = 2
) -> Explanations:
    """Proponents 0, 1, ... and opponents k, k + 1, ... of every query."""

    def side(sign: int, start: int) -> TopInfluences:
        positions = (np.tile(np.arange(k), (queries, 1)) + start) % train
        shares = sign * torch.arange(k, 0, -1.0)[None, :, None].expand(queries, k, checkpoints)
        return TopInfluences(positions, positions, shares.sum(2), shares.clone())

    names = tuple(f"step-{at}" for at in range(checkpoints))
    return Explanations(np.arange(queries), side(1, 0), side(-1, k), names)


def suspects_of(given: list, suggested: list, ids: list | None = None) -> Suspects:
    """Suspects in the order of the data, each a little less suspicious than the one before."""
    train = len(given)
    kind = object if isinstance(given[0], str) else None
    return Suspects(
        ids=np.arange(train) if ids is None else np.array(ids, dtype=object),
        positions=np.arange(train),
        given_labels=np.array(given, dtype=kind),
        suggested_labels=np.array(suggested, dtype=kind),
        scores={
            "self_influence": torch.arange(train, 0, -1.0),
            "loss": torch.linspace(3, 0.1, train),
        },
        ranked_by="self_influence",
    )


def diagnostics_of(predicted: np.ndarray, actual: np.ndarray) -> TraceDiagnostics:
    """Of steps whose queries' losses fell by `actual`: [steps, queries]."""

    class Steps:
        step = np.arange(len(actual))
        before = after = np.zeros((len(actual), actual.shape[1]))
        buffers = np.zeros(actual.shape)

        def part(self, path, part):
            return predicted if part == "examples" else np.zeros_like(predicted)

    steps = Steps()
    steps.before = np.cumsum(actual[::-1], 0)[::-1]
    steps.after = steps.before - actual
    return TraceDiagnostics(Quadrature.TRAPEZOID, steps, predicted, actual)  # type: ignore[arg-type]
