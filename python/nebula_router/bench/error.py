"""What stops a benchmark before it has a result."""


class BenchError(Exception):
    """A benchmark that cannot go on, in one line that also says what to do next."""
