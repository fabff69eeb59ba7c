"""`nebula simulate`: a workload and a fleet of engines in virtual time, one table per fleet, a row per policy.

```text
cli          the command
options      what it can be told, beside settings
workload     the kinds of workloads and their parameters
trace        a recorded workload: its bytes, its format
plan         what is to be found out, and the core's document for each run
explore      every fleet under each load by each policy
run          runs of the core's simulator, side by side
report       what a run gives
saturation   the fastest that a fleet keeps up with
bar          how far it is
document     all findings as one document
column       the figures that tables show
sizing       what each size of the fleet does, beside the others
table        tables for a terminal
plot         pictures
page         tables and pictures as one HTML page
files        what is written, and where
```
"""
