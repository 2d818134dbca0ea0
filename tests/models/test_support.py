"""Which methods run on which models: refused by name before weights load, and as a table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner
from zoo import SCALING, UNSCALED, VARIANTS, tiny

import mesa_lm
from mesa_lm.cli.main import app
from mesa_lm.errors import ModelError
from mesa_lm.models.support import family_markdown, family_rows


@pytest.mark.parametrize("variant", UNSCALED)
def test_scaling_methods_are_refused_without_frequencies(variant):
    for name in SCALING:
        with pytest.raises(ModelError, match=f"method '{name}' is not supported on model type .* ha(s|ve) none; supp"):
            mesa_lm.extrapolate(tiny(variant), name)


@pytest.mark.parametrize("variant", UNSCALED)
def test_star_is_refused_without_frequencies_only_where_it_scales_them(variant):
    mesa_lm.extrapolate(tiny(variant), "star").remove()
    with pytest.raises(ModelError, match="method 'star' is not supported on model type .* ha(s|ve) none; supp"):
        mesa_lm.extrapolate(tiny(variant), "star", scaling="ntk")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.DeepseekV3Config(), "'deepseek_v3' is not supported .latent attention"),
        (transformers.DeepseekV2Config(), "'deepseek_v2' is not supported .latent attention"),
        (transformers.GptOssConfig(), "'gpt_oss' is not supported .attention sinks"),
        (transformers.GPT2Config(), "'gpt2' is not supported; supported are llama"),
        (transformers.Gemma2Config(use_bidirectional_attention=True), "with use_bidirectional_attention"),
        (
            transformers.Qwen2Config(
                use_sliding_window=True, sliding_window=7, num_hidden_layers=2, layer_types=["chunked_attention"] * 2
            ),
            "a layer of type 'chunked_attention'",
        ),
        (transformers.FalconConfig(alibi=True, attn_implementation="eager"), "adds the bias twice"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_what_is_not_understood_is_refused_before_loading(config, message):
    with pytest.raises(ModelError, match=message):
        mesa_lm.check_supported(config, mesa_lm.Mesa())


def test_the_documented_table_is_the_code_s():
    documented = (Path(mesa_lm.__file__).parents[1] / "docs" / "families.md").read_text()
    assert family_markdown(family_rows()) in documented
    tested = {tiny(v).config.model_type for v in VARIANTS} | {"baichuan"}  # in test_remote_code.py
    assert {row.model_type for row in family_rows() if row.position} == tested


def test_the_command_prints_the_table():
    runner = CliRunner()
    assert runner.invoke(app, ["methods", "--families"]).output.strip() == family_markdown(family_rows())
    rows = json.loads(runner.invoke(app, ["methods", "--families", "--json"]).output)
    assert [row["model_type"] for row in rows] == [row.model_type for row in family_rows()]
    refused = {(row["model_type"], name) for row in rows for name, why in row["refusals"].items() if why}
    assert ("mpt", "yarn") in refused and ("mpt", "mesa") not in refused and ("deepseek_v2", "mesa") in refused


def test_stale_dynamic_ntk_is_refused_where_cached_keys_follow_the_length():
    with pytest.raises(ModelError, match="cached_keys=stale is not supported on rope_type 'dynamic'"):
        mesa_lm.extrapolate(tiny("llama-dynamic"), "dynamic_ntk", cached_keys="stale")


def test_the_table_needs_neither_torch_nor_transformers():
    code = "import sys; from mesa_lm.models.support import family_rows; family_rows(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mesa_lm.models.support" in loaded and not {"torch", "transformers"} & set(loaded)
