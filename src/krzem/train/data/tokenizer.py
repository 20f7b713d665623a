"""Text to token ids: bytes without any dependency, or a Hugging Face ``tokenizer.json``.

A document's tokens are followed by one *end of document* token.  Which token that is, is part of
the tokenizer here: a Hugging Face file does not say, so it is looked for in the files that usually
lie beside it and otherwise asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError, nearest, shorten
from krzem.train.data._optional import optional
from krzem.train.durable import storing, write_atomic

Ids = NDArray[np.uint32]

BYTES = "bytes"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a tokenizer's folder may hold; the first is the tokenizer itself."""
KEPT = "tokenizer"
"""Folder within a run's that holds its tokenizer's files."""
_RECORD = "record.json"


class Tokenizer(Protocol):
    """What building and reading token files needs of a tokenizer."""

    @property
    def name(self) -> str:
        """``bytes``, or the name of the tokenizer file."""

    @property
    def vocabulary(self) -> int:
        """Number of ids: one more than the largest id the tokenizer can give."""

    @property
    def end_of_document(self) -> int:
        """Id written after every document."""

    @property
    def sha256(self) -> str:
        """Hash of all that decides the ids."""

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without special tokens; one array of shape [ids] per text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; what cannot be decoded shows as the replacement character."""


class ByteTokenizer:
    """UTF-8 bytes as ids 0-255, and 256 for the end of a document."""

    name = BYTES
    vocabulary = 257
    end_of_document = 256
    sha256 = hashlib.sha256(b"krzem bytes, end of document 256").hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text; one array of shape [bytes] per text."""
        return [np.frombuffer(t.encode(), dtype=np.uint8).astype(np.uint32) for t in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; an end of document shows as a line of its own."""
        parts = (b"\n---\n" if i >= 256 else bytes((i,)) for i in ids)
        return b"".join(parts).decode(errors="replace")


class FileTokenizer:
    """A Hugging Face ``tokenizer.json``, through the ``tokenizers`` library."""

    def __init__(self, path: Path, end_of_document: str | int | None = None) -> None:
        self.path = path
        self.name = path.name
        content = _read(path)
        self._inner = _parse(path, content)
        self.vocabulary = int(self._inner.get_vocab_size(with_added_tokens=True))
        self.vocabulary = max(self.vocabulary, 1 + max(self._inner.get_vocab().values(), default=0))
        stated = end_of_document
        self.end_of_document = stated if isinstance(stated, int) else self._end(stated)
        digest = hashlib.sha256(content)
        digest.update(f"end of document {self.end_of_document}".encode())
        self.sha256 = digest.hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without special tokens; one array of shape [ids] per text."""
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, dtype=np.uint32) for e in encodings]

    def encode_with_offsets(self, text: str) -> tuple[Ids, NDArray[np.int64]]:
        """Ids of ``text``, and first and last character of each: [ids] and [ids, 2]."""
        found = self._inner.encode(text, add_special_tokens=False)
        offsets = np.array(found.offsets, dtype=np.int64).reshape(-1, 2)
        return np.array(found.ids, dtype=np.uint32), offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens included."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))

    def _end(self, asked: str | None) -> int:
        wanted = asked or _declared_end(self.path.parent)
        if wanted is None:
            raise DataError(
                f"{self.path} does not say which token ends a document; name it with --eod. "
                f"Special tokens in it: {', '.join(self._special()) or 'none'}"
            )
        found = self._inner.token_to_id(wanted)
        if found is None:
            near = nearest(wanted, self._special() or self._inner.get_vocab())
            raise DataError(
                f"{self.path} has no token {wanted!r} to end documents with; name another with "
                f"--eod, for example {', '.join(near) or ', '.join(self._special()[:6]) or 'none'}"
            )
        return int(found)

    def _special(self) -> list[str]:
        added = self._inner.get_added_tokens_decoder().values()
        return [t.content for t in added if t.special]


def load_tokenizer(name: str | Path, end_of_document: str | None = None) -> Tokenizer:
    """The tokenizer called ``name``: ``bytes``, a tokenizer file, or a folder that holds one.

    Raises DataError where the file is missing, is no tokenizer, or the end-of-document token is
    neither given nor declared in ``tokenizer_config.json`` beside it.
    """
    if str(name) == BYTES:
        if end_of_document is not None:
            raise DataError(
                "--eod names a token of a tokenizer's file; the tokenizer 'bytes' ends documents "
                "with an id of its own: leave it out"
            )
        return ByteTokenizer()
    path = Path(name)
    if path.is_dir():
        path = path / "tokenizer.json"
    return FileTokenizer(path, end_of_document)


def copy_files(source: Path, out: Path, names: Sequence[str] = TOKENIZER_FILES) -> list[str]:
    """Copy those files of a tokenizer that the folder ``source`` has; their names."""
    found = [name for name in names if (source / name).is_file()]
    for name in found:
        write_atomic(out / name, (source / name).read_bytes())
    return found


def keep_tokenizer(data: Path, name: str, end_of_document: int, run: Path) -> None:
    """Keep in the folder of a ``run`` the tokenizer that the ids in the folder ``data`` are from.

    Raises:
        StorageError: the disk does not take it.
    """
    folder = run / KEPT
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    copy_files(data, folder)
    record = {"name": name, "end_of_document": end_of_document}
    write_atomic(folder / _RECORD, json.dumps(record).encode())


def kept_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer that :func:`keep_tokenizer` kept.

    Raises:
        DataError: there is none.
    """
    folder = run / KEPT
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        name, end = str(record["name"]), int(record["end_of_document"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{run} holds no tokenizer ({error}); name one with --tokenizer: a tokenizer.json, its "
            "folder, or bytes"
        ) from error
    if name == BYTES:
        return ByteTokenizer()
    return FileTokenizer(folder / "tokenizer.json", end)


def check_vocabulary(tokenizer_vocabulary: int, model_vocabulary: int, largest_id: int) -> None:
    """Raise DataError where the model has fewer embeddings than the tokenizer has ids."""
    if tokenizer_vocabulary > model_vocabulary:
        raise DataError(
            f"the tokenizer has {tokenizer_vocabulary:,} ids (largest used: {largest_id:,}) but "
            f"the model's vocabulary is {model_vocabulary:,}: set vocab_size to "
            f"{tokenizer_vocabulary:,} or more in the model's config, or tokenise with the "
            "model's own tokenizer"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the tokenizer {path}: {error.strerror}; give a tokenizer.json, a folder "
            f"with one, or {BYTES!r} for the byte-level tokenizer"
        ) from error


def _parse(path: Path, content: bytes) -> Any:
    library = optional("tokenizers", path, "krzem[train]")
    try:
        return library.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception for any fault in the file
        raise DataError(f"{path} is not a Hugging Face tokenizer.json: {error}") from error


def _declared_end(folder: Path) -> str | None:
    """The end-of-sequence token that the configs beside a tokenizer declare, if any."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return declared_token(config, "eos_token")


def declared_token(config: object, key: str) -> str | None:
    """The token that ``key`` of a ``tokenizer_config.json`` names, by its text or in an object."""
    token = config.get(key) if isinstance(config, dict) else None
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


# Conversations as tokens: a template of the tokenizer, and which tokens the assistant wrote
# ------------------------------------------------------------------------------------------

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
