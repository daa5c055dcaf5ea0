"""Recurrent layers in eval mode, called as cuDNN can differentiate them: the same numbers."""

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tracin import recurrent
from tracin.recurrent import differentiable_recurrence, without_dropout

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_calls_in_training_mode_without_dropout_give_what_eval_mode_gives(
    kind: str, is_packed: bool
) -> None:
    layer = KINDS[kind](2, 3, num_layers=2, dropout=0.5, bidirectional=True).eval()
    sequences: list[Tensor] = [torch.randn(length, 2) for length in (4, 2)]
    given = nn.utils.rnn.pack_sequence(sequences) if is_packed else torch.randn(4, 2, 2)
    seen = []

    class AsInTraining(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in recurrent.CALLS:
                args = without_dropout(args)
                seen.append(func)
            return func(*args, **(kwargs or {}))

    wanted = layer(given)[0]
    with AsInTraining():
        found = layer(given)[0]
    assert len(seen) == 1
    torch.testing.assert_close(found, wanted)


def test_only_models_that_have_such_layers_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    layer = nn.LSTM(2, 3, dropout=0.5, num_layers=2).eval()
    given = torch.randn(4, 1, 2)
    wanted = layer(given)[0]
    with differentiable_recurrence(nn.Linear(2, 3)) as mode:
        assert mode is None
    with differentiable_recurrence(layer) as mode:
        assert isinstance(mode, TorchFunctionMode)
        torch.testing.assert_close(layer(given)[0], wanted)
