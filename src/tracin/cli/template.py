"""What `tracin init` writes: a run and a task that work as they are."""

RUN = """\
# A run of tracin. Try it as it is:  tracin explain run.toml --query 0,1 -k 3
# Every setting can be changed for once:  --set explain.k=5

[task]
# A Python function that returns a dict with model, loss, train, checkpoints and, if there are any,
# queries: "file.py:function" (relative to this file) or "package.module:function".
function = "task.py:task"

[tracin]
# parameters = "last"          # all trainable ones if left out; "last" layer; or ["head.*", ...]
# learning_rates = "span"      # the recorded ones if left out; "equal"; "span"; or [0.1, 0.1]
# preconditioner = "kfac"      # scores that predict retraining; "ekfac"; "kernel"; or "adam",
                               # which needs Recorder(..., optimizer_state=True)
# curvature_folder = "curvature"  # keeps what "kfac" and "ekfac" compute, relative to this file
# batch_size = "auto"          # or a number
# device = "cuda"              # where the model is if left out

[explain]
# k = 10
# normalise = "cosine"         # "none", "cosine" or "query"
# group = "mean"               # "none"; "sum" or "mean" make all queries one
# drop_misclassified = true

[ask]
# k = 5                        # texts of each kind, of a language model with a "tokenizer"
# new_tokens = 64              # how long an answer may be
# normalise = "cosine"         # "none" or "cosine"
# near_copies = 0.8            # share of words in common from which texts are folded; "none"

[mislabelled]
# rank_by = "loss"             # "loss_and_margin" of classes, "residual" of numbers if left out;
                               # or "margin", "aum", "el2n", "final_loss", "self_influence", ...

[select]
# budget = 100                 # how many examples of the task's "pool", or of train, at most
# normalise = "cosine"         # "none", "cosine" or "checkpoint_cosine", as in LESS
# duplicates = 0.98            # cosine of gradients from which two count as one; "none" keeps all

[replay]
# k = 10
# path = "first_order"         # "trapezoid" if left out; "midpoint"; "simpson"
# start = 0                    # steps; stop = 50 ends before step 50
# every = 1                    # trace each n-th step

[evaluate]
# k = 10                       # proponents to look at
# queries = 100                # the first ones of the task's "queries"
# subsets = 50                 # halves of the data to train on, with the task's "fit"; 0 for none
# seeds = 2                    # trainings per half
# first_seed = 1000            # other seeds than that of the model itself

[index]
# folder = "index"             # relative to this file, or a URL such as "s3://bucket/index"
# dim = 2048                   # numbers kept of each gradient
# seed = 0
# number_format = "float16"    # or "int8", "float32"
# shard_size = 8192

[output]
# folder = "results"           # relative to this file
# examples = 5000              # how many to keep for tracin view to show; 0 keeps none
"""

TASK = '''\
"""The task that run.toml names: put your own model, loss, data and checkpoints here."""

from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import tracin
from tracin.evaluate import StackedFit

FOLDER = Path(__file__).parent / "checkpoints"
EPOCHS = 5


def data(examples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in the plane, labelled by the ring that they are in: inputs first, then labels."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(examples, 2, generator=generator)
    labels = (points.norm(dim=1) > 1.2).long()
    wrong = torch.rand(examples, generator=generator) < 0.05  # some labels are wrong, as in life
    return points, torch.where(wrong, 1 - labels, labels)


def network() -> nn.Module:
    """A new model."""
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))


def task() -> dict[str, object]:
    """What tracin needs to know."""
    torch.manual_seed(0)
    model = network()
    train = data(300, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sgd = partial(torch.optim.SGD, lr=0.5)
    refit = StackedFit(network, "cross_entropy", sgd, epochs=EPOCHS, batch_size=30)
    if len(list(FOLDER.glob("*.safetensors"))) <= EPOCHS:
        fit(model, optimizer, train)
    return {
        "model": model,
        "loss": "cross_entropy",  # or "mse", "causal_lm", or loss(model, batch) -> [examples]
        "train": train,  # tensors, a Dataset, or an unshuffled DataLoader
        "queries": data(20, seed=2),
        "checkpoints": FOLDER,  # a Recorder's folder, a glob, or a list of files
        "optimizer": optimizer,  # for tracin replay alone
        "fit": refit,  # for tracin evaluate alone: fit(data) -> a model trained on it
    }


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """An ordinary training loop; the Recorder saves weights with the learning rates really used."""
    with tracin.Recorder(model, optimizer, FOLDER, every="epoch") as recorder:
        recorder.save()  # where training begins
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(train[0])).split(30):
                recorder.batch(rows)  # for tracin replay alone
                loss = F.cross_entropy(model(train[0][rows]), train[1][rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            recorder.epoch()
'''
