"""Readers of engines whose jobs are configuration files."""

from __future__ import annotations

from krzem.jobs import mindformers, neox, titan_jobs

READERS = (*mindformers.READERS, *neox.READERS, *titan_jobs.READERS)
