"""Remote code in the shape of Baichuan's: tried out before it is believed, then as every other family."""

import itertools
import math

import pytest
import torch
import transformers
from family_pairs import OPTIONS, pairs_of
from helpers import distinct_ids, random_ids
from packed_model import SHAPES, T, load_packed
from zoo import SCALING

import mesa_lm
from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import ModelError
from mesa_lm.harness.model import MesaHFLM


def expected(model, ids, pairs):
    """The model's logits in float64 with the scores of its attention written out, one head at a time."""
    double = lambda tensor: tensor.detach().double()  # noqa: E731
    hidden = double(model.model.embed_tokens.weight)[ids]
    slopes = [2 ** (-8 * (i + 1) / 4) for i in range(4)]
    frequency = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    scale = pairs.scale if pairs.scale.ndim == 2 else pairs.scale[:, None]
    for layer in model.model.layers:
        norm = torch.nn.functional.layer_norm(hidden, (32,), double(layer.norm.weight), double(layer.norm.bias))
        query, key, value = (norm @ double(layer.self_attn.W_pack.weight).T).split(32, dim=-1)
        parts = [[states[:, 8 * head : 8 * head + 8] for states in (query, key, value)] for head in range(4)]

        def turned(distance, parts=parts):
            own = frequency if pairs.frequency is None else pairs.frequency[:, None]
            turn = torch.polar(torch.ones(1).double(), distance.reshape(len(ids), len(ids), -1) * own)
            complex_parts = [[torch.complex(states[:, :4], states[:, 4:]) for states in part[:2]] for part in parts]
            return torch.stack([(q[:, None] * k.conj() * turn).real.sum(-1) for q, k in complex_parts]) / math.sqrt(8)

        def scores(distance, scale=1.0, parts=parts, turned=turned):
            distance = torch.as_tensor(distance, dtype=torch.float64)
            distance = distance if distance.ndim == 3 else distance.expand(len(ids), len(ids))
            if not hasattr(model.config, "max_position_embeddings"):
                products = torch.stack([q @ k.T for q, k, _ in parts]) / math.sqrt(8)
                return products * scale - torch.tensor(slopes).double()[:, None, None] * distance
            if pairs.interpolated:
                weight = distance - distance.floor()
                return torch.lerp(turned(distance.floor()), turned(distance.ceil()), weight) * scale
            return turned(distance) * scale

        visible, distance = pairs.visible, pairs.distance
        if pairs.choose is not None:
            visible, distance = pairs.choose(scores, lambda given: given)
        weights = scores(distance, scale).masked_fill(~visible, -torch.inf).softmax(-1)
        heads = [weight @ v for weight, (_, _, v) in zip(weights, parts, strict=True)]
        hidden = hidden + torch.cat(heads, -1) @ double(layer.self_attn.o_proj.weight).T
        first, _, second = layer.mlp
        inner = torch.nn.functional.gelu(hidden @ double(first.weight).T + double(first.bias))
        hidden = hidden + inner @ double(second.weight).T + double(second.bias)
    return hidden @ double(model.lm_head.weight).T


CELLS = [
    (shape, name)
    for shape, name in itertools.product(SHAPES, OPTIONS)
    if name not in ("ntk", "linear", "yarn") and not (shape == "alibi" and name in SCALING)
]


@pytest.mark.parametrize(("shape", "name"), CELLS)
def test_packed_models_equal_the_oracle(shape, name, tmp_path):
    # Keys of equal tokens would be chosen by rounding.
    model, ids = load_packed(tmp_path, vocab_size=211, **SHAPES[shape]), distinct_ids(61)
    with torch.no_grad():
        short = model(ids[None, :T]).logits
        with mesa_lm.extrapolate(model, name, **OPTIONS[name]) as handle:
            logits = model(ids[None]).logits[0]
            last = model(ids[None], logits_to_keep=2).logits[0]
        pairs, _ = pairs_of("llama", name, handle.method, 61, 61)
        torch.testing.assert_close(logits.double(), expected(model, ids, pairs), atol=2e-4, rtol=0)
        torch.testing.assert_close(last, logits[-2:], atol=1e-5, rtol=0)
        assert torch.equal(model(ids[None, :T]).logits, short)


def test_code_that_computes_something_else_is_found_out(tmp_path):
    model = load_packed(tmp_path, **SHAPES["rotary"], sharper=1.2)
    with pytest.raises(
        ModelError,
        match=r"does not compute what model type 'baichuan' stands for here: logits of \d+ tokens differ by",
    ):
        mesa_lm.extrapolate(model, "mesa")
    assert "forward" not in model.__dict__
    with mesa_lm.extrapolate(model, "origin"):
        pass  # and nothing remains attached


def test_code_of_another_shape_is_refused_by_name(tmp_path):
    model = load_packed(tmp_path, **SHAPES["alibi"])
    del model.model.layers[1].self_attn.W_pack
    with pytest.raises(ModelError, match=r"modeling_packed.Attention at 'model.layers.1.self_attn' is not one that"):
        mesa_lm.extrapolate(model, "mesa")


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_models_load_and_run_in_half_precision(shape, tmp_path):
    model = load_packed(tmp_path, **SHAPES[shape])
    config = (tmp_path / "config.json").read_text()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config)
    saved = {"trust_remote_code": True, "dtype": torch.bfloat16}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **saved).eval()
    ids = random_ids(61)[None]
    with torch.no_grad(), mesa_lm.extrapolate(model, "mesa"), mesa_lm.extrapolate(loaded, "mesa"):
        error = (loaded(ids).logits.float() - model(ids).logits).pow(2).mean().sqrt()
    assert error < 0.3  # logits of the order of 10, rounded to 8 bits in every layer


def test_a_task_that_generates_is_refused_in_one_line(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_PATH)
    model = MesaHFLM(load_packed(tmp_path, vocab_size=len(tokenizer), **SHAPES["rotary"]), tokenizer=tokenizer)
    with pytest.raises(ModelError, match=r"PackedForCausalLM has no generate\(\), which this task needs"):
        model.generate_until([])


def test_tables_that_loading_leaves_empty_are_found_out(tmp_path):
    """transformers creates a model without memory; what code computes on creation and does not save is then lost."""
    model = load_packed(tmp_path, **SHAPES["rotary"])
    for layer in model.model.layers:
        layer.self_attn.rotary_emb.inv_freq.zero_()
    with pytest.raises(ModelError, match="does not compute what model type"):
        mesa_lm.extrapolate(model, "mesa")


@pytest.mark.parametrize("shape", SHAPES)
def test_static_scaling_is_refused(shape, tmp_path):
    model = load_packed(tmp_path, **SHAPES[shape])
    with pytest.raises(ModelError, match="method 'linear' is not supported on model type 'baichuan': it"):
        mesa_lm.extrapolate(model, "linear")


def test_caches_of_tuples_are_refused_beyond_the_training_length(tmp_path):
    model, ids = load_packed(tmp_path, **SHAPES["rotary"]), random_ids(T + 1)
    with torch.no_grad(), mesa_lm.extrapolate(model, "mesa"):
        cache = model(ids[None, :T], use_cache=True).past_key_values
        with pytest.raises(ModelError, match="past_key_values must be a transformers Cache, found tuple"):
            model(ids[None, T:], past_key_values=cache)
