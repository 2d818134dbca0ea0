"""The bar moves within a long prompt, so that the time left can be told."""

import io
from contextlib import redirect_stderr

from mesa_lm.harness.progress_bar import RequestBar


def test_the_share_of_a_prompt_counts():
    bar, shown = RequestBar(), []
    with redirect_stderr(io.StringIO()) as drawn, bar.over("Generating", 4, hidden=False):
        for _ in range(2):
            bar.show_tokens(1000)
            for tokens in (100, 400, 500):
                bar.note_pass(tokens)
                shown.append(bar._bar.n)
            bar.advance()
            shown.append(bar._bar.n)
    assert shown == [0, 0.1, 0.5, 1, 1, 1.1, 1.5, 2]
    assert "tokens=" in drawn.getvalue() and "2/4" in drawn.getvalue()


def test_rows_of_a_batch_move_it_together():
    bar, shown = RequestBar(), []
    with redirect_stderr(io.StringIO()), bar.over("Scoring", 3, hidden=False):
        bar.show_tokens(100, rows=3)
        for tokens in (150, 150):
            bar.note_pass(tokens)
            shown.append(bar._bar.n)
        for _ in range(3):
            bar.advance()
            shown.append(bar._bar.n)
    assert shown == [0, 1.5, 1, 2, 3]
