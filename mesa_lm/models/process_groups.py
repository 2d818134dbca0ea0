"""Which methods and models one prompt can be shared by several processes with."""

from typing import Any

import torch.distributed as dist

from mesa_lm.attention.layer_groups import Layers
from mesa_lm.attention.ranks import Ranks
from mesa_lm.errors import ModelError
from mesa_lm.methods.base import Method
from mesa_lm.methods.registry import check_cuts_prompts

# Tokens after a prompt that one process keeps before the next one does, where a method appends any number at once.
_STRETCH = 512


def ranks_of(group: dist.ProcessGroup | None, method: Method) -> Ranks | None:
    """Return the processes of a group; None where there is no other one.

    Args:
        group: Given by the user, or None.
        method: Bound to the model.

    Raises:
        MethodError: The method does not cut prompts into chunks.
        ModelError: This process is not in the group.
    """
    if group is None:
        return None
    if not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        raise ModelError(f"process_group must be a torch.distributed group with this process in it, found {group!r}")
    if dist.get_world_size(group) == 1:
        return None
    check_cuts_prompts(method, "process_group")
    return Ranks(group, method.longest_append or _STRETCH)


def refuse_windows(ranks: Ranks | None, layers: Layers, config: Any) -> None:
    """Refuse a model whose layers need the tokens just before a chunk, which another process may have.

    Args:
        ranks: The processes; None: there are none.
        layers: Of the model.
        config: Of the model.

    Raises:
        ModelError: It has layers with a sliding window.
    """
    if ranks is not None and any(group.window is not None for group in layers.groups):
        raise ModelError(
            f"model type {config.model_type!r} has layers with a sliding window here, so that its chunks cannot be "
            "shared among processes (process_group, cp_size); use one process for each prompt"
        )
