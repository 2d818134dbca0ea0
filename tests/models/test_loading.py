"""The ways in which models are loaded: dtypes, devices, adapters, quantised layers, back-ends, compilation."""

from functools import partial

import peft
import pytest
import torch
import transformers
from helpers import decode, random_ids
from transformers.cache_utils import DynamicCache, StaticCache
from zoo import VARIANTS, T, tiny

import mesa_lm
from mesa_lm.attention import kernels
from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import ModelError
from mesa_lm.harness.model import MesaHFLM

IDS = random_ids(61)
# One family for each way in which attention is called: the interface, and each call of its own.
CALLS = ("llama", "gemma2", "gptj", "falcon-groups", "falcon-alibi", "mpt", "bloom")


def run(model, name="mesa"):
    with torch.no_grad(), mesa_lm.extrapolate(model, name):
        return decode(model, IDS, 58)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("mixtral", "qwen3_moe")])
def test_half_precision_is_as_exact_as_the_model_itself(variant, dtype):
    """Beyond T the error is of the size that the untouched model's own rounding has within T; experts may switch."""
    model, half = tiny(variant), tiny(variant).to(dtype)
    with torch.no_grad():
        own = (half(IDS[None, :T]).logits.float() - model(IDS[None, :T]).logits).pow(2).mean().sqrt()
    logits = run(half)
    assert logits.dtype == dtype
    assert (logits.float() - run(model)).pow(2).mean().sqrt() < 2.5 * own


@pytest.mark.parametrize("variant", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_experts_in_half_precision(variant, dtype):
    """Rounding may send a token to another expert, so most tokens are looked at, not all."""
    error = (run(tiny(variant).to(dtype)).float() - run(tiny(variant))).pow(2).mean(-1).sqrt()
    assert error.median() < 0.1


@pytest.mark.parametrize("variant", CALLS)
def test_device_maps_and_offloading(variant, tmp_path):
    model = tiny(variant)
    expected = run(model)
    model.save_pretrained(tmp_path / "model")
    load = partial(
        transformers.AutoModelForCausalLM.from_pretrained, attn_implementation=model.config._attn_implementation
    )
    torch.testing.assert_close(run(load(tmp_path / "model", device_map="auto").eval()), expected, atol=1e-5, rtol=0)
    leaves = [name for name, module in model.named_modules() if name and not list(module.children())]
    layers = sorted({".".join(name.split(".")[:3]) for name in leaves if name.split(".")[2:3]})
    devices = {name: "cpu" for name in leaves if not name.split(".")[2:3]} | dict.fromkeys(layers[:-1], "cpu")
    devices |= {layers[-1]: "disk"}
    offloaded = load(tmp_path / "model", device_map=devices, offload_folder=tmp_path / "disk").eval()
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    torch.testing.assert_close(run(offloaded), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("variant", "target"), [("llama", "q_proj"), ("mpt", "Wqkv"), ("falcon", "query_key_value")])
def test_adapters(variant, target):
    """An adapter's model equals the model with the adapter merged, and differs from the bare one."""
    adapted = peft.get_peft_model(tiny(variant), peft.LoraConfig(target_modules=[target], r=2, lora_alpha=8))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name:
                parameter.normal_(0, 0.3)
        with mesa_lm.extrapolate(adapted, "mesa"):
            logits = adapted(input_ids=IDS[None]).logits
        merged, bare = adapted.merge_and_unload(), tiny(variant)
        with mesa_lm.extrapolate(merged, "mesa"), mesa_lm.extrapolate(bare, "mesa"):
            torch.testing.assert_close(logits, merged(IDS[None]).logits, atol=1e-4, rtol=0)
            assert (logits - bare(IDS[None]).logits).abs().max() > 1


class EightBit(torch.nn.Module):
    """A linear layer with integer weights and a scale, like those of quantisation packages: its weight is no float."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, states):
        return torch.nn.functional.linear(states, self.weight * self.scale, self.bias)


@pytest.mark.parametrize("variant", CALLS)
def test_quantised_projections(variant):
    """Projections are called, never looked into: as with the dequantised weights."""
    quantised, rounded = tiny(variant), tiny(variant)
    for model in (quantised, rounded):
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear) and "head" not in name:
                layer = EightBit(module)
                if model is quantised:
                    parent, _, own = name.rpartition(".")
                    setattr(model.get_submodule(parent), own, layer)
                else:
                    module.weight.data = layer.weight * layer.scale
    torch.testing.assert_close(run(quantised), run(rounded), atol=1e-4, rtol=0)


def test_the_attention_back_end_is_honoured(monkeypatch):
    """Plain products only where eager was asked for; every other choice may use a fused kernel."""
    calls = []
    plain = kernels.attend_in_blocks
    monkeypatch.setattr(kernels, "attend_in_blocks", lambda *args: (calls.append(1), plain(*args))[1])
    logits = {name: run(tiny("llama", attn_implementation=name)) for name in ("sdpa", "flex_attention")}
    assert not calls
    logits["eager"] = run(tiny("llama", attn_implementation="eager"))
    assert calls
    for other in logits.values():
        torch.testing.assert_close(other, logits["sdpa"], atol=1e-4, rtol=0)


def test_a_missing_back_end_is_one_line_before_the_weights_load(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ModelError, match=r"^cannot load the model .*FlashAttention2 .* installed\.$"):
        MesaHFLM(str(tmp_path), tokenizer=str(MODEL_PATH), attn_implementation="flash_attention_2")


@pytest.mark.parametrize("kind", ["static", "dynamic"])
@pytest.mark.parametrize("method", ["origin", "ntk"])
def test_decoding_is_one_graph_where_it_is_that_of_the_plain_model(method, kind):
    """As CUDA graphs and `mode="reduce-overhead"` need it; of the other methods nothing beyond T is compiled."""
    torch._dynamo.reset()
    model, ids = tiny("llama", num_hidden_layers=1), random_ids(T + 13)[None]

    def logits(call):
        cache = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=2 * T)
        model(ids[:, : T + 9], past_key_values=cache)
        return torch.cat([call(token.view(1, 1), past_key_values=cache).logits for token in ids[0, T + 9 :]])

    with torch.no_grad(), mesa_lm.extrapolate(model, method):
        expected = logits(model)
        found = logits(torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "how", ["model", pytest.param("forward", marks=pytest.mark.slow), "forward, attached", "layers"]
)
def test_compiled_models(how):
    """Graphs end where passes begin; the results are those of the model as it is."""
    torch._dynamo.reset()
    model = tiny("llama", num_hidden_layers=1)
    expected = run(model)
    options = {"backend": "eager", "dynamic": True}
    compiled = model
    if how == "model":
        compiled = torch.compile(model, **options)
    elif how == "forward":
        model.forward = torch.compile(model.forward, **options)
    elif how == "layers":
        for layer in model.model.layers:
            layer.compile(**options)
    with torch.no_grad(), mesa_lm.extrapolate(compiled, "mesa"):
        if how == "forward, attached":
            model.forward = torch.compile(model.forward, **options)
        torch.testing.assert_close(decode(compiled, IDS, 58), expected, atol=1e-5, rtol=0)
    torch._dynamo.reset()
