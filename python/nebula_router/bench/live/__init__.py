"""The live benchmark: asks a server what a workload asks, measures, keeps, compares.

ask       from its options to its exit status
options   what it can be told; the names are those of `vllm bench serve` where that has the same thing
group     `nebula bench` without a further command is this one
dataset   what is asked
pace      when it is asked
server    who is asked
document  both and the server, as the core reads them
play      a run of the core's load generator, watched
summary   what came of it, in a block like vLLM's
line      one line of JSON per run, with everything that is needed to repeat it
smoke     one request, shown
report    `nebula bench report`: results beside each other, as a table
compare   how they differ, and how sure that is
plot      pictures of that
"""
