"""Twenty pools over two years: processor time of the cheapest and the earliest plan, on one core.

Speeds are made up (no planning), so that the solver alone is timed:
``python benchmarks/fleet_twenty.py [SEED ...]``.
"""

from __future__ import annotations

import datetime as dt
import sys
import time

import numpy as np

from krzem.estimate import Estimate
from krzem.supply.goal import Delivery, FleetGoal, Pool
from krzem.supply.optimum import cheapest, earliest
from krzem.supply.speed import Slot, Speed
from krzem.supply.verify import faults

START = dt.date(2027, 1, 1)
ONE = Estimate(1.0, 1.0, 1.0)


def question(seed: int, count: int = 20) -> tuple[FleetGoal, tuple[Slot, ...]]:
    """Pools of two sizes each with windows, prices and software drawn by ``seed``."""
    draw = np.random.default_rng(seed)
    pools, slots = [], []
    for p in range(count):
        first = START + dt.timedelta(days=int(draw.integers(0, 400)))
        rent = float(draw.uniform(0.5, 3.5))
        most = int(draw.choice([512, 1024, 2048]))
        home = bool(draw.random() < 0.35)
        pools.append(
            Pool(
                name=f"p{p}", given={"device": "nvidia-h800-sxm"}, sizes=(most // 2, most),
                rent=Estimate(rent, rent, rent), domestic=home,
                deliveries=(Delivery(on=first, devices=10**6),),
                until=first + dt.timedelta(days=int(draw.integers(100, 500))),
            )
        )  # fmt: skip
        whole = float(draw.uniform(100, 1000)) * 1024 / most
        for devices, days in ((most // 2, 1.95 * whole), (most, whole)):
            speed = Speed(
                devices=devices, nodes=devices // 8, tokens=1e13,
                days=Estimate.lognormal(days, 0.2), step_seconds=ONE, tokens_per_s=ONE, mfu=ONE,
                memory_bytes=ONE, goodput=ONE, layout="", checkpoint_bytes=1e12, family="f",
                stack="npu" if home else "cuda", watts_per_device=None, precision="bf16",
                engine="megatron-lm",
            )  # fmt: skip
            slots.append(Slot(pool=p, speed=speed))
    deadline = START + dt.timedelta(days=731)
    goal = FleetGoal(model="m", pools=tuple(pools), start=START, deadline=deadline,
                     domestic_share=0.4, budget_usd=4e7)  # fmt: skip
    return goal, tuple(slots)


def main(seeds: list[int]) -> None:
    """One line for each seed and aim."""
    for seed in seeds:
        goal, slots = question(seed)
        for solver in (cheapest, earliest):
            began = time.process_time()
            found = solver(goal, slots)
            took = time.process_time() - began
            words = "no plan"
            if found is not None:
                wrong = "" if not faults(goal, found) else f" WRONG {faults(goal, found)}"
                words = f"${found.usd / 1e6:.3f}M, done {found.finish}, gap {found.gap:.2%}{wrong}"
            print(
                f"seed {seed} {solver.__name__}: {took:.1f} s of processor time; {words}",
                flush=True,
            )


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [0, 1, 2, 3, 4])
