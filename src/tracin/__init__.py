"""Which training examples made a model say what it said: exact TracIn for any PyTorch model.

Names are looked up when first used, so that the command line's help does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracin.analysis.agreement import Agreement as Agreement
    from tracin.analysis.agreement import compare_selections as compare_selections
    from tracin.analysis.contributions import Contributions as Contributions
    from tracin.analysis.contributions import contributions as contributions
    from tracin.analysis.correlations import Correlations as Correlations
    from tracin.analysis.correlations import correlations as correlations
    from tracin.analysis.selection import Selection as Selection
    from tracin.analysis.selection import select_checkpoints as select_checkpoints
    from tracin.analysis.training_losses import training_losses as training_losses
    from tracin.checkpoints import Checkpoint as Checkpoint
    from tracin.checkpoints import OptimizerState as OptimizerState
    from tracin.checkpoints import Recorder as Recorder
    from tracin.checkpoints import Visits as Visits
    from tracin.checkpoints import open_checkpoints as open_checkpoints
    from tracin.data import WithIds as WithIds
    from tracin.data import with_ids as with_ids
    from tracin.errors import CheckpointError as CheckpointError
    from tracin.errors import CheckpointWarning as CheckpointWarning
    from tracin.errors import CoupledExamplesError as CoupledExamplesError
    from tracin.errors import DataError as DataError
    from tracin.errors import DataWarning as DataWarning
    from tracin.errors import DeviceError as DeviceError
    from tracin.errors import IndexingError as IndexingError
    from tracin.errors import LabelError as LabelError
    from tracin.errors import LearningRateError as LearningRateError
    from tracin.errors import LossError as LossError
    from tracin.errors import ModelInUseError as ModelInUseError
    from tracin.errors import NonFiniteError as NonFiniteError
    from tracin.errors import OutputError as OutputError
    from tracin.errors import ParametersError as ParametersError
    from tracin.errors import QueryError as QueryError
    from tracin.errors import RunFileError as RunFileError
    from tracin.errors import TracInError as TracInError
    from tracin.errors import TracingError as TracingError
    from tracin.errors import TracingWarning as TracingWarning
    from tracin.errors import TracInWarning as TracInWarning
    from tracin.errors import UnsupportedModelError as UnsupportedModelError
    from tracin.gradients import Coverage as Coverage
    from tracin.gradients import Way as Way
    from tracin.index.finder import Finder as Finder
    from tracin.index.index import Index as Index
    from tracin.losses import CrossEntropy as CrossEntropy
    from tracin.losses import Outcome as Outcome
    from tracin.results.explanations import Explanations as Explanations
    from tracin.results.recall import Recall as Recall
    from tracin.results.suspects import Suspects as Suspects
    from tracin.results.verification import Verification as Verification
    from tracin.sketches import Projection as Projection
    from tracin.tracin import TracIn as TracIn
    from tracin.tracing import Goodness as Goodness
    from tracin.tracing import Path as Path
    from tracin.tracing import Replay as Replay
    from tracin.tracing import StepTaken as StepTaken
    from tracin.tracing import Trace as Trace
    from tracin.tracing import Tracer as Tracer
    from tracin.tracing import Update as Update
    from tracin.tracing import update_rule as update_rule

__version__ = "0.1.0"

# Where each public name lives; tests keep this table, `__all__` and the imports above the same.
_HOMES = {
    "tracin.checkpoints": (
        "Checkpoint",
        "OptimizerState",
        "Recorder",
        "Visits",
        "open_checkpoints",
    ),
    "tracin.data": ("WithIds", "with_ids"),
    "tracin.errors": (
        "CheckpointError",
        "CheckpointWarning",
        "CoupledExamplesError",
        "DataError",
        "DataWarning",
        "DeviceError",
        "IndexingError",
        "LabelError",
        "LearningRateError",
        "LossError",
        "ModelInUseError",
        "NonFiniteError",
        "OutputError",
        "ParametersError",
        "QueryError",
        "RunFileError",
        "TracInError",
        "TracInWarning",
        "TracingError",
        "TracingWarning",
        "UnsupportedModelError",
    ),
    "tracin.gradients": ("Coverage", "Way"),
    "tracin.analysis.agreement": (
        "Agreement",
        "compare_selections",
    ),
    "tracin.analysis.contributions": (
        "Contributions",
        "contributions",
    ),
    "tracin.analysis.correlations": (
        "Correlations",
        "correlations",
    ),
    "tracin.index.finder": ("Finder",),
    "tracin.index.index": ("Index",),
    "tracin.results.recall": ("Recall",),
    "tracin.analysis.selection": (
        "Selection",
        "select_checkpoints",
    ),
    "tracin.analysis.training_losses": ("training_losses",),
    "tracin.results.explanations": ("Explanations",),
    "tracin.results.suspects": ("Suspects",),
    "tracin.tracin": ("TracIn",),
    "tracin.results.verification": ("Verification",),
    "tracin.losses": ("CrossEntropy", "Outcome"),
    "tracin.sketches": ("Projection",),
    "tracin.tracing": (
        "Goodness",
        "Path",
        "Replay",
        "StepTaken",
        "Trace",
        "Tracer",
        "Update",
        "update_rule",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Agreement",
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "Contributions",
    "Correlations",
    "CoupledExamplesError",
    "Coverage",
    "CrossEntropy",
    "DataError",
    "DataWarning",
    "DeviceError",
    "Explanations",
    "Finder",
    "Goodness",
    "Index",
    "IndexingError",
    "LabelError",
    "LearningRateError",
    "LossError",
    "ModelInUseError",
    "NonFiniteError",
    "OptimizerState",
    "Outcome",
    "OutputError",
    "ParametersError",
    "Path",
    "Projection",
    "QueryError",
    "Recall",
    "Recorder",
    "Replay",
    "RunFileError",
    "Selection",
    "StepTaken",
    "Suspects",
    "TracIn",
    "TracInError",
    "TracInWarning",
    "Trace",
    "Tracer",
    "TracingError",
    "TracingWarning",
    "UnsupportedModelError",
    "Update",
    "Verification",
    "Visits",
    "Way",
    "WithIds",
    "compare_selections",
    "contributions",
    "correlations",
    "open_checkpoints",
    "select_checkpoints",
    "training_losses",
    "update_rule",
    "with_ids",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None and name == "engines":
        return import_module("tracin.engines")
    if home is None:
        raise AttributeError(f"module 'tracin' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
