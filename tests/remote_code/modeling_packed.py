"""A model as remote code ships it: one packed projection, caches as tuples, no AttentionInterface, no generation.

With `max_position_embeddings` in its config it has rotary positions, else ALiBi: Baichuan comes in these two shapes.
"""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class PackedConfig(PretrainedConfig):
    model_type = "baichuan"

    def __init__(self, vocab_size=59, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_attention_heads, self.num_hidden_layers = num_attention_heads, num_hidden_layers
        super().__init__(**kwargs)


def _get_interleave(heads):
    return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]


class RotaryEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, dim, 2).float() / dim))

    def forward(self, value, seq_len):
        angle = torch.arange(seq_len)[:, None] * self.inv_freq.float()
        return torch.cat([angle, angle], -1).cos().to(value), torch.cat([angle, angle], -1).sin().to(value)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads, self.hidden_size = config.num_attention_heads, config.hidden_size
        self.head_dim = self.hidden_size // self.num_heads
        self.W_pack = nn.Linear(self.hidden_size, 3 * self.hidden_size, bias=False)
        self.o_proj = nn.Linear(self.hidden_size, self.hidden_size, bias=False)
        self.sharper = getattr(config, "sharper", 1.0)
        if hasattr(config, "max_position_embeddings"):
            self.rotary_emb = RotaryEmbedding(self.head_dim)

    def forward(self, hidden_states, attention_mask=None, past_key_value=None, use_cache=False):
        rows, length, _ = hidden_states.shape
        packed = self.W_pack(hidden_states).view(rows, length, 3, self.num_heads, self.head_dim)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        past = 0 if past_key_value is None else past_key_value[0].shape[2]
        if hasattr(self, "rotary_emb"):
            cos, sin = (table[past:] for table in self.rotary_emb(value, past + length))
            half = self.head_dim // 2
            query, key = (s * cos + torch.cat([-s[..., half:], s[..., :half]], -1) * sin for s in (query, key))
        if past:
            key, value = (torch.cat(both, 2) for both in zip(past_key_value, (key, value), strict=True))
        scores = query @ key.transpose(2, 3) * self.sharper / self.head_dim**0.5 + attention_mask
        output = self.o_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return output, None, (key, value) if use_cache else None


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn, self.norm = Attention(config), nn.LayerNorm(config.hidden_size)
        self.mlp = nn.Sequential(nn.Linear(config.hidden_size, 37), nn.GELU(), nn.Linear(37, config.hidden_size))

    def forward(self, hidden_states, attention_mask, past_key_value, use_cache):
        attended, _, present = self.self_attn(
            self.norm(hidden_states), attention_mask=attention_mask, past_key_value=past_key_value, use_cache=use_cache
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(hidden_states), present


class PackedPreTrainedModel(PreTrainedModel):
    config_class = PackedConfig
    base_model_prefix = "model"


class PackedModel(PackedPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        if not hasattr(config, "max_position_embeddings"):
            self.get_alibi_mask = self._alibi_mask
        self.post_init()

    def _alibi_mask(self, tensor, length):
        slopes = torch.tensor(_get_interleave(self.config.num_attention_heads))
        return (slopes[:, None, None] * torch.arange(length)).to(tensor)

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        hidden = self.embed_tokens(input_ids)
        total = past + input_ids.shape[1]
        future = torch.full((total, total), torch.finfo(hidden.dtype).min).triu(1)[past:].to(hidden)
        bias = self.get_alibi_mask(hidden, total) if hasattr(self, "get_alibi_mask") else 0
        presents = []
        for i, layer in enumerate(self.layers):
            hidden, present = layer(hidden, bias + future, past_key_values and past_key_values[i], use_cache)
            presents.append(present)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=tuple(presents) if use_cache else None)


class PackedForCausalLM(PackedPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model, self.lm_head = PackedModel(config), nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False, return_dict=True):
        output = self.model(input_ids, attention_mask, past_key_values, use_cache)
        logits = self.lm_head(output.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)
