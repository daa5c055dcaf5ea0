"""An explainer of quanda's kind, so that its metrics run on TracIn's scores.

quanda (https://github.com/dilyabareeva/quanda) makes explainers itself, from a model, a dataset and
checkpoints, and asks them for [queries, train]. Its package is not imported: it pins Captum and
needs torchvision, Kronfluence, dattri and others, which no user of this library should have to
install. What its metrics call is written here, after `quanda.explainers.base.Explainer` of 0.5.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from tracin.checkpoints.discover import Checkpoints
from tracin.checkpoints.learning_rates import LearningRates
from tracin.errors import QueryError
from tracin.losses import PerExampleLoss
from tracin.preconditioners import Preconditioner
from tracin.sharding import device_of
from tracin.tracin import TracIn

TASK = "image_classification"


@final
class TracInExplainer:
    """What quanda's metrics take as `explainer_cls`; the rest goes into `expl_kwargs`.

    Args:
        model: The trained model.
        train_dataset: Its training data, of pairs of an input and a label.
        task: "image_classification": an input and a label per example.
        checkpoints: A path, or several; None for the model's weights as they are.
        checkpoints_load_func: Must be None: checkpoints are read as `tracin.TracIn` reads them.
        loss: As for `tracin.TracIn`.
        learning_rates: As for `tracin.TracIn`.
        preconditioner: As for `tracin.TracIn`.

    Raises:
        QueryError: Another task, or a function that loads checkpoints.
        CheckpointError: A checkpoint cannot be read.

    Example:
        >>> import torch
        >>> from tracin.integrations.quanda import TracInExplainer
        >>> train = torch.utils.data.TensorDataset(torch.randn(5, 2), torch.tensor([0, 1, 0, 1, 0]))
        >>> explainer = TracInExplainer(torch.nn.Linear(2, 2), train)
        >>> explainer.explain(torch.randn(3, 2), [0, 1, 1]).shape
        torch.Size([3, 5])
    """

    accepted_tasks = (TASK,)

    def __init__(
        self,
        model: nn.Module,
        train_dataset: Any,
        task: str = TASK,
        checkpoints: Checkpoints | None = None,
        checkpoints_load_func: Callable[..., Any] | None = None,
        *,
        loss: str | PerExampleLoss = "cross_entropy",
        learning_rates: LearningRates = "equal",
        preconditioner: Preconditioner | None = None,
    ) -> None:
        if task != TASK:
            raise QueryError(
                f"TracInExplainer explains {TASK!r}, an input and a label per example; "
                f"{task!r} was given. For other tasks give quanda's metrics the transpose of "
                "TracIn.influence(train, queries)."
            )
        if checkpoints_load_func is not None:
            raise QueryError(
                "Checkpoints are read as tracin.TracIn reads them, so checkpoints_load_func must "
                "be None. Read them by tracin.open_checkpoints, and pass these."
            )
        self.model = model
        self.train_dataset = train_dataset
        self.device = str(device_of(model))
        given = [model.state_dict()] if checkpoints is None else _listed(checkpoints)
        self._run = TracIn(
            model, loss, given, learning_rates=learning_rates, preconditioner=preconditioner
        )

    def __repr__(self) -> str:
        return f"TracInExplainer({self._run!r})"

    def explain(self, test_data: Tensor, targets: Sequence[int] | Tensor) -> Tensor:
        """The influence of the training data on each test example: [queries, train].

        Args:
            test_data: The inputs, the examples first.
            targets: [queries]; the labels whose loss is explained.
        """
        labels = torch.as_tensor(targets)
        scores = self._run.influence(self.train_dataset, (test_data, labels), progress=False)
        return scores.mT.to(self.device)

    def self_influence(self, batch_size: int = 32) -> Tensor:
        """Each training example's influence on itself: [train].

        Args:
            batch_size: How many examples go through the model at once.
        """
        return self._run.self_influence(
            self.train_dataset, batch_size=batch_size, progress=False
        ).to(self.device)


def _listed(checkpoints: Checkpoints) -> Checkpoints:
    """A list as it is; one path in a list, so that it is read as a file."""
    return checkpoints if isinstance(checkpoints, list | tuple) else [checkpoints]  # type: ignore[list-item]
