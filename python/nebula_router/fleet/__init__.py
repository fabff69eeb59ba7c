"""The fleet: what is stored of it, who owns a machine's GPUs, who places models, who tells the gateways.

=================  =====================================================================================
`records`          what is stored, and under which keys
`store`            a few operations on keys; `memory` and `etcd` are its backends, `open` takes the one that is set
`follow`           a view of all keys under a prefix, whatever becomes of the store
`gpu`, `node`      a machine's GPUs; the daemon that runs engines on them
`job`, `command`   what a node is asked to run; the command line and environment of that
`keeper`           one replica on a node: `replica` is its states, `process` its engine, `announcement` its record
`vram`, `plan`     what a model needs; models x nodes -> placements, with reasons
`scheduler`        writes placements and keeps them true
`discovery`        from the store to a gateway's engines
`operations`       what people ask of a fleet: status, scale, drain, unload
=================  =====================================================================================
"""
