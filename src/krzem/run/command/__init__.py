"""The verbs of a run: ``krzem run``, ``status``, ``logs``, ``stop`` and ``probe``."""

from krzem.run.command.common import write_report
from krzem.run.command.operating import stop_command
from krzem.run.command.probing import probe_command
from krzem.run.command.running import run_command
from krzem.run.command.watching import logs_command, status_command

__all__ = ["logs_command", "probe_command", "run_command", "status_command", "stop_command",
           "write_report"]  # fmt: skip
