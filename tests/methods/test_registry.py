"""Parameters: defaults, ranges, and the messages for wrong ones."""

import dataclasses
from pathlib import Path

import pytest

import mesa_lm
from mesa_lm.errors import MethodError


class Config:
    model_type = "llama"

    def __init__(self, length=512, **options):
        self.max_position_embeddings = length
        self.__dict__.update(options)


def test_every_method_describes_itself():
    for name, method in mesa_lm.available_methods().items():
        assert method.name == name
        assert method.__doc__ and "Source:" in method.__doc__
        assert dataclasses.is_dataclass(method)
        for field in dataclasses.fields(method):
            assert field.metadata["help"]
        bound = method().resolve(Config())
        assert bound.resolve(Config()) == bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_chunck": 3}, "unknown parameter of method 'mesa' 'first_chunck'; did you mean 'first_chunk'"),
        ({"first_chunk": 0}, "first_chunk must be an integer of at least 1, found 0"),
        ({"first_chunk": "many"}, "first_chunk must be an integer of at least 1, found 'many'"),
        ({"last_chunk": 2.5}, "last_chunk must be an integer of at least 1, found 2.5"),
        ({"chunk_width": True}, "chunk_width must be an integer of at least 1, found True"),
        ({"reserve": -1}, "reserve must be an integer of at least 0, found -1"),
        ({"extrapolated_width": "wide"}, "extrapolated_width must be an integer of at least 1, found 'wide'"),
        ({"log_n": 1}, "log_n must be true or false, found 1"),
        ({"variant": "fast"}, "variant must be 'paper' or 'released', found 'fast'"),
        ({"first_chunk_cache": 5}, "first_chunk_cache has no meaning in variant 'paper'"),
        ({"variant": "released", "reweave_every": 5}, "reweave_every has no meaning in variant 'released'"),
    ],
)
def test_wrong_parameters_are_named(options, message):
    with pytest.raises(MethodError, match=message.replace("(", r"\(")):
        mesa_lm.make_method("mesa", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_chunk": 512}, "first_chunk .* must leave room in train_length=512, found 512; it may be at most 511"),
        ({"first_chunk": 300, "last_chunk": 300}, "at most train_length=512, found 300 . 300"),
        ({"chunk_width": 500}, "found 25 . 500; chunk_width may be at most 487"),
        ({"reserve": 512}, "reserve must be below train_length=512, found 512"),
        ({"last_chunk": 260}, "no extrapolated_width keeps positions inside train_length=512"),
        ({"variant": "released", "first_chunk": 256}, "must leave room in train_length=512, found 512"),
    ],
)
def test_parameters_that_do_not_fit_the_model_are_named(options, message):
    with pytest.raises(MethodError, match=message):
        mesa_lm.make_method("mesa", **options).resolve(Config())


def test_training_length_of_a_model():
    assert mesa_lm.Mesa().resolve(Config(4096)).train_length == 4096
    stretched = Config(131072, rope_parameters={"original_max_position_embeddings": 8192})
    assert mesa_lm.Mesa().resolve(stretched).train_length == 8192
    assert mesa_lm.Mesa().resolve(Config(131072, original_max_position_embeddings=4096)).train_length == 4096
    assert mesa_lm.Mesa(train_length=1000).resolve(Config(4096)).train_length == 1000
    with pytest.raises(MethodError, match="names none of .*max_position_embeddings, .*; give train_length="):
        mesa_lm.Mesa().resolve(Config(None))


def test_the_released_variant_refuses_chunks_beyond_the_training_length():
    method = mesa_lm.Mesa(variant="released", chunk_width=500).resolve(Config())
    assert method.layout(400) is None
    with pytest.raises(MethodError, match="at most train_length=512 for a prompt of 1200"):
        method.layout(1200)


@pytest.mark.parametrize("name", sorted(set(mesa_lm.available_methods()) - {"origin"}))
def test_the_documentation_lists_every_parameter(name):
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = [
        f"| `{f.name}` | {f.default} | {f.metadata['help']} |"
        for f in dataclasses.fields(mesa_lm.available_methods()[name])
    ]
    if name in ("linear", "ntk"):  # one table for both
        rows = ["| `factor` | 8.0 | `linear`: by which positions are divided; `ntk`: by which the lowest frequency"]
    assert "\n".join(rows) in text, "\n".join(rows)
