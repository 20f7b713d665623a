"""How fast fleets are solved: ``python benchmarks/fleet.py [POOLS] [MONTHS]``.

Speeds are made up (planning a pool takes a second or so and is timed elsewhere): three sizes a
pool, random prices, deliveries, grants and chances, a domestic share of 40 %.
"""

from __future__ import annotations

import datetime as dt
import random
import sys
import time

from krzem.estimate import Estimate
from krzem.supply.fleet import solve
from krzem.supply.goal import Delivery, FleetGoal, Grant, Pool
from krzem.supply.optimum import cheapest
from krzem.supply.speed import Slot, Speed

START = dt.date(2027, 1, 1)
SIZES = (1024, 2048, 4096)


def made(pools: int, months: int, seed: int) -> tuple[FleetGoal, list[Slot]]:
    """A random goal and its slots."""
    rng = random.Random(seed)
    found, slots = [], []
    for p in range(pools):
        found.append(_pool(p, rng))
        days, stack = rng.uniform(200, 900), rng.choice(["cuda", "npu", "hip"])
        for k, devices in enumerate(SIZES):
            slots.append(Slot(pool=p, speed=_speed(devices, days * 0.525**k, stack, f"f{p % 4}")))
    end = dt.date(START.year + months // 12, 1 + months % 12, 1)
    goal = FleetGoal(
        model="made", pools=tuple(found), start=START, deadline=end, domestic_share=0.4
    )
    return goal, slots


def _pool(index: int, rng: random.Random) -> Pool:
    rent = rng.uniform(1, 3)
    late = Delivery(on=START + dt.timedelta(days=rng.randint(0, 400)), devices=10**9)
    grant = Grant(name="g", least=2e5, most=6e5, first=dt.date(2027, 3, 1),
                  last=dt.date(2028, 6, 1))  # fmt: skip
    return Pool(
        name=f"p{index}", given={"device": "nvidia-h800-sxm"}, sizes=SIZES,
        rent=Estimate(rent, rent, rent), deliveries=(late,) if index % 2 else (),
        domestic=index % 3 == 0, chance=rng.choice([1.0, 0.8, 0.5]),
        grants=(grant,) if index % 4 == 3 else (),
    )  # fmt: skip


def _speed(devices: int, days: float, stack: str, family: str) -> Speed:
    one = Estimate(1.0, 1.0, 1.0)
    return Speed(
        devices=devices, nodes=devices // 8, tokens=1e13, days=Estimate.lognormal(days, 0.15),
        step_seconds=one, tokens_per_s=one, mfu=one, memory_bytes=one, goodput=one, layout="",
        checkpoint_bytes=1e13, family=family, stack=stack, watts_per_device=None,
        precision="bf16", engine="made",
    )  # fmt: skip


def main() -> None:
    """Time the cheapest plan and the whole answer."""
    pools = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    months = int(sys.argv[2]) if len(sys.argv) > 2 else 24
    for seed in range(3):
        goal, slots = made(pools, months, seed)
        began = time.process_time()
        plan = cheapest(goal, slots)
        one = time.process_time() - began
        began = time.process_time()
        answer = solve(goal, slots)
        every = time.process_time() - began
        gap = f"{plan.gap:.1%}" if plan else "none"
        print(
            f"{pools} pools x {months} months, seed {seed}: cheapest {one:.1f} s (gap {gap}),"
            f" all plans {every:.1f} s, {len(answer.front)} on the front"
        )


if __name__ == "__main__":
    main()
