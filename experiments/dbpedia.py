"""Section 5.2 of the paper: opponents of a politician's article among texts (Table 1), on a subset.

python -m experiments.dbpedia           # reads TRACIN_DATA, or downloads 68 MB
python -m experiments.dbpedia --quick   # seconds: 1,500 articles, few epochs
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from experiments.dbpedia_articles import LONGEST, PADDING, PIECES, Articles, open_dbpedia, pieces_of
from experiments.harness import Experiment, parsed
from experiments.over_seeds import half_width, written
from experiments.training import Recipe

WIDTH, HIDDEN = 32, 64
RATE, BATCH, EPOCHS, CHECKPOINTS = 3e-4, 256, 60, 6
QUICK_RATE, QUICK_ARTICLES = 1e-2, 1500
SHOWN, QUERIES, LETTERS = 3, 200, 170
POLITICIAN, ARTIST = "OfficeHolder", "Artist"
TITLES = ("Manuel Azaña", "Juan Bravo Murillo")  # the paper's; one of the subset, much like him
LISTS = {
    "proponents": "proponents, misclassified dropped",
    "opponents": "opponents, misclassified dropped",
    "all proponents": "proponents, nothing dropped",
    "all opponents": "opponents, nothing dropped",
}


class WordEmbeddings(nn.Module):
    """SWEM (Shen et al., 2018): the mean and the maximum of a text's embeddings, two layers.

    https://arxiv.org/abs/1805.09843
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(PIECES, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.hidden = nn.Linear(2 * WIDTH, HIDDEN)
        self.output = nn.Linear(HIDDEN, classes)

    def forward(self, pieces: Tensor) -> Tensor:
        """Class scores: [texts, classes]."""
        is_piece = (pieces != PADDING)[:, :, None]
        embedded = self.embedding(pieces)  # [texts, positions, width]
        mean = (embedded * is_piece).sum(1) / is_piece.sum(1).clamp(min=1)
        largest = embedded.masked_fill(~is_piece, -1e9).amax(1)
        return self.output(F.relu(self.hidden(torch.cat([mean, largest], 1))))


def main(arguments: list[str] | None = None) -> None:
    """Run all of it."""
    options = parsed("dbpedia", __doc__ or "", 3, arguments)
    rate = QUICK_RATE if options.is_quick else RATE
    settings = {
        "width": WIDTH,
        "hidden": HIDDEN,
        "rate": rate,
        "batch": BATCH,
        "pieces": (PIECES, LONGEST),
    }
    experiment = Experiment("dbpedia", options, settings)
    data = open_dbpedia()
    train, test = data.train, data.test
    if options.is_quick:
        train, test = train.few(QUICK_ARTICLES), test.few(QUICK_ARTICLES)
    epochs = CHECKPOINTS if options.is_quick else experiment.scaled(EPOCHS, CHECKPOINTS)
    pieces = experiment.step("pieces", lambda: pieces_of(train.texts, [test.texts]))
    politicians = test.labels == data.classes.index(POLITICIAN)
    query = asked(test, politicians)
    runs = []
    for seed in experiment.seeds:
        recipe = Recipe(epochs, rate, BATCH, seed)
        runs.append(
            experiment.step(
                f"seed {seed}",
                lambda r=recipe: explained(
                    pieces, train.labels, test.labels, politicians, query, r
                ),
            )
        )
    tell_models(experiment, runs, train, test, epochs, rate)
    tell_article(experiment, runs[0], train, test, data.classes, query)
    tell_lists(experiment, runs, train, data.classes)
    experiment.finish()


def asked(test: Articles, politicians: Tensor) -> int:
    """The article to explain: of the titles wanted the first there is, or any politician's."""
    places = politicians.nonzero()[:, 0].tolist()
    for title in TITLES:
        for place in places:
            if test.texts[place].startswith(title):
                return place
    return places[0]


def fitted(pieces: Tensor, labels: Tensor, recipe: Recipe) -> list[dict[str, Tensor]]:
    """Train by Adam; weights at the end of every sixth of the epochs."""
    model = net(recipe.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    generator = torch.Generator().manual_seed(recipe.seed)
    every, kept = recipe.epochs // CHECKPOINTS, []
    for epoch in range(1, recipe.epochs + 1):
        for rows in torch.randperm(len(labels), generator=generator).split(recipe.batch):
            optimizer.zero_grad()
            F.cross_entropy(model(pieces[rows]), labels[rows]).backward()
            optimizer.step()
        if epoch % every == 0:
            kept.append({name: each.clone() for name, each in model.state_dict().items()})
    return kept[:CHECKPOINTS]


def net(seed: int) -> WordEmbeddings:
    """The model before training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WordEmbeddings(classes=14)


def answers(model: nn.Module, state: Mapping[str, Tensor], pieces: Tensor) -> Tensor:
    """The class that scores highest: [texts]."""
    model.load_state_dict(state)
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in pieces.split(1000)])


def explained(
    pieces: list[Tensor],
    train_labels: Tensor,
    test_labels: Tensor,
    politicians: Tensor,
    query: int,
    recipe: Recipe,
) -> dict[str, Any]:
    """Train, and explain the article and the first politicians' that are classified rightly."""
    states = fitted(pieces[0], train_labels, recipe)
    model = net(recipe.seed)
    train_answers = answers(model, states[-1], pieces[0])
    test_answers = answers(model, states[-1], pieces[1])
    is_right = test_answers == test_labels
    chosen = (politicians & is_right).nonzero()[:QUERIES, 0]
    rows = torch.cat([torch.tensor([query]), chosen])
    run = tracin.TracIn(
        model,
        "cross_entropy",
        states,
        parameters="last",
        learning_rates=[recipe.rate] * len(states),
    )
    lists, scores = {}, {}
    for prefix, drops in (("", True), ("all ", False)):
        found = run.explain(
            (pieces[0], train_labels),
            (pieces[1][rows], test_labels[rows]),
            k=SHOWN,
            drop_misclassified=drops,
        )
        for side in ("proponents", "opponents"):
            influences = getattr(found, side)
            lists[prefix + side] = torch.from_numpy(influences.positions)
            scores[prefix + side] = influences.scores
    return {
        "train": float((train_answers == train_labels).double().mean()),
        "test": float(is_right.double().mean()),
        "train answers": train_answers,
        "query answer": int(test_answers[query]),
        "lists": lists,
        "scores": scores,
    }


def tell_models(
    experiment: Experiment,
    runs: list[dict[str, Any]],
    train: Articles,
    test: Articles,
    epochs: int,
    rate: float,
) -> None:
    """The accuracy, next to the paper's."""
    experiment.say(
        f"**A subset:** {len(train):,} of the 560,000 training articles and {len(test):,} of the "
        f"70,000 test articles. SWEM with embeddings of {WIDTH} numbers, mean and maximum, one "
        f"hidden layer of {HIDDEN}; {PIECES:,} pieces that sentencepiece learned from the subset; "
        f"Adam at {rate:g}, batches of {BATCH}, {epochs} epochs, {CHECKPOINTS} even checkpoints, "
        "gradients of the last layer. Figures are means over seeds with their 95 % interval "
        "(Student's t)."
    )
    wrong = [float(len(train) * (1 - run["train"])) for run in runs]
    experiment.table(
        ["", "here (subset)", "paper"],
        [
            ["training accuracy", written([run["train"] for run in runs]), "0.955"],
            ["test accuracy", written([run["test"] for run in runs]), "0.955"],
            ["misclassified training articles", written(wrong, 0), "25,000 (4.5 %)"],
        ],
    )


def shortened(text: str) -> str:
    """The beginning of a text, fit for a cell of a table."""
    text = " ".join(text.replace("|", "/").replace("<", "(").replace(">", ")").split())
    return text if len(text) <= LETTERS else f"{text[:LETTERS].rsplit(' ', 1)[0]} ..."


def tell_article(
    experiment: Experiment,
    run: dict[str, Any],
    train: Articles,
    test: Articles,
    classes: list[str],
    query: int,
) -> None:
    """Table 1 of the paper for an article of the subset."""
    experiment.say(
        "**One article**, seed 0, as in Table 1 of the paper. There the article is Manuel Azaña, "
        "OfficeHolder, and the three strongest opponents are Mikolaj Rej (poet and politician), "
        "Justin Jeffre (singer and politician) and David Kitt (son of a politician), all Artist; "
        "none of the four is in the subset."
    )
    rows = [
        [
            "the article",
            classes[int(test.labels[query])],
            classes[run["query answer"]],
            "",
            shortened(test.texts[query]),
        ]
    ]
    for name in ("proponents", "opponents", "all opponents"):
        for place, position in enumerate(run["lists"][name][0].tolist()):
            rows.append(
                [
                    LISTS[name] if place == 0 else "",
                    classes[int(train.labels[position])],
                    classes[int(run["train answers"][position])],
                    f"{float(run['scores'][name][0, place]):+.2g}",
                    shortened(train.texts[position]),
                ]
            )
    experiment.table(["", "class", "prediction", "influence", "text"], rows)


def tell_lists(
    experiment: Experiment, runs: list[dict[str, Any]], train: Articles, classes: list[str]
) -> None:
    """What all politicians' lists hold."""
    queries = [len(run["lists"]["opponents"]) - 1 for run in runs]
    experiment.say(
        f"**All politicians' articles:** the {SHOWN} strongest on each side of the first "
        f"{queries[0]} test articles of class {POLITICIAN} that are classified rightly. The paper "
        'shows one article, whose three opponents are all Artist. "Distinct" is the number of '
        "different articles as a share of the places."
    )
    rows, shares = [], {}
    for name, label in LISTS.items():
        places = [run["lists"][name][1:].flatten() for run in runs]
        held = [torch.bincount(train.labels[at], minlength=len(classes)) / len(at) for at in places]
        shares[name] = torch.stack(held).double()
        wrong = [
            (run["train answers"][at] != train.labels[at]).double().mean().item()
            for run, at in zip(runs, places, strict=True)
        ]
        distinct = [len(at.unique()) / len(at) for at in places]
        rows.append(
            [
                label,
                written(shares[name][:, classes.index(POLITICIAN)].tolist()),
                written(shares[name][:, classes.index(ARTIST)].tolist()),
                written(wrong),
                written(distinct),
            ]
        )
    experiment.table(["list", POLITICIAN, ARTIST, "misclassified", "distinct"], rows)
    by_seed = []
    for each in shares["opponents"]:
        largest = each.topk(2)
        by_seed.append(
            ", ".join(
                f"{classes[at]} {share:.2f}"
                for at, share in zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
            )
        )
    experiment.say(
        "The two commonest classes among the opponents, misclassified dropped, seed by seed: "
        f"{'; '.join(by_seed)}."
    )
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    for offset, name in ((-0.2, "opponents"), (0.2, "all opponents")):
        axes.bar(
            torch.arange(len(classes)) + offset,
            shares[name].mean(0),
            0.4,
            yerr=within(shares[name]),
            label=LISTS[name],
            error_kw={"linewidth": 0.8},
        )
    axes.set(ylabel="share of the strongest opponents", ylim=(0, None))
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=8)
    axes.legend()
    experiment.figure(figure, "opponents", "Classes of the strongest opponents of politicians")


def within(shares: Tensor) -> Tensor:
    """How far each 95 % interval reaches down and up, within 0 to 1: [2, classes]."""
    mean, half = shares.mean(0), half_width(shares).nan_to_num()
    return torch.stack([torch.minimum(half, mean), torch.minimum(half, 1 - mean)])


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
