"""Measures a live server, and the gateway beside its peers; soaks the gateway, and calibrates the simulator.

peers     who is measured: the gateway, other routers, no router, and the floors
install   puts a peer from PyPI into a virtual environment of its own
floor     the least that a Python server can do with a request, for scale
upstream  engines that answer at once with a fixed reply (nginx)
prompts   the bodies that are sent: the same bytes in every run
load      sends them as fast as the other side takes them (wrk)
pacer     engines that stream at a set pace, and tell when they wrote each chunk
wave      many paced streams at once: how long each chunk was on its way
process   starts and stops servers; CPU and memory of a whole process tree
net       small questions to a server on this machine
stand     the three parts: what is sent, to which engines, and what is measured
sweep     rounds x parts x routers
result    what was measured, and its medians
goals     the figures that the gateway has to reach
table     shows all that
machine   what it was measured on, and who else was busy there
record    keeps results as JSON

soak       many streams for a while: is every byte there, does memory stay flat
stream     one streamed request on a raw socket, and the tally of all
reply      reads an HTTP/1.1 response without I/O, and checks its checksum
histogram  quantiles of many durations

calibrate         fits the simulator's timing model to a live engine
calibrate_client  streamed completions, and when each of their tokens came
calibrate_engine  what an engine tells of itself
calibrate_probe   requests whose steps are known
calibrate_fit     coefficients from their times: robust, never negative
calibrate_table   shows what was found

live   any server under a workload, with the options of `vllm bench serve`; results beside each other

error  what stops a benchmark before it has a result
cli    `nebula bench`, also `python -m nebula_router.bench`
"""

from nebula_router.bench.cli import app

__all__ = ["app"]
