"""The verbs of a run: ``krzem run`` and those that look at a run or ask something of it."""

from krzem.run.command.common import write_report
from krzem.run.command.operating import (
    move_command,
    pause_command,
    reload_command,
    retry_command,
    stop_command,
)
from krzem.run.command.probing import probe_command
from krzem.run.command.running import run_command
from krzem.run.command.watching import gates_command, logs_command, status_command

__all__ = ["gates_command", "logs_command", "move_command", "pause_command", "probe_command",
           "reload_command", "retry_command", "run_command", "status_command", "stop_command",
           "write_report"]  # fmt: skip
