"""Conversations as tokens: a template of the tokenizer, and which tokens the assistant wrote.

A template is Jinja, as tokenizers publish it (``chat_template`` of ``tokenizer_config.json``, or
``chat_template.jinja``).  It runs in Jinja's sandbox.  What the assistant wrote is what a message
of its adds to the text of those before it with the prompt for an answer, so templates need no marks
of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError, shorten
from krzem.train.data._optional import optional
from krzem.train.data.tokenizer import Ids, Tokenizer, declared_token

ASSISTANT = "assistant"
Message = Mapping[str, Any]


class Chat:
    """Renders and tokenises conversations.

    Raises:
        DataError: the tokenizer is no file's, or there is no template.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        path = getattr(tokenizer, "path", None)
        if path is None:
            raise DataError(
                "conversations need a tokenizer with a chat template; 'bytes' has none: name a "
                "folder with tokenizer.json and tokenizer_config.json by --tokenizer"
            )
        self.tokenizer = tokenizer
        self._names, text = _declared(path.parent)
        self._template = _compiled(text, path)

    def encode(self, messages: Sequence[Message]) -> tuple[Ids, NDArray[np.bool_]]:
        """Ids of a conversation, and which of them the assistant wrote; each of shape [ids].

        Raises:
            ValueError: the template refuses the conversation, or writes earlier messages anew when
                a later one comes, so that nobody can tell who wrote what.
        """
        text, spans = self._render(messages), []
        for i, message in enumerate(messages):
            if message["role"] == ASSISTANT:
                before = self._render(messages[:i], add_generation_prompt=True)
                after = self._render(messages[: i + 1])
                if not after.startswith(before) or not text.startswith(after):
                    raise ValueError(
                        f"the chat template writes message {i + 1} in another way alone"
                    )
                spans.append((len(before), len(after)))
        ids, offsets = self.tokenizer.encode_with_offsets(text)  # type: ignore[attr-defined]
        learned = np.zeros(len(ids), dtype=np.bool_)
        for start, stop in spans:
            learned |= (offsets[:, 0] >= start) & (offsets[:, 1] <= stop)
        return ids, learned & (offsets[:, 1] > offsets[:, 0])

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        try:
            return str(
                self._template.render(
                    messages=messages, add_generation_prompt=add_generation_prompt, **self._names
                )
            )
        except Exception as error:  # a template may raise anything
            raise ValueError(f"the chat template refuses it: {shorten(str(error))}") from error


def conversation(text: str) -> list[Message]:
    """The messages that :func:`messages_text` wrote."""
    found: list[Message] = json.loads(text)
    return found


def messages_text(record: Mapping[str, Any], field: str) -> str:
    """The list of ``{"role": …, "content": …}`` in ``field`` as one text.

    Raises:
        ValueError: there is no such list.
    """
    if field not in record:
        raise ValueError(f"no field {field!r}; fields: {shorten(', '.join(record) or 'none')}")
    value = record[field]
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {field!r} has to be a list of messages")
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} of {field!r} has no role")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"message {number} of {field!r} has no text as its content")
    if not any(message["role"] == ASSISTANT for message in value):
        raise ValueError(f"no message of {field!r} is the assistant's: nothing would be learned")
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _declared(folder: Path) -> tuple[dict[str, str], str]:
    """Special tokens by the names that templates use, and the template."""
    config: Any = {}
    file = folder / "tokenizer_config.json"
    if file.is_file():
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {file}: {error}") from error
    config = config if isinstance(config, dict) else {}
    keys = ("bos_token", "eos_token", "pad_token", "unk_token")
    names = {key: token for key in keys if (token := declared_token(config, key)) is not None}
    own = folder / "chat_template.jinja"
    text = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
    if not isinstance(text, str):
        raise DataError(
            f"{folder} has no chat template: chat_template.jinja, or chat_template in "
            "tokenizer_config.json, says how messages become text"
        )
    return names, text


@cache
def _compiled(text: str, where: Path) -> Any:
    jinja = optional("jinja2", where, "krzem[train]")
    sandbox = optional("jinja2.sandbox", where, "krzem[train]")

    class Marked(jinja.ext.Extension):  # type: ignore[name-defined,misc]
        """``{% generation %}`` marks what is the assistant's, and writes nothing itself."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja.nodes.Scope(body).set_lineno(line)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Marked, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(text)
    except jinja.TemplateError as error:
        raise DataError(f"the chat template beside {where} cannot be read: {error}") from error


def _refuse(message: str) -> None:
    raise ValueError(message)
