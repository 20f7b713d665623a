"""Megatron-LM and its family: placeholder until its tables are in."""

from __future__ import annotations

from krzem.jobs.registry import Reader

READERS: tuple[Reader, ...] = ()
