"""What is used of transformers, torch and lm-eval beyond their documented faces: it is there, and is called as before.

A new version that moves or changes one of these fails here, by name, before it fails anywhere else.
"""

import argparse
import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

import mesa_lm
from mesa_lm.attention.cache_layer import WovenLayer
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.models.growing_cache import GrowingLayer
from mesa_lm.models.tested_versions import NEWEST_TESTED, OLDEST_TESTED
from mesa_lm.tasks.long_ppl.task import LongPpl

ROOT = Path(mesa_lm.__file__).resolve().parents[1]
MODELS = "transformers.models"
HFLM = "lm_eval.models.huggingface:HFLM"

# Functions with the parameters that we give, or that ours have in their place; None: a class or a value.
SEAMS: dict[str, str | None] = {
    # How a model finds attention and masks, and what it returns.
    "transformers:AttentionInterface.register": "key, value",
    "transformers:AttentionMaskInterface.register": "key, value",
    "transformers:PreTrainedModel.get_output_embeddings": "self",
    "transformers:PretrainedConfig._attn_implementation": None,
    "transformers.generation:GenerationMixin.generate": "self, inputs, streamer, **kwargs",
    "transformers.generation:ContinuousMixin.init_continuous_batching": "self",
    "transformers.modeling_outputs:CausalLMOutputWithPast": "loss, logits, past_key_values",
    # Caches: filled by us, grown in place, and taken over.
    "transformers.cache_utils:Cache": "layers, layer_class_to_replicate, offloading",
    "transformers.cache_utils:Cache.get_seq_length": "self",
    "transformers.cache_utils:CacheLayerMixin.lazy_initialization": "self, key_states, value_states",
    "transformers.cache_utils:CacheLayerMixin.update": "self, key_states, value_states, *args, **kwargs",
    "transformers.cache_utils:CacheLayerMixin.get_mask_sizes": "self, query_length",
    "transformers.cache_utils:CacheLayerMixin.get_seq_length": "self",
    "transformers.cache_utils:CacheLayerMixin.get_max_length": "self",
    "transformers.cache_utils:CacheLayerMixin.reset": "self",
    "transformers.cache_utils:CacheLayerMixin.reorder_cache": "self, beam_idx",
    "transformers.cache_utils:DynamicCache": "config, offloading",
    "transformers.cache_utils:DynamicLayer.lazy_initialization": "self, key_states, value_states",
    "transformers.cache_utils:DynamicLayer.update": "self, key_states, value_states, *args, **kwargs",
    "transformers.cache_utils:DynamicLayer.crop": "self, tokens_to_remove",
    "transformers.cache_utils:DynamicLayer.batch_repeat_interleave": "self, repeats",
    "transformers.cache_utils:DynamicLayer.batch_select_indices": "self, indices",
    "transformers.cache_utils:DynamicSlidingWindowLayer": None,
    "transformers.cache_utils:StaticCache": "config, max_cache_len",
    "transformers.cache_utils:StaticLayer": None,
    "transformers.cache_utils:StaticSlidingWindowLayer": None,
    # Positions.
    "transformers.modeling_rope_utils:ROPE_INIT_FUNCTIONS.dynamic": "config, device, seq_len, layer_type",
    "transformers.modeling_rope_utils:ROPE_INIT_FUNCTIONS.longrope": "config, device, seq_len, layer_type",
    f"{MODELS}.llama.modeling_llama:LlamaRotaryEmbedding": "config",
    f"{MODELS}.llama.modeling_llama:LlamaRotaryEmbedding.forward": "self, x, position_ids",
    f"{MODELS}.gemma3.modeling_gemma3:Gemma3RotaryEmbedding.forward": "self, x, position_ids, layer_type",
    f"{MODELS}.gptj.modeling_gptj:GPTJAttention._get_embed_positions": "self, position_ids",
    f"{MODELS}.gptj.modeling_gptj:create_sinusoidal_positions": "num_pos, dim",
    f"{MODELS}.mpt.modeling_mpt:MptModel.build_mpt_alibi_tensor": "self, num_heads, sequence_length, device",
    f"{MODELS}.bloom.modeling_bloom:BloomModel.build_alibi_tensor": "self, attention_mask, num_heads, dtype",
    f"{MODELS}.falcon.modeling_falcon:build_alibi_tensor": "attention_mask, num_heads, dtype",
    # Attention modules whose forward is replaced.
    f"{MODELS}.gptj.modeling_gptj:GPTJAttention.forward": "self, hidden_states, **kwargs",
    f"{MODELS}.falcon.modeling_falcon:FalconAttention.forward": "self, hidden_states, **kwargs",
    f"{MODELS}.falcon.modeling_falcon:FalconAttention._split_heads": "self, fused_qkv",
    f"{MODELS}.mpt.modeling_mpt:MptAttention.forward": "self, hidden_states, **kwargs",
    f"{MODELS}.bloom.modeling_bloom:BloomAttention.forward": "self, hidden_states, residual, **kwargs",
    f"{MODELS}.bloom.modeling_bloom:BloomAttention._reshape": "self, fused_qkv",
    # Weights quantised while they are loaded, and progress bars.
    "transformers.quantizers.auto:AutoQuantizationConfig.from_dict": "quantization_config_dict",
    "transformers.utils.logging:set_tqdm_hook": "hook",
    # Python's own: the options that lm-eval's parsers know.
    "argparse:_SubParsersAction": None,
    # Out of memory, as accelerate tells it.
    "accelerate.utils.memory:clear_device_cache": "",
    "accelerate.utils.memory:should_reduce_batch_size": "exception",
    # lm-eval: models.
    "lm_eval.api.registry:model_registry.register": "target",
    "lm_eval.api.model:LM": None,
    HFLM: "pretrained, **kwargs",
    f"{HFLM}._get_config": "self, pretrained, **kwargs",
    f"{HFLM}._get_backend": "self, config, **kwargs",
    f"{HFLM}._create_tokenizer": "self, pretrained, tokenizer, **kwargs",
    f"{HFLM}._create_model": "self, pretrained, **kwargs",
    f"{HFLM}._detect_batch_size": "self, requests, pos",
    f"{HFLM}._loglikelihood_tokens": "self, requests, disable_tqdm, override_bs",
    f"{HFLM}._model_generate": "self, context, max_length, stop, **generation_kwargs",
    "lm_eval.models.utils:Collator": "arr, sort_fn, group_fn, group_by",
    "lm_eval.models.utils:normalize_gen_kwargs": "gen_kwargs, default_max_gen_toks",
    # lm-eval: tasks.
    "lm_eval.api.instance:Instance": "request_type, doc, arguments, idx",
    "lm_eval.api.metrics:mean": None,
    "lm_eval.api.metrics:perplexity": "items",
    "lm_eval.api.task:ConfigurableTask.construct_requests": "self, doc, ctx, **kwargs",
    "lm_eval.api:model": None,
    "lm_eval.api:task": None,
    "lm_eval.api.task:ConfigurableTask": "config",
    "lm_eval.api.task:Task": None,
    "lm_eval.tasks._factory:TaskFactory": "meta",
    "lm_eval.tasks._factory:TaskFactory._load_full_config": "self, entry, overrides",
    "lm_eval.tasks._factory:TaskFactory._build_task": "self, entry, overrides",
    "lm_eval.tasks._index:Entry": "name, kind, yaml_path, cfg, tags",
    "lm_eval.tasks._index:Kind": None,
    "lm_eval.tasks._index:TaskIndex": None,
    "lm_eval.tasks._index:TaskIndex.build": "paths, resolve_includes",
    "lm_eval.tasks._yaml_loader:load_yaml": "path, resolve_func",
    "lm_eval.tasks.manager:TaskManager": "verbosity, include_path, include_defaults, metadata",
    "lm_eval.tasks.manager:TaskManager.load": "self, task_list",
    "lm_eval.tasks.manager:TaskManager._load_spec": "self, spec",
    # lm-eval: results.
    "lm_eval.config.evaluate_config:EvaluatorConfig": None,
    "lm_eval.defaults:DEFAULT_OTHER_SEED": None,
    "lm_eval.loggers:EvaluationTracker": "output_path",
    "lm_eval.loggers.utils:get_git_commit_hash": "",
    "lm_eval.loggers.utils:get_commit_from_path": "repo_path",
    "lm_eval.loggers.utils:add_env_info": "storage",
    "lm_eval.loggers.evaluation_tracker:GeneralConfigTracker._get_model_name": "model_args",
    "lm_eval.evaluator_utils:EvalAcc": "groups",
    "lm_eval.evaluator_utils:EvalAcc._to_eval_results": "self",
    "lm_eval.evaluator_utils:aggregate_groups": "results",
    "lm_eval.config.evaluate_config:DICT_KEYS": None,
    "lm_eval.utils:sanitize_model_name": "model_name",
    "lm_eval.utils:get_rolling_token_windows": "token_list, prefix_token, max_seq_len, context_len",
    "lm_eval.utils:make_disjoint_window": "pair",
    "lm_eval.utils:handle_non_serializable": "o",
    "lm_eval.utils:hash_string": "string",
    "lm_eval.utils:pattern_match": "patterns, source_list",
    "lm_eval.utils:simple_parse_args_string": "args_string",
}
# torch's fused kernels are operators without a documented face.
OPERATORS = {
    "_scaled_dot_product_flash_attention_for_cpu": (
        "Tensor query, Tensor key, Tensor value, float dropout_p=0., bool is_causal=False, *, Tensor? attn_mask=None, "
        "float? scale=None) -> (Tensor output, Tensor logsumexp)"
    ),
    "_scaled_dot_product_flash_attention": (
        "Tensor query, Tensor key, Tensor value, float dropout_p=0., bool is_causal=False, "
        "bool return_debug_mask=False, *, float? scale=None) -> (Tensor output, Tensor logsumexp, "
    ),
    "_scaled_dot_product_efficient_attention": (
        "Tensor query, Tensor key, Tensor value, Tensor? attn_bias, bool compute_log_sumexp, float dropout_p=0., "
        "bool is_causal=False, *, float? scale=None) -> (Tensor output, Tensor log_sumexp, "
    ),
    "_local_scalar_dense": "Tensor self) -> Scalar",
}
# Of objects rather than of their classes.
OF_OBJECTS = {
    "_actions": argparse.ArgumentParser(),
    "_option_string_actions": argparse.ArgumentParser(),
    "_schema": torch.ops.aten.mm.default,
}
REMOTE = ("_get_interleave",)  # of Baichuan's own code, which comes with its weights


def found(seam: str) -> Any:
    """What a seam names, `module:name.name`."""
    module, _, names = seam.partition(":")
    value = importlib.import_module(module)
    for name in names.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


@pytest.mark.parametrize("seam", SEAMS)
def test_it_is_there(seam):
    assert found(seam) is not None or seam.endswith("._attn_implementation")


@pytest.mark.parametrize("seam", [seam for seam, given in SEAMS.items() if given is not None])
def test_it_takes_what_we_give(seam):
    given, parameters = SEAMS[seam], inspect.signature(found(seam)).parameters
    names = [name for name in given.split(", ") if name and not name.startswith("*")]
    anything = {one.kind for one in parameters.values()}
    for name in names:
        assert name in parameters or inspect.Parameter.VAR_KEYWORD in anything, f"{seam} has no {name}"
    empty, named = inspect.Parameter.empty, (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [name for name, one in parameters.items() if one.default is empty and one.kind in named]
    assert set(needed) <= set(names) or "*" in given, f"{seam} needs more than {given}"  # the others are handed on


@pytest.mark.parametrize("name", OF_OBJECTS)
def test_objects_have_it(name):
    assert hasattr(OF_OBJECTS[name], name)


@pytest.mark.parametrize("name", OPERATORS)
def test_torchs_kernels_are_as_they_were(name):
    schema = str(getattr(torch.ops.aten, name).default._schema)
    assert schema.startswith(f"aten::{name}({OPERATORS[name]}"), schema


@pytest.mark.parametrize("ours", [WovenLayer, GrowingLayer, MesaHFLM, TaskManager, LongPpl])
def test_what_we_override_is_called_with_what_ours_takes(ours):
    foreign = next(base for base in ours.__mro__ if not base.__module__.startswith("mesa_lm"))
    overridden = 0
    for kind in ours.__mro__[: ours.__mro__.index(foreign)]:
        for name, own in vars(kind).items():
            base = getattr(foreign, name, None)
            if not inspect.isfunction(own) or base is None or name == "__init__":
                continue
            overridden += 1
            takes = inspect.signature(own).parameters
            if not {one.kind for one in takes.values()} & {inspect.Parameter.VAR_KEYWORD}:
                gets = [n for n, one in inspect.signature(base).parameters.items() if one.kind is not one.VAR_KEYWORD]
                assert set(gets) - {"args"} <= set(takes), f"{kind.__name__}.{name} is called with {gets}"
    assert overridden


def sources() -> list[ast.AST]:
    """The parsed code of the project, but for what only measures or trains."""
    paths = [path for folder in ("mesa_lm", "tasks", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths if "development" not in path.parts]


def test_everything_imported_from_inside_a_library_is_named_here():
    missing = set()
    for tree in sources():
        for node in ast.walk(tree):
            library, _, inner = (getattr(node, "module", None) or "").partition(".")
            if isinstance(node, ast.ImportFrom) and inner and library in ("transformers", "lm_eval", "accelerate"):
                for alias in node.names:
                    seam = f"{node.module}:{alias.name}"
                    if not any(one == seam or one.startswith(f"{seam}.") for one in SEAMS):
                        missing.add(seam)
    assert not missing


def test_every_private_name_of_others_is_named_here():
    own, used = {"_asdict", "_replace", "_fields", "_make"}, set()  # of named tuples
    for node in (node for tree in sources() for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                own.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if name.startswith("_") and not name.startswith("__"):
                used.add(name)
    named = {name for seam in SEAMS for name in seam.partition(":")[2].split(".")} | set(OPERATORS)
    named |= {*OF_OBJECTS, *REMOTE}
    assert not used - own - named - {"_orig_mod", "_mesa_handle"}


def test_the_config_holds_the_name_of_the_attention_function():
    config = PretrainedConfig(attn_implementation="eager")
    assert config._attn_implementation == "eager"
    config._attn_implementation = "sdpa"
    assert config._attn_implementation == "sdpa"


def test_the_versions_said_to_be_tested_are_those_installed_and_allowed():
    allowed = (ROOT / "pyproject.toml").read_text()
    pinned = (ROOT / "constraints.txt").read_text()
    assert f'"transformers>={OLDEST_TESTED}' in allowed
    assert f"\ntransformers=={NEWEST_TESTED}." in pinned
