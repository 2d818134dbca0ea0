"""Parameters: defaults, ranges, and the messages for wrong ones."""

import dataclasses
import math
import re
from typing import get_args

import pytest

import mesa_lm
from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Kind
from mesa_lm.methods.descriptions import describe
from mesa_lm.methods.parameters import declared
from mesa_lm.methods.registry import METHODS


class Config:
    model_type = "llama"

    def __init__(self, length=512, **options):
        self.max_position_embeddings = length
        self.__dict__.update(options)


def test_every_method_describes_itself():
    for method in METHODS:
        assert method.__doc__ and "Source:" in method.__doc__
        assert dataclasses.is_dataclass(method)
        for field in dataclasses.fields(method):
            assert field.metadata["parameter"].text
        assert describe(method).kind in get_args(Kind), f"{method.name}: declare a kind, see adding_a_method.md"
        bound = method().bind(Config())
        assert bound.bind(Config()) == bound


def described(source, **attributes):
    return describe(type("Theirs", (), {"__doc__": f"Do.\n\nSource: {source}\n", "__module__": "theirs", **attributes}))


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("Stair PE, arXiv 2410.15859, section 4.", "https://arxiv.org/abs/2410.15859"),
        ("Su 2023, https://kexue.fm/archives/9708; rerope.py of github.com/a/b.", "https://kexue.fm/archives/9708"),
        ("x.py of github.com/soacker/Mesa-Extrapolation.", "https://github.com/soacker/Mesa-Extrapolation"),
        ("a paper to be.", None),
    ],
)
def test_the_address_of_a_source_is_found(source, url):
    assert described(source).url == url


def test_methods_of_others_need_no_kind_and_ours_do():
    assert described("none").kind == "other"
    assert described("none", kind="chunked").kind == "chunked"
    assert described("none", kind="<b>").kind == "other"
    with pytest.raises(AttributeError, match="kind"):
        described("none", __module__="mesa_lm.methods.ours")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_chunck": 3}, "unknown parameter of method 'mesa' 'first_chunck'; did you mean 'first_chunk'"),
        ({"first_chunk": 0}, "first_chunk must be an integer of at least 1, found 0"),
        ({"first_chunk": "many"}, "first_chunk must be an integer of at least 1, found 'many'"),
        ({"last_chunk": 2.5}, "last_chunk must be an integer of at least 1, found 2.5"),
        ({"chunk_width": True}, "chunk_width must be an integer of at least 1 or none, found True"),
        ({"reserve": -1}, "reserve must be an integer of at least 0, found -1"),
        ({"extrapolated_width": "wide"}, "extrapolated_width must be an integer of at least 1 or 'auto', found 'wide'"),
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
        mesa_lm.make_method("mesa", **options).bind(Config())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("infllm", {"exc_block_size": 257}, "exc_block_size must be at most n_local=256, found 257"),
        ("infllm", {"block_size": 3, "repr_topk": 4}, "repr_topk must be at most block_size=3, found 4"),
        ("reattention", {"n_local": 30}, r"chunk_size must be at most n_local - align = 22, .*, found 32"),
        ("gali", {"local_window": 512}, "local_window must be below train_length=512, found 512"),
        ("gali", {"noise": 1.0, "interpolate_logits": False}, "set interpolate_logits or leave out noise"),
    ],
)
def test_parameters_of_pieces_that_do_not_fit_are_named(name, options, message):
    with pytest.raises(MethodError, match=message):
        mesa_lm.make_method(name, **options).bind(Config())


def test_defaults_are_the_published_ones_at_the_published_lengths():
    def options(name, length):
        return mesa_lm.make_method(name).bind(Config(length)).options()

    for length, n_local in ((4096, 2048), (8192, 4096), (32768, 4096)):
        published = {"n_init": 128, "n_local": n_local, "block_size": 128, "topk": 16, "repr_topk": 4}
        published |= {"exc_block_size": 512, "chunk_size": 8192}
        assert published.items() <= options("infllm", length).items()
    published = {"n_init": 32, "n_local": 4096, "span": 32, "topk": 4, "chunk_size": 512, "align": 128}
    assert (published | {"recall_clip": 127}).items() <= options("reattention", 8192).items()
    for length in (2048, 4096, 8192):
        assert {"chunk_size": 3000, "local_window": 128}.items() <= options("gali", length).items()


def test_training_length_of_a_model():
    assert mesa_lm.Mesa().bind(Config(4096)).train_length == 4096
    stretched = Config(131072, rope_parameters={"original_max_position_embeddings": 8192})
    assert mesa_lm.Mesa().bind(stretched).train_length == 8192
    assert mesa_lm.Mesa().bind(Config(131072, original_max_position_embeddings=4096)).train_length == 4096
    assert mesa_lm.Mesa(train_length=1000).bind(Config(4096)).train_length == 1000
    with pytest.raises(MethodError, match="names none of .*max_position_embeddings, .*; give train_length="):
        mesa_lm.Mesa().bind(Config(None))


def test_the_released_variant_refuses_chunks_beyond_the_training_length():
    method = mesa_lm.Mesa(variant="released", chunk_width=500).bind(Config())
    assert method.layout(400) is None
    with pytest.raises(MethodError, match="at most train_length=512 for a prompt of 1200"):
        method.layout(1200)


def test_defaults_in_words_are_those_of_the_rules():
    """Formulas of T and earlier parameters, rounded down, and at least what is allowed."""
    for method in METHODS:
        for length in (7, 41, 512, 2048, 4096, 131072):
            bound = method().bind(Config(length))
            values = {"min": min, "T": length, **bound.options()}
            for name, declaration in declared(bound).items():
                if declaration.rule is None or (name == "max_gen_len" and bound.evict == "every_token"):
                    continue
                formula = re.sub(r"(\d)T", r"\1*T", declaration.shown)
                expected = max(math.floor(eval(formula, values)), int(declaration.at_least))
                assert getattr(bound, name) == expected, (method, name, length)
