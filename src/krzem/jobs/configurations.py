"""Readers of engines whose jobs are configuration files."""

from __future__ import annotations

from krzem.jobs import (
    autoexp,
    automodel,
    bridge_jobs,
    internevo,
    kempner,
    loops,
    maxtext_jobs,
    megatron_tables,
    mindformers,
    mlperf,
    nanotron,
    native,
    nemo_jobs,
    neox,
    neuron,
    primus,
    swift_megatron,
    titan_jobs,
    trainer_jobs,
)

READERS = (
    *autoexp.READERS,
    *automodel.READERS,
    *bridge_jobs.READERS,
    *internevo.READERS,
    *kempner.READERS,
    *loops.READERS,
    *maxtext_jobs.READERS,
    *megatron_tables.READERS,
    *mindformers.READERS,
    *mlperf.READERS,
    *nanotron.READERS,
    *native.READERS,
    *nemo_jobs.READERS,
    *neox.READERS,
    *neuron.READERS,
    *primus.READERS,
    *swift_megatron.READERS,
    *titan_jobs.READERS,
    *trainer_jobs.READERS,
)
