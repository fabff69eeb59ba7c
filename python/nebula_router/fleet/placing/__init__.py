"""What `schedule` and `scheduler` are made of.

============  ===========================================================================================
`snapshot`    the fleet at one revision, as records
`room`        what of GPUs and ports is taken while a plan is made
`site`        the place of one replica
`autoscale`   how many replicas a pool should have by its load
`patience`    since when nodes are missing and replicas drain
`decider`     the scheduler's mind: one look at the fleet, one decision
`book`        decisions, one at a time, whoever makes them
`one_shot`    one model, placed now
============  ===========================================================================================
"""
