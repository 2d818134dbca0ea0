"""A model of lm-eval that repeats stored responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from mesa_lm.pipelines.entry_tasks import ChatTemplate


class Replay(LM):
    """A model that gives every request the response that was stored for it."""

    def __init__(
        self,
        responses: Mapping[str, Mapping[str, Any]],
        about: Mapping[str, Any],
        truncated: int,
        chat: ChatTemplate | None = None,
    ) -> None:
        """Prepare.

        Args:
            responses: Responses by leaf and sample, as lm-eval logs them.
            about: What a shard stored about the model.
            truncated: Samples of all shards that did not reach the model whole.
            chat: Renders chats as the model did; None where prompts are none.
        """
        super().__init__()
        self._responses, self._about, self._truncated, self._chat = responses, about, truncated, chat
        self._given: Counter[tuple[str, int, int]] = Counter()
        self.tokenizer = SimpleNamespace(**about["tokenizer"])
        self.eot_token_id, self.max_length = about["eot_token_id"], about["max_length"]
        self.batch_sizes = dict(enumerate(about["batch_sizes"]))

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer whose chat template is applied."""
        name: str = self._chat.tokenizer_name if self._chat else ""
        return name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a chat as the model did."""
        assert self._chat is not None
        return self._chat.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the text of the chat template."""
        return self._chat.chat_template(chat_template) if self._chat else None

    def get_model_info(self) -> dict[str, Any]:
        """Return what the model itself said."""
        info: dict[str, Any] = self._about["model_info"]
        return {**info, "mesa_lm": {**info["mesa_lm"], "truncated_samples": self._truncated}}

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """Return the stored responses, whatever kind of request they are of."""
        found = []
        for request in requests:
            leaf, sample, index = str(request.task_name), int(request.doc_id or 0), request.idx
            repeat = self._given[leaf, sample, index]
            self._given[leaf, sample, index] += 1
            response = self._responses[leaf][str(sample)][index][repeat]
            found.append(tuple(response) if isinstance(response, list) else response)
        return found

    loglikelihood = loglikelihood_rolling = generate_until
