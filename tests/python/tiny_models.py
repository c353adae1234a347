"""A tiny model with random weights of every type that the installed transformers knows.

Sizes come from the names of the fields of a configuration: those of one kind become one number
everywhere, so that parts which must fit together do.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

VOCAB, HIDDEN, HEADS, HEAD_DIM = 128, 64, 4, 16
BATCH, TOKENS = 2, 24

# What an int becomes, by its name: the first rule that fits. What none fits, stays, and so do
# values that are smaller already.
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab", VOCAB),
    (r"conv_pos|feat_extract|frequency_embedding|codebook_dim", 1 << 30),
    (r"mamba_(n|num)_heads$", 8),
    (r"heads?$", HEADS),
    (r"qk_rope_head_dim|rotary_dim", 8),
    (r"head_dim$|d_kv|kv_channels|d_head|dim_head|head_size|attn_scalar", HEAD_DIM),
    (r"layers?$|depth$|num_blocks$|_layer_num$", 2),
    (r"sliding_window$|local_attention|attention_chunk_size|attention_window", 8),
    (r"experts_per_tok|moe_k$|moe_topk|top_k$", 2),
    (r"index_topk", 6),
    (r"n_group|topk_group", 1),
    (r"experts$", 4),
    (r"_rank$|d_state|state_size", 16),
    (r"position|n_ctx|seq_len|context_length|seq_length", 128),
    (r"^image_size|input_size|img_size", 32),
    (r"patch_size", 8),
    (r"mel_bins|num_mel|n_mels", 16),
    (r"num_queries|num_query", 8),
    (r"^window_size$", 4),
    (r"upsample_groups|upsample_initial", HIDDEN),
    (r"hidden|d_model|n_embd|width|(^|_)dim$|embed_dim|emb_dim", HIDDEN),
    (
        r"embedding_size|embedding_dim|intermediate|ffn|d_ff|n_inner|inner_dim|linear_units|projection_size",
        HIDDEN,
    ),
)
# A backbone that needs no other package.
RESNET = dict(
    use_timm_backbone=False,
    backbone_config=transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    ),
)
# Configurations, also of parts, whose parts do not fit together by the rules.
OWN: dict[str, dict[str, Any]] = {
    "bamba": dict(attn_layer_indices=[1]),
    "chameleon": dict(vocabulary_map={"<image>": 100, "IMGIMGBS": 101}),
    "conditional_detr": RESNET,
    "deepseek_v2": dict(num_experts_per_tok=2),
    "deformable_detr": RESNET,
    "detr": RESNET,
    "dots1": dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2),
    "esm": dict(vocab_size=VOCAB, pad_token_id=1, mask_token_id=2),
    "exaone4_5_vision": dict(window_size=32),
    "gemma3n_text": dict(num_kv_shared_layers=0),
    "glm5_next_text": dict(index_topk=16),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], num_layers=2),
    "granitemoehybrid": dict(layer_types=["mamba", "attention"], num_hidden_layers=2),
    "hunyuan_v1_dense": dict(head_dim=HEAD_DIM),
    "hunyuan_v1_moe": dict(head_dim=HEAD_DIM),
    "hunyuan_vl_text": dict(head_dim=HEAD_DIM),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "ministral": dict(head_dim=HEAD_DIM),
    "nemotron": dict(num_key_value_heads=2),
    "qwen2_5_vl_vision": dict(window_size=32),
    "recurrent_gemma": dict(num_hidden_layers=3),
}


def tiny_config(model_type: str) -> Any:
    cls = CONFIG_MAPPING[model_type]
    return cls(**_shrunk(cls()))


def _shrunk(config: Any) -> dict[str, Any]:
    """The arguments that make a small configuration of the same class."""
    result: dict[str, Any] = {}
    tokens = iter(range(VOCAB - 1, 0, -1))
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    for name, default in fields.items():
        value = vars(config).get(name)
        if isinstance(value, transformers.PreTrainedConfig):
            result[name] = type(value)(**_shrunk(value))
        elif re.search(r"token_(id|index)$|_id$", name):
            if _is_int(value) and value >= VOCAB // 2:
                result[name] = next(tokens)
        elif _is_int(default):  # else it is derived from others
            result[name] = min(default, _size(name, default))
        elif isinstance(value, (list, tuple)) and value and all(map(_is_int, value)):
            if re.search(r"depths|num_blocks", name):
                result[name] = [1] * len(value)
            elif re.search(r"heads", name):
                result[name] = [HEADS] * len(value)
        elif name == "rope_parameters" and isinstance(value, dict):
            result[name] = _rope(value)
    if fields.get("num_key_value_heads") not in (None, fields.get("num_attention_heads")):
        result["num_key_value_heads"] = 2
    kinds = list(dict.fromkeys(vars(config).get("layer_types") or []))
    if kinds and "layer_types" in fields:
        result["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        result["num_hidden_layers"] = len(result["layer_types"])
    return {**result, **OWN.get(config.model_type, {})}


def _rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions of images get sections of half of the small heads' rotated channels."""
    if all(isinstance(value, dict) for value in parameters.values()):
        return {kind: _rope(value) for kind, value in parameters.items()}
    half = int(HEAD_DIM * parameters.get("partial_rotary_factor", 1.0)) // 2
    side = max(1, half * 3 // 8)
    return {**parameters, "mrope_section": [side, side, half - 2 * side]}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(name: str, value: int) -> int:
    for pattern, size in SIZES:
        if re.search(pattern, name):
            return size
    return value


# Where the class of a type is looked up: language models before bodies, then whatever there is.
FIRST = (
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)
REST = sorted(n for n in vars(modeling_auto) if re.fullmatch(r"MODEL_FOR_\w+_NAMES", n))


def model_types() -> list[str]:
    return sorted(CONFIG_MAPPING_NAMES)


def model_class(model_type: str) -> Any:
    """The class to build, or None: the type is a part of others."""
    found = []
    for mapping in (*FIRST, *REST):
        names = getattr(modeling_auto, mapping).get(model_type, ())
        for name in (names,) if isinstance(names, str) else names:
            if hasattr(transformers, name):
                found.append(getattr(transformers, name))
    # Some are of the language model alone.
    whole = [cls for cls in found if cls.config_class is CONFIG_MAPPING[model_type]]
    return next(iter(whole or found), None)


def inputs_for(model: Any) -> Iterator[dict[str, Tensor]]:
    """Inputs that the model may take, the fewest first."""
    parameters = inspect.signature(model.forward).parameters
    required = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD
    ]
    main = "input_ids" if "input_ids" in parameters else model.main_input_name
    wanted = [*required, main]
    if main == "input_ids" and "attention_mask" in parameters:
        wanted.append("attention_mask")
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        wanted.append("decoder_input_ids")
    for layout in (0, 1):
        known = _Known(model.config, layout)
        pixels = [name for name in ("pixel_values", "pixel_values_videos") if name in parameters]
        optional = [name for name in known.makers if name in parameters]
        for more in ([], pixels, optional):
            names = dict.fromkeys((*wanted, *more))
            missing = [name for name in names if name not in known.makers]
            if missing:
                raise NoValuesError(", ".join(missing))
            values = {name: known.makers[name]() for name in names}
            if "grid_thw" in names:  # images cut into patches, in one row
                values[main if main in pixels else "hidden_states"] = known.patches()
            yield values


class NoValuesError(Exception):
    """A model needs arguments that are not known here."""


class _Known:
    """Values of arguments by name."""

    def __init__(self, config: Any, layout: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(0)
        height, width = _pair(self.first("image_size") or 32)
        channels = self.first("num_channels", "in_channels", "in_chans") or 3
        channels = channels if _is_int(channels) else 3
        mels = self.first("num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels") or 16
        frames = self.first("num_frames") or 2
        length = self.first("max_source_positions")
        length = 64 if length is None else 2 * length
        hidden = self.first("hidden_size", "d_model") or HIDDEN
        ids = torch.randint(5, VOCAB // 2, (BATCH, TOKENS), generator=self.generator)
        images = (BATCH, channels, height, width)
        sounds = (BATCH, mels, length) if layout == 0 else (BATCH, length, mels)
        waves = (BATCH, 4000) if layout == 0 else (BATCH, 1, 4000)
        videos = (BATCH, frames, channels, height, width)
        self.makers = {
            "input_ids": lambda: ids,
            "attention_mask": lambda: torch.ones_like(ids),
            "decoder_input_ids": lambda: ids[:, :9],
            "pixel_values": lambda: self.normal(*(images if layout == 0 else videos)),
            "pixel_values_videos": lambda: self.normal(*videos),
            "input_values": lambda: self.normal(*waves),
            "input_features": lambda: self.normal(*sounds),
            "inputs_embeds": lambda: self.normal(BATCH, TOKENS, hidden),
            "hidden_states": lambda: self.normal(BATCH, TOKENS, hidden),
            "grid_thw": lambda: torch.tensor([[1, 4, 4], [1, 4, 8]]),
            "bbox": lambda: torch.sort(ids[..., None].expand(-1, -1, 4), -1).values,
        }

    def patches(self) -> Tensor:
        """The pixels of the patches of two images, of 4x4 and 4x8 of them."""
        height, width = _pair(self.first("patch_size") or 8)
        channels = self.first("in_channels", "num_channels", "in_chans") or 3
        frames = self.first("temporal_patch_size") or 1
        return self.normal(4 * 4 + 4 * 8, channels * frames * height * width)

    def first(self, *names: str, config: Any = None) -> Any:
        """A field of the configuration or of one of its parts."""
        config = self.config if config is None else config
        for name in names:
            value = getattr(config, name, None)
            if value is not None:
                return value
        for part in vars(config).values():
            if isinstance(part, transformers.PreTrainedConfig):
                value = self.first(*names, config=part)
                if value is not None:
                    return value
        return None

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return size["height"], size["width"]
    return (size, size) if _is_int(size) else (size[-2], size[-1])
