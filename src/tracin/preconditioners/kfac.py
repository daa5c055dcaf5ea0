"""K-FAC on the query: curvature from the gradients that TracIn computes anyway."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor

from tracin.data import Examples
from tracin.errors import PreconditionerError
from tracin.gradients.forms import Dense, PerExampleGradient, SparseRows
from tracin.preconditioners.fit_data import check_damping, check_fit, fit_data
from tracin.preconditioners.fitted import Fitted
from tracin.preconditioners.layer_metrics import (
    FactorMoments,
    KroneckerMetric,
    LayerMetric,
    RowMoments,
    TableMetric,
    UnitMoments,
    is_factored,
    sums_of_sides,
)
from tracin.preconditioners.preconditioner import Place
from tracin.preconditioners.saved_moments import from_folder

_log = logging.getLogger(__name__)

LayerMoments: TypeAlias = FactorMoments | RowMoments | UnitMoments
KINDS: Mapping[str, type[LayerMoments]] = {
    each.KIND: each for each in (FactorMoments, RowMoments, UnitMoments)
}
_BIAS = "bias"  # in the place of a kind, in a file

UNLIKE = (
    "The gradients of '{}' have factors in some batches and none in others, so that their "
    "curvature cannot be used. Leave it out by `parameters`, or pass fit= data of the same kind."
)

# A bias's gradient and the sum of its weight's output gradients, relative to the larger.
_SAME = 1e-3


@final
@dataclass(frozen=True, eq=False)
class KFAC(Fitted):
    """A query's gradient times the inverse of K-FAC's curvature: scores that predict retraining.

    Per weight matrix, A are the second moments of the layer's inputs (with a constant 1 for the
    bias) and S those of its output gradients, over training examples. A query's gradient G becomes
    (S + d mean(S) I)^-1 G (A + d mean(A) I)^-1, with the mean eigenvalues and the damping d. The
    gradients are those of your loss, so that it works for any. Training examples' gradients stay
    as they are, and a pass over them costs what it costs without. Embeddings have the frequency
    of each row for A; convolutions patches; what is no matrix has one number per parameter, in
    the same unit.

    Scores are not in units of the loss, and their sum over training is not what a query's loss
    fell by. Give several checkpoints, early and middle ones among them: each has the same weight
    unless learning_rates= says otherwise. Source: Martens and Grosse, 2015,
    https://arxiv.org/abs/1503.05671; for influence, with eigenvalue correction: Grosse et al.,
    2023, https://arxiv.org/abs/2308.03296.

    Args:
        damping: In units of each side's mean eigenvalue.
        fit: The data that curvature is computed from; None for the training data of the question.
        examples: How many of them, spread over all; None for as many as the widest side needs: four
            per entry, and 2,000 at least.
        at: Whether curvature is computed at each checkpoint, or at the last one for all.
        row_damping: In an index alone, of columns that are no factors of a layer: in units of the
            mean eigenvalue of the gradients' Fisher matrix, as far as the rows can fill it.
        folder: Where moments are kept for other processes, one file per checkpoint; None keeps
            them in memory alone. A file serves every damping, and the same weights and data only:
            others get files of their own. An index keeps its own moments.

    Raises:
        PreconditionerError: A damping is negative or above 1e12, or another argument makes no
            sense.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(3, 2)
        >>> data = torch.randn(50, 3), torch.arange(50) % 2
        >>> run = tracin.TracIn(
        ...     model, "cross_entropy", [model.state_dict()], preconditioner=tracin.KFAC()
        ... )
        >>> run.influence(data, data).shape
        torch.Size([50, 50])
    """

    damping: float = 0.3
    fit: Any = field(default=None, repr=False)
    examples: int | None = None
    at: Literal["each", "last"] = "each"
    row_damping: float = 1.0
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check_fit(self.damping, self.examples, self.at, self.folder, usual=KFAC.damping)
        check_damping(self.row_damping, "row_damping", usual=KFAC.row_damping)

    @property
    def is_made_once(self) -> bool:
        """Whether the metric of the last checkpoint serves all."""
        return self.at == "last"

    def metric(self, place: Place) -> "CurvatureMetric":
        """Pass over the data at a checkpoint, and invert.

        Raises:
            PreconditionerError: There are no data, or a side is singular without damping.
        """
        data = fit_data("KFAC", self.fit, self.examples, place)
        return place.metric_of(data, lambda: self._made(place, data))

    def described_fit(self, parameters: Mapping[str, Tensor]) -> "CurvatureFit":
        """A fit that says how it holds each parameter's curvature."""
        return CurvatureFit(parameters)

    def _made(self, place: Place, data: Examples) -> "CurvatureMetric":
        if self.folder is None:
            moments = fitted_moments(place, data)
        else:
            moments = from_folder(
                self.folder,
                "kfac",
                place,
                data,
                summary=lambda few: fitted_moments(place, few).summary(),
                make=lambda: fitted_moments(place, data),
                restore=lambda kept: CurvatureFit.of_tensors(place.parameters, kept, place.device),
            )
        return moments.metric(self.damping, place.checkpoint.name)


def fitted_moments(place: Place, data: Examples) -> "CurvatureFit":
    """The moments of data at a checkpoint."""
    moments = CurvatureFit(place.parameters)
    place.read(data, moments.batch)
    return moments


@final
class CurvatureFit:
    """Adds up the moments of all traced parameters, batch by batch.

    Args:
        parameters: Those to trace, by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._layers: dict[str, LayerMoments] = {}
        self._biases: dict[tuple[str, str], bool] = {}  # weight, side: whether it has been so
        self._bias_of = {
            name: bias
            for name in parameters
            if (bias := _sibling(name)) != name and bias in parameters
        }

    def batch(self, examples: int) -> "BatchCurvature":
        """Begin a batch of so many examples."""
        return BatchCurvature(self, examples)

    @property
    def bias_of(self) -> Mapping[str, str]:
        """Weight -> the parameter that is named as its bias would be."""
        return self._bias_of

    def add(
        self, layers: Mapping[str, LayerMoments], biases: Mapping[tuple[str, str], bool]
    ) -> None:
        """Add a whole batch."""
        for name, more in layers.items():
            mine = self._layers.setdefault(name, more)
            if type(mine) is not type(more):
                raise PreconditionerError(UNLIKE.format(name))
            if mine is not more:
                mine.merge(more)  # type: ignore[arg-type]  # of one type, as was just seen
        for key, is_so in biases.items():
            self._biases[key] = is_so and self._biases.get(key, True)

    @property
    def factored(self) -> dict[str, tuple[FactorMoments, str]]:
        """Each weight that has two sides, and the side whose vectors get a constant 1, or ""."""
        return {
            name: (moments, self._constant(name))
            for name, moments in self._layers.items()
            if isinstance(moments, FactorMoments)
        }

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name, for a file: "parameter|kind|sum"."""
        found = {
            f"{name}|{moments.KIND}|{part}": one
            for name, moments in self._layers.items()
            for part, one in moments.tensors().items()
        }
        sides = {f"{n}|{_BIAS}|{s}": torch.tensor(is_so) for (n, s), is_so in self._biases.items()}
        return {**found, **sides}

    @classmethod
    def of_tensors(
        cls, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], device: torch.device
    ) -> "CurvatureFit":
        """What `tensors` gave, on a device.

        Raises:
            KeyError: A sum is missing, or of an unknown kind.
        """
        fit, layers = cls(parameters), {}
        for key, one in tensors.items():
            name, kind, part = key.rsplit("|", 2)
            if kind == _BIAS:
                fit._biases[name, part] = bool(one)
            else:
                layers.setdefault((name, kind), {})[part] = one
        fit._layers = {
            name: KINDS[kind].of_tensors(parts, device) for (name, kind), parts in layers.items()
        }
        return fit

    def summary(self) -> dict[str, list[float]]:
        """A few numbers per parameter, "parameter|kind", that other gradients would change."""
        return {f"{n}|{one.KIND}": one.summary() for n, one in sorted(self._layers.items())}

    def described(self) -> dict[str, str]:
        """Parameter -> in what form its curvature is held."""
        found: dict[str, str] = {}
        for name, moments in self._layers.items():
            constant = self._constant(name)
            found[name] = moments.described(constant)
        for name, (_, constant) in self.factored.items():
            if constant:
                found[self._bias_of[name]] = f"with '{name}'"
        return found

    def _constant(self, name: str) -> str:
        # The bias is what one side adds up to; its constant is an input, of the other.
        side = next((s for s in ("left", "right") if self._biases.get((name, s))), "")
        return {"left": "right", "right": "left", "": ""}[side]

    def metric(
        self, damping: float, checkpoint: str, given: Mapping[str, LayerMetric] | None = None
    ) -> "CurvatureMetric":
        """Invert all sides.

        Args:
            damping: In units of each side's mean eigenvalue.
            checkpoint: What messages call it.
            given: What some weights are multiplied by in place of their sides' inverses.

        Raises:
            PreconditionerError: A side is singular, and there is no damping.
        """
        layers: dict[str, LayerMetric] = dict(given or {})
        biases = {
            name: self._bias_of[name] for name, (_, constant) in self.factored.items() if constant
        }
        for name, moments in self._layers.items():
            if name in layers:
                continue
            dtype = gradient_dtype(self._parameters[name])
            if isinstance(moments, UnitMoments):
                layers[name] = moments.metric(damping)
                continue
            found: KroneckerMetric | TableMetric | None
            if isinstance(moments, RowMoments):
                found = moments.metric(damping, dtype)
            else:
                found = moments.metric(damping, dtype, bias=self._constant(name))
            if "diagonal" in (held := moments.described(self._constant(name))):
                _log.info("a wide side of '%s' keeps its diagonal: %s", name, held)
            if found is None and damping == 0:
                raise PreconditionerError(
                    f"The curvature of '{name}' at checkpoint '{checkpoint}' is singular, so it "
                    "has no inverse without damping. Use damping=0.3, or fit it on more examples."
                )
            if found is None:
                # No gradient has reached it: there is no direction in which it could count.
                _log.info("'%s' has no gradients at checkpoint '%s'", name, checkpoint)
                layers[name] = UnitMoments().metric(damping)
            else:
                layers[name] = found
        return CurvatureMetric(layers, biases)


@final
class BatchCurvature:
    """The moments of one batch."""

    def __init__(self, whole: CurvatureFit, examples: int) -> None:
        self._whole, self._examples = whole, examples
        self._layers: dict[str, LayerMoments] = {}
        self._sums: dict[str, Mapping[str, Tensor]] = {}
        self._rows: dict[str, Tensor] = {}
        self._biases = set(whole.bias_of.values())

    @torch.no_grad()
    def visit(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Take one parameter's gradients; the first example of `form` is that row of the batch."""
        if name not in self._layers:
            self._layers[name] = _moments_of(form)
        moments = self._layers[name]
        if not moments.fits(form):
            raise PreconditionerError(UNLIKE.format(name))
        moments.add(form)
        is_whole = form.examples == self._examples
        if name in self._whole.bias_of and isinstance(moments, FactorMoments):
            self._sums[name] = sums_of_sides(form) if is_whole else {}
        if name in self._biases and is_whole and isinstance(form, Dense):
            self._rows[name] = form.dense()

    @torch.no_grad()
    def commit(self) -> None:
        """Add the batch to those before."""
        biases: dict[tuple[str, str], bool] = {}
        alike: dict[tuple[str, str], Tensor] = {}
        for weight, sums in self._sums.items():
            rows = self._rows.get(self._whole.bias_of[weight])
            for side in ("left", "right"):
                biases[weight, side] = False
                if rows is not None and side in sums and sums[side].shape == rows.shape:
                    alike[weight, side] = _are_same(sums[side], rows)
        if alike:  # one look at the device for all layers
            biases |= zip(alike, torch.stack([*alike.values()]).tolist(), strict=True)
        self._whole.add(self._layers, biases)


@final
@dataclass(frozen=True, eq=False)
class CurvatureMetric:
    """The inverse curvature at one checkpoint.

    Attributes:
        layers: Parameter -> what multiplies its gradients.
        biases: Weight -> the bias that belongs to it, and is multiplied together with it.
    """

    layers: Mapping[str, LayerMetric]
    biases: Mapping[str, str]

    def scaled(self, name: str, form: PerExampleGradient) -> dict[str, PerExampleGradient]:
        """One parameter's gradients times the matrix; a weight gives its bias's, too."""
        layer = self._layer(name, form)
        if layer is None:
            return {}
        weight, bias = layer.scaled(form)
        if bias is None:
            return {name: weight}
        return {name: weight, self.biases[name]: bias}

    def scaled_sum(self, name: str, form: PerExampleGradient) -> dict[str, PerExampleGradient]:
        """As `scaled`, of the sum over all examples."""
        return {
            other: Dense(_total(share).unsqueeze(0))
            for other, share in self.scaled(name, form).items()
        }

    def squared_norm(self, name: str, form: PerExampleGradient) -> Tensor:
        """What one parameter adds to the squared lengths; a weight adds its bias's, too."""
        layer = self._layer(name, form)
        if layer is None:
            return torch.zeros(form.examples, device=form.device)
        return layer.squared_norm(form)

    def _layer(self, name: str, form: PerExampleGradient) -> LayerMetric | None:
        if name in self.biases.values() or name not in self.layers:
            return None
        layer = self.layers[name]
        if not layer.fits(form):
            raise PreconditionerError(UNLIKE.format(name))
        return layer


def _moments_of(form: PerExampleGradient) -> LayerMoments:
    if is_factored(form):
        return FactorMoments.like(form)
    return RowMoments.like(form) if isinstance(form, SparseRows) else UnitMoments()


def gradient_dtype(parameter: Tensor) -> torch.dtype:
    """What a parameter's gradients are multiplied in: float32 at least."""
    return torch.promote_types(parameter.dtype.to_real(), torch.float32)


def _sibling(name: str) -> str:
    """What the bias of this weight would be called: layer.weight -> layer.bias."""
    module, _, own = name.rpartition(".")
    return f"{module}.{own.replace('weight', 'bias')}" if module else own.replace("weight", "bias")


def _are_same(sums: Tensor, rows: Tensor) -> Tensor:
    return (sums - rows).abs().max() <= _SAME * rows.abs().max()


def _total(form: PerExampleGradient) -> Tensor:
    return form.weighted_sum(torch.ones(form.examples, device=form.device))
