"""What ``krzem check`` says of every configuration in a checkout of somebody else's project.

``python benchmarks/public_jobs.py CHECKOUT [PATTERN]`` reads each YAML, TOML, JSON file and script
whose path fits the pattern (a regular expression) by itself, and prints how many are read, how many
are refused with a reason, and what is left open most often. That a file is read says nothing of
whether it is read right: labelled jobs do (docs/check.md). A traceback is an error: exit code 1.

E.g. https://github.com/mosaicml/llm-foundry with ``scripts/train/(yamls|finetune_example)``,
https://github.com/Lightning-AI/litgpt with ``config_hub``, https://github.com/allenai/OLMo with
``configs/(official|tiny)``, https://github.com/snowflakedb/ArcticTraining with ``projects/``.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from krzem.errors import KrzemError
from krzem.jobs.reading import read_job

ENDINGS = {".yaml", ".yml", ".toml", ".json", ".sh", ".slurm", ".sbatch"}


def main(folder: str, pattern: str = "") -> int:
    root, counts, left = Path(folder), Counter[str](), Counter[str]()
    for file in sorted(root.rglob("*")):
        name = str(file.relative_to(root))
        if file.suffix not in ENDINGS or not file.is_file() or not re.search(pattern, name):
            continue
        try:
            job = read_job(text={name: file.read_text(encoding="utf-8", errors="replace")})
        except KrzemError as error:
            counts["refused"] += 1
            print(f"refused {name}: {str(error).splitlines()[0]}")
            continue
        except Exception as error:
            counts["traceback"] += 1
            print(f"TRACEBACK {name}: {error!r}")
            continue
        counts["read"] += 1
        left.update(line.why for line in job.not_understood)
    print(", ".join(f"{count} {what}" for what, count in counts.items()) or "no file fits")
    for why, count in left.most_common(20):
        print(f"{count:5} left open: {why}")
    return 1 if counts["traceback"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
