"""The entry point ``krzem``: finds the verb, and turns every failure into one sentence."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from krzem.errors import KrzemError, nearest, shorten

_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """Where a verb's command is, and its line in the help of the group."""

    at: str
    """``module:attribute``."""
    help: str
    extra: str = ""
    """The extra of the distribution that its imports come with."""

    @property
    def exists(self) -> bool:
        """Whether its module is installed; looks at the file, imports nothing."""
        path = _PACKAGE.joinpath(*self.at.partition(":")[0].split(".")[1:])
        return path.with_suffix(".py").is_file() or path.joinpath("__init__.py").is_file()

    def load(self, name: str) -> click.Command:
        """Import the command; where a package is missing, KrzemError says how to install it."""
        module, _, attribute = self.at.partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            missing = error.name or "a package"
            if missing.startswith("krzem") or not self.extra:
                raise
            raise KrzemError(
                f"`krzem {name}` needs {missing}, which is not installed:"
                f" pip install 'krzem[{self.extra}]'"
            ) from None
        assert isinstance(command, click.Command)
        return command


class LazyGroup(click.Group):
    """Commands by name from ``verbs``; those whose module does not exist are not there."""

    verbs: Mapping[str, Verb] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of ``verbs``."""
        return [name for name, verb in self.verbs.items() if verb.exists]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None if there is none of that name."""
        verb = self.verbs.get(cmd_name)
        return verb.load(cmd_name) if verb is not None and verb.exists else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, written from their lines and not from their modules."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, self.verbs[name].help) for name in self.list_commands(ctx)])


VERBS = {
    "plan": Verb(
        at="krzem.cli.plan:plan_command",
        help="Best layouts, memory, days, cost and the wall of a run on a cluster.",
    ),
    "compare": Verb(at="krzem.cli.plan:compare_command", help="The same run on several clusters."),
    "explain": Verb(
        at="krzem.cli.plan:explain_command", help="One layout that you give, term by term."
    ),
    "size": Verb(
        at="krzem.cli.size:size_command",
        help="The largest model for a budget of compute, and the loss to expect.",
    ),
    "check": Verb(
        at="krzem.jobs.command:check_command",
        help="Your own job and its log: as fast as it can be, and what to change.",
    ),
    "design": Verb(
        at="krzem.cli.size:design_command",
        help="The shape of a mixture of experts that suits a cluster.",
    ),
    "ui": Verb(
        at="krzem.cli.ui:ui_command",
        help="A page in the browser that answers what-if questions.",
        extra="ui",
    ),
    "mcp": Verb(
        at="krzem.cli.ui:mcp_command", help="Tools for programs: a server of MCP.", extra="mcp"
    ),
    "accuracy": Verb(
        at="krzem.accuracy.command:accuracy_command",
        help="Predictions against measured runs: published ones or yours.",
    ),
    "devices": Verb(at="krzem.cli.catalogue:devices_command", help="The accelerators known."),
    "models": Verb(at="krzem.cli.catalogue:models_command", help="The models known."),
    "rules": Verb(at="krzem.rules.command:rules_command", help="Trade rules on accelerators."),
    "outlook": Verb(
        at="krzem.outlook.command:outlook_command", help="The compute gap and the odds."
    ),
    "fleet": Verb(
        at="krzem.supply.command:fleet_command",
        help="What to buy, rent or apply for, under rules and budgets.",
        extra="fleet",
    ),
    "infer": Verb(
        at="krzem.supply.command:infer_command",
        help="Which fleets a published run may have used.",
        extra="fleet",
    ),
    "proposal": Verb(
        at="krzem.supply.command:proposal_command",
        help="The tables that a call for computing time asks for.",
        extra="fleet",
    ),
    "probe": Verb(
        at="krzem.run.command:probe_command",
        help="Measure this machine and write a device profile.",
    ),
    "run": Verb(
        at="krzem.run.command:run_command",
        help="The whole story: pools in order of preference, gates, fallback.",
    ),
    "status": Verb(at="krzem.run.command:status_command", help="How a run is doing."),
    "logs": Verb(at="krzem.run.command:logs_command", help="What a run has written."),
    "stop": Verb(at="krzem.run.command:stop_command", help="Stop a run cleanly."),
    "pause": Verb(at="krzem.run.command:pause_command", help="Hold a run, and go on with it."),
    "move": Verb(at="krzem.run.command:move_command", help="Take a run to another of its pools."),
    "retry": Verb(at="krzem.run.command:retry_command", help="Try a repaired pool anew."),
    "reload": Verb(
        at="krzem.run.command:reload_command", help="Have a run read its run file again."
    ),
    "gates": Verb(at="krzem.run.command:gates_command", help="Try gates on past metrics."),
    "witness": Verb(
        at="krzem.witness.command:witness_command",
        help="Record what a run must reproduce, and check it on other hardware.",
        extra="train",
    ),
    "data": Verb(
        at="krzem.train.data.command:data_command",
        help="Turn text into tokens to train on.",
        extra="data",
    ),
    "train": Verb(
        at="krzem.train.command:train_command", help="Train a model here.", extra="train"
    ),
    "sample": Verb(
        at="krzem.train.command.sampling:sample_command",
        help="What the model of a checkpoint writes.",
        extra="train",
    ),
    "checkpoint": Verb(
        at="krzem.train.checkpoint.command:checkpoint_command",
        help="Look at, verify and convert checkpoints.",
        extra="train",
    ),
}
INTERRUPTED = 130
"""As shells give it: 128 and the number of the signal."""
BROKEN_PIPE = 1
"""As click gives it."""
CANNOT_WRITE = 3
"""As StorageError has it."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
"""What a write without a file name can fail of: that of standard output."""

EPILOG = """\b
Examples:
  krzem plan deepseek-v3 --on nvidia-h800-sxm:2048 --tokens 14.8T
  krzem compare deepseek-v3 --on h800:2048 --on ascend-910c:4096
  krzem explain deepseek-v3 --on h800:2048 --layout tp=1,pp=16,ep=64,mbs=1
  krzem check run.sh --log train.log --on h100
  krzem models          krzem devices h800

Every verb has --help with examples, and --json."""


def pages() -> Path:
    """The folder of the documentation: in the package, or beside the source."""
    package = Path(__file__).parents[1]
    return next(p for p in (package / "docs", package.parents[1] / "docs", package) if p.is_dir())


class Krzem(LazyGroup):
    """The verbs of krzem."""

    verbs = VERBS

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, and where the pages are that messages name (docs/json.md and others)."""
        super().format_epilog(ctx, formatter)
        formatter.write(f"\nThe pages that messages name (docs/...) are in {pages()}\n")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb asked for, or the nearest names where there is none."""
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            near = nearest(args[0], self.list_commands(ctx), 2)
            offer = f" (nearest: {', '.join(near)})" if near else ""
            raise click.UsageError(f"no such verb: {shorten(args[0], 40)!r}{offer}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    "krzem",
    cls=Krzem,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="krzem", message="%(prog)s %(version)s")
def cli() -> None:
    """Plan, run and move the pre-training of large language models.

    A run is a model, a cluster and a number of tokens. krzem searches every legal layout and says
    how long the run takes, with what memory, energy and money, as 80 % intervals, and what the
    wall is.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    _never_fail_to_print()
    try:
        result = cli.main(args=arguments, prog_name="krzem", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return _say(_usage(error), 2)
    except KrzemError as error:
        return _say(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has what it wanted.
        _write_nowhere()
        return BROKEN_PIPE
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        _write_nowhere()
        return _say(f"standard output cannot be written ({error.strerror})", CANNOT_WRITE)


def _usage(error: click.ClickException) -> str:
    """What is wrong, and where the options are described."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "krzem"
    message = " ".join(error.format_message().split())
    return f"{shorten(message, 300).rstrip('.')}. See `{path} --help`"


def _say(message: str, code: int) -> int:
    """One message on standard error, without the control characters that names may hold."""
    shown = "".join(c if c.isprintable() or c == "\n" else "�" for c in message)
    click.echo(f"krzem: error: {shown}", err=True)
    return code


def _write_nowhere() -> None:
    """Nothing may be written to a broken output on the way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _never_fail_to_print() -> None:
    """On a terminal that is not UTF-8 a bar becomes a question mark, not an error.

    Where an output is closed (``>&-``), nothing is printed on it: were its descriptor left free,
    the next file that is opened would take its number and the answer with it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
