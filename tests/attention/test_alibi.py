"""ALiBi as two more components of queries and keys: against the bias written out in float64."""

import pytest
import torch

from mesa_lm.attention.alibi import Alibi
from mesa_lm.attention.encoding import multiply, rotate
from mesa_lm.attention.kernels import Scoring, attend

HEADS, HEAD_DIM = 3, 7
SLOPES = torch.tensor([0.5, 0.0625, 0.00390625])  # the steepest and the flattest of 8 heads, and one between


def states(length, seed):
    return torch.randn(1, HEADS, length, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def expected(query, key, value, query_pos, key_pos, scale):
    bias = -SLOPES[:, None, None].double() * (query_pos[:, None] - key_pos).double()
    scores = query.double() @ key.double().transpose(-1, -2) * scale + bias
    return scores.softmax(-1) @ value.double(), scores.logsumexp(-1)


# One rounding of slope * position in float32, twice; half precision adds that of the output.
@pytest.mark.parametrize(
    ("length", "dtype", "atol"),
    [
        (53, torch.float32, 2e-6),
        (2053, torch.float32, 1e-4),
        (16411, torch.float32, 5e-4),
        (131101, torch.float32, 5e-3),
        (131101, torch.bfloat16, 1e-2),
    ],
)
def test_attention_equals_the_written_bias(length, dtype, atol):
    query, key, value = (states(n, seed).to(dtype) for n, seed in ((5, 1), (length, 2), (length, 3)))
    encoding, scale = Alibi(SLOPES, dtype), 0.3
    positions = torch.arange(length)
    own, keys, values = encoding.enter(query, key, value, scale)
    own = rotate(own, encoding.angles(positions[None, -5:]))
    keys = rotate(keys, encoding.angles(positions[None]))
    part = attend(own, keys, values, Scoring(scale), causal=False)
    output, lse = expected(query, key, value, positions[-5:], positions, scale)
    assert encoding.leave(part.output, value).dtype == dtype
    torch.testing.assert_close(encoding.leave(part.output, value).double(), output, atol=atol, rtol=0)
    # Sums over different ranges of keys are merged by it, so it must be right in itself, too.
    torch.testing.assert_close(part.lse.double(), lse, atol=10 * atol, rtol=0)


def test_moving_a_key_equals_placing_it():
    key, value = states(11, 1), states(11, 2)
    encoding = Alibi(SLOPES, torch.float32)
    _, entered, _ = encoding.enter(key, key, value, 0.3)
    old, new = torch.arange(11)[None], torch.arange(11)[None] // 3 + 0.5
    moved = rotate(rotate(entered, encoding.angles(old)), encoding.shift(new - old))
    torch.testing.assert_close(moved, rotate(entered, encoding.angles(new)))
    cached, _ = encoding.enter_cached(key, value, torch.arange(11))
    torch.testing.assert_close(cached, rotate(entered, encoding.angles(old)))


def test_scaling_a_query_leaves_its_place():
    query = states(5, 1)
    encoding = Alibi(SLOPES, torch.float32)
    entered, _, _ = encoding.enter(query, query, query, 0.3)
    scaled = multiply(entered, torch.tensor(1.7), encoding.spared)
    torch.testing.assert_close(scaled[..., :2], entered[..., :2])
    torch.testing.assert_close(scaled[..., 2:], 1.7 * query)
