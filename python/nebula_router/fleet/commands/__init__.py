"""The fleet's commands.

====================  =================================================================================
`node_command`        `nebula node`
`scheduler_command`   `nebula scheduler`; `scheduling` is what it does, `placed` what it shows
`operations_command`  `nebula status`, `models`, `nodes`, `placements`, `load`, `scale`, `drain`, `unload`
`up_command`          `nebula up`; `local` is the fleet in its process
====================  =================================================================================
"""
