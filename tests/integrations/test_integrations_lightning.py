"""Lightning's Trainer: the rates that are recorded or read are those that were used."""

import sys
import warnings
from importlib import import_module
from types import MethodType

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracin
from tracin.checkpoints import loaded
from tracin.checkpoints.record import read_record
from tracin.errors import (
    CheckpointError,
    CheckpointWarning,
    LearningRateError,
    UnsupportedModelError,
)
from tracin.integrations.lightning import TracInCallback, from_ckpt

pytestmark = [
    # Advice about speed, and about a log folder, which small runs do not need.
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # Resuming writes to the folder it resumes from, and here does so within an epoch.
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def warm_up(step):
    return min(1.0, (step + 1) / 5) * 0.95**step


class Small(pl.LightningModule):
    def __init__(self, schedule="step", optimizers=1):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.schedule, self.count = schedule, optimizers
        self.automatic_optimization = optimizers == 1
        self.used = []

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        step = optimizer.step

        def watched(optimizer, *args, **kwargs):
            self.used.append(optimizer.param_groups[0]["lr"])
            return step(*args, **kwargs)

        optimizer.step = MethodType(watched, optimizer)
        if self.count > 1:
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(self.count)]
        if self.schedule is None:
            return optimizer
        if self.schedule == "plateau":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return [optimizer], [{"scheduler": scheduler, "monitor": "none", "strict": False}]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up)
        return [optimizer], [{"scheduler": scheduler, "interval": self.schedule}]


def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(24, 3, generator=generator), torch.randint(0, 2, (24,), generator=generator)
    )


def fit(module, *callbacks, library=pl, ckpt=None, **options):
    chosen = {
        "max_epochs": 3,
        "accumulate_grad_batches": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks),
    }
    trainer = library.Trainer(callbacks=list(callbacks), **(chosen | options))
    trainer.fit(module, DataLoader(data(), batch_size=3), ckpt_path=ckpt)
    return trainer


def rates_in(folder):
    record = read_record(folder)
    return [record.log.rate(step) for step in range(len(record.log))]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# The callback


def test_the_rates_of_a_warm_up_are_recorded_as_used(tmp_path):
    module = Small()
    fit(module, TracInCallback(tmp_path, every=3))

    found = tracin.open_checkpoints(tmp_path)

    assert len(module.used) == 12  # of the 24 micro-batches
    assert len(set(module.used)) == 12
    assert rates_in(tmp_path) == module.used
    assert [one.step for one in found] == [3, 6, 9, 12]
    assert [one.learning_rate for one in found] == [module.used[at] for at in (2, 5, 8, 11)]


def test_epochs_are_recorded_with_their_loss(tmp_path):
    callback = TracInCallback(tmp_path, optimizer_state=True)
    module = Small()
    fit(module, callback, max_epochs=1, accumulate_grad_batches=8)

    [checkpoint] = tracin.open_checkpoints(tmp_path)

    x, y = data()[:]
    expected = nn.functional.cross_entropy(Small()(x), y).item()
    assert callback.recorder is None
    assert checkpoint.step == 1
    assert checkpoint.loss == pytest.approx(expected, rel=1e-5)
    assert checkpoint.optimizer_state().kind == "SGD"


def test_training_is_the_same_with_the_callback(tmp_path):
    plain, recorded = Small(), Small()
    fit(plain)
    fit(recorded, TracInCallback(tmp_path))

    assert same(plain.state_dict(), recorded.state_dict())


def test_keep_ranks_epochs_by_their_loss(tmp_path):
    fit(Small(), TracInCallback(tmp_path, keep=1))

    assert len(read_record(tmp_path).losses) == 3
    assert len(tracin.open_checkpoints(tmp_path)) <= 2


def test_the_module_is_the_model_that_scores(tmp_path):
    module = Small()
    fit(module, TracInCallback(tmp_path))

    scores = tracin.TracIn(module, "cross_entropy", tmp_path).self_influence(data())

    assert len(scores) == 24
    assert (scores > 0).all()


def test_the_older_package_takes_the_callback_too(tmp_path):
    class Older(pytorch_lightning.LightningModule):
        schedule, count = "step", 1
        training_step, configure_optimizers = Small.training_step, Small.configure_optimizers

        def __init__(self):
            super().__init__()
            self.model, self.used = nn.Linear(3, 2), []

        def forward(self, x):
            return self.model(x)

    module = Older()
    fit(module, TracInCallback(tmp_path, every=4), library=pytorch_lightning)

    assert rates_in(tmp_path) == module.used


@pytest.mark.parametrize("count", [2, 3])
def test_several_optimizers_are_refused(tmp_path, count):
    with pytest.raises(CheckpointError, match=rf"one optimizer, but configure_\S+ gave {count}"):
        fit(Small(optimizers=count), TracInCallback(tmp_path), accumulate_grad_batches=1)


def test_an_option_that_cannot_be_is_refused_before_training(tmp_path):
    with pytest.raises(CheckpointError, match="every_n_epochs=2 counts epochs"):
        TracInCallback(tmp_path, every=3, every_n_epochs=2)


def test_spread_weights_are_refused(tmp_path):
    class Sharded(torch.Tensor):
        pass

    module = Small()
    module.odd = nn.Parameter(torch.ones(2).as_subclass(Sharded), requires_grad=False)

    with pytest.raises(UnsupportedModelError, match="odd is a Sharded, spread over processes"):
        fit(module, TracInCallback(tmp_path))


class Breaks(pl.Callback):
    """Breaks after some optimizer steps."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise ZeroDivisionError


def test_an_exception_closes_the_recorder(tmp_path):
    callback = TracInCallback(tmp_path, every=2)
    with pytest.raises(ZeroDivisionError):
        fit(Small(), callback, Breaks(5))

    assert callback.recorder is None
    assert len(rates_in(tmp_path)) == 5


def test_resuming_goes_back_to_lightnings_checkpoint(tmp_path):
    whole, module = Small(), Small()
    fit(whole, TracInCallback(tmp_path / "one", every=1))
    saver = ModelCheckpoint(tmp_path / "out", every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(ZeroDivisionError):
        fit(module, TracInCallback(tmp_path / "rec", every=1), saver, Breaks(8))
    assert tracin.open_checkpoints(tmp_path / "rec")[-1].step == 8
    [at_six] = (tmp_path / "out").glob("*step=6*")

    saver = ModelCheckpoint(tmp_path / "out", every_n_train_steps=3, save_top_k=-1)
    fit(Small(), TracInCallback(tmp_path / "rec", every=1), saver, ckpt=at_six)

    assert rates_in(tmp_path / "rec") == whole.used
    expected = tracin.open_checkpoints(tmp_path / "one")
    found = tracin.open_checkpoints(tmp_path / "rec")
    assert [one.step for one in found] == list(range(1, 13))
    assert same(found[5].weights(), expected[5].weights())


# Past runs


def saved(tmp_path, schedule, **options):
    module = Small(schedule)
    chosen = {"save_top_k": -1, "every_n_epochs": 1, "save_last": True}
    trainer = fit(module, ModelCheckpoint(tmp_path, **(chosen | options)))
    return module, trainer


def test_a_constant_rate_is_read(tmp_path):
    module, _ = saved(tmp_path, None)

    found = from_ckpt(tmp_path)

    assert [one.step for one in found] == [4, 8, 12]
    assert [one.learning_rate for one in found] == [0.1] * 3
    with loaded(Small(), found[-1]) as model:
        assert same(model.state_dict(), module.state_dict())


@pytest.mark.parametrize("schedule", ["step", "epoch", "plateau"])
def test_a_schedule_that_the_file_cannot_tell_is_asked_for(tmp_path, schedule):
    with warnings.catch_warnings():
        # The metric of the plateau does not exist, which Lightning remarks on.
        warnings.simplefilter("ignore", RuntimeWarning)
        module, _ = saved(tmp_path, schedule)

    with pytest.raises(
        LearningRateError, match=r"of 3 of 3 .*the next step's rate.*learning_rates"
    ):
        from_ckpt(tmp_path)

    used = [module.used[at] for at in (3, 7, 11)]
    assert [one.learning_rate for one in from_ckpt(tmp_path, used)] == used
    with pytest.raises(LearningRateError, match=r"each of the 3 checkpoints .* 2 were given"):
        from_ckpt(tmp_path, used[:2])


def test_at_an_epochs_end_the_file_holds_the_rate_of_the_next(tmp_path):
    module, _ = saved(tmp_path, "epoch", save_last=False)

    held = [
        torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"]
        for path in sorted(tmp_path.glob("*.ckpt"))
    ]

    assert held[:2] == [module.used[at] for at in (4, 8)]
    assert held[0] != module.used[3]


def test_the_inner_model_is_had_by_its_prefix(tmp_path):
    module, _ = saved(tmp_path, None)
    first, *_ = sorted(tmp_path.glob("epoch*"))

    found = from_ckpt([first, tmp_path / "last.ckpt"], prefix="model.")

    assert [(one.name, one.step) for one in found] == [(first.name, 4), ("last.ckpt", 12)]
    with loaded(Small().model, found[1]) as model:
        assert same(model.state_dict(), module.model.state_dict())
    scores = tracin.TracIn(module.model, "cross_entropy", found).self_influence(data())
    assert (scores > 0).all()
    with pytest.raises(
        CheckpointError, match=r"no name that begins with 'net.': .*'model.0.weight'"
    ):
        from_ckpt(first, prefix="net.")


class ByAdam(Small):
    """Its optimizer has another order than the module, with shapes that come twice."""

    def __init__(self, named=False):
        super().__init__(None)
        self.model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
        self.model[3].bias.requires_grad_(False)
        self.named = named

    def configure_optimizers(self):
        if self.named:
            return torch.optim.AdamW(self.named_parameters(), lr=0.1)
        weights = [self.model[at].weight for at in (2, 0, 3)]
        biases = [self.model[at].bias for at in (2, 0)]
        groups = [{"params": biases, "eps": 1e-4}, {"params": weights}]
        return {"optimizer": torch.optim.Adam(groups, lr=0.1)}


class Unmade(ByAdam):
    def configure_optimizers(self):
        return super().configure_optimizers() if self._trainer else self.trainer.absent


@pytest.mark.parametrize("named", [False, True], ids=["made again", "named"])
@pytest.mark.parametrize("prefix", ["", "model."], ids=["whole", "within"])
def test_the_moments_of_a_file_are_those_that_the_callback_records(tmp_path, named, prefix):
    module = ByAdam(named)
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1)
    fit(module, TracInCallback(tmp_path / "recorded"), keep)
    model = module.model if prefix else module

    found = from_ckpt(tmp_path / "kept", prefix=prefix, module=module)

    recorded = tracin.open_checkpoints(tmp_path / "recorded")
    options = {"preconditioner": tracin.Adam(), "learning_rates": "equal"}
    scores = tracin.TracIn(model, "cross_entropy", found, **options).influence(data(), data())
    if prefix:
        whole = tracin.open_checkpoints(tmp_path / "recorded")
        kept = [one.optimizer_state().moments for one in whole]
        for one, moments in zip(found, kept, strict=True):
            mine = one.optimizer_state().moments
            assert mine.keys() == {name.removeprefix(prefix) for name in moments}
            for name, values in moments.items():
                assert same(mine[name.removeprefix(prefix)], values)
    else:
        wanted = tracin.TracIn(model, "cross_entropy", recorded, **options)
        assert torch.equal(scores, wanted.influence(data(), data()))
    assert {one.optimizer_kind for one in found} == {"AdamW" if named else "Adam"}


def test_moments_whose_parameters_nobody_names_are_left_out_with_a_warning(tmp_path):
    module = Unmade()
    fit(module, ModelCheckpoint(tmp_path, save_top_k=-1), max_epochs=1)

    with pytest.warns(CheckpointWarning, match=r"Adam's moments, but not of which parameters"):
        found = from_ckpt(tmp_path, module=Unmade())

    with pytest.raises(CheckpointError, match=r"none were written with.*from_ckpt\(paths, module="):
        tracin.TracIn(module, "cross_entropy", found, preconditioner=tracin.Adam())


@pytest.mark.parametrize(
    ("file", "way"),
    [("checkpoint/zero_pp_rank_0_optim_states.pt", "DeepSpeed"), ("__0_0.distcp", "FSDP")],
    ids=["deepspeed", "fsdp"],
)
def test_folders_over_which_processes_spread_a_checkpoint_are_refused(tmp_path, file, way):
    folder = tmp_path / "step=4.ckpt"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).touch()

    for given in (folder, tmp_path, [folder]):
        with pytest.raises(
            CheckpointError, match=rf"is a folder over which {way} spread .*Make one"
        ):
            from_ckpt(given)


def test_what_is_no_checkpoint_of_lightning_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no \.ckpt file"):
        from_ckpt(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        from_ckpt(tmp_path / "absent.ckpt")
    torch.save({"a": torch.ones(1)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of Lightning"):
        from_ckpt(tmp_path / "a.ckpt")


def test_without_lightning_the_extra_is_named(monkeypatch):
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "tracin.integrations.lightning")

    with pytest.raises(ImportError, match=r"pip install '\.\[lightning\]' in a checkout"):
        import_module("tracin.integrations.lightning")
