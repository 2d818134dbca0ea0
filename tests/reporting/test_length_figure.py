"""Pictures of a metric against length."""

from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from drawn_texts import drawn_texts, faults
from made_results import line
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesa_lm.errors import UsageError
from mesa_lm.reporting.figure_style import save_figure
from mesa_lm.reporting.length_figure import length_figure

MESA = line({512: 1.0, 1024: 0.9, 4096: 0.95})
ORIGIN = line({512: 1.0, 1024: 0.0}, method="origin")
BOTH = pd.concat([MESA, ORIGIN])
LOSS = {"metric": "nll", "stderr": 0.1, "higher_is_better": False}


def axes_of(points: pd.DataFrame, *others: pd.DataFrame) -> Axes:
    (axes,) = length_figure(points, *others).axes
    return axes


def about(figure: Figure) -> list[str]:
    """Title and subtitle."""
    return [" ".join(text.get_text().split()) for text in figure.texts]


def labels_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_axes_of_an_accuracy() -> None:
    figure = length_figure(BOTH)
    (axes,) = figure.axes

    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["512", "1k", "4k"]
    assert axes.get_ylim() == (0, 1)
    assert axes.yaxis.get_major_formatter()(0.4) == "40 %"
    assert axes.get_xlabel() == "input length (tokens)"
    assert about(figure) == [
        "passkey_long: accuracy by input length",
        "model base; 20 samples per length; bars: 95 % confidence",
    ]


def test_ticks_of_a_time_below_a_second_are_plain() -> None:
    axes = axes_of(line({512: 0.3, 1024: 0.7}, metric="prefill_s", higher_is_better=False))

    labels = axes.yaxis.get_minor_formatter().format_ticks(axes.yaxis.get_minorticklocs())
    assert {"0.3", "0.6"} < set(labels)
    assert not any("e" in label for label in labels)


def test_axes_of_a_loss() -> None:
    figure = length_figure(line({512: 3.1, 1024: 0.2}, **LOSS))
    (axes,) = figure.axes

    assert axes.get_ylabel() == "mean NLL (nats per token)"
    assert axes.get_ylim()[1] > 3.1
    assert axes.yaxis.get_major_formatter()(3.0) != "300 %"
    assert "lower is better" in about(figure)[1]


def test_a_score_between_0_and_1_is_drawn_in_percent() -> None:
    axes = axes_of(line({512: 0.973, 1024: 0.413}, metric="rouge_l", stderr=0.02))

    assert axes.get_ylabel() == "rouge l"
    assert axes.get_ylim() == (0, 1)
    for container in axes.containers:
        for segment in container[2][0].get_segments():
            assert segment[:, 1].max() <= 1


def test_lines_hold_the_values_beside_each_other() -> None:
    containers = axes_of(BOTH).containers
    lines = {str(container.get_label()): container[0] for container in containers}

    assert list(lines) == ["origin", "mesa"]
    assert list(lines["mesa"].get_ydata()) == [1.0, 0.9, 0.95]
    assert list(lines["mesa"].get_xdata()) == pytest.approx([512, 1024, 4096], rel=0.03)
    assert list(lines["origin"].get_xdata()) < list(lines["mesa"].get_xdata())
    assert lines["origin"].get_marker() != lines["mesa"].get_marker()
    assert lines["origin"].get_color() != lines["mesa"].get_color()


def test_training_length_is_marked_inside_the_axes() -> None:
    figure = length_figure(line({3000: 0.9}))
    (axes,) = figure.axes

    assert labels_of(figure) == ["mesa", "training length T = 512"]
    low, high = axes.get_xlim()
    assert low < 512 < 3000 < high


def test_unknown_training_length_and_intervals_are_not_drawn() -> None:
    figure = length_figure(line({512: 3.0}, **LOSS | {"stderr": None, "samples": None, "train_length": None}))

    assert labels_of(figure) == ["mesa"]
    assert about(figure)[1] == "model base; lower is better"


def test_models_are_told_apart() -> None:
    figure = length_figure(pd.concat([line({512: 1.0}, model="a/base"), line({512: 1.0}, model="b/base", samples=30)]))

    assert labels_of(figure)[:-1] == ["a/base: mesa", "b/base: mesa"]
    assert about(figure)[1] == "20 to 30 samples per length; bars: 95 % confidence"


@pytest.mark.parametrize(("samples", "told"), [(1, "1 repeat"), (3, "3 repeats")])
def test_repeats_are_counted_in_plain_english(samples: int, told: str) -> None:
    shared = {"task": "bench", "metric": "prefill_s", "higher_is_better": False, "samples": samples}

    assert told in about(length_figure(line({512: 1.0}, **shared)))[1].split("; ")


def test_more_lines_than_can_be_told_apart_become_a_heat_map_origin_first_then_the_best() -> None:
    scores = {"bad": 0.1, "origin": 0.0, **{f"good{index}": 0.9 for index in range(7)}}
    eight, nine = (list(scores)[1:], list(scores))
    figures = [
        length_figure(pd.concat([line({512: 1.0, 1024: scores[name]}, method=name) for name in names]))
        for names in (eight, nine)
    ]
    map_axes = figures[1].axes[0]
    rows = [label.get_text() for label in map_axes.get_yticklabels()]

    assert len(figures[0].axes[0].containers) == 8 and not map_axes.containers
    assert (rows[0], rows[-1]) == ("origin", "bad")
    assert [text.get_text() for text in map_axes.texts] == ["100", "0", *["100", "90"] * 7, "100", "10"]
    assert map_axes.lines[0].get_xdata() == [0.5, 0.5]  # T = 512 lies between the columns
    assert "in percent; dotted: training length T = 512" in about(figures[1])[1]


def test_the_heat_map_of_a_loss_is_lightest_where_it_is_low_and_says_what_ran_out_of_memory() -> None:
    kinds = {"task": "bench", "metric": "prefill_s", "higher_is_better": False}
    times = [line({512: 0.1 + index}, method=f"method{index}", **kinds) for index in range(9)]
    failed = line({1024: 1.0}, method="method3", task="bench", metric="oom", higher_is_better=False)
    (axes,) = length_figure(pd.concat(times), pd.concat([*times, failed])).axes
    (mesh,) = axes.collections
    brightness = mesh.get_facecolors()[::2, :3].sum(axis=1)

    assert list(brightness) == sorted(brightness, reverse=True)
    (oom,) = [text for text in axes.texts if text.get_text() == "OOM"]
    assert oom.get_position() == (1, axes.get_yticks()[3])


def test_dense_lengths_keep_their_labels_and_points_apart() -> None:
    lengths = {1024 * step: 1.0 for step in range(1, 17)}
    figure = length_figure(pd.concat([line(lengths, method=method) for method in ("mesa", "origin", "rerope")]))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]

    assert {"1k", "2k", "4k", "8k", "16k"} <= {label.get_text() for label in axes.get_xticklabels()}
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    places = sorted(x for container in axes.containers for x in container[0].get_xdata())
    assert places[-3] > 15.5 * 1024 > places[-4]


METHODS = [
    *("origin", "mesa", "rerope", "stair", "leaky_rerope", "self_extend", "yarn", "dual_chunk", "ntk", "dynamic_ntk"),
    *("linear", "lm_infinite", "streaming_llm", "mesa (extrapolated_width=100, weave=self_extend, reweave_every=1)"),
    *("rerope (window=256)", "x" * 90),
]
LENGTHS = [512, 1024, 2048, 3000, 4096, 8192, 131072, 1000000]


@pytest.mark.parametrize("width", [4.3, 7.0])
@pytest.mark.parametrize("lengths", [1, 2, 8])
@pytest.mark.parametrize("methods", [1, 2, 5, 8, 16])
def test_no_text_is_cut_off_or_covers_another(methods: int, lengths: int, width: float) -> None:
    values = dict.fromkeys(LENGTHS[:lengths], 0.5)
    lines = [line(values, method=method, model="org/a-model-of-7b") for method in METHODS[-methods:]]
    figure = length_figure(pd.concat(lines), width=width)

    assert faults(figure) == []
    assert min(text.get_fontsize() for text in drawn_texts(figure)) >= 10


@pytest.mark.parametrize("methods", [1, 5, 9])
def test_no_text_of_a_cost_is_cut_off_or_covers_another(methods: int) -> None:
    kinds = {"task": "bench_float32_b1", "higher_is_better": False, "samples": 1}
    times = [
        line({length: length * 3e-4 for length in LENGTHS[:6]}, method=name, metric="prefill_s", **kinds)
        for name in METHODS[:methods]
    ]
    failed = [
        line({LENGTHS[6]: 1.0, LENGTHS[7]: 1.0}, method=name, metric="oom", **kinds) for name in METHODS[:methods]
    ]

    assert faults(length_figure(pd.concat(times), pd.concat([*times, *failed]))) == []


@pytest.mark.parametrize("models", [1, 2, 5])
def test_the_axes_keep_their_room(models: int) -> None:
    lines = [line({512: 1.0, 1024: 0.0}, model=f"model-{i}", method=METHODS[-3]) for i in range(models)]
    figure = length_figure(pd.concat([*lines, line({512: 1.0}, model="model-0", method="origin")]))
    figure.draw_without_rendering()

    assert figure.axes[0].get_window_extent().height > 2.5 * figure.dpi


@pytest.mark.parametrize(
    ("suffix", "head"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
def test_draw_writes_the_same_file_again(tmp_path: Path, suffix: str, head: bytes) -> None:
    paths = [tmp_path / "new" / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        save_figure(length_figure(BOTH), path)

    assert paths[0].read_bytes().startswith(head)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("name", ["picture.gif", "picture"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"suffix '(.gif|)' \(allowed: .png, .svg, .pdf\)"):
        save_figure(length_figure(MESA), tmp_path / name)


def test_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match="cannot be written"):
        save_figure(length_figure(MESA), tmp_path / "file" / "picture.png")


def test_memory_is_drawn_in_gib_with_its_range_and_a_mark_where_it_ran_out() -> None:
    shared = {"task": "bench", "higher_is_better": False, "train_length": None}
    points = line({1024: 2**31}, metric="peak_bytes", **shared)
    others = [
        line({1024: 2**30}, metric="peak_bytes_min", **shared),
        line({1024: 2**32}, metric="peak_bytes_max", **shared),
        line({1024: 0.0, 4096: 1.0}, metric="oom", **shared),
    ]
    assert list(axes_of(points).lines[0].get_ydata()) == [2.0]
    axes = axes_of(points, pd.concat([points, *others]))
    (bar,) = axes.collections[0].get_segments()
    assert [y for _, y in bar] == [1.0, 4.0] and axes.get_ylabel() == "peak memory (GiB)"
    assert axes.get_yscale() == "log" and "OOM" in [text.get_text() for text in axes.texts]
