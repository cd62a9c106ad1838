"""From a request to a sequence of tokens: renders, tokenizes, and refuses what the model cannot serve."""

from __future__ import annotations

from collections.abc import Sequence

from nlocalmodels_server.engine import llama
from nlocalmodels_server.engine.chat_template import ChatTemplate, TemplateError
from nlocalmodels_server.engine.sequence import Sequence as EngineSequence
from nlocalmodels_server.engine.text import TextStream
from nlocalmodels_server.engine.tokenizing import PromptTooLongError, Tokenizing
from nlocalmodels_server.workers.protocol import GenerationRequest


class RefusedRequestError(Exception):
    """A request that this model cannot serve; `code` is OpenAI's."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Intake:
    """Turns requests into sequences."""

    def __init__(self, model: llama.Model, template: ChatTemplate, context_tokens: int) -> None:
        self._model = model
        self._template = template
        self._context_tokens = context_tokens
        self._tokenizing = Tokenizing(model, context_tokens)

    def sequence(self, request_id: int, request: GenerationRequest) -> EngineSequence:
        """Renders and tokenizes.

        Raises:
            RefusedRequestError: no tokens, too many, or a template that refuses.
        """
        stops: Sequence[str] = request.stops
        if request.prompt_tokens is not None:
            tokens = request.prompt_tokens
            highest = max(tokens, default=0)
            if highest >= self._model.num_vocab:
                raise RefusedRequestError(
                    f"prompt: token {highest} is outside of this model's vocabulary of {self._model.num_vocab}.",
                    "invalid_prompt",
                )
        elif request.messages is not None:
            try:
                text = self._template.render(request.messages)
            except TemplateError as error:
                raise RefusedRequestError(f"messages: {error}.", "invalid_messages") from None
            bos = self._model.token_text("bos")
            # Most templates write the begin token themselves; two of them would confuse the model.
            tokens = self._tokenize(text, add_special=not (bos and text.startswith(bos)))
            stops = [*stops, *self._template.stops]
        else:
            tokens = self._tokenize(request.prompt or "", add_special=True)
        outside = next((token for token, _ in request.sampling.logit_bias if token >= self._model.num_vocab), None)
        if outside is not None:
            raise RefusedRequestError(
                f"logit_bias: token {outside} is outside of this model's vocabulary of {self._model.num_vocab}.",
                "invalid_value",
            )
        if not tokens:
            raise RefusedRequestError("prompt: is empty, and this model has no begin token to start from.", "invalid_prompt")
        room = self._context_tokens - len(tokens)
        if room < 1:
            raise self._too_long(str(len(tokens)))
        wanted = room if request.max_new_tokens is None else min(room, request.max_new_tokens)
        return EngineSequence(request_id, list(tokens), wanted, request.sampling, TextStream(stops))

    def _tokenize(self, text: str, add_special: bool) -> list[int]:
        try:
            return self._tokenizing.tokenize(text, add_special)
        except PromptTooLongError as error:
            raise self._too_long(str(error)) from None

    def _too_long(self, size: str) -> RefusedRequestError:
        return RefusedRequestError(
            f"This model's context is {self._context_tokens} tokens, but the request has {size} in its prompt; "
            "shorten it, or raise CONTEXT_TOKENS on the server.",
            "context_length_exceeded",
        )
