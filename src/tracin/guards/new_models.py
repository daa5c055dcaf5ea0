"""Models that a user's training function returns: each must be a new one."""

import weakref
from typing import Any, final

from torch.nn import Module

from tracin.errors import QueryError


@final
class NewModels:
    """Refuses a model that an earlier training returned: it was trained further, not anew.

    Example:
        >>> import torch
        >>> models, net = NewModels(), torch.nn.Linear(1, 1)
        >>> models.check(net)
        >>> models.check(net)
        Traceback (most recent call last):
        tracin.errors.QueryError: fit returned the model that it had returned before, so each training went on from the last one. Make a new model within fit, or train and return copy.deepcopy(model).
    """  # noqa: E501

    def __init__(self) -> None:
        self._last: weakref.ref[Module] | None = None

    def check(self, model: Any) -> None:
        """Look at what a training returned; anything but a torch module passes.

        Raises:
            QueryError: It is the model that the training before returned.
        """
        if not isinstance(model, Module):
            return
        if self._last is not None and self._last() is model:
            raise QueryError(
                "fit returned the model that it had returned before, so each training went on "
                "from the last one. Make a new model within fit, or train and return "
                "copy.deepcopy(model)."
            )
        self._last = weakref.ref(model)
