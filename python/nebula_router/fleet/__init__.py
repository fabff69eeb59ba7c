"""The fleet: what is stored of it, who owns a machine's GPUs, who places models, who tells the gateways.

=====================  ==================================================================================
`records`              what is stored, and under which keys
`store`                a few operations on keys; `memory` and `etcd` are its backends, `open` takes the one that is set
`follow`               a view of all keys under a prefix, whatever becomes of the store
`gpu`, `node`          a machine's GPUs; the daemon that runs engines on them, under a name that is its `claim`
`engine`               one engine on a node
`model`                what a model needs of a GPU
`schedule`             models x nodes -> placements, with reasons; pure
`scheduler`            keeps placements true; `placing` is what both are made of
`roster`, `discovery`  which endpoints get traffic; from the store to a gateway's engines
`operations`           what people ask of a fleet; `asking` is how
`commands`             the fleet's commands
`settings`, `clock`    the settings of its daemons; the time as records have it
`waiting`              waits that lose no cancellation
=====================  ==================================================================================
"""
