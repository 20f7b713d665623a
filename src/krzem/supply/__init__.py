"""What can be had and what it is good for: fleets, inverse questions, proposals.

Reading order: ``goal`` (what is asked), ``goal_file`` (how it is written), ``speed`` (what the
planner says of each pool), ``network`` (the optimisation), ``stages`` (its answer in words),
``chance`` (how sure it is), ``fleet`` (all of it together).
"""
