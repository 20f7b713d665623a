"""``python -m krzem.train run.toml``, as torchrun and Slurm start it."""

from __future__ import annotations

from krzem.train.command import train_command

train_command()
