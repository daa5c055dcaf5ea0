"""What `tracin init` writes: a run and a task that work as they are."""

from enum import StrEnum
from pathlib import Path

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
# preconditioner = "kfac"      # scores that predict retraining; "ekfac"; "kernel"; or, where Adam
                               # or AdamW took the steps, "adam" or "adam_kernel"
# curvature_folder = "curvature"  # keeps what "kfac" and "ekfac" compute, relative to this file
# batch_size = "auto"          # a number of examples, or { tokens = 16_384 } for texts
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

[tokens]
# k = 3                        # proponents and opponents of each text, whose tokens have shares
# normalise = "cosine"         # "none" or "cosine": by which texts are chosen

[mislabelled]
# rank_by = "loss"             # "loss_and_margin" of classes, "residual" of numbers if left out;
                               # or "margin", "aum", "el2n", "final_loss", "self_influence", ...

[select]
# budget = 100                 # how many examples of the task's "pool", or of train, at most
# normalise = "cosine"         # "none", "cosine" or "checkpoint_cosine", as in LESS
# duplicates = 0.98            # cosine of gradients from which two count as one; "none" keeps all

[replay]                       # of a task with an "optimizer"; see --template points
# k = 10
# path = "first_order"         # "trapezoid" if left out; "midpoint"; "simpson"
# start = 0                    # steps; stop = 50 ends before step 50
# every = 1                    # trace each n-th step

[evaluate]                     # retrains if the task has a "fit"; see --template points
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


class Template(StrEnum):
    """What a task can begin as: the names of the files in the folder `templates`."""

    points = "points"
    image = "image"
    hf = "hf"
    lm = "lm"
    questions = "questions"
    regression = "regression"


_CURVATURE = """\
# preconditioner = "kfac"      # scores that predict retraining; "ekfac"; "kernel"; or, where Adam
                               # or AdamW took the steps, "adam" or "adam_kernel"
"""
_ADAM = """\
preconditioner = "adam"        # AdamW took the steps; "adam_kernel", "kfac", "ekfac" and "kernel"
                               # find more, for one or two passes over the data
"""
_BY_ADAM = (Template.hf, Template.lm, Template.questions)


def run_text(template: Template) -> str:
    """The run.toml of a template, with the preconditioner that its optimizer asks for."""
    return RUN.replace(_CURVATURE, _ADAM) if template in _BY_ADAM else RUN


def task_text(template: Template) -> str:
    """The task.py of a template; like each of them, a program that runs as it is."""
    return (Path(__file__).parent / "templates" / f"{template}.py").read_text(encoding="utf-8")
