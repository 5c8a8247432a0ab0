from __future__ import annotations

import json
from typing import Any

import pytest

from nybble.errors import NybbleError
from nybble.scoring.corpora import CATEGORIES
from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.render import Rendered, framed, plain

# Small templates in the styles of the common model families.
CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if '</think>' in message.content %}
            {{- message.content.split('</think>')[-1].lstrip('\\n') }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' ~ tool_call.function.name ~ '", "arguments": ' }}
            {%- if tool_call.function.arguments is string %}
                {{- tool_call.function.arguments }}
            {%- else %}
                {{- tool_call.function.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}
{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
"""

# Prints user and assistant turns only; concatenates arguments, so they have to be text.
SILENT = """{% for m in messages %}
{% if m.role in ['user', 'assistant'] %}[{{ m.role }}] {{ m.content }}{% generation %}
{{ eos_token }}{% endgeneration %}{% endif %}
{% endfor %}"""

STRING_ARGUMENTS = """{% if tools %}{{ tools | tojson }}{% endif %}
{% for m in messages %}
[{{ m.role }}]{{ m.content }}
{% for c in m.tool_calls or [] %}
{{ c.function.name + '(' + c.function.arguments + ')' }}
{% endfor %}
{% endfor %}"""

ALL = {"chatml": CHATML, "gemma": GEMMA, "llama3": LLAMA3, "silent": SILENT}


TEXT = Document(id="t", category="text", text="\n  One line.\n\nÄ <b> & last\n")


def call(name: str, **arguments: Any) -> dict[str, Any]:
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": "abcdefgh1", "type": "function", "function": {"name": name, "arguments": text}}


TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
TALK = Document(
    id="talk",
    category="tools",
    messages=(
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "How is Tromsø?"},
        {"role": "assistant", "content": None, "tool_calls": [call("weather", city="Tromsø")]},
        {"role": "tool", "content": '{"degrees": -3}', "tool_call_id": "abcdefgh1"},
        {"role": "assistant", "content": "It has -3 degrees."},
    ),
    tools=(TOOL,),
)


def frame(document: Document, template: str) -> Rendered:
    return framed(document, template, bos="<bos>", eos="<eos>", request="Write a text.")


def test_plain() -> None:
    assert plain(TEXT) == TEXT.text
    text = plain(TALK)
    assert text.startswith('Tools:\n[\n  {\n    "type": "function"')
    assert "\n\nSystem: Answer briefly.\n\nUser: How is Tromsø?\n\nAssistant: {" in text
    assert '{"name": "weather", "arguments": {"city": "Tromsø"}}' in text
    assert '\n\nTool: {"degrees": -3}\n\nAssistant: It has -3 degrees.\n' in text


@pytest.mark.parametrize("name", sorted(ALL))
def test_plain_text_is_framed(name: str) -> None:
    rendered = frame(TEXT, ALL[name])
    assert rendered.how == "template"
    assert TEXT.text.strip() in rendered.text
    assert rendered.text.index("Write a text.") < rendered.text.index("One line.")


def test_plain_text_is_not_stripped_by_the_framing() -> None:
    assert TEXT.text in frame(TEXT, CHATML).text


def test_text_that_the_template_would_cut() -> None:
    document = Document(id="t", category="text", text="before </think> after")
    rendered = frame(document, CHATML)
    assert document.text in rendered.text
    assert rendered.how == "template, text put in after rendering"


def test_whole_form_of_chatml() -> None:
    document = Document(
        id="c",
        category="chat",
        messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
    )
    assert frame(document, CHATML) == Rendered(
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n", "template"
    )


def test_tools_in_templates_that_know_them() -> None:
    for template in (CHATML, LLAMA3):
        rendered = frame(TALK, template)
        assert rendered.how == "template"
        assert '{"city": "Tromsø"}' in rendered.text
        assert "degrees" in rendered.text
    assert "Today Date: 01 Jan 2025" in rendered.text
    assert rendered.text.startswith("<bos>")


def test_arguments_as_text_for_templates_that_join_strings() -> None:
    rendered = frame(TALK, STRING_ARGUMENTS)
    assert rendered.how == "template"
    assert 'weather({"city": "Tromsø"})' in rendered.text


def test_refused_roles_are_written_into_the_text() -> None:
    rendered = frame(TALK, GEMMA)
    assert rendered.how == (
        "template, tools written into the text, system message written into the text"
    )
    assert '{"name": "weather", "arguments": {"city": "Tromsø"}}' in rendered.text
    assert 'Tool result: {"degrees": -3}' in rendered.text
    assert rendered.text.index("Answer briefly.") < rendered.text.index("How is Tromsø?")
    chat = Document(id="c", category="chat", messages=(TALK.messages[0], *TALK.messages[1:2]))
    assert frame(chat, GEMMA).how == "template, system message written into the text"


def test_silently_dropped_content_is_noticed() -> None:
    rendered = frame(TALK, SILENT)
    assert rendered.how != "template"
    for part in ("Answer briefly.", "weather", "Tromsø", "degrees", "It has -3 degrees."):
        assert part in rendered.text


def test_developer_and_repeated_roles() -> None:
    document = Document(
        id="d",
        category="jsonl",
        messages=(
            {"role": "developer", "content": "Be brief, please."},
            {"role": "user", "content": "one"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "three"},
        ),
    )
    assert "developer messages given as system" in frame(document, CHATML).how
    rendered = frame(document, GEMMA)
    assert rendered.how.endswith("messages of one role joined")
    assert "one\n\ntwo" in rendered.text


def test_template_that_loops_over_no_tools() -> None:
    template = "{% for t in tools %}{{ t }}{% endfor %}{{ messages[1].content }}"
    assert frame(TEXT, template).text == TEXT.text


def test_dropped_parallel_call_is_noticed() -> None:
    calls = [call("weather", city="Tromsø"), call("weather", city="Kirkenes")]
    messages = ({"role": "user", "content": "Both?"}, TALK.messages[2] | {"tool_calls": calls})
    document = Document(id="p", category="tools", messages=messages, tools=(TOOL,))
    template = CHATML.replace("in message.tool_calls", "in (message.tool_calls or [])[:1]")
    rendered = frame(document, template)
    assert rendered.how == "template, tools written into the text"
    assert "Kirkenes" in rendered.text
    assert frame(document, CHATML).how == "template"


def test_document_that_no_form_fits() -> None:
    document = Document(id="d", category="jsonl", messages=({"role": "assistant", "content": "x"},))
    with pytest.raises(NybbleError, match="must alternate"):
        frame(document, GEMMA)


def test_template_without_the_answer() -> None:
    with pytest.raises(NybbleError, match="leaves out the assistant turn"):
        frame(TEXT, "{{ messages[0].content }}")
    with pytest.raises(NybbleError, match="no, thanks"):
        frame(TEXT, "{{ raise_exception('no, thanks') }}")


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("category", ["chat", "tools", "scripts"])
def test_every_shipped_document_renders(category: str, name: str) -> None:
    for document in CATEGORIES[category].load():
        rendered = frame(document, ALL[name])
        assert rendered.how.startswith("template")
        assert rendered == frame(document, ALL[name])
        if category == "chat":
            for message in document.messages:
                assert message["content"].strip() in rendered.text
        assert plain(document)
