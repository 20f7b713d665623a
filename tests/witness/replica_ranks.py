"""Ranks: ``python replica_ranks.py RANK WORLD PORT FOLDER LAYOUT``.

The first world, of many ranks, records the witness of four sequences; the later ones, of few,
record their own beside it and check against it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.witness.models import QUICK, batches, with_documents
from tests.witness.ranks import under

from krzem.witness.checking import check
from krzem.witness.recording import record
from krzem.witness.witness import read_witness, write_witness


def main() -> None:
    rank, world, port, folder, layout = sys.argv[1:6]
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", int(port), int(world), is_master=rank == "0")
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=int(world))
    model, full = under(layout, "float32"), Path(folder) / "full.json"
    batch = with_documents(batches(sequences=4))
    share = model.share(batch[0])
    found = {"rows": share.rows.tolist(), "copies": share.copies}
    if full.exists():
        verdict = check(read_witness(full), model)
        found |= {"passed": verdict.passed, "message": verdict.message,
                  "apart": list(verdict.not_compared)}  # fmt: skip
    else:
        witness = record(model, batch, settings=QUICK[:2])
        ranks = [q.stats.get("ranks") for q in witness.readings["float32"].values()]
        found |= {"ranks": max(x for x in ranks if x is not None)}
        if rank == "0":
            write_witness(witness, full)
    if rank == "0":
        print(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
