"""Without torch the tests that need it are not collected."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = []
if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = [
        f"{folder}/*" for folder in ("model", "ops", "optim", "parallel", "hf", "loop")
    ]
