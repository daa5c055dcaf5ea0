"""Section 5.1 of the paper: which homes the price of a Palo Alto home comes from; typing errors.

python -m experiments.california               # reads TRACIN_DATA, or downloads 0.4 MB
python -m experiments.california --scale 0.5   # half the epochs
python -m experiments.california --quick       # seconds: 1,000 homes, few epochs
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from experiments.california_homes import ELSEWHERE, REGIONS, Homes, open_homes
from experiments.harness import Experiment, parsed
from experiments.over_seeds import half_width, written
from experiments.training import Recipe, fully_connected
from experiments.typos import KINDS, with_typos
from tracin.analysis import FoundCurve, found_curve
from tracin.statistics import pearson

SIZES = (8, 512, 256, 128, 1)  # 168,961 parameters; the paper says "168K" and no widths
RATE, QUICK_RATE, BATCH, EPOCHS, CHECKPOINTS = 1e-5, 1e-3, 512, 200, 10
TEST_SHARE, TYPOS, UNIT = 0.2, 0.04, 100_000.0
SHOWN, EXTREME, QUICK_HOMES = 20, 0.01, 1000
RAW_RATE = 1e-3  # features as they come; the smaller rate would hardly move
INSPECTED = (0.02, 0.04, 0.1, 0.2)
BAY = ("Palo Alto", "San Francisco", "rest of the Bay Area")
SCORES = {
    "self_influence": "TracIn, all layers",
    "self_influence_last": "TracIn, last layer",
    "residual": "residual",
    "loss": "squared error",
}


@dataclass(frozen=True, eq=False)
class Split:
    """Homes divided 8:2 for one seed.

    Attributes:
        train: Positions: [train].
        test: Positions: [test]; the first is the query that is drawn.
        inputs: Features with mean 0 and deviation 1 over train: [homes, 8].
        prices: In units of 100,000 dollars: [homes].
    """

    train: Tensor
    test: Tensor
    inputs: Tensor
    prices: Tensor


def main(arguments: list[str] | None = None) -> None:
    """Run all of it."""
    options = parsed("california", __doc__ or "", 3, arguments)
    rate = QUICK_RATE if options.is_quick else RATE
    settings = {"sizes": SIZES, "rate": rate, "batch": BATCH, "typos": TYPOS, "raw": RAW_RATE}
    experiment = Experiment("california", options, settings)
    homes = open_homes()
    epochs = CHECKPOINTS if options.is_quick else experiment.scaled(EPOCHS, CHECKPOINTS)
    half = max(CHECKPOINTS, epochs // 2)
    regions = homes.regions()
    density = experiment.step("density", homes.density)
    runs = []
    for seed in experiment.seeds:
        split = divided(homes, regions, seed, QUICK_HOMES if options.is_quick else None)
        recipe = Recipe(epochs, rate, BATCH, seed)
        found = experiment.step(
            f"right prices, seed {seed}",
            lambda s=split, r=recipe: explained(s, regions, r),
        )
        wrong = experiment.step(
            f"typos, seed {seed}",
            lambda s=split, r=recipe: searched(s, homes, r),
        )
        raw_recipe = replace(recipe, epochs=half, rate=RAW_RATE)
        raw = experiment.step(
            f"features as they come, seed {seed}",
            lambda s=split, r=raw_recipe: scored_raw(s, homes, r),
        )
        runs.append({**found, **wrong, "raw": raw, "split": split})
    tell_models(experiment, runs, epochs, rate)
    tell_proponents(experiment, runs, homes, regions)
    tell_self_influence(experiment, runs, homes, density)
    tell_typos(experiment, runs)
    experiment.finish()


def divided(homes: Homes, regions: np.ndarray, seed: int, few: int | None) -> Split:
    """Divide the homes, so that some of Palo Alto's are among the test homes."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(homes), generator=generator)
    size = len(homes) if few is None else few
    order = order[:size]
    cut = round(TEST_SHARE * size)
    train, test = order[cut:], order[:cut]
    if few is not None:  # so few homes hold hardly one of Palo Alto
        there = torch.from_numpy(np.flatnonzero(regions == "Palo Alto"))
        train, test = train[~torch.isin(train, there)], torch.cat([there[:5], test])
        test = test.unique()
    nearest = homes.from_palo_alto()[test].argsort()
    test = test[nearest]
    means, deviations = homes.features[train].mean(0), homes.features[train].std(0)
    inputs = ((homes.features - means) / deviations).float()
    return Split(train, test, inputs, (homes.dollars / UNIT).float())


def net(seed: int) -> nn.Sequential:
    """Three hidden layers, as in the paper."""
    return fully_connected(SIZES, seed)


def fitted(split: Split, prices: Tensor, recipe: Recipe) -> list[dict[str, Tensor]]:
    """Train by Adam on the mean squared error; weights at the end of every tenth of the epochs."""
    model = net(recipe.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    generator = torch.Generator().manual_seed(recipe.seed)
    every, kept = recipe.epochs // CHECKPOINTS, []
    for epoch in range(1, recipe.epochs + 1):
        for rows in torch.randperm(len(split.train), generator=generator).split(recipe.batch):
            batch = split.train[rows]
            optimizer.zero_grad()
            F.mse_loss(model(split.inputs[batch])[:, 0], prices[batch]).backward()
            optimizer.step()
        if epoch % every == 0:
            kept.append({name: each.clone() for name, each in model.state_dict().items()})
    return kept[:CHECKPOINTS]


def traced(states: Sequence[Mapping[str, Tensor]], recipe: Recipe) -> tracin.TracIn:
    """TracIn over all layers; the rate was the same at all checkpoints."""
    return tracin.TracIn(
        net(recipe.seed), "mse", list(states), learning_rates=[recipe.rate] * len(states)
    )


def explained(split: Split, regions: np.ndarray, recipe: Recipe) -> dict[str, Any]:
    """Train on the right prices; explain Palo Alto's test homes, score all training homes."""
    states = fitted(split, split.prices, recipe)
    run = traced(states, recipe)
    model = run.model
    model.load_state_dict(states[-1])
    with torch.no_grad():
        predicted = model(split.inputs)[:, 0]
    train = split.inputs[split.train], split.prices[split.train]
    is_query = torch.from_numpy(regions[split.test.numpy()] == "Palo Alto")
    asked = split.test[is_query]
    queries = split.inputs[asked], split.prices[asked]
    lists = {}
    for name, normalise in (("plain", None), ("cosine", "cosine")):
        found = run.explain(train, queries, k=SHOWN, normalise=normalise)
        lists[name] = split.train[torch.from_numpy(found.proponents.positions)]
        lists[f"{name} opponents"] = split.train[torch.from_numpy(found.opponents.positions)]
    return {
        "variance train": variance_explained(predicted, split.prices, split.train),
        "variance test": variance_explained(predicted, split.prices, split.test),
        "queries": asked,
        "lists": lists,
        "self-influence": run.self_influence(train),
        "residuals": (split.prices - predicted)[split.train],
    }


def variance_explained(predicted: Tensor, prices: Tensor, homes: Tensor) -> float:
    """1 - variance of the residuals / variance of the prices."""
    residuals = prices[homes] - predicted[homes]
    return float(1 - residuals.var() / prices[homes].var())


def searched(split: Split, homes: Homes, recipe: Recipe) -> dict[str, Any]:
    """Spoil training prices, train on them, rank the homes."""
    typed, kinds = with_typos(homes.dollars[split.train], TYPOS, recipe.seed)
    prices = split.prices.clone()
    prices[split.train] = (typed / UNIT).float()
    run = traced(fitted(split, prices, recipe), recipe)
    suspects = run.find_mislabelled((split.inputs[split.train], prices[split.train]))
    back = np.argsort(suspects.positions)
    return {
        "kinds": kinds,
        "scores": {name: suspects.scores[name][torch.from_numpy(back)] for name in SCORES},
    }


def scored_raw(split: Split, homes: Homes, recipe: Recipe) -> dict[str, Any]:
    """Train on the features as they come, and score all training homes."""
    raw = replace(split, inputs=homes.features.float())
    states = fitted(raw, raw.prices, recipe)
    run = traced(states, recipe)
    model = run.model
    model.load_state_dict(states[-1])
    with torch.no_grad():
        predicted = model(raw.inputs)[:, 0]
    return {
        "variance": variance_explained(predicted, raw.prices, raw.test),
        "self-influence": run.self_influence((raw.inputs[raw.train], raw.prices[raw.train])),
        "residuals": (raw.prices - predicted)[raw.train],
    }


def tell_models(
    experiment: Experiment, runs: list[dict[str, Any]], epochs: int, rate: float
) -> None:
    """The accuracy, next to footnote 12 of the paper."""
    sizes = "-".join(map(str, SIZES))
    experiment.say(
        f"Net {sizes} (168,961 parameters) on standardised features, Adam at {rate:g}, batches of "
        f"{BATCH}, {epochs} epochs, {CHECKPOINTS} checkpoints, one at the end of every tenth of "
        f"them; {len(runs[0]['split'].train):,} homes to train on and "
        f"{len(runs[0]['split'].test):,} to test. Figures are means over seeds with their 95 % "
        "interval (Student's t)."
    )
    experiment.table(
        ["explained variance", "here", "paper"],
        [
            [part, written([run[f"variance {part}"] for run in runs]), paper]
            for part, paper in (("train", "0.72"), ("test", "0.70"))
        ],
    )


def tell_proponents(
    experiment: Experiment, runs: list[dict[str, Any]], homes: Homes, regions: np.ndarray
) -> None:
    """Where the strongest proponents of Palo Alto's test homes lie."""
    names = [*REGIONS, ELSEWHERE]
    shares: dict[str, list[dict[str, float]]] = {"all": [], "plain": [], "cosine": []}
    dear, own_price, distinct, catalina = [], [], [], []
    for run in runs:
        train = run["split"].train
        middle = float(homes.dollars[train].median())
        for kind, places in (("all", train), *run["lists"].items()):
            if kind in shares:
                here = regions[places.flatten().numpy()]
                shares[kind].append({name: float((here == name).mean()) for name in names})
        top = run["lists"]["plain"]
        dear.append(float((homes.dollars[top] > middle).double().mean()))
        own_price.append(float(homes.dollars[run["queries"]].median()))
        distinct.append(float(len(top.unique()) / top.numel()))
        catalina.append(int((regions[top.flatten().numpy()] == "Santa Catalina").sum()))
    first = runs[0]
    query, top = first["queries"][0], first["lists"]["plain"][0]
    paper = {
        "rest of the Bay Area": "named first",
        "San Francisco": "named",
        "Sacramento": "named",
        "Los Angeles": "named",
        "Santa Catalina": "one of them",
    }
    queries = [len(run["queries"]) for run in runs]
    experiment.say(
        f"**Proponents of Palo Alto homes.** The {SHOWN} strongest proponents of each of the test "
        f"homes in Palo Alto ({', '.join(map(str, queries))} by seed), by where they lie; the "
        "paper gives no numbers. The last column divides scores by the lengths of the gradients, "
        "so that loud homes do not lead every list."
    )
    experiment.table(
        ["region", "paper", "all training homes", "proponents", "by cosine"],
        [
            [
                name,
                paper.get(name, ""),
                *(written([run[name] for run in shares[kind]]) for kind in shares),
            ]
            for name in names
        ],
    )
    in_bay = [sum(run[name] for name in BAY) for run in shares["plain"]]
    all_bay = [sum(run[name] for name in BAY) for run in shares["all"]]
    experiment.say(
        f"In the whole Bay Area lie {written(in_bay)} of the proponents and {written(all_bay)} of "
        f"the training homes. {written(dear)} of the proponents are dearer than the median home. "
        f"Of Santa Catalina's five homes, {sum(catalina)} {'is' if sum(catalina) == 1 else 'are'} "
        f"among the {sum(run['lists']['plain'].numel() for run in runs):,} places of all lists. "
        f"Distinct homes in the lists: {written(distinct)} of the places, so that much is shared "
        "by all of Palo Alto."
    )
    opponents = first["lists"]["plain opponents"][0]
    figure = Figure(figsize=(6.4, 6.6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(homes.longitudes, homes.latitudes, s=1, c="#cccccc", linewidths=0)
    for places, colour, marker, label in (
        (opponents, "#c0392b", "v", f"{SHOWN} strongest opponents"),
        (top, "#1f5fa8", "^", f"{SHOWN} strongest proponents"),
        (query[None], "black", "*", "the home in Palo Alto"),
    ):
        axes.scatter(
            homes.longitudes[places],
            homes.latitudes[places],
            s=140 if marker == "*" else 36,
            c=colour,
            marker=marker,
            alpha=0.75,
            label=f"{label}, ${float(homes.dollars[places].median()):,.0f}",
        )
    axes.set(xlabel="longitude", ylabel="latitude", aspect=1.25)
    axes.legend(loc="upper right", title="median price", fontsize=8)
    experiment.figure(
        figure, "palo-alto", "Where the proponents and opponents of a Palo Alto home lie"
    )


def ranks(values: Tensor) -> Tensor:
    """Each value's place; equal values share the mean of their places."""
    _, group, size = torch.unique(values, return_inverse=True, return_counts=True)
    end = size.cumsum(0).double()
    return (end - (size - 1) / 2)[group]


def spearman(ours: Tensor, theirs: Tensor) -> float:
    """The rank correlation."""
    return float(pearson(ranks(ours), ranks(theirs)))


def tell_self_influence(
    experiment: Experiment, runs: list[dict[str, Any]], homes: Homes, density: Tensor
) -> None:
    """Whether high self-influence is where many live."""
    kinds = {"standardised": runs, "as they come": [run["raw"] for run in runs]}
    extremes: dict[str, list[list[float]]] = {}
    facts: dict[str, list[list[float]]] = {}
    for found in kinds.values():
        lines: dict[str, list[float]] = {}
        columns: dict[str, list[float]] = {}
        for run, each in zip(runs, found, strict=True):
            train, own = run["split"].train, each["self-influence"]
            order = own.argsort()
            few = max(1, round(EXTREME * len(own)))
            for name, places in (
                (f"highest {EXTREME:.0%} of self-influence", order[-few:]),
                ("all", order),
                (f"lowest {EXTREME:.0%} of self-influence", order[:few]),
            ):
                lines.setdefault(name, []).append(float(density[train[places]].median()))
            for name, values in (
                ("people per km² within 10 km", density[train]),
                ("people in the block group", homes.population[train]),
                ("price", homes.dollars[train]),
                ("size of the residual", each["residuals"].abs()),
            ):
                columns.setdefault(name, []).append(spearman(own, values))
        for name, values in lines.items():
            extremes.setdefault(name, []).append(values)
        for name, values in columns.items():
            facts.setdefault(name, []).append(values)
    variance = written([run["raw"]["variance"] for run in runs])
    experiment.say(
        "**Self-influence and density.** The paper: high self-influence comes from densely "
        "populated places, low from sparse ones. It does not say how features were scaled, so the "
        "net is also trained on features as they come (half the epochs, rate "
        f"{RAW_RATE:g}, explained variance {variance} on the test homes). Median people per square "
        "kilometre within 10 km:"
    )
    paper = dict(zip(extremes, ("dense", "", "sparse"), strict=True))
    experiment.table(
        ["training homes", "paper", *(f"features {name}" for name in kinds)],
        [
            [name, paper[name], *(written(each, 0) for each in columns)]
            for name, columns in extremes.items()
        ],
    )
    experiment.table(
        ["rank correlation of self-influence with", *(f"features {name}" for name in kinds)],
        [[name, *(written(each) for each in columns)] for name, columns in facts.items()],
    )
    train, own = runs[0]["split"].train, runs[0]["self-influence"]
    order, few = own.argsort(), max(1, round(EXTREME * len(own)))
    figure = Figure(figsize=(9.6, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    shades = left.scatter(
        homes.longitudes[train],
        homes.latitudes[train],
        s=2,
        c=density[train].clamp(min=1).log10(),
        cmap="Greys",
        linewidths=0,
    )
    for places, colour, label in (
        (train[order[:few]], "#1f5fa8", f"lowest {EXTREME:.0%}"),
        (train[order[-few:]], "#c0392b", f"highest {EXTREME:.0%}"),
    ):
        left.scatter(
            homes.longitudes[places], homes.latitudes[places], s=7, c=colour, label=label, alpha=0.7
        )
    left.set(xlabel="longitude", ylabel="latitude", aspect=1.25)
    left.legend(title="self-influence", fontsize=8)
    figure.colorbar(shades, ax=left, label="log10 of people per km²", shrink=0.7)
    parts = own[density[train].argsort()].chunk(20)
    places = density[train].sort().values.chunk(20)
    right.plot(
        [float(each.median()) for each in places],
        [float(each.median()) for each in parts],
        "o-",
        color="black",
        label="median of a twentieth",
    )
    right.plot(
        [float(each.median()) for each in places],
        [float(each.quantile(0.99)) for each in parts],
        "s--",
        color="#c0392b",
        label="99th percentile",
    )
    right.set(
        xlabel="people per km² within 10 km",
        ylabel="self-influence",
        xscale="log",
        yscale="log",
    )
    right.legend(fontsize=8)
    experiment.figure(
        figure, "self-influence", "Self-influence of training homes, and how densely people live"
    )


def tell_typos(experiment: Experiment, runs: list[dict[str, Any]]) -> None:
    """What each score finds of the typing errors, in all and by kind."""
    curves: dict[str, list[FoundCurve]] = {name: [] for name in SCORES}
    by_kind: dict[str, list[list[float]]] = {name: [[] for _ in KINDS] for name in SCORES}
    for run in runs:
        kinds = run["kinds"]
        for name in SCORES:
            values = run["scores"][name].abs()
            curves[name].append(found_curve(values, kinds >= 0, INSPECTED))
            for kind in range(len(KINDS)):
                counted = (kinds == kind) | (kinds < 0)
                curve = found_curve(values[counted], kinds[counted] == kind)
                by_kind[name][kind].append(curve.auroc)
    experiment.say(
        f"**Typing errors found.** {TYPOS:.0%} of the training prices, as many of each of "
        f"{len(KINDS)} kinds, are spoiled before training, and `find_mislabelled` ranks the homes. "
        "The paper has no such experiment. The share found by the share inspected:"
    )
    experiment.table(
        ["score", *(f"{share:.0%}" for share in INSPECTED), "AUROC", "AP"],
        [
            [
                label,
                *(written([each.found[share] for each in curves[name]]) for share in INSPECTED),
                written([each.auroc for each in curves[name]]),
                written([each.average_precision for each in curves[name]]),
            ]
            for name, label in SCORES.items()
        ],
    )
    experiment.say("AUROC by kind of error, against the right prices:")
    experiment.table(
        ["score", *KINDS],
        [[label, *(written(values) for values in by_kind[name])] for name, label in SCORES.items()],
    )
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, label in SCORES.items():
        found = torch.stack([each.curve for each in curves[name]])
        mean, half = found.mean(0), half_width(found).nan_to_num()
        inspected = torch.linspace(0, 1, found.shape[1])
        (line,) = axes.plot(inspected, mean, label=label)
        axes.fill_between(
            inspected, mean - half, mean + half, color=line.get_color(), alpha=0.2, linewidth=0
        )
    axes.plot([0, 1], [0, 1], ":", color="grey", label="random")
    axes.set(
        xlabel="share of the homes inspected",
        ylabel="share of the typing errors found",
        xlim=(0, 0.4),
        ylim=(0, 1),
    )
    axes.legend(loc="lower right")
    experiment.figure(figure, "typos", "Typing errors in prices found by inspecting a ranking")


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
