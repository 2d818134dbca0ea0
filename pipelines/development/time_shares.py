"""Tell how much of an `lm_eval` run's time the model takes.

    python -m mesa_lm.pipelines.development.time_shares --model mesa-hf --tasks passkey_long

runs `lm_eval` with these arguments in this process and prints JSON: seconds from the interpreter's start to the end,
those of the evaluation (from the loaded model on: data sets, tokenising, model, scoring) and those inside the model:
its forward and `generate`, and the output layer where that is called by itself; and the peak of the resident set, as
Linux counts it.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
from lm_eval import evaluator
from lm_eval.__main__ import cli_evaluate

from mesa_lm.harness.model import MesaHFLM
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.models.memory import status_bytes


def main() -> None:
    """Run lm_eval, and print where the time went."""
    spent = {"model": 0.0, "evaluation": 0.0}
    running: set[str] = set()

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if part in running:
                return function(*args, **kwargs)
            running.add(part)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                running.remove(part)
                spent[part] += time.perf_counter() - start

        return run

    load = MesaHFLM.__init__

    def load_timed(lm: MesaHFLM, *args: Any, **kwargs: Any) -> None:
        load(lm, *args, **kwargs)
        output_layer = lm.model.get_output_embeddings()
        for owner, name in ((lm.model, "forward"), (lm.model, "generate"), (output_layer, "forward")):
            setattr(owner, name, timed("model", getattr(owner, name)))

    setattr(MesaHFLM, "__init__", load_timed)  # noqa: B010  # mypy refuses an assignment
    setattr(TaskManager, "load", timed("evaluation", TaskManager.load))  # noqa: B010
    evaluator.evaluate = timed("evaluation", evaluator.evaluate)
    cli_evaluate()
    total = time.time() - psutil.Process().create_time()
    found = {
        "total_s": round(total, 2),
        "evaluation_s": round(spent["evaluation"], 2),
        "model_s": round(spent["model"], 2),
        "share_of_evaluation": round(spent["model"] / spent["evaluation"], 3),
        "share_of_total": round(spent["model"] / total, 3),
        "peak_gib": round(status_bytes("VmHWM") / 2**30, 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    sys.argv[0] = "lm_eval"
    main()
