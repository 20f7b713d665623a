"""Hugging Face folders: weights in and out, one tensor at a time, under any layout."""

from __future__ import annotations

from krzem.train.hf.reading import import_model
from krzem.train.hf.writing import export_model

__all__ = ["export_model", "import_model"]
