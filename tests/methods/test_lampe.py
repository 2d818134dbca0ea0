"""What LaMPE maps to which length; its distances are those of `oracles`."""

import pytest

import mesa_lm

# remap_uselen of the published code.
PUBLISHED = """
1000    1536 1536 1536  4978
8191    1536 1536 1536  6728
8192    1283 1036 4104  6728
10000   1380 1210 4794  7249
32768   2239 4501 17829 17468
131072  2489 6204 24575 78864
200000  2489 6204 24575 82195
"""


@pytest.mark.parametrize("line", PUBLISHED.split("\n")[1:-1])
def test_published_fits_give_the_published_lengths(line):
    length, *mapped = map(int, line.split())
    for name, expected in zip(("llama2", "llama3", "mistral", "llama3.1"), mapped, strict=True):
        assert mesa_lm.make_method("lampe", map_length=name).mapped_length(length) == expected


def test_other_models_are_mapped_to_a_share_of_their_training_length():
    for length, expected in ((4096, 1536), (512, 192), (100, 37)):
        method = mesa_lm.make_method("lampe", train_length=length)
        assert [method.mapped_length(n) for n in (7, 10**6)] == [7, expected]
    assert mesa_lm.make_method("lampe", map_length=11).mapped_length(7) == 11
