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
    if not any(map(_summary, groups.values())):
        return evaluate(**arguments)
    results = evaluate(**{**arguments, "log_samples": True})
    if results is not None:  # of several processes one has the results
        add_summaries(results, groups, results["samples"].__getitem__)
        if not arguments.get("log_samples", True):
            del results["samples"]
    return results


def add_summaries(results: Any, groups: Mapping[str, Any], samples: Callable[[str], Any]) -> None:
    """Add to results what length groups say of their lengths together.

    Args:
        results: As lm-eval's `evaluate` returns them; changed in place.
        groups: The groups that were evaluated, by name.
        samples: From the name of a task to its samples, as lm-eval logs them.
    """
    for name, group in groups.items():
        if summary := _summary(group):
            tasks = results["group_subtasks"][name]
            found = summary({split_length_name(task)[1]: samples(task) for task in tasks})
            for table in ("results", "groups"):
                results[table][name].update({f"{metric},none": value for metric, value in found.items()})
            results["higher_is_better"].setdefault(name, {}).update(dict.fromkeys(found, True))


def _summary(group: Any) -> Callable[..., dict[str, float]] | None:
    return (group.metadata or {}).get("summary")
