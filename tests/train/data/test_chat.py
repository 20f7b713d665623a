"""Conversations: ids and masks are those of ``transformers``, and so is the loss on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.configs import ALL
from tests.train.model.test_parity import oracle, ours

from krzem.errors import DataError
from krzem.train.data.build import BuildRequest, build
from krzem.train.data.dataset import TokenDataset
from krzem.train.data.part import Options
from krzem.train.data.tokenizer import Chat, load_tokenizer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('no role ' + m.role) }}{% endif %}"
    "<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one and one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "and three?"},
    {"role": "assistant", "content": "five, as you see"},
]
OTHER = [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "a"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of bytes with special tokens and a template."""
    place = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:90]
    plain = {c: i for i, c in enumerate(alphabet)}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=plain, merges=[]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"])
    model.save(str(place / "tokenizer.json"))
    config = {"eos_token": "<|end|>", "chat_template": TEMPLATE}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


def theirs(folder: Path, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|end|>"
    )
    found = fast.apply_chat_template(
        messages, chat_template=TEMPLATE, return_assistant_tokens_mask=True, return_dict=True
    )
    return found["input_ids"], found["assistant_masks"]


@pytest.mark.parametrize("messages", [TALK, OTHER])
def test_ids_and_masks_are_those_of_transformers(
    folder: Path, messages: list[dict[str, str]]
) -> None:
    ids, learned = Chat(load_tokenizer(folder)).encode(messages)
    assert (ids.tolist(), learned.astype(int).tolist()) == theirs(folder, messages)
    assert 0 < learned.sum() < len(learned)


def built(folder: Path, out: Path, lines: list[Any], **more: Any) -> TokenDataset:
    text = out.with_suffix(".jsonl")
    text.write_text("\n".join(json.dumps(line) for line in lines))
    options = Options(field="messages", chat=True)
    build(BuildRequest(sources=(text,), out=out, tokenizer=str(folder), options=options, **more))
    return TokenDataset.open(out)


def test_the_loss_is_that_of_transformers_with_masked_labels(folder: Path, tmp_path: Path) -> None:
    data = built(folder, tmp_path / "chats", [{"messages": TALK}, {"messages": OTHER}])
    assert data.is_partly_learned
    tokens = torch.from_numpy(data.take(np.array([0]), data.tokens - 1))
    expected = [theirs(folder, messages) for messages in (TALK, OTHER)]
    ids = [i for own, _ in expected for i in (*own, 90)]  # 90 ends a document
    mask = [m for _, own in expected for m in (*own, 0)]
    assert tokens.tolist() == [[i if m else -1 - i for i, m in zip(ids, mask, strict=True)]]
    config = {**ALL["llama"], "max_position_embeddings": 256}
    source = oracle("llama", config)
    labels = [i if m else -100 for i, m in zip(ids, mask, strict=True)]
    loss = source(torch.tensor([ids]), labels=torch.tensor([labels])).loss
    model = ours(config, source)
    model.targets = int((tokens[:, 1:] >= 0).sum())
    own = model(tokens)
    torch.testing.assert_close(own, loss, atol=1e-5, rtol=0)
    own.backward()
    loss.backward()
    mine = dict(model.named_parameters())
    for name, parameter in source.named_parameters():
        grad = mine[name.removeprefix("model.")].grad
        torch.testing.assert_close(grad, parameter.grad, atol=1e-5, rtol=1e-3)


def test_what_is_no_conversation_is_told_with_its_line(folder: Path, tmp_path: Path) -> None:
    lines = [
        {"messages": OTHER},
        {"messages": []},
        {"text": "a"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "only a question"}]},
        {"messages": [*OTHER, {"role": "critic", "content": "b"}]},
    ]
    data = built(folder, tmp_path / "some", lines, max_bad=1.0)
    assert data.documents == 1
    told = (data.folder / "bad-records.jsonl").read_text().splitlines()
    said = {json.loads(line)["line"]: json.loads(line)["reason"] for line in told}
    wanted = {
        2: "a list of messages",
        3: "no field 'messages'",
        4: "no text as its content",
        5: "nothing would be learned",
        6: "no role critic",
    }
    assert said.keys() == wanted.keys()
    assert all(wanted[n] in said[n] for n in wanted)


def saved(folder: Path, rows: dict[str, list[Any]], *, stream: bool = True) -> Path:
    """What ``datasets`` writes by ``save_to_disk``: Arrow files with a description beside them."""
    arrow = pytest.importorskip("pyarrow")
    folder.mkdir()
    table = arrow.table(rows)
    path = folder / "data-00000-of-00001.arrow"
    with arrow.OSFile(str(path), "wb") as file:
        make = arrow.ipc.new_stream if stream else arrow.ipc.new_file
        with make(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("stream", [True, False])
def test_saved_datasets_are_read(folder: Path, tmp_path: Path, stream: bool) -> None:
    source = saved(tmp_path / "saved", {"messages": [TALK, OTHER, OTHER]}, stream=stream)
    options = Options(field="messages", chat=True)
    build(
        BuildRequest(sources=(source,), out=tmp_path / "a", tokenizer=str(folder), options=options)
    )
    lines = [{"messages": m} for m in (TALK, OTHER, OTHER)]
    same = built(folder, tmp_path / "b", lines)
    assert TokenDataset.open(tmp_path / "a").sha256 == same.sha256
    texts = ["one", "", None, "four", "five"]
    plain = saved(tmp_path / "plain", {"text": texts}, stream=stream)
    result = build(BuildRequest(sources=(plain,), out=tmp_path / "c", max_bad=1.0))
    assert result.manifest.splits["train"].documents == 3
    assert [bad.line for bad in result.bad] == [2, 3]


def test_a_saved_dataset_that_breaks_off_is_told(tmp_path: Path) -> None:
    source = saved(tmp_path / "saved", {"text": ["a text of some length"] * 500})
    (file,) = source.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-9000])
    with pytest.raises(DataError, match=r"cannot be read from row \d+ on"):
        build(BuildRequest(sources=(source,), out=tmp_path / "a"))
    other = saved(tmp_path / "other", {"body": ["a"]})
    with pytest.raises(DataError, match="no column 'text'; columns: body"):
        build(BuildRequest(sources=(other,), out=tmp_path / "b"))


def test_a_tokenizer_without_template_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'bytes' has none"):
        Chat(load_tokenizer("bytes"))
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    with pytest.raises(DataError, match="has no chat template"):
        Chat(load_tokenizer(tmp_path, "<|end|>"))
