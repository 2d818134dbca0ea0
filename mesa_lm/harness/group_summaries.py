"""What a length group says of its lengths together, beside lm-eval's means over them.

A group's YAML names a function by the entry `summary` of its metadata. It is given the logged samples by length in
tokens, and returns numbers by name, of which more is better; they become metrics of the group.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mesa_lm.lengths import split_length_name


def evaluated_with_summaries(evaluate: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call lm-eval's `evaluate`, and add to its results what length groups say of their lengths together.

    Args:
        evaluate: The function.
        arguments: Its arguments by name.

    Returns:
        What it returns.
    """
    groups = arguments["task_dict"].get("groups") or {}
    summaries = {name: (group.metadata or {}).get("summary") for name, group in groups.items()}
    if not any(summaries.values()):
        return evaluate(**arguments)
    results = evaluate(**{**arguments, "log_samples": True})
    if results is None:  # of several processes one has the results
        return None
    for name, summary in summaries.items():
        if summary:
            tasks = [(split_length_name(task), found) for task, found in results["samples"].items()]
            found = summary({length: samples for (group, length), samples in tasks if group == name})
            for table in ("results", "groups"):
                results[table][name].update({f"{metric},none": value for metric, value in found.items()})
            results["higher_is_better"].setdefault(name, {}).update(dict.fromkeys(found, True))
    if not arguments.get("log_samples", True):
        del results["samples"]
    return results
