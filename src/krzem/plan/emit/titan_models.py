"""Which torchtitan recipe builds a model: found by its shape, not by its name."""

from __future__ import annotations

from dataclasses import dataclass

from krzem.errors import ModelError
from krzem.model.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Recipe:
    """A config function of torchtitan 0.3.0 and the flavour of model it is to build."""

    package: str
    function: str
    flavor: str
    own: bool = True
    """Whether the function builds this flavour itself."""

    @property
    def path(self) -> str:
        """The function, as it is imported."""
        return f"torchtitan.models.{self.package}.config_registry.{self.function}"


# (hidden, layers, vocabulary, experts): enough to tell apart all models built there.
_RECIPES = {
    (4096, 32, 128256, 0): Recipe("llama3", "llama3_8b", "8B"),
    (8192, 80, 128256, 0): Recipe("llama3", "llama3_70b", "70B"),
    # Its own recipe computes in 8 bits, whatever is asked.
    (16384, 126, 128256, 0): Recipe("llama3", "llama3_70b", "405B", own=False),
    (1024, 28, 151936, 0): Recipe("qwen3", "qwen3_0_6b", "0.6B"),
    (2048, 28, 151936, 0): Recipe("qwen3", "qwen3_1_7b", "1.7B"),
    (2560, 36, 151936, 0): Recipe("qwen3", "qwen3_1_7b", "4B", own=False),
    (4096, 36, 151936, 0): Recipe("qwen3", "qwen3_14b", "8B", own=False),
    (5120, 40, 151936, 0): Recipe("qwen3", "qwen3_14b", "14B"),
    (5120, 64, 151936, 0): Recipe("qwen3", "qwen3_32b", "32B"),
    (2048, 48, 151936, 128): Recipe("qwen3", "qwen3_30b_a3b", "30B-A3B"),
    (4096, 94, 151936, 128): Recipe("qwen3", "qwen3_30b_a3b", "235B-A22B", own=False),
    (7168, 61, 129280, 256): Recipe("deepseek_v3", "deepseek_v3_671b", "671B"),
    (2880, 24, 201088, 32): Recipe("gpt_oss", "gpt_oss_20b", "20b"),
    (2880, 36, 201088, 128): Recipe("gpt_oss", "gpt_oss_120b", "120b"),
}
_FAMILIES = {
    "llama": "llama3", "qwen3": "qwen3", "qwen3_moe": "qwen3", "deepseek_v3": "deepseek_v3",
    "gpt_oss": "gpt_oss",
}  # fmt: skip


def recipe_of(arch: Architecture) -> Recipe:
    """The recipe whose model has the shape of ``arch``; ModelError where there is none."""
    experts = max(kind.feed_forward.experts for kind, _ in arch.kinds())
    found = _RECIPES.get((arch.hidden, arch.layers, arch.vocab, experts))
    if found is None or _FAMILIES.get(arch.model_type) != found.package:
        known = ", ".join(f"{recipe.package} {recipe.flavor}" for recipe in _RECIPES.values())
        raise ModelError(
            f"torchtitan 0.3.0 builds no model of the shape of {arch.name} (model_type"
            f" {arch.model_type}, hidden {arch.hidden}, {arch.layers} layers, vocabulary"
            f" {arch.vocab}, {experts} experts); it builds {known}"
            " (torchtitan/models/*/config_registry.py @0.3.0). Write a ModelSpec for it, or"
            " emit for another engine"
        )
    return found
