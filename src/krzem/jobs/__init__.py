"""The user's own job: what an engine's script or configuration decides, line by line.

:func:`krzem.jobs.reading.read_job` reads the files of a training job of any engine that is known
and gives a :class:`krzem.jobs.job.Job`: settings with the line that decided each, what was left
out as irrelevant, what was not understood, what must be asked for, and why a job cannot run.
Nothing that is read is ever executed.
"""
