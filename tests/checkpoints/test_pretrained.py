"""Folders that `save_pretrained` wrote are read as `from_pretrained` reads them, for any family."""

import copy
import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn

import tracin
from tracin.checkpoints import loaded, open_checkpoints
from tracin.errors import CheckpointError
from tracin.integrations.transformers import from_run

WIDTH = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = WIDTH | {"vocab_size": 40, "max_position_embeddings": 32}
KEYS = {"num_key_value_heads": 2}
IMAGE = WIDTH | {"image_size": 8, "patch_size": 4}
SWIN = {"image_size": 8, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
EXPERTS = TEXT | KEYS | {"num_experts": 2, "moe_intermediate_size": 16, "num_experts_per_tok": 1}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
BART = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
}
AUDIO = WIDTH | {
    "conv_dim": [8, 8],
    "conv_stride": [2, 2],
    "conv_kernel": [3, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
}


def llava():
    text = hf.LlamaConfig(**TEXT, **KEYS)
    vision = hf.CLIPVisionConfig(**IMAGE, projection_dim=8)
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
    )


def qwen2_vl():
    text = TEXT | KEYS | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1}
    config = hf.Qwen2VLConfig(text_config=text, vision_config=vision)
    return hf.Qwen2VLForConditionalGeneration(config)


def detr():
    backbone = hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        out_features=["stage4"],
    )
    sizes = {key: BART[key] for key in BART if key not in ("vocab_size", "max_position_embeddings")}
    return hf.DetrForObjectDetection(
        hf.DetrConfig(
            backbone_config=backbone,
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            num_queries=4,
            **sizes,
        )
    )


def clip():
    return hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=8))


def encoder_decoder():
    encoder = hf.BertConfig(**TEXT)
    decoder = hf.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return hf.EncoderDecoderModel(config)


FAMILIES = {
    "albert": lambda: hf.AlbertForSequenceClassification(hf.AlbertConfig(**TEXT, embedding_size=8)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)),
    "beit": lambda: hf.BeitForImageClassification(hf.BeitConfig(**IMAGE)),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT)),
    "bert, masked": lambda: hf.BertForMaskedLM(hf.BertConfig(**TEXT)),
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)
    ),
    "clip": clip,
    "convnext": lambda: hf.ConvNextForImageClassification(
        hf.ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
    ),
    "deberta v2": lambda: hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(**TEXT)),
    "deit": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**IMAGE)),
    "detr": detr,
    "dinov2": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**IMAGE)),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(vocab_size=40, dim=16, hidden_dim=16, n_layers=1, n_heads=2)
    ),
    "electra": lambda: hf.ElectraForSequenceClassification(
        hf.ElectraConfig(**TEXT, embedding_size=8)
    ),
    "encoder and decoder": encoder_decoder,
    "falcon": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**TEXT, **KEYS, head_dim=8)),
    "gemma 3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**TEXT, **KEYS, head_dim=8)),
    "gpt neo x": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**TEXT)),
    "gpt oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(**TEXT, **KEYS, num_local_experts=2, head_dim=8)
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, **KEYS)),
    "llava": llava,
    "marian": lambda: hf.MarianMTModel(hf.MarianConfig(**BART, pad_token_id=0)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**TEXT, **KEYS)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**TEXT, **KEYS, num_local_experts=2)),
    "mobilenet v2": lambda: hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config()),
    "modernbert": lambda: hf.ModernBertForSequenceClassification(
        hf.ModernBertConfig(**TEXT, pad_token_id=0, cls_token_id=1, sep_token_id=2)
    ),
    "olmo": lambda: hf.OlmoForCausalLM(hf.OlmoConfig(**TEXT, **KEYS)),
    "olmoe": lambda: hf.OlmoeForCausalLM(
        hf.OlmoeConfig(**TEXT, **KEYS, num_experts=2, num_experts_per_tok=1)
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=40,
            hidden_size=16,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            word_embed_proj_dim=16,
        )
    ),
    "phi 3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**TEXT, **KEYS, pad_token_id=0)),
    "qwen 2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**TEXT, **KEYS)),
    "qwen 2 moe": lambda: hf.Qwen2MoeForCausalLM(
        hf.Qwen2MoeConfig(**EXPERTS, shared_expert_intermediate_size=16)
    ),
    "qwen 2 vl": qwen2_vl,
    "qwen 3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**TEXT, **KEYS, head_dim=8)),
    "qwen 3 moe": lambda: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**EXPERTS, head_dim=8)),
    "resnet": lambda: hf.ResNetForImageClassification(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    ),
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**TEXT)),
    "segformer": lambda: hf.SegformerForSemanticSegmentation(
        hf.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 8],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[1, 1],
            decoder_hidden_size=8,
        )
    ),
    "swin": lambda: hf.SwinForImageClassification(hf.SwinConfig(**SWIN, window_size=2)),
    "swin v2": lambda: hf.Swinv2ForImageClassification(hf.Swinv2Config(**SWIN, window_size=2)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**IMAGE)),
    "vit, headless": lambda: hf.ViTModel(hf.ViTConfig(**IMAGE)),
    "wav2vec 2": lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**AUDIO)),
    "whisper": lambda: hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            **{key: value for key, value in BART.items() if key != "max_position_embeddings"},
            num_mel_bins=8,
            max_source_positions=16,
            max_target_positions=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=3,
        )
    ),
}


def made(family, seed):
    """A model whose every trained number is drawn, so that no two tensors can be exchanged."""
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return model


def saved(model, folder, step=10, **options):
    """A checkpoint folder as the Trainer writes it."""
    model.save_pretrained(folder, **options)
    log = [{"step": step, "learning_rate": 0.1}]
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": step, "log_history": log})
    )
    return folder


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def state(model):
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_weights_come_back_as_they_were_saved(family, tmp_path):
    trained, model = made(family, 1), made(family, 2)
    before, random_state = state(model), torch.get_rng_state()
    saved(trained, tmp_path / "checkpoint-10")

    [checkpoint] = open_checkpoints(tmp_path)
    with loaded(model, checkpoint):
        read = state(model)

    assert same(read, trained.state_dict())
    assert same(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "8KB"}], ids=["whole", "sharded"])
def test_scores_of_a_folder_are_those_of_the_weights_it_was_saved_from(tmp_path, options):
    trained, model = made("mixtral", 1), made("mixtral", 2)
    folder = saved(trained, tmp_path / "output" / "checkpoint-10", **options)
    saved(trained, tmp_path / "output" / "checkpoint-20", 20, **options)
    tokens = torch.randint(0, 40, (3, 5), generator=torch.Generator().manual_seed(0))

    runs = [
        tracin.TracIn(
            model, "causal_lm", [state(trained), state(trained)], learning_rates=[0.1, 0.1]
        ),
        tracin.TracIn(model, "causal_lm", tmp_path / "output"),
        tracin.TracIn(model, "causal_lm", str(tmp_path / "output" / "checkpoint-*")),
        tracin.TracIn(model, "causal_lm", from_run(tmp_path / "output", model)),
    ]
    expected, *scores = [run.self_influence(tokens) for run in runs]

    assert len(list(folder.glob("*.safetensors"))) == (4 if options else 1)
    assert (expected > 0).all()
    assert all(torch.equal(expected, one) for one in scores)


def test_weights_in_a_bin_file_are_read_alike(tmp_path):
    trained, model = made("vit", 1), made("vit", 2)
    folder = saved(trained, tmp_path / "checkpoint-10")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    with loaded(model, open_checkpoints(folder)[0]):
        assert same(state(model), trained.state_dict())


@pytest.mark.parametrize("family", ["mixtral", "vit"])
def test_a_state_dict_under_the_names_of_an_earlier_release_is_read(tmp_path, family):
    trained, model = made(family, 1), made(family, 2)
    folder = saved(trained, tmp_path / "checkpoint-10")
    torch.save({"model": load_file(folder / "model.safetensors")}, tmp_path / "best.pt")

    with loaded(model, open_checkpoints(tmp_path / "best.pt")[0]):
        assert same(state(model), trained.state_dict())


@pytest.mark.parametrize("family", ["mixtral", "gpt oss", "vit"])
def test_a_live_state_dict_is_taken_as_it_is(family):
    trained, model = made(family, 1), made(family, 2)

    with loaded(model, trained.state_dict()):
        assert same(state(model), trained.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_take_the_dtype_that_the_model_has(tmp_path, dtype):
    trained, model = made("mixtral", 1), made("mixtral", 2).to(dtype)
    saved(trained, tmp_path / "checkpoint-10")

    with loaded(model, open_checkpoints(tmp_path)[0]):
        assert same(state(model), {k: v.to(dtype) for k, v in trained.state_dict().items()})


def test_double_weights_lose_nothing(tmp_path):
    trained, model = made("mixtral", 1).double(), made("mixtral", 2).double()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1 + 1e-12)
    saved(trained, tmp_path / "checkpoint-10")

    with loaded(model, open_checkpoints(tmp_path)[0]):
        assert same(state(model), trained.state_dict())


def test_a_head_replaced_by_hand_is_read(tmp_path):
    def with_head(seed):
        model = made("vit", seed)
        model.classifier = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        return model

    trained, model = with_head(1), with_head(2)
    saved(trained, tmp_path / "checkpoint-10")

    with loaded(model, open_checkpoints(tmp_path)[0]):
        assert same(state(model), trained.state_dict())


class Wrapper(nn.Module):
    def __init__(self, inner, head=None):
        super().__init__()
        self.inner = inner
        self.head = head


def test_the_part_of_a_wrapper_reads_the_folder_that_it_saved(tmp_path):
    trained, model = made("vit", 1), Wrapper(made("vit", 2))
    saved(trained, tmp_path / "checkpoint-10")

    with loaded(model, open_checkpoints(tmp_path)[0]):
        assert same(state(model.inner), trained.state_dict())


def test_a_wrapper_that_the_trainer_saved_by_its_live_names_is_read(tmp_path):
    trained, model = (Wrapper(made("mixtral", seed), nn.Linear(2, 2)) for seed in (1, 2))
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    save_file(trained.state_dict(), folder / "model.safetensors")

    with loaded(model, open_checkpoints(tmp_path)[0]):
        assert same(state(model), trained.state_dict())


def test_a_wrapper_with_weights_that_the_folder_lacks_is_refused(tmp_path):
    saved(made("vit", 1), tmp_path / "checkpoint-10")
    [checkpoint] = open_checkpoints(tmp_path)

    with (
        pytest.raises(CheckpointError, match=r"it lacks 'head.weight', 'head.bias'"),
        loaded(Wrapper(made("vit", 2), nn.Linear(2, 2)), checkpoint),
    ):
        pass


def test_a_data_parallel_model_reads_the_folder_of_the_bare_one(tmp_path):
    trained, model = made("vit", 1), made("vit", 2)
    saved(trained, tmp_path / "checkpoint-10")

    with loaded(nn.DataParallel(model), open_checkpoints(tmp_path)[0]):
        assert same(state(model), trained.state_dict())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "model.layers.0.block_sparse_moe.experts.1.w1.weight",
            "One of its weights may be missing",
        ),
        ("lm_head.weight", "it lacks 'lm_head.weight'"),
    ],
)
def test_a_weight_left_out_is_refused_and_never_drawn(tmp_path, name, words):
    folder = saved(made("mixtral", 1), tmp_path / "checkpoint-10")
    held = load_file(folder / "model.safetensors")
    held.pop(name)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    with (
        pytest.raises(CheckpointError, match=rf"checkpoint-10 .*{words}"),
        loaded(made("mixtral", 2), open_checkpoints(folder)[0]),
    ):
        pass


def test_a_deeper_models_folder_is_refused(tmp_path):
    saved(made("vit", 1), tmp_path / "checkpoint-10")
    shallow = hf.ViTForImageClassification(hf.ViTConfig(**IMAGE | {"num_hidden_layers": 1}))

    with (
        pytest.raises(CheckpointError, match=r"the model lacks 'vit.\S*layers?.1"),
        loaded(shallow, open_checkpoints(tmp_path)[0]),
    ):
        pass


def test_a_wider_models_folder_is_refused_by_its_shapes(tmp_path):
    saved(made("vit", 1), tmp_path / "checkpoint-10")
    wide = hf.ViTForImageClassification(hf.ViTConfig(**IMAGE | {"intermediate_size": 24}))

    with (
        pytest.raises(CheckpointError, match=r"mlp.fc1.bias is \[16\] and not \[24\]"),
        loaded(wide, open_checkpoints(tmp_path)[0]),
    ):
        pass


def test_transformers_says_nothing_on_the_way(tmp_path, capfd, caplog):
    saved(made("vit", 1), tmp_path / "checkpoint-10")
    model = made("vit", 2)
    [checkpoint] = open_checkpoints(tmp_path)
    capfd.readouterr()

    with loaded(model, checkpoint):
        pass

    assert capfd.readouterr() == ("", "")
    assert not caplog.records
