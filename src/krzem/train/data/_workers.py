"""The same function over many jobs, in this process or in several, results in order."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from krzem.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    finished: Callable[[int], None],
) -> list[Result]:
    """``function`` of every job; ``finished`` hears the number of each job as it ends.

    The first failure stops what has not begun and is raised; a worker that dies (killed, out of
    memory) becomes a DataError.
    """
    results: dict[int, Result] = {}
    if workers == 1 or len(jobs) < 2:
        for number, job in enumerate(jobs):
            results[number] = function(job)
            finished(number)
        return list(results.values())
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), _one_thread
    )
    try:
        futures = {pool.submit(function, job): number for number, job in enumerate(jobs)}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            finished(futures[future])
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process ended suddenly, most often because memory ran out; run the same "
            "command with fewer --workers (finished parts are kept)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return [results[number] for number in range(len(jobs))]


def _one_thread() -> None:
    """Workers are the parallelism: the tokenizer library must not start its own threads too."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
