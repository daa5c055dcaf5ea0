"""What `tracin init` writes: a run and a task that work as they are."""

from enum import StrEnum
from pathlib import Path

RUN = """\
# A run of tracin. Try it as it is:  tracin explain run.toml --query 0,1 -k 3
# Every setting can be changed for once:  --set explain.k=5
# A setting that is commented out shows its default, or, where "or" follows it, another choice.

[task]
# A Python function that returns a dict with model, loss, train, checkpoints and, if there are any,
# queries: "file.py:function" (relative to this file) or "package.module:function".
function = "task.py:task"

[tracin]
# By default: all trainable parameters.
# parameters = "last"             # or: the layer used last
# parameters = ["head.*"]         # or: these names or patterns
# By default: checkpoints weigh as the learning rates that were recorded.
# learning_rates = "span"         # or: and as the steps that each stands for
# learning_rates = "equal"        # or: all alike
# learning_rates = [0.1, 0.1]     # or: one per checkpoint
# By default: plain gradients, as in the paper. These find more, for passes over the data:
# preconditioner = "kfac"         # or: scores that predict retraining
# preconditioner = "ekfac"        # or: the same, with eigenvalues that are measured
# preconditioner = "kernel"       # or: the same, by whole gradients of some examples
# preconditioner = "adam"         # or, where Adam or AdamW took the steps
# preconditioner = "adam_kernel"  # or, where Adam or AdamW took the steps
# By default: what "kfac" and "ekfac" compute is not kept.
# curvature_folder = "curvature"  # or: kept here, relative to this file
# batch_size = "auto"
# batch_size = 32                 # or: examples
# batch_size = { tokens = 16384 } # or: tokens, for texts of unlike length
# By default: the device where the model is.
# device = "cuda"                 # or: moved there

[explain]
# k = 10
# normalise = "none"
# normalise = "cosine"            # or "query"
# group = "none"
# group = "mean"                  # or "sum": all queries are one
# drop_misclassified = false
# By default: queries' gradients are held exactly.
# query_form = { low_rank = 16 }  # or: many long queries of a large model in fewer passes

[ask]                             # of a language model with a "tokenizer"
# k = 5                           # texts of each kind
# new_tokens = 64                 # an answer that the model has not ended is cut off here
# normalise = "none"
# normalise = "cosine"            # or: long gradients do not lead
# near_copies = 0.8               # share of words in common from which texts are folded
# near_copies = "none"            # or: none is folded

[tokens]
# k = 3                           # proponents and opponents of each text, whose tokens have shares
# normalise = "none"              # by which texts are chosen
# normalise = "cosine"            # or: long gradients do not lead

[mislabelled]
# By default: "loss_and_margin" of classes, "residual" of numbers.
# rank_by = "loss"                # or "margin", "aum", "el2n", "final_loss", "self_influence", ...

[select]
# budget = 100                    # examples of the task's "pool", or of train, at most
# normalise = "none"
# normalise = "cosine"            # or "checkpoint_cosine", as in LESS
# duplicates = 0.98               # cosine of gradients from which two count as one
# duplicates = "none"             # or: all are kept

[replay]                          # of a task with an "optimizer"; see --template points
# k = 10
# path = "trapezoid"
# path = "first_order"            # or "midpoint", "simpson"
# start = 0                       # the first step
# By default: to the last step.
# stop = 50                       # or: ends before this step
# every = 1                       # trace each n-th step

[evaluate]                        # retrains if the task has a "fit"; see --template points
# k = 10                          # proponents to look at
# queries = 100                   # the first ones of the task's "queries"
# subsets = 50                    # halves of the data to train on, with the task's "fit"; 0: none
# seeds = 2                       # trainings per half
# first_seed = 1000               # other seeds than that of the model itself
# resamples = 1000                # of the queries, for the intervals

[index]
# folder = "index"                # relative to this file
# folder = "s3://bucket/index"    # or: a URL
# dim = 2048                      # numbers kept of each gradient
# By default: the numbers are divided by the gradients of a few examples.
# split = { "head.*" = 512 }      # or: these are for these parameters
# seed = 0
# number_format = "float16"
# number_format = "int8"          # or "float32"
# shard_size = 8192

[output]
# folder = "results"              # relative to this file
# examples = 5000                 # how many to keep for tracin view to show; 0 keeps none
"""


class Template(StrEnum):
    """What a task can begin as: the names of the files in the folder `templates`."""

    points = "points"
    image = "image"
    hf = "hf"
    lm = "lm"
    questions = "questions"
    regression = "regression"


_PLAIN = """\
# By default: plain gradients, as in the paper. These find more, for passes over the data:
"""
_OTHER = '# preconditioner = "adam" '
_ADAM = """\
# AdamW took the steps, so scores are of its steps. The others find more, for passes over the data:
preconditioner = "adam"
"""
_BY_ADAM = (Template.hf, Template.lm, Template.questions)


def run_text(template: Template) -> str:
    """The run.toml of a template, with the preconditioner that its optimizer asks for."""
    if template not in _BY_ADAM:
        return RUN
    lines = RUN.replace(_PLAIN, _ADAM).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(_OTHER))


def task_text(template: Template) -> str:
    """The task.py of a template; like each of them, a program that runs as it is."""
    return (Path(__file__).parent / "templates" / f"{template}.py").read_text(encoding="utf-8")
