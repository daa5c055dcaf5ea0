"""Hugging Face's Trainer: the rates that are recorded or read are those that were used."""

import json
import shutil
import sys
import warnings
from contextlib import nullcontext
from importlib import import_module
from itertools import pairwise

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import tracin
from tracin.checkpoints import checkpoint_weights, loaded
from tracin.checkpoints.record import read_record
from tracin.errors import CheckpointError, CheckpointWarning, UnsupportedModelError
from tracin.integrations.transformers import TracInCallback, from_run

SIZES = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def lora(**options):
    config = {"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0} | options
    return get_peft_model(llama(), LoraConfig(**config))


def tokens(count=16):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, SIZES["vocab_size"], (count, 8), generator=generator)
    return [{"input_ids": one, "labels": one} for one in drawn]


class Watched(Trainer):
    """A Trainer that keeps the rate of each optimizer step in `used`."""

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        if not hasattr(self, "used"):
            self.used = []
            step = optimizer.step

            def watched(*args, **kwargs):
                self.used.append(optimizer.param_groups[0]["lr"])
                return step(*args, **kwargs)

            optimizer.step = watched
        return optimizer


def trainer(folder, model, *callbacks, **options):
    chosen = {
        "max_steps": 12,
        "warmup_steps": 4,
        "lr_scheduler_type": "cosine",
        "learning_rate": 0.01,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_steps": 3,
        "save_strategy": "steps",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    arguments = TrainingArguments(str(folder), **(chosen | options))
    return Watched(model, arguments, train_dataset=tokens(), callbacks=list(callbacks))


def rates_in(folder):
    record = read_record(folder)
    return [record.log.rate(step) for step in range(len(record.log))]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# The callback


def test_the_rates_of_warm_up_and_decay_are_recorded_as_used(tmp_path):
    run = trainer(tmp_path / "out", llama(), TracInCallback(tmp_path / "rec", every=3))
    run.train()

    found = tracin.open_checkpoints(tmp_path / "rec")

    assert len(run.used) == 12  # of the 24 micro-batches
    assert run.used[0] == 0.0
    assert len(set(run.used)) > 8
    assert rates_in(tmp_path / "rec") == run.used
    assert [one.step for one in found] == [3, 6, 9, 12]
    assert [one.learning_rate for one in found] == [run.used[step - 1] for step in (3, 6, 9, 12)]


@pytest.mark.parametrize(("options", "steps"), [({}, [4, 8, 12]), ({"every_n_epochs": 2}, [8])])
def test_epochs_are_recorded(tmp_path, options, steps):
    callback = TracInCallback(tmp_path / "rec", optimizer_state=True, **options)
    trainer(tmp_path / "out", llama(), callback).train()

    found = tracin.open_checkpoints(tmp_path / "rec")

    assert callback.recorder is None
    assert [one.step for one in found] == steps
    assert all(one.optimizer_state().kind == "AdamW" for one in found)
    assert all(one.loss is not None for one in found)


def test_training_is_the_same_with_the_callback(tmp_path):
    plain = trainer(tmp_path / "a", llama())
    plain.train()
    recorded = trainer(tmp_path / "b", llama(), TracInCallback(tmp_path / "rec"))
    recorded.train()

    assert same(plain.model.state_dict(), recorded.model.state_dict())


def test_keep_ranks_epochs_by_the_logged_loss(tmp_path):
    trainer(tmp_path / "out", llama(), TracInCallback(tmp_path / "rec", keep=1)).train()

    assert len(tracin.open_checkpoints(tmp_path / "rec")) <= 2
    assert len(read_record(tmp_path / "rec").losses) == 3


def test_keep_without_a_logged_loss_is_refused(tmp_path):
    callback = TracInCallback(tmp_path / "rec", keep=1)

    with pytest.raises(CheckpointError, match=r"keep=1 needs the training loss .*logging_strategy"):
        trainer(tmp_path / "out", llama(), callback, logging_strategy="epoch").train()


def test_an_option_that_cannot_be_is_refused_before_training(tmp_path):
    with pytest.raises(CheckpointError, match="every is"):
        TracInCallback(tmp_path, every=0)


def test_spread_weights_are_refused(tmp_path):
    callback = TracInCallback(tmp_path / "rec")
    run = trainer(tmp_path / "out", llama(), callback)
    run.args.deepspeed = "a.json"

    with pytest.raises(UnsupportedModelError, match="With deepspeed the weights are spread"):
        callback.on_train_begin(run.args, run.state, run.control, model=run.model, optimizer=None)


def test_only_the_first_process_records(tmp_path):
    callback = TracInCallback(tmp_path / "rec")
    run = trainer(tmp_path / "out", llama(), callback)
    run.state.is_world_process_zero = False

    callback.on_train_begin(run.args, run.state, run.control)
    callback.on_epoch_end(run.args, run.state, run.control)
    callback.on_train_end(run.args, run.state, run.control)

    assert not (tmp_path / "rec").exists()


# Resuming


def broken(folder, record, every=1, at=8, **options):
    """A run that breaks after `at` steps, having saved every third."""

    class Breaks(TracInCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == at:
                raise KeyboardInterrupt

    run = trainer(folder, llama(), Breaks(record, every=every), **options)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    return run


def test_resuming_goes_back_to_the_trainers_checkpoint(tmp_path):
    whole = trainer(tmp_path / "whole", llama(), TracInCallback(tmp_path / "one", every=1))
    whole.train()
    broken(tmp_path / "out", tmp_path / "rec")
    assert tracin.open_checkpoints(tmp_path / "rec")[-1].step == 8
    again = trainer(tmp_path / "out", llama(), TracInCallback(tmp_path / "rec", every=2))
    stays = tmp_path / "rec" / "step-00000006.safetensors"
    written = stays.stat().st_mtime_ns

    again.train(resume_from_checkpoint=True)

    assert rates_in(tmp_path / "rec") == whole.used
    found = tracin.open_checkpoints(tmp_path / "rec")
    assert [one.step for one in found] == [1, 2, 3, 4, 5, 6, 8, 10, 12]
    assert stays.stat().st_mtime_ns == written
    assert not (tmp_path / "rec" / "step-00000007.safetensors").exists()
    expected = {one.step: one for one in tracin.open_checkpoints(tmp_path / "one")}
    assert all(same(one.weights(), expected[one.step].weights()) for one in found)


def test_resuming_where_the_recorder_stands_goes_on(tmp_path):
    broken(tmp_path / "out", tmp_path / "rec", every=3)
    again = trainer(tmp_path / "out", llama(), TracInCallback(tmp_path / "rec", every=3))
    again.train(resume_from_checkpoint=True)

    assert [one.step for one in tracin.open_checkpoints(tmp_path / "rec")] == [3, 6, 9, 12]
    assert len(rates_in(tmp_path / "rec")) == 12


def test_resuming_between_the_recorders_checkpoints_is_refused(tmp_path):
    broken(tmp_path / "out", tmp_path / "rec", every=4)
    again = trainer(tmp_path / "out", llama(), TracInCallback(tmp_path / "rec", every=4))

    with pytest.raises(CheckpointError, match=r"resumes at step 6, .* has those of steps 4, 8\. "):
        again.train(resume_from_checkpoint=True)

    assert [one.step for one in tracin.open_checkpoints(tmp_path / "rec")] == [4, 8]


def test_resuming_another_training_deletes_nothing(tmp_path):
    broken(tmp_path / "out", tmp_path / "rec")
    trainer(tmp_path / "other", llama(), max_steps=3, learning_rate=0.5).train()
    again = trainer(tmp_path / "other", llama(), TracInCallback(tmp_path / "rec", every=1))

    with pytest.raises(CheckpointError, match="does not hold the last one's weights"):
        again.train(resume_from_checkpoint=True)

    assert [one.step for one in tracin.open_checkpoints(tmp_path / "rec")] == list(range(1, 9))


def test_a_callback_that_comes_in_halfway_says_so(tmp_path):
    trainer(tmp_path / "out", llama(), max_steps=6).train()
    again = trainer(tmp_path / "out", llama(), TracInCallback(tmp_path / "rec", every=2))

    with pytest.warns(CheckpointWarning, match=r"resumes at step 6, and \S+ has no checkpoint yet"):
        again.train(resume_from_checkpoint=True)

    assert len(rates_in(tmp_path / "rec")) == 6


# Past runs


def test_the_rates_of_a_past_run_are_those_used(tmp_path):
    run = trainer(tmp_path / "out", llama())
    run.train()

    found = from_run(tmp_path / "out", llama())

    assert [one.step for one in found] == [3, 6, 9, 12]
    assert [one.learning_rate for one in found] == [run.used[step - 1] for step in (3, 6, 9, 12)]
    for one, (before, after) in zip(found, pairwise([*run.used, 0.0]), strict=False):
        assert one.learning_rate != after or before == after


def test_folders_come_in_the_order_of_their_steps(tmp_path):
    run = trainer(tmp_path / "out", llama(), save_steps=1)
    run.train()

    found = from_run(tmp_path / "out")

    assert [one.step for one in found] == list(range(1, 13))
    # Warm-up begins at rate 0, which is no weight.
    assert [one.learning_rate for one in found] == [None, *run.used[1:]]
    assert "step 1 is 0.0" in found[0].no_rate


def test_rates_logged_in_other_steps_are_named_once(tmp_path):
    run = trainer(tmp_path / "out", llama(), logging_steps=4)
    run.train()

    found = from_run(tmp_path / "out")
    with pytest.warns(
        CheckpointWarning,
        match=r"checkpoint-6 has that of step 4; checkpoint-9 has that of step 8\. A schedule",
    ) as caught:
        checkpoint_weights(found[1:])

    assert len(caught) == 1
    assert [one.learning_rate for one in found] == [None, *(run.used[at] for at in (3, 7, 11))]
    assert "logs no learning rate up to its step" in found[0].no_rate


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="must be a Trainer's output folder"):
            from_run(folder)


def test_a_run_of_another_model_is_found_at_once(tmp_path):
    trainer(tmp_path / "out", llama(), max_steps=3).train()
    other = LlamaForCausalLM(LlamaConfig(**{**SIZES, "hidden_size": 8}))

    with pytest.raises(CheckpointError, match="does not fit the model"):
        from_run(tmp_path / "out", other)


# PEFT


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "head"])
def test_adapters_of_the_trainer_score_as_recorded_ones_do(tmp_path, options):
    run = trainer(tmp_path / "out", lora(**options), TracInCallback(tmp_path / "rec", every=3))
    run.train()
    assert sorted(path.name for path in (tmp_path / "out" / "checkpoint-3").glob("*model*")) == [
        "adapter_model.safetensors"
    ]

    model = lora(**options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapters = from_run(tmp_path / "out", model)
    whole = tracin.open_checkpoints(tmp_path / "rec")
    data = tokens()
    scores = [
        tracin.TracIn(model, "causal_lm", some, preconditioner=tracin.Adam()).self_influence(data)
        for some in (adapters, whole)
    ]

    assert [one.learning_rate for one in adapters] == [one.learning_rate for one in whole]
    assert (scores[0] > 0).all()
    assert torch.equal(*map(torch.as_tensor, scores))
    assert same(model.state_dict(), before)


def test_within_an_adapter_the_base_stays_and_the_rest_is_the_checkpoints(tmp_path):
    run = trainer(tmp_path / "out", lora(), max_steps=3)
    run.train()
    [checkpoint] = from_run(tmp_path / "out")
    model = lora()

    with loaded(model, checkpoint):
        assert same(model.state_dict(), run.model.state_dict())
    with loaded(model, tracin.Checkpoint(checkpoint.source / "adapter_model.safetensors")):
        assert same(model.state_dict(), run.model.state_dict())


def test_an_adapter_of_another_name_lies_in_its_own_folder(tmp_path):
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="mine")
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "checkpoint-5")
    other = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="your")

    with loaded(other, tracin.open_checkpoints(tmp_path / "checkpoint-5")[0]):
        trained = [one for one in other.parameters() if one.requires_grad]
        expected = [one for one in model.parameters() if one.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(trained, expected, strict=True))


def test_an_adapter_that_lacks_a_trained_parameter_is_refused(tmp_path):
    trainer(tmp_path / "out", lora(), max_steps=3).train()
    more = lora(modules_to_save=["lm_head"])

    with pytest.raises(CheckpointError, match=r"lacks 'base_model.model.lm_head.modules_to_save"):
        from_run(tmp_path / "out", more)


def test_an_adapter_with_more_than_the_model_is_refused(tmp_path):
    more = lora(target_modules=["q_proj", "v_proj", "k_proj"])
    trainer(tmp_path / "out", more, max_steps=3).train()

    with pytest.raises(CheckpointError, match=r"the model lacks '\S+k_proj.lora_A.weight'"):
        from_run(tmp_path / "out", lora())


def test_transformers_own_adapters_are_loaded(tmp_path):
    def with_adapter():
        model = llama()
        model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        return model

    run = trainer(tmp_path / "out", with_adapter(), max_steps=3)
    run.train()
    model = with_adapter()

    with loaded(model, from_run(tmp_path / "out", model)[0]):
        assert same(model.state_dict(), run.model.state_dict())


def test_a_record_without_its_trainer_still_opens(tmp_path):
    trainer(tmp_path / "out", lora(), TracInCallback(tmp_path / "rec"), max_steps=4).train()
    shutil.rmtree(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [checkpoint] = tracin.open_checkpoints(tmp_path / "rec")

    with loaded(lora(), checkpoint):
        pass
    assert json.loads((tmp_path / "rec" / "recorder.json").read_text())["checkpoints"]


def test_a_frozen_adapter_is_refused_in_words(tmp_path):
    trainer(tmp_path / "out", lora(), max_steps=3).train()

    with pytest.raises(CheckpointError, match=r"no adapter of the model is trainable"):
        from_run(tmp_path / "out", lora().requires_grad_(False))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "tracin.integrations.transformers")

    with pytest.raises(ImportError, match=r"pip install '\.\[transformers\]' in a checkout"):
        import_module("tracin.integrations.transformers")


# Adam's moments


@pytest.mark.parametrize("build", [llama, lora], ids=["whole", "lora"])
def test_a_past_run_has_the_moments_that_the_callback_records(tmp_path, build):
    model = build()
    trainer(tmp_path / "out", model, TracInCallback(tmp_path / "rec", every=3)).train()

    past = from_run(tmp_path / "out", model)
    recorded = tracin.open_checkpoints(tmp_path / "rec")

    assert [one.step for one in past] == [one.step for one in recorded] == [3, 6, 9, 12]
    for left, right in zip(past, recorded, strict=True):
        mine, theirs = left.optimizer_state(), right.optimizer_state()
        assert mine.kind == theirs.kind == "AdamW"
        assert mine.moments.keys() == theirs.moments.keys()
        assert all(same(mine.moments[name], theirs.moments[name]) for name in mine.moments)
        assert [group["parameters"] for group in mine.groups] == [
            group["parameters"] for group in theirs.groups
        ]
    data = tokens(4)
    scores = [
        tracin.TracIn(model, "causal_lm", it, preconditioner=tracin.Adam()).self_influence(data)
        for it in (past, recorded)
    ]
    assert torch.equal(*scores)


def test_moments_of_other_parameters_are_left_out_with_a_warning(tmp_path):
    trainer(tmp_path / "out", llama(), max_steps=3).train()
    model = llama()
    model.lm_head.requires_grad_(False)

    with pytest.warns(CheckpointWarning, match=r"optimizer.pt has the moments of other parameters"):
        [found] = from_run(tmp_path / "out", model)
    with pytest.warns(CheckpointWarning, match=r"from_run\(folder, model\)"):
        tracin.TracIn(llama(), "causal_lm", tmp_path / "out")

    assert found.optimizer_state() is None


@pytest.mark.parametrize(
    ("file", "way"),
    [("global_step3/bf16_zero_pp_rank_0_optim_states.pt", "DeepSpeed"), ("optimizer.bin", "FSDP")],
    ids=["deepspeed", "fsdp"],
)
def test_moments_that_processes_spread_are_refused_in_words(tmp_path, file, way):
    model = llama()
    trainer(tmp_path, model, max_steps=3).train()
    folder = tmp_path / "checkpoint-3"
    (folder / "optimizer.pt").unlink()
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).touch()

    words = rf"checkpoint-3.* in one piece: {way} spread them over processes"
    with pytest.raises(CheckpointError, match=words):
        tracin.TracIn(model, "causal_lm", from_run(tmp_path, model), preconditioner=tracin.Adam())


def test_an_optimizer_file_that_holds_code_is_passed_over(tmp_path):
    trainer(tmp_path / "out", llama(), max_steps=3).train()
    torch.save({"state": print}, tmp_path / "out" / "checkpoint-3" / "optimizer.pt")

    [found] = from_run(tmp_path / "out", llama())

    assert found.optimizer_kind == ""


def test_a_lora_checkpoint_holds_the_adapter_alone(tmp_path):
    model = lora()
    trainer(tmp_path / "out", model, TracInCallback(tmp_path / "rec", every=3)).train()
    adapter = sum(one.numel() for one in model.parameters() if one.requires_grad)

    found = tracin.open_checkpoints(tmp_path / "rec")
    fresh = lora()
    with loaded(fresh, found[-1]):
        assert same(fresh.state_dict(), model.state_dict())

    assert sum(one.numel() for one in found[0].weights().values()) == adapter
    assert 4 * adapter < (tmp_path / "rec" / found[0].name).stat().st_size < 4 * adapter + 20_000


# How tokens weigh


def ragged(count=16):
    texts = tokens(count)
    for at, one in enumerate(texts):
        one["labels"] = one["labels"].clone()
        one["labels"][1 + at % 7 :] = -100
    return texts


@pytest.mark.parametrize(
    ("accepts", "rows", "is_by_tokens"),
    [(True, 1, True), (False, 2, True), (False, 1, False)],
    ids=["tokens of the step", "tokens of a micro-batch", "texts alike"],
)
def test_causal_lm_weighs_tokens_as_the_trainer_did(tmp_path, accepts, rows, is_by_tokens):
    model, texts = llama(), ragged()
    model.accepts_loss_kwargs = accepts
    run = trainer(
        tmp_path / "out",
        model,
        TracInCallback(tmp_path / "rec", every=1),
        per_device_train_batch_size=rows,
        max_steps=16 // (2 * rows),
        save_strategy="no",
    )
    run.train_dataset = texts
    run.train()
    found = tracin.open_checkpoints(tmp_path / "rec")[-1:]
    count = sum(int((one["labels"][1:] != -100).sum()) for one in texts)

    scores = tracin.TracIn(model, "causal_lm", found, preconditioner=tracin.Adam())
    name = "causal_lm_sum" if is_by_tokens else "causal_lm_mean"
    expected = tracin.TracIn(model, name, found, preconditioner=tracin.Adam())

    assert found[0].tokens_per_example == (count / 16 if is_by_tokens else None)
    with pytest.warns(tracin.DataWarning, match="No label to score in"):
        mine, theirs = scores.self_influence(texts), expected.self_influence(texts)
    scale = (count / 16) ** 2 if is_by_tokens else 1.0
    torch.testing.assert_close(mine * scale, theirs)
    assert not model._forward_pre_hooks


def test_the_recorded_weighing_is_the_gradient_of_the_trainers_step(tmp_path):
    """Sum over examples of causal_lm's gradients / examples: what the optimizer was given."""
    model, texts, given = llama(), ragged(4), []
    texts = [texts[1], texts[2], texts[3], texts[3]]
    run = trainer(
        tmp_path / "out",
        model,
        TracInCallback(tmp_path / "rec", every=1),
        max_steps=1,
        warmup_steps=0,
        max_grad_norm=0.0,
        save_strategy="no",
    )
    run.train_dataset = texts
    before = {name: values.clone() for name, values in model.state_dict().items()}
    run.create_optimizer()
    run.optimizer.register_step_pre_hook(
        lambda *args: given.append(model.lm_head.weight.grad.clone())
    )
    run.train()
    [found] = tracin.open_checkpoints(tmp_path / "rec")
    loss = tracin.TracIn(model, "causal_lm", [found], preconditioner=tracin.Adam()).loss
    model.load_state_dict(before)
    model.zero_grad()

    batch = {key: torch.stack([one[key] for one in texts]) for key in texts[0]}
    loss(model, batch).mean().backward()

    torch.testing.assert_close(given[0], model.lm_head.weight.grad)


def by_tokens(outputs, labels, num_items_in_batch=None):
    losses = outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(*losses, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("way", ["smoothing", "loss of its own"])
def test_tokens_are_counted_where_the_trainer_keeps_labels_for_itself(tmp_path, way):
    """Sum over examples of their tokens' losses over the recorded number is the step's gradient."""
    smoothing, given = 0.25 if way == "smoothing" else 0.0, []
    model, texts = llama(), [ragged(4)[at] for at in (1, 2, 3, 3)]
    run = trainer(
        tmp_path / "out",
        model,
        TracInCallback(tmp_path / "rec", every=1),
        max_steps=1,
        warmup_steps=0,
        max_grad_norm=0.0,
        save_strategy="no",
        label_smoothing_factor=smoothing,
    )
    run.train_dataset = texts
    run.compute_loss_func = None if smoothing else by_tokens
    before = {name: values.clone() for name, values in model.state_dict().items()}
    run.create_optimizer()
    run.optimizer.register_step_pre_hook(
        lambda *args: given.append(model.lm_head.weight.grad.clone())
    )
    said = nullcontext() if smoothing else pytest.warns(CheckpointWarning, match="as if that loss")
    with said:
        run.train()
    [found] = tracin.open_checkpoints(tmp_path / "rec")
    assert found.tokens_per_example is not None
    model.load_state_dict(before)
    model.zero_grad()

    batch = {key: torch.stack([one[key] for one in texts]) for key in texts[0]}
    logits = model(batch["input_ids"]).logits[:, :-1].flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(
        logits, batch["labels"][:, 1:].flatten(), reduction="sum", label_smoothing=smoothing
    )
    (losses / found.tokens_per_example / 4).backward()

    torch.testing.assert_close(given[0], model.lm_head.weight.grad)


@pytest.mark.parametrize(("rows", "is_told"), [(2, True), (1, False)], ids=["unseen", "alike"])
def test_smoothed_tokens_that_cannot_be_counted_are_told(tmp_path, rows, is_told):
    model = llama()
    model.accepts_loss_kwargs = False
    run = trainer(
        tmp_path / "out",
        model,
        TracInCallback(tmp_path / "rec", every=1),
        per_device_train_batch_size=rows,
        max_steps=2,
        save_strategy="no",
        label_smoothing_factor=0.1,
    )
    words = r"With label_smoothing_factor=0\.1 .* is not recorded.*\"causal_lm_sum\""
    with pytest.warns(CheckpointWarning, match=words) if is_told else nullcontext():
        run.train()

    assert tracin.open_checkpoints(tmp_path / "rec")[-1].tokens_per_example is None
