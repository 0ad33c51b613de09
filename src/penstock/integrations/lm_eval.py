"""Penstock as a model of lm-evaluation-harness (package `lm_eval`).

    python -m penstock.integrations.lm_eval run --model penstock --model_args pretrained=MODEL --tasks arc_easy

is the harness's own command line, which knows the model `penstock` then. In Python, importing this module registers it
for `lm_eval.simple_evaluate(model="penstock", model_args=...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from penstock.errors import UsageError
from penstock.llm import LLM
from penstock.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval.api.instance import Instance

MOST_NEW_TOKENS = 256
"""Where a task names no limit."""
USUAL_LENGTH = 2048
"""Tokens of a window, where neither the caller nor the model says less."""
OF_THE_HARNESS = frozenset(("batch_size", "max_batch_size", "device"))
"""Options that the harness always gives and that mean nothing here: passes are as large as memory has room for."""
KNOWN = frozenset(("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"))


@register_model("penstock")
class PenstockLM(TemplateLM):  # type: ignore[misc]
    """`pretrained`: as MODEL of `penstock run`; `max_length`: tokens of context and what follows; `memory`, `threads`,
    `kv_dtype`: as of `LLM.open`; `add_bos_token`: whether texts begin with special tokens, as the tokenizer puts them
    there by default. Raises as `LLM.open` does, and UsageError for other options."""

    def __init__(
        self,
        pretrained: str,
        max_length: int | None = None,
        memory: str | None = None,
        threads: int | None = None,
        kv_dtype: str = "bf16",
        add_bos_token: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(options.keys() - OF_THE_HARNESS):
            raise UsageError(f"The model penstock has no option {unknown[0]}.", "Leave it out.")
        self._llm = LLM.open(pretrained, memory=memory, threads=threads, kv_dtype=kv_dtype, context=max_length)
        self._tokenizer = self._llm.text_side()
        self._add_special_tokens = add_bos_token is not False
        self.max_length = min(self._llm.context, USUAL_LENGTH) if max_length is None else max_length

    def close(self) -> None:
        """Free the model."""
        self._llm.close()

    @property
    def eot_token_id(self) -> int:
        """The token that ends texts."""
        return self._special("eos_token")

    @property
    def prefix_token_id(self) -> int:
        """What a text follows that follows nothing: the token that begins texts, or else the one that ends them."""
        return self._special("bos_token", "eos_token")

    def _special(self, *roles: str) -> int:
        for role in roles:
            text = self._tokenizer.special_tokens.get(role)
            if text is not None and (token := self._tokenizer.token_id(text)) is not None:
                return token
        raise UsageError(f"The tokenizer has no {roles[0]}.", "Put its tokenizer_config.json beside tokenizer.json.")

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches of requests."""
        return str(self._llm.path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What identifies the template in the harness's caches."""
        return f"{self.tokenizer_name} {chat_template}" if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        return self._tokenizer.chat_template().render(chat_history, add_generation_prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; a text that begins with the special token already gets no other."""
        special = self._add_special_tokens if add_special_tokens is None else add_special_tokens
        bos = self._tokenizer.special_tokens.get("bos_token")
        if add_special_tokens is None and bos and string.startswith(bos):
            special = False
        return self._tokenizer.encode(string, add_special_tokens=special)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = []
        for _text, context, following in requests:
            tokens = (context + following)[-(self.max_length + 1) :]
            count = min(len(following), len(tokens) - 1)  # something has to come before
            pairs.append((tokens[:-count], tokens[-count:]))
        scorer = self._llm.scorer(pairs)
        with tqdm(total=len(pairs), desc="tokens scored", disable=disable_tqdm) as bar:
            for at in scorer.run():
                bar.total, bar.n = at.wanted, at.scored
                bar.refresh()
        told = [(score.total, score.all_greedy) for score in scorer.scores]
        for request, answer in zip(requests, told, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return told

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, each in the harness's own windows."""
        parts: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, following in map(make_disjoint_window, rolling):
                parts.append((None, context, following))
                owners.append(index)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(parts, disable_tqdm=disable_tqdm)
        for owner, (total, _) in zip(owners, scores, strict=True):
            totals[owner] += total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, those with equal parameters in passes that they share."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="answers", disable=disable_tqdm) as bar:
            for group in groups.values():
                params, most = _params(requests[group[0]].args[1])
                prompts = [self.tok_encode(requests[index].args[0])[-(self.max_length - most) :] for index in group]
                for index, output in zip(group, self._llm.generate(prompts, params), strict=True):
                    answers[index] = output.text
                    self.cache_hook.add_partial("generate_until", requests[index].args, output.text)
                bar.update(len(group))
        return answers


def _params(asked: dict[str, Any]) -> tuple[SamplingParams, int]:
    """How to draw, and how many tokens at most. Raises UsageError for parameters that are not known."""
    given = normalize_gen_kwargs(asked, MOST_NEW_TOKENS)
    if unknown := sorted(given.keys() - KNOWN):
        raise UsageError(
            f"The task asks for {unknown[0]}, which Penstock does not know.", "Change its generation_kwargs."
        )
    most = int(given["max_gen_toks"])
    params = SamplingParams(
        temperature=float(given.get("temperature", 0.0)),
        top_p=given.get("top_p"),
        top_k=given.get("top_k"),
        repetition_penalty=1.0,
        max_tokens=most,
        stop=[text for text in given.get("until", []) if text],
    )
    return params, most


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
