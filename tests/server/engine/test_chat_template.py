from __future__ import annotations

import pytest

from nlocalmodels_server.engine import chat_template
from nlocalmodels_server.engine.chat_template import ChatTemplate, TemplateError

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


def test_render_gives_the_template_what_hugging_face_gives_it() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    assert ChatTemplate(source, "<s>", "</s>").render(MESSAGES) == "<s>[system]Be kind.</s>[user]Hi</s>>"


def test_render_falls_back_to_a_transcript_when_the_model_has_no_template() -> None:
    template = ChatTemplate(None, "", "")
    assert template.is_fallback
    assert template.render(MESSAGES) == "Be kind.\n\nUser: Hi\nAssistant:"
    assert template.stops == ("\nUser:",)


def test_render_says_what_the_template_refuses() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", "", "")
    with pytest.raises(TemplateError, match="roles must alternate"):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_render_refuses_what_the_sandbox_forbids_or_what_fails(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source, "", "").render(MESSAGES)


def test_render_ends_a_template_that_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_RENDER_SECONDS", 0.2)
    source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateError, match=r"longer than 0\.2 s"):
        ChatTemplate(source, "", "").render(MESSAGES)


def test_render_ends_a_template_that_writes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_PROMPT_CHARACTERS", 1000)
    with pytest.raises(TemplateError, match="more than 1000 characters"):
        ChatTemplate("{% for a in range(99999) %}xxxxxxxx{% endfor %}", "", "").render(MESSAGES)


def test_chat_template_refuses_what_is_no_jinja() -> None:
    with pytest.raises(TemplateError, match="not valid"):
        ChatTemplate("{% for %}", "", "")


@pytest.mark.parametrize("source", ["{% for a in [1] %}" * 25 + "{% endfor %}" * 25, "{{ 1 // 0 }}{{ 'a' ** 2 }}{{"])
def test_template_that_does_not_compile_is_refused_in_time(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlocalmodels_server.engine.chat_template.MAX_RENDER_SECONDS", 0.5)
    with pytest.raises(TemplateError):
        ChatTemplate(source, "", "")


@pytest.mark.parametrize("source", ["{{ 'x' * 10000000000 }}", "{{ 10000000000 * [1] }}", "{% set x = 9 ** (9 ** 9) %}"])
def test_render_refuses_a_single_step_that_no_timer_could_end(source: str) -> None:
    with pytest.raises(TemplateError, match=r"characters|power"):
        ChatTemplate(source, "", "").render(MESSAGES)


def test_render_repeats_and_multiplies_within_reason() -> None:
    assert ChatTemplate("{{ '-' * 3 }}{{ 6 * 7 }}", "", "").render(MESSAGES) == "---42"
