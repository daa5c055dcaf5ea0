"""Curvature in a folder serves the next process; what does not fit is computed again."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from own_process import run_script
from preconditioners.nets import QUERIES, data_for, nets
from tracin.errors import PreconditionerError

pytestmark = pytest.mark.usefixtures("float64")
SIBLINGS = {"KFAC": tracin.KFAC, "EKFAC": tracin.EKFAC}


@pytest.fixture(params=SIBLINGS)
def curvature(request):
    return SIBLINGS[request.param]


def scores(model, shape, preconditioner, loss="cross_entropy", train=None):
    """Those of a run that has asked nothing before, as in a new process."""
    train = data_for(shape) if train is None else train
    states = [{n: one + k * 0.1 for n, one in model.state_dict().items()} for k in range(2)]
    run = tracin.TracIn(model, loss, states, preconditioner=preconditioner)
    return run.influence(train, data_for(shape, QUERIES, seed=2))


@pytest.fixture
def read(monkeypatch):
    """How many examples each pass of a fit had."""
    from tracin.preconditioners import Place

    seen, own = [], Place.__init__

    def counting(self, checkpoint, parameters, train, device, reads, *rest):
        def counted(examples, begin):
            seen.append(len(examples))
            return reads(examples, begin)

        own(self, checkpoint, parameters, train, device, counted, *rest)

    monkeypatch.setattr(Place, "__init__", counting)
    return seen


class Kinds(nn.Module):
    """A table, a stack of matrices, a norm, and a linear layer with its bias."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.out = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.norm(self.words(x)).mean(1))


@pytest.mark.parametrize("kind", [*nets(), "kinds"])
def test_the_next_process_reads_what_the_first_has_written(kind, curvature, tmp_path, read):
    torch.manual_seed(0)
    if kind == "kinds":
        model, shape = Kinds().double(), (6,)
        train = torch.randint(5, (30, 6)), torch.arange(30) % 3
        ask = torch.randint(5, (4, 6)), torch.arange(4) % 3

        def asked(preconditioner):
            states = [model.state_dict()]
            return tracin.TracIn(
                model, "cross_entropy", states, preconditioner=preconditioner
            ).influence(train, ask)
    else:
        model, shape = nets()[kind]
        model = model.double()
        train = data_for(shape)

        def asked(preconditioner):
            return scores(model, shape, preconditioner, train=train)

    plain = asked(curvature())
    first = asked(curvature(folder=tmp_path))
    read.clear()

    again = asked(curvature(folder=tmp_path))

    assert set(read) == {8}  # a few examples that tell the loss, and no pass over the data
    torch.testing.assert_close(first, plain, rtol=0, atol=0)
    # Eigenvectors lie in another order in memory when they come from a file.
    torch.testing.assert_close(again, plain, rtol=1e-11, atol=1e-12)


def test_one_file_serves_every_damping(curvature, tmp_path, read):
    model, shape = nets()["one position"]
    scores(model, shape, curvature(0.5, folder=tmp_path))
    read.clear()

    found = scores(model, shape, curvature(2.0, folder=str(tmp_path)))

    assert set(read) == {8}
    torch.testing.assert_close(found, scores(model, shape, curvature(2.0)), rtol=0, atol=0)


def test_other_data_weights_and_parameters_have_files_of_their_own(curvature, tmp_path):
    model, shape = nets()["one position"]
    x, y = data_for(shape)
    scores(model, shape, curvature(folder=tmp_path))
    written = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    y[3] = (y[3] + 1) % 3

    found = scores(model, shape, curvature(folder=tmp_path), train=(x, y))

    torch.testing.assert_close(found, scores(model, shape, curvature(), train=(x, y)))
    assert len(list(tmp_path.iterdir())) == 4
    with torch.no_grad():
        model[0].weight.mul_(2)
    scores(model, shape, curvature(folder=tmp_path))
    assert len(list(tmp_path.iterdir())) == 6
    tracin.TracIn(
        model,
        "cross_entropy",
        [model.state_dict()],
        parameters=["2.*"],
        preconditioner=curvature(folder=tmp_path),
    ).self_influence((x, y))
    assert len(list(tmp_path.iterdir())) == 7
    assert all((tmp_path / name).read_bytes() == content for name, content in written.items())


def halved(model, batch):
    return 0.5 * F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_another_loss_is_noticed_and_computed_again(curvature, tmp_path, caplog):
    model, shape = nets()["one position"]
    scores(model, shape, curvature(folder=tmp_path))

    with caplog.at_level(logging.WARNING):
        found = scores(model, shape, curvature(folder=tmp_path), halved)

    expected = scores(model, shape, curvature(), halved)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert "of another loss, or of other code of the model: computed again" in caplog.text
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty", "other"])
def test_a_damaged_file_is_computed_again(curvature, tmp_path, caplog, harm, read):
    model, shape = nets()["one position"]
    plain = scores(model, shape, curvature(folder=tmp_path))
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        harmed = {"flipped": content, "cut": content[:-7], "empty": b"", "other": b"{}" * 99}
        path.write_bytes(bytes(harmed[harm]))

    with caplog.at_level(logging.WARNING):
        found = scores(model, shape, curvature(folder=tmp_path))

    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    assert "cannot be read" in caplog.text
    read.clear()
    scores(model, shape, curvature(folder=tmp_path))
    assert set(read) == {8}


def test_a_file_of_another_program_is_computed_again(curvature, tmp_path, caplog):
    from tracin.checkpoints.readers.safetensors import write_safetensors

    model, shape = nets()["one position"]
    plain = scores(model, shape, curvature(folder=tmp_path))
    for path in tmp_path.iterdir():
        write_safetensors({"a": torch.ones(2)}, path)

    found = scores(model, shape, curvature(folder=tmp_path))

    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    assert "cannot be read" in caplog.text


def test_a_disk_that_takes_nothing_is_said_and_scores_come_all_the_same(
    curvature, tmp_path, caplog, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tracin.preconditioners.saved_moments.write_sealed", full)
    model, shape = nets()["one position"]

    found = scores(model, shape, curvature(folder=tmp_path))

    torch.testing.assert_close(found, scores(model, shape, curvature()), rtol=0, atol=0)
    assert "cannot be kept: [Errno 28] No space left" in caplog.text


def test_what_is_no_folder_is_refused(curvature, tmp_path):
    (tmp_path / "file").write_text("")
    model, shape = nets()["one position"]

    with pytest.raises(PreconditionerError, match="cannot be made a folder"):
        scores(model, shape, curvature(folder=tmp_path / "file"))
    with pytest.raises(PreconditionerError, match="folder is the path of a folder"):
        curvature(folder=3)
    with pytest.raises(PreconditionerError, match="folder is the path of a folder"):
        curvature(folder="")


def test_a_second_process_fits_nothing(tmp_path):
    code = f"""
import sys, torch, tracin
from tracin.preconditioners import kfac
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
train = torch.randn(40, 4), torch.arange(40) % 3
seen, own = [], kfac.fitted_moments
def counted(place, data):
    seen.append(len(data))
    return own(place, data)
kfac.fitted_moments = counted
folder = {str(tmp_path / "moments")!r}
run = tracin.TracIn(
    model, "cross_entropy", [model.state_dict()], preconditioner=tracin.KFAC(folder=folder)
)
scores = run.self_influence(train)
sys.stdout.write(repr((seen, scores.tolist())))
"""
    first, second = (eval(run_script(code, folder=tmp_path).stdout) for _ in range(2))

    assert first[0] == [8, 40]
    assert second == ([8], first[1])
