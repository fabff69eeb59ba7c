"""The fleet: what is stored of it, who owns a machine's GPUs, who places models, who tells the gateways.

=================  =====================================================================================
`records`          what is stored, and under which keys
`store`            a few operations on keys; `memory` and `etcd` are its backends, `open` takes the one that is set
`follow`           a view of all keys under a prefix, whatever becomes of the store
`gpu`, `node`      a machine's GPUs; the daemon that runs engines on them
`job`, `command`   what a node is asked to run; the command line and environment of that
`keeper`           one replica on a node: `replica` is its states, `process` its engine, `announcement` its record
`snapshot`         all of it at one revision, as records
`shape`, `vram`    a model's layers and weights by its `config.json`; what an engine needs of each GPU
`sizing`           that for a pool: by `engine_config` and `model_files`, else by the model's name
`schedule`         models x nodes -> placements, with reasons; by `site` (one replica) and `room` (what is taken)
`autoscale`        how many replicas a pool should have by its load
`book`             decisions about placements, one at a time, whoever makes them
`scheduler`        keeps placements true: `decider` is its mind, `patience` its memory
`one_shot`         places one model now; `scheduler_command`, `scheduling` and `placed` are the command around both
`discovery`        from the store to a gateway's engines
`operations`       what people ask of a fleet: status, load, scale, drain, unload; as `documents`, by `survey`
`ask`              who answers the commands of `operations_command`: a gateway, or the store; `tables` shows it
`local`            a fleet in one process, for `nebula up`; its engines are tied to it by `tie`
=================  =====================================================================================
"""
