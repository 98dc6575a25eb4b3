"""Chat templates: the built-in ones, the one most models have, and whether a text can be one.

A template is Jinja over `messages` (role, content), `bos_token`, `eos_token` and `add_generation_prompt`. The built-in
ones are written here from what the formats are, not copied from any model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

ALPACA = """\
{%- set systems = messages | selectattr('role', 'equalto', 'system') | list -%}
{%- if systems -%}
{{ systems[-1]['content'] }}{{ '\\n\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{ '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}
{%- elif message['role'] == 'user_context' -%}
{{ '### Input:\\n' + message['content'] | trim + '\\n\\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ '### Response:\\n' + message['content'] | trim + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '### Response:\\n' }}
{%- endif -%}
"""

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""

MISTRAL = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] + '\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}
{%- set turns = messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) or message['role'] not in ('user', 'assistant') -%}
{{ raise_exception('after the optional system message, user and assistant must take turns') }}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
{%- else -%}
{{ ' ' + message['content'] + eos_token }}
{%- endif -%}
{%- endfor -%}
"""

EXAONE = """\
{%- if not messages or messages[0]['role'] != 'system' -%}
{{ '[|system|][|endofturn|]\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '[|' + message['role'] + '|]' + message['content'] }}
{%- if message['role'] != 'user' -%}
{{ '[|endofturn|]' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '[|assistant|]' }}
{%- endif -%}
"""

BUILT_IN: Mapping[str, str] = {
    "alpaca": ALPACA,
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "exaone": EXAONE,
}
# Tags that transformers adds to Jinja: they mark what the assistant said, and change nothing of the syntax.
_TRANSFORMERS_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def chosen_template(wish: str, templates: Iterable[str | None]) -> str | None:
    """The template that a step's `chat_template` means; None leaves the tokenizer's own.

    Args:
        wish: ``auto``, a built-in name, or a template.
        templates: those of the models, in listed order. ``auto`` is the most frequent, the first listed of equals.
    """
    if wish != "auto":
        return BUILT_IN.get(wish, wish)
    counts = Counter(text for template in templates if template is not None and (text := template.strip()))
    return counts.most_common(1)[0][0] if counts else None


def template_fault(text: str) -> str | None:
    """What is wrong with the syntax of a template; None when nothing is, or when Jinja is not installed."""
    try:
        from jinja2 import Environment, TemplateError
    except ImportError:
        return None
    try:
        # Parsed only: a template is never run here.
        Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(_TRANSFORMERS_TAGS.sub("", text))
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        return f"{error.message}" + (f" (line {line} of the template)" if line else "")
    except RecursionError:
        return "nested too deeply"
    return None
