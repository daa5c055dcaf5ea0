"""Examples whose batches have no example dimension are scored one at a time, exactly."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import tracin

SIZES = [3, 1, 4, 2, 5, 2]


class Graph:
    """Stands in for the graph batches of PyG and DGL: attributes, and `.to(device)`."""

    def __init__(self, x, edges, graph_of, y):
        self.x, self.edges, self.graph_of, self.y = x, edges, graph_of, y

    def to(self, device):
        return Graph(*(each.to(device) for each in (self.x, self.edges, self.graph_of, self.y)))

    @staticmethod
    def merged(graphs):
        offsets = torch.tensor([0, *(len(graph.x) for graph in graphs)]).cumsum(0).tolist()
        return Graph(
            torch.cat([graph.x for graph in graphs]),
            torch.cat(
                [graph.edges + at for graph, at in zip(graphs, offsets[:-1], strict=True)], 1
            ),
            torch.cat([torch.full((len(graph.x),), at) for at, graph in enumerate(graphs)]),
            torch.cat([graph.y for graph in graphs]),
        )


class GraphNet(nn.Module):
    """One round of messages along edges, then the mean over a graph's nodes."""

    def __init__(self):
        super().__init__()
        self.own, self.other, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, batch):
        messages = torch.zeros_like(self.other(batch.x)).index_add(
            0, batch.edges[1], self.other(batch.x)[batch.edges[0]]
        )
        nodes = torch.tanh(self.own(batch.x) + messages)
        graphs = nodes.new_zeros(len(batch.y), 5).index_add(0, batch.graph_of, nodes)
        return self.head(graphs / torch.bincount(batch.graph_of)[:, None])


def graphs():
    generator = torch.Generator().manual_seed(0)
    return [
        Graph(
            torch.randn(size, 4, generator=generator, dtype=torch.float64),
            torch.randint(0, size, (2, 2 * size), generator=generator),
            torch.zeros(size, dtype=torch.long),
            torch.tensor([at % 3]),
        )
        for at, size in enumerate(SIZES)
    ]


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(7, 5), nn.Linear(5, 3)

    def forward(self, tokens, offsets):
        return self.head(torch.tanh(self.words(tokens, offsets)))


def flat(items):
    tokens = torch.cat([tokens for tokens, _ in items])
    sizes = torch.tensor([0, *(len(tokens) for tokens, _ in items)])
    return tokens, sizes.cumsum(0)[:-1], torch.tensor([label for _, label in items])


def texts():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randint(0, 7, (size,), generator=generator), at % 3) for at, size in enumerate(SIZES)
    ]


class Detector(nn.Module):
    """Boxes from the mean colour of an image: as many as there are."""

    def __init__(self):
        super().__init__()
        self.body, self.boxes = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, images, targets):
        return [
            (self.boxes(torch.tanh(self.body(image.mean((1, 2))))) - target["boxes"]).square().sum()
            for image, target in zip(images, targets, strict=True)
        ]


def images():
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(3, 4 + size, 5, generator=generator, dtype=torch.float64),
            {"boxes": torch.randn(size, 4, generator=generator, dtype=torch.float64)},
        )
        for size in SIZES
    ]


KINDS = {
    "graphs": (
        GraphNet,
        graphs,
        Graph.merged,
        lambda model, batch: F.cross_entropy(model(batch), batch.y, reduction="none"),
    ),
    "flat tokens": (
        Bag,
        texts,
        flat,
        lambda model, batch: F.cross_entropy(model(*batch[:2]), batch[2], reduction="none"),
    ),
    "detection": (
        Detector,
        images,
        lambda items: tuple(zip(*items, strict=True)),
        lambda model, batch: torch.stack(model(*batch)),
    ),
    "detection, loss of one": (
        Detector,
        images,
        lambda items: tuple(zip(*items, strict=True)),
        lambda model, batch: sum(model(*batch)).reshape(1),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request):
    build, items, collate, loss = KINDS[request.param]
    torch.manual_seed(0)
    model = build().double()
    run = tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[1.0])
    data = items()
    rows = []
    for item in data:
        value = loss(model, collate([item])).sum()
        gradients = torch.autograd.grad(value, list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    loader = DataLoader(data, batch_size=4, collate_fn=collate)
    return run, loader, torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_scores_are_those_of_one_backward_pass_per_example(kind, batch_size):
    run, loader, rows = kind
    options = {"batch_size": batch_size}

    torch.testing.assert_close(run.self_influence(loader, **options), rows.square().sum(1))
    torch.testing.assert_close(run.influence(loader, loader, **options), rows @ rows.T)


def test_every_question_is_answered(kind, tmp_path):
    run, loader, rows = kind
    true = rows @ rows.T

    found = run.explain(loader, loader, k=2)
    coverage = run.coverage(loader)
    index = run.index(loader, tmp_path, tracin.Projection(64), recall_queries=0)

    torch.testing.assert_close(found.proponents.scores, true.topk(2).values)
    assert all(each.method == tracin.GradientMethod.LOOP for each in coverage.entries.values())
    assert "examples come one at a time" in str(coverage)
    assert run.verify(loader, examples=3).is_exact
    assert len(index.ids) == len(SIZES)
    assert tracin.training_losses(run, loader)[0] > 0


def test_queries_of_the_fast_kind_meet_examples_that_come_alone():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    run = tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[1.0])
    nested = DataLoader(
        list(zip(x, y, strict=True)),
        collate_fn=lambda items: (
            torch.stack([x for x, _ in items]).to_sparse(),
            torch.tensor([y for _, y in items]),
        ),
    )

    alone = run.influence(nested, (x, y))

    torch.testing.assert_close(alone, run.influence((x, y), (x, y)))
    torch.testing.assert_close(run.influence((x, y), nested), alone)


def test_queries_that_come_alone_are_traced(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    queries = DataLoader(
        list(zip(x, y, strict=True)),
        collate_fn=lambda items: (
            torch.stack([x for x, _ in items]).to_sparse(),
            torch.tensor([y for _, y in items]),
        ),
    )

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def traced(queries, folder):
        model.load_state_dict(start)
        with tracin.Tracer(model, optimizer, loss, queries, (x, y), folder) as tracer:
            optimizer.zero_grad()
            with tracer.batch(torch.arange(6)):
                value = loss(model, (x, y)).mean()
            value.backward()
            optimizer.step()
        return tracin.tracing.Trace.open(folder).influence()

    start = {name: value.clone() for name, value in model.state_dict().items()}

    alone = traced(queries, tmp_path / "alone")

    torch.testing.assert_close(alone, traced((x, y), tmp_path / "together"))


def test_training_data_that_comes_alone_is_no_matter_for_a_tracer(tmp_path):
    model = GraphNet().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train = DataLoader(graphs(), batch_size=2, collate_fn=Graph.merged)
    loss = KINDS["graphs"][3]

    with (
        pytest.raises(tracin.TracingError, match=r"has no example dimension.*tracin\.TracIn"),
        tracin.Tracer(model, optimizer, loss, None, train, tmp_path) as tracer,
        tracer.batch(torch.arange(2)),
    ):
        loss(model, Graph.merged(graphs()[:2])).mean().backward()
