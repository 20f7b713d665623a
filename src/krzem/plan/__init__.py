"""Plans: search, ranking, intervals, the wall and the whole run.

``krzem.plan`` is this package and a function at once: ``krzem.plan("deepseek-v3", on="h800:2048")``
is :func:`krzem.api.plan`.
"""
