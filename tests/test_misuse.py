"""Whatever is passed in place of what was meant is refused by an error of ours, in words."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import tracin

X, Y = torch.randn(6, 4), torch.arange(6) % 3
TRAIN = X, Y


def model():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def run(loss="cross_entropy", checkpoints=None, of=None, **options):
    net = model() if of is None else of
    states = [net.state_dict()] if checkpoints is None else checkpoints
    return tracin.TracIn(net, loss, states, **{"learning_rates": [1.0], **options})


# What is called, and what its error says.
MISUSES = {
    "model: a class": (lambda: run(of=nn.Linear, checkpoints=[{}]), "Module"),
    "model: a state dict": (lambda: run(of=model().state_dict(), checkpoints=[{}]), "Module"),
    "model: none": (lambda: run(of="net", checkpoints=[{}]), "Module"),
    "model: a function": (lambda: run(of=lambda x: x, checkpoints=[{}]), "Module"),
    "loss: a typo": (lambda: run("crossentropy"), "'cross_entropy', 'mse', 'causal_lm'"),
    "loss: none": (lambda: run(None), r"loss\(model, batch\)"),
    "loss: a class": (lambda: run(nn.CrossEntropyLoss), r"loss\(model, batch\)"),
    "loss: of torch": (lambda: run(nn.CrossEntropyLoss()), r"takes \(output, labels\)"),
    "loss: functional": (lambda: run(nn.functional.cross_entropy), r"takes \(output, labels\)"),
    "loss: a number": (lambda: run(3), r"loss\(model, batch\)"),
    "loss: gives None": (lambda: run(lambda m, b: None).self_influence(TRAIN), "one value"),
    "loss: gives a number": (lambda: run(lambda m, b: 1.0).self_influence(TRAIN), "one value"),
    "loss: the mean": (
        lambda: run(lambda m, b: m(b[0]).mean()).self_influence(TRAIN),
        "reduction='none'|per example|an example",
    ),
    "loss: too many": (
        lambda: run(lambda m, b: m(b[0])).self_influence(TRAIN),
        "one value|an example",
    ),
    "loss: detached": (
        lambda: run(lambda m, b: m(b[0]).sum(1).detach()).self_influence(TRAIN),
        "autograd|detached",
    ),
    "checkpoints: none": (lambda: run(checkpoints=[]), "checkpoint"),
    "checkpoints: a missing file": (lambda: run(checkpoints=["nowhere.pt"]), "nowhere.pt"),
    "checkpoints: a missing folder": (lambda: run(checkpoints="nowhere"), "nowhere"),
    "checkpoints: a number": (lambda: run(checkpoints=3), "Checkpoints are a folder.*3 was"),
    "checkpoints: numbers": (lambda: run(checkpoints=[3]), "Checkpoints are a folder.*3 was"),
    "checkpoints: another model's": (
        lambda: run(checkpoints=[nn.Linear(5, 3).state_dict()]).self_influence(TRAIN),
        "weight",
    ),
    "parameters: a number": (lambda: run(parameters=5), r"5 \(int\)"),
    "parameters: numbers": (lambda: run(parameters=[0, 1]), r"0 \(int\)"),
    "parameters: tensors": (lambda: run(parameters=list(model().parameters())), "Parameter"),
    "parameters: bytes": (lambda: run(parameters=b"weight"), "bytes"),
    "parameters: a mapping": (lambda: run(parameters={"weight": 1}), "dict"),
    "parameters: nothing": (lambda: run(parameters=[]), "chooses nothing"),
    "parameters: unknown": (lambda: run(parameters=["head.*"]), r"'head\.\*'"),
    "parameters: false": (lambda: run(parameters=False), "bool"),
    "rates: too few": (lambda: run(learning_rates=[]), "learning"),
    "rates: too many": (lambda: run(learning_rates=[1.0, 2.0]), "learning"),
    "rates: zero": (lambda: run(learning_rates=[0.0]), "0"),
    "rates: negative": (lambda: run(learning_rates=[-1.0]), "-1"),
    "rates: nan": (lambda: run(learning_rates=[float("nan")]), "nan"),
    "rates: infinite": (lambda: run(learning_rates=[float("inf")]), "inf"),
    "rates: a text": (lambda: run(learning_rates="same"), "same"),
    "rates: texts": (lambda: run(learning_rates=["0.1"]), "0.1"),
    "rates: a number": (lambda: run(learning_rates=0.1), "0.1|list"),
    "rates: none there": (lambda: run(learning_rates=None), "learning"),
    "rates: booleans": (lambda: run(learning_rates=[True]), "True"),
    "device: a typo": (lambda: run(device="cudaa"), "cudaa"),
    "device: without a full stop": (lambda: run(device="cudaa"), ": cudaa. Name one such as"),
    "device: meta": (lambda: run(device="meta"), "meta"),
    "device: negative": (lambda: run(device=-1), "-1"),
    "device: a fraction": (lambda: run(device=1.5), "1.5"),
    "device: a list": (lambda: run(device=["cpu"]), "cpu"),
    "update: unknown": (lambda: run(preconditioner="rmsprop"), "rmsprop"),
    "update: a number": (lambda: run(preconditioner=1), "1"),
    "train: none": (lambda: run().self_influence(None), "train"),
    "train: a path": (lambda: run().self_influence("train.csv"), "train"),
    "train: a number": (lambda: run().self_influence(3), "train"),
    "train: a generator": (lambda: run().self_influence(x for x in X), "list"),
    "train: empty": (lambda: run().self_influence([]), "no examples"),
    "train: ragged": (lambda: run().self_influence((X, Y[:3])), "6 and"),
    "train: shuffled": (
        lambda: run().self_influence(DataLoader(list(zip(X, Y, strict=True)), shuffle=True)),
        "shuffle",
    ),
    "train: without labels": (lambda: run().self_influence(X), "labels"),
    "train: labels of floats": (lambda: run().self_influence((X, Y.float())), "integers"),
    "train: labels beyond": (lambda: run().self_influence((X, Y + 1)), "from 0 to 2"),
    "train: labels as booleans": (lambda: run().self_influence((X, Y > 0)), "integers"),
    "train: objects": (
        lambda: run().self_influence((np.array([object()] * 6), Y)),
        "no tensor can hold",
    ),
    "train: nan": (lambda: run().self_influence((X * torch.nan, Y)), "nan"),
    "queries: none": (lambda: run().influence(TRAIN, None), "test|queries"),
    "queries: empty": (lambda: run().influence(TRAIN, []), "no examples"),
    "queries: without labels": (lambda: run().influence(TRAIN, X), "labels"),
    "batch size: zero": (lambda: run().self_influence(TRAIN, batch_size=0), "batch_size"),
    "batch size: a text": (lambda: run().self_influence(TRAIN, batch_size="all"), "batch_size"),
    "batch size: none": (lambda: run().self_influence(TRAIN, batch_size=None), "batch_size"),
    "batch size: a fraction": (lambda: run().self_influence(TRAIN, batch_size=2.0), "batch_size"),
    "batch size: true": (lambda: run().self_influence(TRAIN, batch_size=True), "batch_size"),
    "k: zero": (lambda: run().explain(TRAIN, TRAIN, k=0), "k=0"),
    "k: too many": (lambda: run().explain(TRAIN, TRAIN, k=7), "k=7"),
    "k: a fraction": (lambda: run().explain(TRAIN, TRAIN, k=1.0), "k=1.0"),
    "k: a text": (lambda: run().explain(TRAIN, TRAIN, k="3"), "k='3'"),
    "k: true": (lambda: run().explain(TRAIN, TRAIN, k=True), "k=True"),
    "k: none": (lambda: run().explain(TRAIN, TRAIN, k=None), "k=None"),
    "normalise: unknown": (lambda: run().explain(TRAIN, TRAIN, k=1, normalise="l2"), "'l2'"),
    "normalise: true": (lambda: run().explain(TRAIN, TRAIN, k=1, normalise=True), "True"),
    "group: unknown": (lambda: run().explain(TRAIN, TRAIN, k=1, group="max"), "'max'"),
    "group: a list": (lambda: run().explain(TRAIN, TRAIN, k=1, group=["sum"]), "sum"),
    "rank by: unknown": (lambda: run().find_mislabelled(TRAIN, rank_by="entropy"), "entropy"),
    "rank by: a list": (lambda: run().find_mislabelled(TRAIN, rank_by=["loss"]), "loss"),
    "mislabelled: without classes": (
        lambda: run(lambda m, b: m(b[0]).sum(1)).find_mislabelled(TRAIN),
        "cross_entropy",
    ),
    "verify: no examples": (lambda: run().verify(TRAIN, examples=0), "examples"),
    "verify: a text": (lambda: run().verify(TRAIN, examples="all"), "examples"),
    "top: none": (lambda: run().find_mislabelled(TRAIN).top(0), "0"),
    "top: a fraction": (lambda: run().find_mislabelled(TRAIN).top(1.5), "1.5"),
    "top: a text": (lambda: run().find_mislabelled(TRAIN).top("2"), "'2'"),
    "top: half a hit": (lambda: run().explain(TRAIN, TRAIN, k=1).top(0.5), "0.5"),
    "ids: too few": (lambda: tracin.WithIds(TRAIN, [1]), "one id"),
    "ids: twice": (lambda: tracin.WithIds(TRAIN, [1] * 6), "twice"),
    "ids: mixed": (lambda: tracin.WithIds(TRAIN, [1, "a", 2, 3, 4, 5]), "one kind"),
    "ids: none": (lambda: tracin.WithIds(TRAIN, None), "None"),
    "ids: a number": (lambda: tracin.WithIds(TRAIN, 6), "6"),
    "with_ids: no loader": (lambda: tracin.with_ids(TRAIN), "DataLoader"),
    "checkpoint: a rate that is a text": (
        lambda: run(checkpoints=[tracin.Checkpoint(model().state_dict(), "0.1")]),
        "0.1",
    ),
    "save: a number": (lambda: run().find_mislabelled(TRAIN).save(3), "3"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_is_refused_in_words(name):
    call, words = MISUSES[name]

    with pytest.raises(tracin.TracInError) as caught:
        call()

    said = str(caught.value)
    assert re.search(words, said), said
    assert len(said) > 40, said
