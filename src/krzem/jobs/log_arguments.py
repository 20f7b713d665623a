"""What a log says of its job beside the steps: dumps of arguments and lines at the start."""

from __future__ import annotations

import re
from collections.abc import Mapping

from krzem.errors import shorten
from krzem.jobs.job import JobBuilder, Place, Value

NEEDLES = (
    b" .....", b"Config param ", b"Num_devices: ", b"Building device mesh", b"-D device mesh",
    b"with local batch size", b"Trainer is initialized with", b"total parameters", b" capacity: ",
    b"Total optimization steps", b"Total train batch size", b"batch size per device",
    b"Instantaneous batch size", b"Gradient Accumulation steps", b"Gradient accumulation steps",
    b'"submission_benchmark"', b'"global_batch_size"', b'"submission_platform"', b'"lora_rank"',
    b'"gradient_accumulation_steps"', b'"max_sequence_length"', b'"sequence_length"',
)  # fmt: skip
"""A line that tells of the job holds one of these."""

_DOTS = re.compile(r"(?:^|[\s:\]])([A-Za-z_]\w*) \.{3,} ?(.*?)\s*$")
_ORIGIN = re.compile(r"\.{2,}(?:default|updated|user)?$")
_CONFIG = re.compile(r"Config param (\w+): (.*?)\s*$")
_AXES = re.compile(r"-D device mesh with \[([^\]]*)\], \[([\d, ]*)\]")
_AXIS = {"pp": "pp", "tp": "tp", "cp": "cp", "ep": "ep", "dp": "_shard", "dp_shard": "_shard",
         "dp_replicate": "_replicate"}  # fmt: skip
_MOST = 4000
_LONGEST = 300
_TRUE = {"true": True, "false": False}


class Arguments:
    """Collects what the lines say; :meth:`settle` writes it into a job."""

    def __init__(self) -> None:
        self.raw: dict[str, str] = {}
        """Argument and value as dumped; a later dump wins."""
        self.lines: dict[str, Place] = {}
        self._said: dict[str, tuple[Value, Place]] = {}

    def read(self, text: str, line: int) -> None:
        """One line that holds one of :data:`NEEDLES`."""
        place = Place(line=line, text=shorten(text.strip(), _LONGEST))
        dumped = _DOTS.search(text) or _CONFIG.search(text)
        if dumped is not None:
            if len(self.raw) < _MOST or dumped[1] in self.raw:
                value = _ORIGIN.sub("", dumped[2]).strip()
                name = _OF_DEEPSPEED + dumped[1] if _CONFIG_OF_DEEPSPEED in text else dumped[1]
                self.raw[name] = shorten(value, _LONGEST)
                self.lines[name] = place
            return
        axes = _AXES.search(text)
        if axes is not None:
            self._axes(axes, place)
        for pattern, names in _LINES:
            match = pattern.search(text)
            if match is not None:
                for name, part in zip(names, match.groups(), strict=True):
                    if part is not None:
                        self._said[name] = (_typed(name, part), place)

    def _axes(self, match: re.Match[str], place: Place) -> None:
        """torchtitan's mesh of the years before: names of axes, then their sizes."""
        names = [n.strip(" '\"") for n in match[1].split(",")]
        sizes = [int(n) for n in match[2].replace(" ", "").split(",") if n]
        for name in ("pp", "cp", "tp", "_shard"):
            self._said.setdefault(name, (1, place))
        for name, size in zip(names, sizes, strict=False):
            if name in _AXIS:
                self._said[_AXIS[name]] = (size, place)

    def settle(self, job: JobBuilder) -> None:
        """State in ``job`` what was read; what the engine does not know stays in ``raw``."""
        for name, (value, place) in self._said.items():
            if not name.startswith("_"):
                job.state(name, value, place, override=True)
        self._mesh(job)
        if "tensor_model_parallel_size" in self.raw or "num_layers" in self.raw:
            self._table(job, _MEGATRON)
            self._megatron(job)
        elif "per_device_batch_size" in self.raw:
            self._table(job, _MAXTEXT)
            self._maxtext(job)
        self._table(job, _DEEPSPEED)
        ranks, cut = self.integer(f"{_OF_DEEPSPEED}world_size"), self.raw.keys() & _CUT
        if ranks and not cut and job.get("devices") is None:
            job.derive("devices", ranks, f"{ranks} data-parallel ranks, and nothing cuts a model")

    def integer(self, name: str) -> int | None:
        """A dumped value that is a positive whole number."""
        value = self.raw.get(name, "")
        return int(value) if value.isdigit() and 0 < len(value) < 16 and int(value) else None

    def flag(self, name: str) -> bool | None:
        """A dumped value that is true or false."""
        return _TRUE.get(self.raw.get(name, "").lower())

    def _table(self, job: JobBuilder, table: Mapping[str, str]) -> None:
        for argument, name in table.items():
            value = self.integer(argument)
            if value is not None and job.get(name) is None:
                job.state(name, value, self.lines[argument])

    def _say(self, job: JobBuilder, name: str, value: Value, argument: str) -> None:
        if job.get(name) is None:
            job.state(name, value, self.lines[argument])

    def _mesh(self, job: JobBuilder) -> None:
        """torchtitan's mesh: replicas and shards make the data-parallel ranks."""
        shard, replicate = (self._said.get(name) for name in ("_shard", "_replicate"))
        if shard is None or not isinstance(shard[0], int):
            return
        copies = replicate[0] if replicate and isinstance(replicate[0], int) else 1
        job.state("dp", shard[0] * copies, shard[1], override=True)
        if shard[0] > 1:
            job.state("zero", 3, shard[1], override=True)
            if copies > 1:
                job.state("shard", shard[0], shard[1], override=True)

    def _megatron(self, job: JobBuilder) -> None:
        for argument, name in _MEGATRON_FLAGS.items():
            value = self.flag(argument)
            if value is not None:
                self._say(job, name, value != (argument in _INVERTED), argument)
        for argument, name in _MEGATRON_SWITCHES.items():
            value = self.flag(argument)
            if value is not None:
                self._say(job, f"switch.{name}", "on" if value else "off", argument)
        for argument, (name, words) in _WORDS.items():
            word = words.get(self.raw.get(argument, "").lower())
            if word is not None:
                self._say(job, name, word, argument)
        self._heads(job)
        self._precision(job)
        if self.flag("use_distributed_optimizer") and "zero_stage" not in self.raw:
            self._say(job, "zero", 1, "use_distributed_optimizer")

    def _heads(self, job: JobBuilder) -> None:
        groups = self.integer("num_query_groups")
        if self.flag("multi_latent_attention"):
            self._say(job, "model.attention", "mla", "multi_latent_attention")
            self._table(job, _LATENT)
        elif groups and self.flag("group_query_attention"):
            self._say(job, "model.kv_heads", groups, "num_query_groups")
        elif heads := self.integer("num_attention_heads"):
            many = "num_key_value_heads"
            value = self.integer(many)
            name = many if value else "num_attention_heads"
            self._say(job, "model.kv_heads", value or heads, name)

    def _precision(self, job: JobBuilder) -> None:
        eight = self.raw.get("fp8", "None").lower()
        if eight not in ("none", "false", "") and "fp8" in self.raw:
            recipe = self.raw.get("fp8_recipe", "").lower()
            word = {"blockwise": "fp8-block", "mxfp8": "mxfp8"}.get(recipe, "fp8")
            self._say(job, "precision", word, "fp8")
        for name in ("bf16", "fp16"):
            if self.flag(name):
                self._say(job, "precision", name, name)
        word = {"bfloat16": "bf16", "fp16": "fp16", "bf16": "bf16"}.get(
            self.raw.get("precision", "").strip("'\"").lower(), ""
        )
        if word:
            self._say(job, "precision", word, "precision")

    def _maxtext(self, job: JobBuilder) -> None:
        name = self.raw.get("model_name", "")
        if name and name != "default":
            self._say(job, "model.name", name, "model_name")
        word = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}.get(
            self.raw.get("dtype", "").lower()
        )
        if word and self.raw.get("quantization", "").lower() in ("", "none"):
            self._say(job, "precision", word, "dtype")


_MEGATRON: Mapping[str, str] = {
    "world_size": "devices", "global_num_gpus": "devices",
    "tensor_model_parallel_size": "tp", "model_parallel_size": "tp",
    "pipeline_model_parallel_size": "pp", "pipe_parallel_size": "pp",
    "context_parallel_size": "cp", "ds_sequence_parallel_size": "cp",
    "virtual_pipeline_model_parallel_size": "vpp", "expert_model_parallel_size": "ep",
    "expert_tensor_parallel_size": "etp", "data_parallel_size": "dp",
    "micro_batch_size": "mbs", "train_micro_batch_size_per_gpu": "mbs",
    "global_batch_size": "global_batch", "train_batch_size": "global_batch",
    "gradient_accumulation_steps": "accumulation",
    "seq_length": "seq", "train_iters": "train_steps",
    "num_layers": "model.layers", "hidden_size": "model.hidden",
    "ffn_hidden_size": "model.ffn", "num_attention_heads": "model.heads",
    "kv_channels": "model.head_dim", "vocab_size": "model.vocab",
    "padded_vocab_size": "model.vocab",
    "num_experts": "model.experts", "moe_router_topk": "model.top_k",
    "moe_ffn_hidden_size": "model.moe_ffn",
    "moe_shared_expert_intermediate_size": "model.shared_ffn",
    "mtp_num_layers": "model.mtp", "window_size": "model.window",
    "zero_stage": "zero", "recompute_num_layers": "rlayers",
    "decoder_first_pipeline_num_layers": "first", "decoder_last_pipeline_num_layers": "last",
}  # fmt: skip
_LATENT: Mapping[str, str] = {
    "q_lora_rank": "model.q_lora_rank", "kv_lora_rank": "model.kv_lora_rank",
    "qk_head_dim": "model.qk_nope", "qk_nope_head_dim": "model.qk_nope",
    "qk_pos_emb_head_dim": "model.qk_rope", "qk_rope_head_dim": "model.qk_rope",
    "v_head_dim": "model.v_head",
}  # fmt: skip
_MEGATRON_FLAGS: Mapping[str, str] = {
    "swiglu": "model.gated", "untie_embeddings_and_output_weights": "model.tied",
    "no_weight_tying": "model.tied", "qk_layernorm": "model.qk_norm",
    "add_bias_linear": "model.bias", "sequence_parallel": "sp",
    "optimizer_cpu_offload": "offload",
}  # fmt: skip
_INVERTED = frozenset({"untie_embeddings_and_output_weights", "no_weight_tying"})
_MEGATRON_SWITCHES: Mapping[str, str] = {
    "overlap_grad_reduce": "overlap-grad-reduce", "overlap_param_gather": "overlap-param-gather",
    "tp_comm_overlap": "overlap-tp", "overlap_moe_expert_parallel_comm": "overlap-a2a",
    "gradient_accumulation_fusion": "fused-accumulation", "fp8_param_gather": "fp8-params",
}  # fmt: skip
_WORDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "recompute_granularity": (
        "recompute", {"none": "none", "full": "full", "selective": "attention"},
    ),
    "position_embedding_type": (
        "model.positions",
        {"rope": "rope", "learned_absolute": "learned", "none": "none", "alibi": "alibi"},
    ),
    "moe_token_dispatcher_type": (
        "switch.dispatcher", {"alltoall": "alltoall", "allgather": "allgather"},
    ),
    "optimizer": ("optimizer", {"adam": "adamw", "sgd": "sgd", "muon": "muon"}),
    "cp_comm_type": ("cpkind", {"p2p": "ring", "['p2p']": "ring", "a2a": "a2a", "['a2a']": "a2a"}),
}  # fmt: skip
_MAXTEXT: Mapping[str, str] = {
    "max_target_length": "seq", "global_batch_size_to_train_on": "global_batch",
    "gradient_accumulation_steps": "accumulation", "steps": "train_steps",
    "base_num_decoder_layers": "model.layers", "base_emb_dim": "model.hidden",
    "base_mlp_dim": "model.ffn", "base_num_query_heads": "model.heads",
    "base_num_kv_heads": "model.kv_heads", "head_dim": "model.head_dim",
    "vocab_size": "model.vocab",
}  # fmt: skip
_OF_DEEPSPEED = "deepspeed."
"""Put before what DeepSpeed dumps: its world size, say, counts data-parallel ranks alone."""
_CONFIG_OF_DEEPSPEED = "[config.py:"
_DEEPSPEED: Mapping[str, str] = {
    "deepspeed.train_batch_size": "global_batch",
    "deepspeed.train_micro_batch_size_per_gpu": "mbs",
    "deepspeed.gradient_accumulation_steps": "accumulation",
    "deepspeed.world_size": "dp",
    "deepspeed.zero_optimization_stage": "zero",
}
_CUT = frozenset({
    "tensor_model_parallel_size", "model_parallel_size", "pipe_parallel_size", "num_layers",
})  # fmt: skip
"""With one of these another dump says how the model is cut over devices."""


def _line(pattern: str, *names: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    return re.compile(pattern), names


_LINES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    _line(
        r"mesh with parallelism: pp=(\d+), dp_replicate=(\d+), dp_shard=(\d+), cp=(\d+), tp=(\d+)"
        r"(?:, ep=(\d+))?(?:, etp=(\d+))?",
        "pp", "_replicate", "_shard", "cp", "tp", "ep", "etp",
    ),
    _line(
        r"local batch size (\d+), global batch size (\d+)(?:, gradient accumulation steps (\d+))?"
        r", sequence length (\d+), total steps (\d+)",
        "mbs", "global_batch", "accumulation", "seq", "train_steps",
    ),
    _line(
        r"(\d+) tokens per train step, gradient accumulation steps (\d+)"
        r", maximum context length (\d+), total steps (\d+)",
        "_tokens", "accumulation", "seq", "train_steps",
    ),
    _line(r"Model (\S+ \S+) size: [\d,]+ total parameters", "model.name"),
    _line(r"(?:CUDA|XPU|NPU|HIP) capacity: (.+?) with [\d.]+GiB memory", "device"),
    _line(r"Num_devices: (\d+), shape", "devices"),
    _line(r"Total optimization steps *= *([\d,]+)", "train_steps"),
    _line(r"Total train batch size .*?= *([\d,]+)", "global_batch"),
    _line(r"(?:Instantaneous )?batch size per device *= *([\d,]+)", "mbs"),
    _line(r"Gradient [Aa]ccumulation steps *= *([\d,]+)", "accumulation"),
    _line(r'"key": ?"submission_benchmark", ?"value": ?"([^"]+)"', "model.name"),
    _line(r'"key": ?"global_batch_size", ?"value": ?(\d+)', "global_batch"),
    _line(r'"key": ?"gradient_accumulation_steps", ?"value": ?(\d+)', "accumulation"),
    _line(r'"key": ?"(?:max_)?sequence_length", ?"value": ?(\d+)', "seq"),
    _line(r'"key": ?"(lora)_rank"', "finetune"),
)  # fmt: skip
_TEXTS = frozenset({"model.name", "device", "finetune"})


def _typed(name: str, text: str) -> Value:
    return shorten(text.strip(), 120) if name in _TEXTS else int(text.replace(",", "")[:15])
