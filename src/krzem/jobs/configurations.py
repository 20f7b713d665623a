"""Readers of engines whose jobs are configuration files."""

from __future__ import annotations

from krzem.jobs import autoexp, maxtext_jobs, mindformers, neox, primus, titan_jobs

READERS = (
    *autoexp.READERS,
    *maxtext_jobs.READERS,
    *mindformers.READERS,
    *neox.READERS,
    *primus.READERS,
    *titan_jobs.READERS,
)
