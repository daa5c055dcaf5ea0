"""MNIST as in section 4.3 of the paper: planted wrong labels found, put right, and explained.

TRACIN_DATA=data python -m experiments.mnist --threads 1
TRACIN_DATA=data python -m experiments.mnist --quick      # seconds: a twentieth of the data

--scale shortens the trainings: a share of the 140 epochs, at a rate higher by as much.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import tracin
from experiments import mnist_report
from experiments.harness import Experiment, parsed
from experiments.mnist_images import Images, first, open_mnist
from experiments.mnist_scores import (
    InfluenceSettings,
    explained,
    influence_functions,
    scores_of,
)
from experiments.training import (
    Recipe,
    accuracy,
    copied,
    net,
    scores,
    shortened,
    traced_self_influence,
    trained,
)
from tracin.analysis import HighestWrong, NoisyLabels, fix_and_retrain, noisy_labels

NOISE = 0.1
INSPECTED = (0.0, 0.1)
RETRAINED = ("TracInCP", "representer points", "EL2N")
RETRAINING = 0.25  # of the epochs: many trainings
QUICK = 800  # images
INFLUENCE = InfluenceSettings(damping=1.0, steps=20, curvature=500, probes=16)
QUICK_INFLUENCE = InfluenceSettings(damping=4.0, steps=20, curvature=100, probes=6)


@dataclass(frozen=True, eq=False)
class Seed:
    """What one seed gave.

    Attributes:
        clean: Of the training on right labels: accuracies and seconds.
        noisy: Of the traced training on labels of which some are wrong: the same.
        planted: The wrong labels.
        scores: By name, [train], high where suspect.
        costs: By name, seconds on the machine of the run.
        damping: That influence functions needed.
        retrained: `values` [rankings, fractions] and `limit`, test accuracies.
    """

    clean: Mapping[str, float]
    noisy: Mapping[str, float]
    planted: NoisyLabels
    scores: Mapping[str, Tensor]
    costs: Mapping[str, float]
    damping: float
    retrained: Mapping[str, Tensor]


def main(arguments: list[str] | None = None) -> None:
    """Run all of it and write what came out."""
    options = parsed("mnist", __doc__ or "", 3, arguments)
    influence = QUICK_INFLUENCE if options.is_quick else INFLUENCE
    experiment = Experiment("mnist", options, {"noise": NOISE})
    images = open_mnist()
    if options.is_quick:
        images = first(images, QUICK)
    found = [one_seed(experiment, images, seed, influence) for seed in experiment.seeds]
    pictures = experiment.step(
        f"explained/{influence}", lambda: pictured(experiment, images, influence)
    )
    report(experiment, images, found, pictures, influence)
    experiment.finish()


def report(
    experiment: Experiment,
    images: Images,
    found: Sequence[Seed],
    pictures: Mapping[str, Any],
    influence: InfluenceSettings,
) -> None:
    """Hand in what came out."""
    recipe = recipe_of(experiment, 0)
    mnist_report.how_it_was_trained(experiment, recipe, len(images.train_labels))
    mnist_report.models(experiment, [each.clean for each in found], [each.noisy for each in found])
    wrong = int(found[0].planted.is_noisy.sum())
    experiment.say(
        f"The share of the {wrong:,} wrong labels found by the share of the images inspected; "
        "AP is average precision; seconds are by the clock, on a machine that others used. "
        "Influence functions are over all parameters at the last checkpoint: "
        f"{influence.probes} random vectors in place of the examples' gradients, {influence.steps} "
        f"steps of conjugate gradient at most, the Hessian of {influence.curvature:,} images, "
        f"damping {', '.join(f'{each.damping:g}' for each in found)}, doubled from "
        f"{influence.damping:g} until the Hessian was positive definite."
    )
    mnist_report.found(
        experiment,
        [each.planted for each in found],
        [each.scores for each in found],
        [each.costs for each in found],
    )
    again = recipe_of(experiment, 0, RETRAINING)
    experiment.say(
        f"Labels put right where a ranking shows them, and the net trained again ({again.epochs} "
        f"epochs at rate {again.rate:g}):"
    )
    mnist_report.put_right(experiment, RETRAINED, INSPECTED, [each.retrained for each in found])
    experiment.say(
        "Figure 3 of the paper, by the net that was trained on right labels; the query on the "
        "left, three proponents, three opponents:"
    )
    mnist_report.figure_3(experiment, images, pictures)


def recipe_of(experiment: Experiment, seed: int, share: float = 1.0) -> Recipe:
    """How to train: as the paper did, shortened."""
    if experiment.options.is_quick:
        return Recipe(epochs=5, rate=0.1, batch=50, seed=seed)
    return shortened(share * experiment.options.scale, seed)


def one_seed(
    experiment: Experiment, images: Images, seed: int, influence: InfluenceSettings
) -> Seed:
    """Train on right and on wrong labels, rank, and train again."""
    recipe = recipe_of(experiment, seed)
    clean = experiment.step(f"right labels/{seed}", lambda: trained_right(images, recipe))
    planted = noisy_labels(images.train_labels, HighestWrong(clean["scores"]), NOISE, seed=seed)
    train = images.train_images, planted.labels
    noisy = experiment.step(f"wrong labels/{seed}", lambda: trained_wrong(images, planted, recipe))
    run = run_of(noisy["states"], recipe)
    ranked = experiment.step(f"scores/{seed}", lambda: scores_of(run, train, seed))
    every = {"TracIn, every step": noisy["self_influence"], **ranked["scores"]}
    influential = experiment.step(
        f"influence functions/{seed}/{influence}",
        lambda: influence_functions(run, train, influence, seed),
    )
    again = experiment.step(
        f"put right and trained again/{seed}/{RETRAINING}/{INSPECTED}",
        lambda: trained_again(experiment, images, planted, every, seed),
    )
    every["influence functions"] = influential["values"]
    costs = {**ranked["seconds"], "influence functions": influential["seconds"]}
    return Seed(clean, noisy, planted, every, costs, influential["damping"], again)


def run_of(states: list[dict[str, Tensor]], recipe: Recipe) -> tracin.TracIn:
    """The checkpoints of a training, weighted by its rate."""
    checkpoints = [tracin.Checkpoint(state, recipe.rate) for state in states]
    return tracin.TracIn(net(recipe), "cross_entropy", checkpoints)


def trained_right(images: Images, recipe: Recipe) -> dict[str, Any]:
    """The paper's footnote 11, and the checkpoints of the training."""
    model = net(recipe)
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        done = trained(model, images.train_images, images.train_labels, recipe, record=Path(folder))
        seconds = perf_counter() - start
        recorded = tracin.open_checkpoints(folder)
        states = []
        for epoch in recipe.checkpoint_epochs:
            with tracin.checkpoints.loaded(model, recorded[epoch - 1]):
                states.append(copied(model))
    return {
        "states": states,
        "scores": scores(model, images.train_images),
        "seconds": seconds,
        "epoch": done.epoch_seconds,
        **accuracies(model, images, images.train_labels),
    }


def trained_wrong(images: Images, planted: NoisyLabels, recipe: Recipe) -> dict[str, Any]:
    """The paper's footnote 10; every step is traced."""
    model = net(recipe)
    with tempfile.TemporaryDirectory() as folder:
        train = images.train_images, planted.labels
        followed = traced_self_influence(model, train, recipe, Path(folder))
    return {
        "states": followed.states,
        "self_influence": followed.self_influence,
        "seconds": followed.seconds,
        **accuracies(model, images, planted.labels),
    }


def accuracies(model: nn.Module, images: Images, labels: Tensor) -> dict[str, float]:
    """On the labels that were learnt, and on the test set."""
    return {
        "train": accuracy(model, images.train_images, labels),
        "test": accuracy(model, images.test_images, images.test_labels),
    }


def trained_again(
    experiment: Experiment,
    images: Images,
    planted: NoisyLabels,
    rankings: Mapping[str, Tensor],
    seed: int,
) -> dict[str, Tensor]:
    """Put the labels right that a ranking shows first, and train on what is left (figure 1a)."""
    recipe = recipe_of(experiment, seed, RETRAINING)

    def fit(data: tuple[Tensor, Tensor]) -> nn.Module:
        return trained(net(recipe), *data, recipe).model

    def metric(model: nn.Module) -> float:
        return accuracy(model, images.test_images, images.test_labels)

    found = fix_and_retrain(
        (images.train_images, images.train_labels),
        planted,
        {name: rankings[name] for name in RETRAINED},
        fit,
        metric,
        fractions=INSPECTED,
        seeds=[seed],
        folder=experiment.options.folder / f"trained-again-{seed}",
        settings={"recipe": str(recipe)},
    )
    assert found.limit is not None
    return {"values": found.values[..., 0], "changed": found.changed[..., 0], "limit": found.limit}


def pictured(
    experiment: Experiment, images: Images, influence: InfluenceSettings
) -> dict[str, Any]:
    """Figure 3: a 3 that is read right and a 6 that is not, by the net of seed 0."""
    recipe = recipe_of(experiment, 0)
    clean = experiment.step("right labels/0", lambda: trained_right(images, recipe))
    run = run_of(clean["states"], recipe)
    model = net(recipe)
    model.load_state_dict(clean["states"][-1])
    answers = scores(model, images.test_images).argmax(1)
    is_right = answers == images.test_labels
    right_3 = ((images.test_labels == 3) & is_right).nonzero()[0, 0]
    wrong_6 = ((images.test_labels == 6) & ~is_right).nonzero()[0, 0]
    queries = torch.stack([right_3, wrong_6])
    train = images.train_images, images.train_labels
    asked = images.test_images[queries], images.test_labels[queries]
    return {
        "queries": queries,
        "answers": answers[queries],
        "lists": explained(run, train, asked, influence),
    }


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
