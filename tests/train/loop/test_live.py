"""The panel on a terminal shows every row, each on a line of its own."""

from __future__ import annotations

import io

from rich.console import Console

from krzem.train.report import Panel, Progress


def test_the_panel_shows_loss_speed_and_memory() -> None:
    progress = Progress(tokens=1000, values={"held_out_loss": 1.25})
    record = {"step": 3, "tokens": 300, "loss": 1.5, "grad_norm": 0.5, "rate": 1e-3}
    progress.saw({**record, "tokens_per_s": 100.0, "seconds": 1.0, "memory_bytes": 2**30}, 7)
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    console.print(Panel(console, "demo").picture(progress))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert {len(line) for line in lines} == {100}
    assert "demo: step 3 of 10" in lines[0]
    assert "━" in lines[1]
    assert "loss 1.5000   held out loss 1.2500   norm 0.50   rate 1.00e-03" in lines[2]
    assert "100 tokens/s   1 s a step   memory 1 GiB" in lines[3]
    assert "30%," in lines[4]
