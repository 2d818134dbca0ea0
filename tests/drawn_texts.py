"""Where the texts of a figure stand, as matplotlib's renderer says it."""

from collections.abc import Iterator
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

TOUCH = 1.0  # pixels by which boxes may touch: letters do not fill them


def drawn_texts(figure: Figure) -> Iterator[Text]:
    """Yield every text that is seen."""
    figure.draw_without_rendering()
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    of_axes = [text for axes in figure.axes if axes.axison for text in _texts_of(axes)]
    for text in [*figure.texts, *legends, *of_axes]:
        if text.get_visible() and text.get_text().strip():
            yield text


def faults(figure: Figure) -> list[str]:
    """Say which texts leave the figure and which lie over each other."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn_texts(figure)]
    page = figure.bbox
    found = [
        f"{text!r} is cut off"
        for text, box in boxes
        if box.x0 < page.x0 - TOUCH or box.y0 < page.y0 - TOUCH or box.x1 > page.x1 + TOUCH or box.y1 > page.y1 + TOUCH
    ]
    for (text, box), (other, second) in combinations(boxes, 2):
        wide = min(box.x1, second.x1) - max(box.x0, second.x0)
        high = min(box.y1, second.y1) - max(box.y0, second.y0)
        if wide > TOUCH and high > TOUCH:
            found.append(f"{text!r} and {other!r} lie over each other")
    return found


def _texts_of(axes: Axes) -> Iterator[Text]:
    # Titles and whatever is written into the axes.
    yield from (child for child in axes.get_children() if isinstance(child, Text))
    for axis in (axes.xaxis, axes.yaxis):
        yield axis.label
        yield from _tick_labels(axis)


def _tick_labels(axis: Axis) -> Iterator[Text]:
    low, high = sorted(axis.get_view_interval())
    for minor in (False, True):
        for place, label in zip(axis.get_ticklocs(minor=minor), axis.get_ticklabels(minor=minor), strict=False):
            if low <= place <= high:
                yield label
