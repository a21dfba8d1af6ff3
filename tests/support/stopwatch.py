import os


def cpu_seconds() -> float:
    """What this process and those it waited for have computed: a machine that others share does not change it."""
    return sum(os.times()[:4])
