"""What the preconditioners that are fitted on data answer alike."""

from collections.abc import Sequence

from tracin.checkpoints import Checkpoint


class Fitted:
    """A preconditioner whose metric is computed from the gradients of data."""

    @property
    def follows_training(self) -> bool:
        """Whether checkpoints weigh by their learning rates by default."""
        return False

    @property
    def fits_sketches(self) -> bool:
        """Whether its queries can be multiplied with sketches of plain gradients."""
        return False

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Any checkpoint will do."""
