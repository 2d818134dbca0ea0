"""Hold the lengths that documents were built for against what the evaluated model is sent."""

from typing import Any

from lm_eval.api.task import Task

from mesa_lm.errors import UsageError
from mesa_lm.harness.tokenizing import evaluated_encoding


def check_sent_lengths(task: Task) -> None:
    """Let a task refuse to be evaluated by a model that encodes its prompts in another number of tokens than counted.

    So it is where the task was built before the model was known, or by a tokenizer that the user named.

    Args:
        task: Changed in place. Each of its documents says its `tokens`.
    """
    build = task.build_all_requests

    def build_all_requests(**options: Any) -> None:
        build(**options)
        encoding = evaluated_encoding()
        if encoding is None:
            return
        first = task.instances[0]
        counted = first.doc.get("tokens")
        text = first.args[0] + (first.args[1] if first.request_type == "loglikelihood" else "")
        sent = encoding.count(text)
        if counted is not None and sent != counted:
            raise UsageError(
                f"{task.task_name}: its first prompt was counted as {counted} tokens, and the model is sent {sent}; "
                " load it by the model's own tokenizer, which it does by itself where metadata name none"
            )

    task.build_all_requests = build_all_requests
