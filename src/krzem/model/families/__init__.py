"""One reader per ``model_type``; field meanings and defaults follow ``transformers`` 5.23."""

from __future__ import annotations

from collections.abc import Callable

from krzem.model.architecture import Architecture
from krzem.model.families import deepseek, deepseek_v4, gpt, llama, mixture, pangu
from krzem.model.fields import Fields

FAMILIES: dict[str, Callable[[Fields], Architecture]] = {
    "deepseek_v2": deepseek.deepseek_v2,
    "deepseek_v3": deepseek.deepseek_v3,
    "deepseek_v32": deepseek.deepseek_v32,
    "deepseek_v4": deepseek_v4.deepseek_v4,
    "glm4_moe": mixture.glm4_moe,
    "glm_moe_dsa": deepseek.glm_moe_dsa,
    "gpt2": gpt.gpt2,
    "gpt_neox": gpt.gpt_neox,
    "gpt_oss": mixture.gpt_oss,
    "kimi_k2": deepseek.kimi_k2,
    "llama": llama.llama,
    "mistral": llama.mistral,
    "mixtral": mixture.mixtral,
    "pangu_ultra": pangu.pangu_ultra,
    "pangu_ultra_moe": pangu.pangu_ultra_moe,
    "qwen2": llama.qwen2,
    "qwen2_moe": mixture.qwen2_moe,
    "qwen3": llama.qwen3,
    "qwen3_moe": mixture.qwen3_moe,
}
