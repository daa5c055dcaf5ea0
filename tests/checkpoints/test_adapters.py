"""PEFT's folders, of every kind of adapter: read as PEFT itself reads them, or refused in words."""

import copy
import json

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import tracin
from tracin.checkpoints import loaded, open_checkpoints
from tracin.errors import CheckpointError, UnsupportedModelError

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
Q = {"target_modules": ["q_proj"]}
CAUSAL = {"task_type": "CAUSAL_LM"}


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


KINDS = {
    "LoRA": lambda: peft.LoraConfig(r=2, **Q),
    "LoRA with biases": lambda: peft.LoraConfig(r=2, bias="all", **Q),
    "LoRA of embeddings": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
    "LoRA with a head": lambda: peft.LoraConfig(r=2, modules_to_save=["lm_head"], **Q),
    "LoRA of tokens": lambda: peft.LoraConfig(r=2, trainable_token_indices=[1, 3], **Q),
    "rsLoRA": lambda: peft.LoraConfig(r=2, use_rslora=True, **Q),
    "DoRA": lambda: peft.LoraConfig(r=2, use_dora=True, **Q),
    "AdaLoRA": lambda: peft.AdaLoraConfig(init_r=2, target_r=1, total_step=10, **Q),
    "VeRA": lambda: peft.VeraConfig(r=2, **Q),
    "LoHa": lambda: peft.LoHaConfig(r=2, **Q),
    "LoKr": lambda: peft.LoKrConfig(r=2, **Q),
    "OFT": lambda: peft.OFTConfig(r=2, oft_block_size=0, **Q),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, **Q),
    "IA3": lambda: peft.IA3Config(feedforward_modules=[], **Q),
    "layer norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=4, **Q),
    "HRA": lambda: peft.HRAConfig(r=2, **Q),
    "tokens": lambda: peft.TrainableTokensConfig(
        token_indices=[1, 3], target_modules=["embed_tokens"]
    ),
    "prompts": lambda: peft.PromptTuningConfig(num_virtual_tokens=2, **CAUSAL),
    "prefixes": lambda: peft.PrefixTuningConfig(num_virtual_tokens=2, **CAUSAL),
}


def adapted(kind, seed, name="default"):
    """A model whose trained numbers are all drawn."""
    config = KINDS[kind]() if isinstance(kind, str) else kind
    model = peft.get_peft_model(llama(), config, adapter_name=name)
    return drawn(model, seed)


def drawn(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return model


def saved(model, folder, step=10):
    model.save_pretrained(folder)
    log = [{"step": step, "learning_rate": 0.1}]
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": step, "log_history": log})
    )
    return folder


def parameters(model):
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_adapter_comes_back_as_it_was_saved(kind, tmp_path):
    trained, model = adapted(kind, 1), adapted(kind, 2)
    before = parameters(model)
    saved(trained, tmp_path / "checkpoint-10")

    with loaded(model, open_checkpoints(tmp_path)[0]):
        read = parameters(model)

    assert any(not torch.equal(before[name], read[name]) for name in read)
    assert same(read, parameters(trained))
    assert same(parameters(model), before)


@pytest.mark.filterwarnings("ignore")
def test_scores_of_a_dora_are_those_of_its_whole_weights(tmp_path):
    trained, model = adapted("DoRA", 1), adapted("DoRA", 2)
    saved(trained, tmp_path / "checkpoint-10")
    tokens = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    whole = copy.deepcopy(trained.state_dict())

    scores = tracin.TracIn(model, "causal_lm", tmp_path).self_influence(tokens)
    expected = tracin.TracIn(model, "causal_lm", [whole], learning_rates=[0.1])

    assert torch.equal(scores, expected.self_influence(tokens))


def two(seed, trainable):
    model = peft.get_peft_model(llama(), KINDS["LoRA"]())
    model.add_adapter("other", KINDS["LoRA"]())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    drawn(model, seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(f".{one}." in name for one in trainable))
    return model


@pytest.mark.parametrize("trainable", [["default"], ["other"], ["default", "other"]])
def test_of_several_adapters_each_trained_one_is_read_from_its_own_file(tmp_path, trainable):
    trained, model = two(1, trainable), two(2, trainable)
    before = parameters(model)
    saved(trained, tmp_path / "checkpoint-10")

    with loaded(model, open_checkpoints(tmp_path)[0]):
        read = parameters(model)

    expected = parameters(trained)
    for name in read:
        is_trained = any(f".{one}." in name for one in trainable)
        assert torch.equal(read[name], (expected if is_trained else before)[name]), name


def test_another_adapters_file_is_not_taken_for_the_trained_one(tmp_path):
    saved(adapted("LoRA", 1), tmp_path / "checkpoint-10")

    with (
        pytest.raises(CheckpointError, match="does not hold the adapter 'other'"),
        loaded(two(2, ["other"]), open_checkpoints(tmp_path)[0]),
    ):
        pass


@pytest.mark.parametrize(("adapter", "is_there"), [("one", True), ("two", True), ("three", False)])
def test_adapters_with_folders_of_their_own_are_told_apart(tmp_path, adapter, is_there):
    trained = adapted("LoRA", 1, name="one")
    trained.add_adapter("two", KINDS["LoRA"]())
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_("lora_" in name)
    saved(drawn(trained, 1), tmp_path / "checkpoint-10")
    model = adapted("LoRA", 2, name=adapter)
    [checkpoint] = open_checkpoints(tmp_path)

    if not is_there:
        with pytest.raises(CheckpointError, match="holds 'one', 'two'"), loaded(model, checkpoint):
            pass
        return
    with loaded(model, checkpoint):
        read = parameters(model)

    expected = {name: one for name, one in parameters(trained).items() if name in read}
    assert same(read, expected)


def test_an_adapter_loaded_under_another_name_is_read(tmp_path):
    trained, model = adapted("LoRA", 1), adapted("LoRA", 2, name="mine")
    saved(trained, tmp_path / "checkpoint-10")

    with loaded(model, open_checkpoints(tmp_path)[0]):
        read = {name.replace(".mine.", ".default."): one for name, one in parameters(model).items()}

    assert same(read, parameters(trained))


@pytest.mark.filterwarnings("ignore")
def test_a_computed_prompt_is_refused(tmp_path):
    config = peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8, **CAUSAL)
    saved(adapted(config, 1), tmp_path / "checkpoint-10")

    with (
        pytest.raises(CheckpointError, match=r"the prompt that P_TUNING computed.*tracin.Recorder"),
        loaded(adapted(config, 2), open_checkpoints(tmp_path)[0]),
    ):
        pass


def test_an_adapter_inside_a_module_of_the_users_is_read(tmp_path):
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    trained, model = adapted("DoRA", 1), Outer(adapted("DoRA", 2))
    saved(trained, tmp_path / "checkpoint-10")

    with loaded(model, open_checkpoints(tmp_path)[0]):
        assert same(parameters(model.inner), parameters(trained))


def test_a_frozen_adapter_is_named(tmp_path):
    folder = saved(adapted("LoRA", 1), tmp_path / "checkpoint-10")
    frozen = peft.PeftModel.from_pretrained(llama(), folder)

    with (
        pytest.raises(CheckpointError, match="is_trainable=True"),
        loaded(frozen, open_checkpoints(tmp_path)[0]),
    ):
        pass


@pytest.mark.parametrize("is_recorded", [False, True], ids=["PEFT", "Recorder"])
def test_an_adapter_with_another_factor_is_refused(tmp_path, is_recorded):
    """Its weights fit, and every score would be another one."""
    model = adapted(peft.LoraConfig(r=2, lora_alpha=8, **Q), 1)
    if is_recorded:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        with tracin.Recorder(model, optimizer, tmp_path) as recorder:
            optimizer.step()
            recorder.epoch()
    else:
        saved(model, tmp_path / "checkpoint-10")
    source = tmp_path if is_recorded else tmp_path / "checkpoint-10"
    (checkpoint,) = open_checkpoints(source if is_recorded else [source])

    with loaded(model, checkpoint):
        pass
    other = adapted(peft.LoraConfig(r=2, lora_alpha=32, **Q), 1)
    words = "by 4 there and 16 here" if is_recorded else "lora_alpha=8 there and lora_alpha=32 here"
    with pytest.raises(CheckpointError, match=words), loaded(other, checkpoint):
        pass


def test_a_model_with_merged_adapters_is_refused():
    """Its forward pass leaves the adapters' weights out."""
    model = adapted("LoRA", 1)
    state = {name: one.clone() for name, one in model.state_dict().items()}
    model.merge_adapter()

    words = "have their adapters merged.*unmerge_adapter"
    with pytest.raises(UnsupportedModelError, match=words), loaded(model, state):
        pass
