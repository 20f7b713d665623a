"""Text to tokens, and tokens to training samples.  Nothing here needs torch."""

from krzem.train.data.build import BuildRequest, BuildResult, build
from krzem.train.data.dataset import Batch, TokenDataset, content_hash, folder_of
from krzem.train.data.manifest import Manifest, read_manifest
from krzem.train.data.ngram import NGram
from krzem.train.data.part import Options
from krzem.train.data.records import BadRecord
from krzem.train.data.stream import Component, Places, SampleStream
from krzem.train.data.tokenizer import (
    ByteTokenizer,
    FileTokenizer,
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
)

__all__ = [
    "BadRecord",
    "Batch",
    "BuildRequest",
    "BuildResult",
    "ByteTokenizer",
    "Component",
    "FileTokenizer",
    "Manifest",
    "NGram",
    "Options",
    "Places",
    "SampleStream",
    "TokenDataset",
    "Tokenizer",
    "build",
    "check_vocabulary",
    "content_hash",
    "folder_of",
    "load_tokenizer",
    "read_manifest",
]
