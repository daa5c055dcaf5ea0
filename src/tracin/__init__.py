"""Which training examples made a model say what it said: exact TracIn for any PyTorch model."""

from tracin.checkpoints import Checkpoint as Checkpoint
from tracin.checkpoints import Recorder as Recorder
from tracin.checkpoints import open_checkpoints as open_checkpoints
from tracin.data import WithIds as WithIds
from tracin.errors import CheckpointError as CheckpointError
from tracin.errors import CheckpointWarning as CheckpointWarning
from tracin.errors import CoupledExamplesError as CoupledExamplesError
from tracin.errors import DataError as DataError
from tracin.errors import DeviceError as DeviceError
from tracin.errors import LabelError as LabelError
from tracin.errors import LearningRateError as LearningRateError
from tracin.errors import LossError as LossError
from tracin.errors import NonFiniteError as NonFiniteError
from tracin.errors import ParametersError as ParametersError
from tracin.errors import QueryError as QueryError
from tracin.errors import RunFileError as RunFileError
from tracin.errors import TracInError as TracInError
from tracin.errors import UnsupportedModelError as UnsupportedModelError
from tracin.gradients import Coverage as Coverage
from tracin.gradients import Way as Way
from tracin.influence.explanations import Explanations as Explanations
from tracin.influence.suspects import Suspects as Suspects
from tracin.influence.tracin import TracIn as TracIn
from tracin.influence.verification import Verification as Verification
from tracin.losses import CrossEntropy as CrossEntropy
from tracin.losses import Outcome as Outcome

__version__ = "0.1.0"
