"""The lm-eval model `mesa-hf`: lm-eval's `hf` with an extrapolation method and without truncation."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from typing import Any, Literal

import torch
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import ModelError
from mesa_lm.harness.gangs import check_gang
from mesa_lm.harness.lm_eval_caches import use_own_table, weights_digest
from mesa_lm.harness.model_args import (
    check_host_args,
    check_store,
    checked_quantization,
    checked_source,
    one_line_errors,
    refused_keyword,
    split_model_args,
)
from mesa_lm.harness.plugin import check_lm_eval
from mesa_lm.harness.scoring import ScoringHFLM
from mesa_lm.harness.sources import package_commit, package_digest
from mesa_lm.methods.base import Method
from mesa_lm.methods.installed import distribution_of
from mesa_lm.methods.origin import Origin
from mesa_lm.models.attach import extrapolate
from mesa_lm.models.handle import Handle
from mesa_lm.models.inspection import known_train_length
from mesa_lm.models.memory import free_bytes
from mesa_lm.models.support import check_supported

# Below lm-eval's logger, because that one alone has a handler in an lm_eval run.
logger = logging.getLogger("lm_eval.models.mesa_hf")

HF_KEYWORDS = frozenset(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs"}

# They change no answer but by rounding.
_WITHOUT_EFFECT = frozenset({"batch_size", "max_batch_size", "device", "logits_cache", "cp_size"})


class MesaHFLM(ScoringHFLM):
    """lm-eval's `hf` running an extrapolation method.

    It differs from `hf` in this:

    * Without `pretrained` it runs the demo model that ships with the package.
    * Nothing is truncated unless `max_length` is given; samples that then do not reach the model whole are counted
      in the saved results. `loglikelihood_rolling` scores a document as one window.
    * A batch is padded under an attention mask, and only the scored positions' logits are computed, so that the
      answers depend neither on batch size nor on order. Method `origin` is exempt: it makes `hf`'s own calls, and
      its results are those of `hf` to the last bit for every request that `hf` does not truncate.
    * `batch_size=auto` tries the longest request there is, not one of `max_length` tokens.
    * An answer cache (`--use_cache`) serves the answers of the same model, method and options alone.

    Attributes:
        method: The method, bound to the model.
        handle: The attached method; None for a quantiser's own class, which runs as it is under `origin`.
    """

    def __init__(
        self,
        pretrained: Any = None,
        method: str = "mesa",
        chunk_store_gib: float | None = None,
        cp_size: int = 1,
        cache: Literal["offloaded"] | None = None,
        **kwargs: Any,
    ) -> None:
        """Load a model and attach a method to it.

        Args:
            pretrained: As for `hf`: a folder, a name on the Hugging Face hub or a model; None: the demo model.
            method: The name of the method, one of `mesa_lm.available_methods()`.
            chunk_store_gib: Memory for middle chunks that requests share, in GiB, 0 for none; None: up to an eighth
                of what is free.
            cp_size: Processes that share each prompt, for methods that cut prompts into chunks.
            cache: As for `extrapolate`.
            **kwargs: The method's parameters, and everything that `hf` accepts.

        Raises:
            MethodError: Unknown method or parameter, or a value out of range.
            ModelError: A missing model, or one on which the method cannot run. All are raised before weights load.
        """
        check_lm_eval()
        self.method, others = split_model_args(method, kwargs, HF_KEYWORDS)
        self.stock_calls = isinstance(self.method, Origin)
        check_store(chunk_store_gib)
        check_gang(cp_size, self.method, others)
        check_host_args(others)
        if others.get("token"):
            logger.warning(
                "lm-eval writes model_args into its results, the token too: HF_TOKEN is not written anywhere"
            )
        self._options = {name: repr(value) for name, value in others.items() if name not in _WITHOUT_EFFECT}
        self._quantization = checked_quantization(others)
        if pretrained is None:
            logger.info("No pretrained= given: running the demo model that ships with mesa-lm")
            pretrained = str(MODEL_PATH)
        if isinstance(pretrained, str):
            pretrained = checked_source(pretrained)
        elif not isinstance(pretrained, torch.nn.Module):
            raise ModelError(f"pretrained must be a folder, a name on the hub or a model, found {pretrained!r}")
        elif self._quantization is not None:
            raise ModelError("quantization_config works while weights are loaded; the given model is loaded already")
        if not torch.cuda.is_available():
            others.setdefault("device", "cpu")  # hf's own default fails on a machine without a GPU
        self._store_gib, self._cache_place = chunk_store_gib, cache
        self.handle: Handle | None = None
        super().__init__(pretrained=pretrained, **others)
        self.join_gang(cp_size)
        self._adopt(self.method, self._attached(self.method))

    def switch(self, method: Method) -> None:
        """Run another method from now on, with the weights that are loaded.

        Args:
            method: The method with its parameters.

        Raises:
            MethodError: Its parameters do not fit the model; the present method stays.
            ModelError: It cannot run on the model; the present method stays.
        """
        with ExitStack() as back:
            if self.handle is not None and self.handle.is_attached:
                self.handle.remove()
                back.callback(self.handle.attach)
            handle = self._attached(method)
            back.pop_all()
        self._adopt(method, handle)

    def close(self) -> None:
        """Give a loaded model its own forward back; this object answers no more requests. Again does nothing."""
        if self.handle is not None:
            self.handle.remove()

    def _attached(self, method: Method) -> Handle | None:
        """Attach a method; not `origin` to a quantiser's own class, which runs as it is."""
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        if isinstance(method, Origin) and not isinstance(base, PreTrainedModel):
            return None
        return extrapolate(self.model, method, process_group=self.gang, cache=self._cache_place)

    def _adopt(self, method: Method, handle: Handle | None) -> None:
        """Answer requests with a method that has been attached."""
        self.handle, self.stock_calls, self.share_beyond = handle, isinstance(method, Origin), None
        self.method = method if handle is None else handle.method
        if handle is None:
            return
        free = free_bytes(self.model.device) // 8 // (self.gang_size if self.model.device.type == "cpu" else 1)
        store = free if self._store_gib is None else int(self._store_gib * 2**30)
        handle.reuse_chunks(store)
        handle.on_pass = lambda tokens: self.bar.note_pass(tokens * self.gang_size)  # the others run as many
        # `hf` gives every request a call of its own, and so do all methods within the training length.
        if handle.keeps_beginnings and not self.stock_calls and self.gang is None:
            self.share_beyond = self._describe()["train_length"]

    # Loading. HFLM calls these in order: config, backend, tokenizer, model.

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        with one_line_errors("model", pretrained):
            super()._get_config(pretrained, **kwargs)
            if self._quantization is not None:
                # From here `hf` takes it.
                self._config.quantization_config = AutoQuantizationConfig.from_dict(dict(self._quantization))

    def _get_backend(self, config: Any, **kwargs: Any) -> None:
        super()._get_backend(config=config, **kwargs)
        if self.backend != "causal":
            raise ModelError(
                f"mesa-hf runs causal language models only, found {config.model_type!r}, an encoder-decoder model; "
                "use --model hf"
            )
        if not self.stock_calls:
            check_supported(config, self.method)
            self.method = self.method.bind(config)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **kwargs: Any) -> None:
        named = next((source for source in (tokenizer, pretrained) if isinstance(source, str)), "of the given model")
        with one_line_errors("tokenizer", named):
            super()._create_tokenizer(pretrained, tokenizer, **kwargs)

    def _create_model(self, pretrained: str, **kwargs: Any) -> None:
        with one_line_errors("model", pretrained), refused_keyword(self.method.name, kwargs, HF_KEYWORDS):
            super()._create_model(pretrained=pretrained, **kwargs)

    @contextmanager
    def _progress(self, what: str, count: int, disable: bool) -> Iterator[None]:
        if self.handle is not None and not self.handle.is_attached:
            raise ModelError(f"method {self.method.name!r} has been removed from the model, which would run without it")
        with super()._progress(what, count, disable):
            yield

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a chat as `hf` does.

        Raises:
            ModelError: The tokenizer has no template for it.
        """
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"apply_chat_template: the tokenizer {self.tokenizer.name_or_path!r} has no chat template; leave it out"
            )
        rendered: str = super().apply_chat_template(chat_history, add_generation_prompt)
        return rendered

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate as `hf` does.

        Raises:
            ModelError: The model cannot generate, as remote code written for earlier versions of transformers.
        """
        if not callable(getattr(self.model, "generate", None)):
            raise ModelError(
                f"{type(self.model).__name__} has no generate(), which this task needs; with the installed "
                "transformers the model's code serves only tasks that score given text"
            )
        return super().generate_until(requests, disable_tqdm)

    # Results.

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval saves about the model, with the method under `mesa_lm`.

        Its `truncated_samples` counts the samples that did not reach the model whole because of `max_length`.
        """
        info: dict[str, Any] = super().get_model_info()
        described = self._describe()
        info["mesa_lm"] = {
            **described,
            "version": version("mesa-lm"),
            **package_commit()._asdict(),
            "device": str(self.model.device),  # what was used; lm-eval saves the option
            "dtype": str(self.model.dtype),
            "truncated_samples": self.truncated_samples,
            "calibrated": self.method.is_calibrated,
        }
        return info

    def _describe(self) -> dict[str, Any]:
        """What determines an answer, beside the request."""
        parameters = asdict(self.method)
        package = distribution_of(type(self.method))
        return {
            "method": self.method.name,
            **({} if package is None else {"method_from": package}),
            "parameters": parameters,
            "train_length": parameters.get("train_length") or known_train_length(self.config),
            "pretrained": self.pretrained if isinstance(self.pretrained, str) else self.model.name_or_path,
            "max_length": self._max_length,
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take lm-eval's answer cache, whose answers it looks up by the request alone, for this model and method only.

        Args:
            cache_hook: lm-eval's access to the cache, or to none.
        """
        if cache_hook.dbdict is not None:
            identity = {
                **self._describe(),
                "options": self._options,
                "dtype": str(self.model.dtype),
                "weights": weights_digest(self.model),
                "vocabulary": sha256(repr(sorted(self.tokenizer.get_vocab().items())).encode()).hexdigest(),
                "sources": package_digest(),
                "version": version("mesa-lm"),
            }
            use_own_table(cache_hook.dbdict, identity)
            self.share_answers(cache_hook.dbdict)
        super().set_cache_hook(cache_hook)


# The start-up hook or lm-eval itself may have registered the name already; a second registration is an error there.
if "mesa-hf" not in model_registry:
    model_registry.register("mesa-hf", target=MesaHFLM)
