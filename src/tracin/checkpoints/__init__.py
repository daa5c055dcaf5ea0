"""Checkpoints: weights and learning rates, read from common formats or written by a Recorder."""

from tracin.checkpoints.checkpoint import Checkpoint as Checkpoint
from tracin.checkpoints.discover import open_checkpoints as open_checkpoints
from tracin.checkpoints.learning_rates import by_parameter as by_parameter
from tracin.checkpoints.learning_rates import checkpoint_weights as checkpoint_weights
from tracin.checkpoints.load import loaded as loaded
from tracin.checkpoints.optimizer_state import OptimizerState as OptimizerState
from tracin.checkpoints.recorder import Recorder as Recorder
from tracin.checkpoints.state_dict import bare_name as bare_name
from tracin.checkpoints.visits import Visits as Visits
