"""What each process of a gang does: the same as one process alone, where the group is None."""

import time

import torch
import torch.distributed as dist
from helpers import pad
from lm_eval import simple_evaluate
from tiny_models import tiny_model
from zoo import tiny

import mesa_lm
from mesa_lm.attention.cache_layer import woven_layer


def build(model: str | dict) -> torch.nn.Module:
    """A tiny model by its name in the zoo, or by its dtype and the options of `tiny_model`."""
    if isinstance(model, str):
        return tiny(model)
    dtype = model.get("dtype", torch.float32)
    return tiny_model(**{name: value for name, value in model.items() if name != "dtype"}).to(dtype)


def logits(group, model, method: str, options: dict, rows: list, tokens: torch.Tensor, side="left", kept=0):
    """Logits of a batch of prompts and of tokens after it, one at a time, for all rows alike."""
    model = build(model)
    batch = pad(rows, side)
    with mesa_lm.extrapolate(model, method, process_group=group, **options), torch.no_grad():
        output = model(**batch, use_cache=True, logits_to_keep=kept)
        found, mask = [output.logits], batch["attention_mask"]
        for token in tokens:
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            step = token.expand(len(rows), 1)
            output = model(step, attention_mask=mask, past_key_values=output.past_key_values, use_cache=True)
            found.append(output.logits)
    return torch.cat(found, dim=1)


def held(group, model, method: str, options: dict, row: torch.Tensor):
    """Tokens whose keys this process holds after a prompt, and for how many its buffers have room."""
    model = build(model)
    with mesa_lm.extrapolate(model, method, process_group=group, **options), torch.no_grad():
        cache = model(row[None], use_cache=True, logits_to_keep=1).past_key_values
    woven = woven_layer(cache).woven
    return woven.rows[0].slots, woven.keys[0].shape[2]


def generated(group, model, method: str, options: dict, rows: list, settings: dict):
    """Token ids that `generate` adds to a batch, and the logits that it chose them by."""
    model = build(model)
    torch.manual_seed(7)
    with mesa_lm.extrapolate(model, method, process_group=group, **options):
        output = model.generate(
            **pad(rows, "left"), eos_token_id=None, return_dict_in_generate=True, output_logits=True, **settings
        )
    return output.sequences, torch.stack(output.logits)


def reused(group, model, method: str, options: dict, prompts: list):
    """Logits of one prompt after the other where chunks are kept, and how many were not computed again."""
    model = build(model)
    with mesa_lm.extrapolate(model, method, process_group=group, **options) as handle, torch.no_grad():
        handle.reuse_chunks(2**20)
        found = torch.cat([model(prompt[None], logits_to_keep=1).logits for prompt in prompts])
    return found, handle.store.hits


def turns(group, model, method: str, options: dict, pieces: list):
    """Logits of pieces that follow one another in one cache."""
    model = build(model)
    found, cache = [], None
    with mesa_lm.extrapolate(model, method, process_group=group, **options), torch.no_grad():
        for piece in pieces:
            output = model(piece[None], past_key_values=cache, use_cache=True)
            found.append(output.logits)
            cache = output.past_key_values
    return torch.cat(found, dim=1)


def cropped(group, model, method: str, options: dict, prompt: torch.Tensor, tried: torch.Tensor, then: torch.Tensor):
    """Logits of what follows a prompt, after something else was tried and taken back."""
    model = build(model)
    with mesa_lm.extrapolate(model, method, process_group=group, **options), torch.no_grad():
        cache = model(prompt[None], use_cache=True).past_key_values
        for length in (len(tried), 3):
            model(tried[None, :length], past_key_values=cache, use_cache=True)
            cache.crop(-length)
        return model(then[None], past_key_values=cache, use_cache=True).logits


def refused(group, model, method: str, options: dict, row: torch.Tensor, differs: bool = False):
    """The error that a call ends in."""
    model = build(model)
    if differs and dist.get_rank(group) > 0:
        row = row.flip(0)
    try:
        with mesa_lm.extrapolate(model, method, process_group=group, **options), torch.no_grad():
            model(row[None], logits_to_keep=1)
    except mesa_lm.MesaError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def without_end(group, row: torch.Tensor):
    """The error that calls end in once another process of the group is gone, and how long the last call took."""
    model = build({})
    with mesa_lm.extrapolate(model, "mesa", process_group=group), torch.no_grad():
        while True:
            start = time.monotonic()
            try:
                model(row[None], logits_to_keep=1)
            except mesa_lm.MesaError as error:
                return f"{type(error).__name__}: {error}", time.monotonic() - start


def evaluated(group, arguments: str, tasks: list, cache=None, options=None):
    """What an evaluation returns, without what differs between any two; None where another process has it."""
    results = simple_evaluate(
        model="mesa-hf",
        model_args=arguments,
        tasks=tasks,
        use_cache=None if cache is None else str(cache),
        bootstrap_iters=0,
        log_samples=True,
        **(options or {}),
    )
    return results and {name: results[name] for name in ("results", "samples", "n-samples", "configs", "versions")}
