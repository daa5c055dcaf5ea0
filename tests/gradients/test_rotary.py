"""Every kind of rotary position goes the fast way: partial, interleaved, scaled, of three axes."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

import slow_twin
import tracin

WORDS, TOKENS = 30, 6
SIDES = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip
BASE = {"rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, **BASE}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 4, **BASE,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 4, **BASE,
}  # fmt: skip
OLD = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "rotary_dim": 4}

LANGUAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn": ("Llama", {"rope_parameters": YARN, "max_position_embeddings": 32}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 32}),
    "longrope": ("Phi3", {"rope_parameters": LONG, "max_position_embeddings": 32}),
    "partial": ("GPTNeoX", {"rope_parameters": {**BASE, "partial_rotary_factor": 0.5}}),
    "interleaved": ("GPTJ", OLD),
    "by complex numbers": (
        "DeepseekV2",
        {
            "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
            "v_head_dim": 8, "first_k_dense_replace": 1, "num_key_value_heads": 2,
        },
    ),
}  # fmt: skip


def of_three_axes() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sections = {"rope_type": "default", "mrope_section": [1, 1, 2], **BASE}
    config = transformers.Qwen2VLConfig(
        text_config={**SIDES, "rope_parameters": sections, "bos_token_id": 1, "eos_token_id": 1},
        vision_config={
            "depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1,
            "patch_size": 2,
        },
        image_token_id=28, video_token_id=29, vision_start_token_id=27, vision_end_token_id=26,
    )  # fmt: skip
    return transformers.Qwen2VLForConditionalGeneration(config)


def made(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "of three axes":
        return of_three_axes().double().eval()
    kind, settings = LANGUAGE[name]
    config = getattr(transformers, f"{kind}Config")(**{**SIDES, **settings})
    return getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()


@pytest.mark.parametrize("name", [*LANGUAGE, "of three axes"])
def test_rotary_positions_go_the_fast_way(name: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR)
    model = made(name)
    words = torch.randint(2, 25, (5, TOKENS), generator=torch.Generator().manual_seed(1))
    data = {"input_ids": words, "labels": words, "attention_mask": torch.ones_like(words)}
    run = tracin.TracIn(model, "causal_lm", [model.state_dict()], learning_rates=[1.0])

    scores = run.influence(data, data, batch_size=3)

    wanted = slow_twin.influence(model, "causal_lm", data, data)
    largest = float(wanted.abs().max())
    torch.testing.assert_close(scores.double(), wanted, rtol=0, atol=1e-9 * largest)
    methods = {
        key: str(each.method)
        for key, each in run.coverage(data).entries.items()
        if not key.startswith("model.visual")  # sees no picture here
    }
    assert {key: way for key, way in methods.items() if way != "fast"} == {}
