"""Reading a Prometheus page the way a dashboard does: by exact name."""

import httpx


def total(url: str, name: str) -> float:
    """The sum of all samples called exactly ``name`` on the page at ``url``/metrics, over all their labels.

    Raises:
        KeyError: no sample has that name, which must never read as zero.
    """
    page = httpx.get(f"{url}/metrics", trust_env=False, timeout=10).raise_for_status().text
    samples = [line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    if not samples:
        raise KeyError(name)
    return sum(float(line.rpartition("}")[2].split()[0] if "}" in line else line.split()[1]) for line in samples)
