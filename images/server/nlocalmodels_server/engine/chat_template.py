"""Renders a conversation into a prompt, by the model's own template or a stated fallback.

A template comes out of the model's file, so it is foreign code: it runs in jinja2's immutable sandbox with a limit of time
and output. Conventions are those of Hugging Face chat templates, which GGUF files carry.
"""

from __future__ import annotations

import datetime
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.runtime
import jinja2.sandbox

MAX_RENDER_SECONDS = 5.0
MAX_PROMPT_CHARACTERS = 8 * 1024 * 1024

# For models without a template, which are base models as a rule: a transcript, the form that text on the web has.
FALLBACK_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}Assistant: {{ message.content }}\n"
    "{% else %}User: {{ message.content }}\n{% endif %}"
    "{% endfor %}Assistant:"
)
FALLBACK_STOPS = ("\nUser:",)


class TemplateError(Exception):
    """The conversation cannot be rendered; the text says why."""


class _ExpiredError(BaseException):
    """The time is over. No Exception, since Jinja catches those while it computes constants."""


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Refuses the two operators by which one step takes for ever or all memory, as no timer can end a single step."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise TemplateError("the model's chat template computes a power, which no conversation needs")
        for sequence, count in ((left, right), (right, left)):
            is_repetition = isinstance(sequence, str | list | tuple) and isinstance(count, int)
            if is_repetition and len(sequence) * count > MAX_PROMPT_CHARACTERS:
                raise TemplateError(f"the model's chat template writes more than {MAX_PROMPT_CHARACTERS} characters")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A compiled template. `is_fallback` says that the model has none of its own."""

    def __init__(self, source: str | None, bos_token: str, eos_token: str) -> None:
        """Compiles it.

        Raises:
            TemplateError: the model's template is not valid Jinja.
        """
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self.is_fallback = source is None
        self.stops = FALLBACK_STOPS if source is None else ()
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            # Compiling already computes what is constant in it.
            with _time_limit(MAX_RENDER_SECONDS):
                self._template = environment.from_string(FALLBACK_TEMPLATE if source is None else source)
        except TemplateError:
            raise
        except Exception as error:
            raise TemplateError(f"the model's chat template is not valid: {error}") from None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Returns the prompt. Must be called in the main thread, whose timer bounds it.

        Raises:
            TemplateError: the template refuses the conversation, or takes too long or too much.
        """
        parts: list[str] = []
        num_characters = 0
        try:
            with _time_limit(MAX_RENDER_SECONDS):
                for part in self._template.generate(messages=messages, add_generation_prompt=True, tools=None, **self._tokens):
                    parts.append(part)
                    num_characters += len(part)
                    if num_characters > MAX_PROMPT_CHARACTERS:
                        raise TemplateError(f"the chat template writes more than {MAX_PROMPT_CHARACTERS} characters")
        except TemplateError:
            raise
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template refuses these messages: {error}") from None
        except Exception as error:
            raise TemplateError(f"the model's chat template fails on these messages: {error}") from None
        return "".join(parts)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def expire(*_: object) -> NoReturn:
        raise _ExpiredError

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _ExpiredError:
        raise TemplateError(f"the model's chat template takes longer than {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
