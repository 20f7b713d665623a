"""``krzem ui`` and ``krzem mcp``: krzem in a browser, and for programs."""

from __future__ import annotations

import click


@click.command("ui")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8417, show_default=True, metavar="N",
    help="Port to listen on; 0 takes any that is free.",
)  # fmt: skip
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
    help="Address to listen on. Others than this machine's own are reached by everyone who can"
    " reach the machine and knows the key.",
)  # fmt: skip
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def ui_command(port: int, host: str, no_browser: bool) -> None:
    """Serve the what-if page: move a slider, see the answer.

    The page runs on this machine and loads nothing from elsewhere. On a login node, forward the
    port first and open the address that is printed here:

    \b
    ssh -L 8417:127.0.0.1:8417 login.cluster     on your own machine
    krzem ui --no-browser                        on the login node

    Drop a config.json onto it to plan another model, or a launch script with its log to check a
    job. Press Ctrl-C to end it.
    """
    import secrets
    import webbrowser

    from krzem.ui.server import serve

    key = secrets.token_urlsafe(18)

    def ready(found: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{found}/?key={key}"
        click.echo(f"krzem ui: {address}\n(Ctrl-C ends it)")
        if not no_browser:
            webbrowser.open(address)

    serve(host, port, key, ready)


@click.command("mcp")
def mcp_command() -> None:
    """Serve krzem's questions to programs that speak the Model Context Protocol.

    It talks over standard input and output. In the settings of an assistant:

    \b
    {"mcpServers": {"krzem": {"command": "krzem", "args": ["mcp"]}}}

    Tools: plan, explain, compare, check, devices, models, rules, fleet. Each returns the document
    that --json prints, with the answer in one sentence first.
    """
    from krzem.ui.mcp import serve

    serve()
