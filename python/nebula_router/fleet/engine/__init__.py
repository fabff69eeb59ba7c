"""One engine on a node, from what a placement says to what the store is told.

============================  ==================================================================================
`job`                         what a node is asked to run, and what of that matters to a running engine
`engine_args`, `engine_config`  what an engine is told: flags, and the YAML of `vllm serve --config`
`command`                     the command line and environment; `container` and `sim_args` for those kinds of engine
`ports`                       ports, found and held; `port_lock` keeps the nodes of one machine apart
`process`, `engine_log`       the child and its log; `listener` tells its ports, `tie` lets it end with its parent
`probe`                       its health, its names, its metrics
`replica`                     the states of a replica, pure; `running` and `saved` are what a restart must know
`keeper`                      all of it for one replica, in the `house` that its node shares
`announcement`                its record in the store
============================  ==================================================================================
"""
