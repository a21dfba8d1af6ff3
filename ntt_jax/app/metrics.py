"""Counts for monitoring, in the text format of Prometheus."""

import threading
from collections import Counter

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Requests by route and status, their seconds, and images that were predicted. Threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds = 0.0
        self._images = 0

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count one answered request. Its route is the start of its path: names in paths would have no end."""
        route = "/".join(path.split("/")[:3]) if path.startswith("/v1/") else "page"
        with self._lock:
            if len(self._requests) >= 256 and (route, status) not in self._requests:
                route = "other"
            self._requests[route, status] += 1
            self._seconds += seconds
            self._buckets[next((b for b in _BUCKETS if seconds <= b), float("inf"))] += 1

    def images(self, count: int) -> None:
        """Count images that went through the compiled pass."""
        with self._lock:
            self._images += count

    def text(self, waiting: int) -> str:
        """All of it; waiting: images in the queue now."""
        with self._lock:
            lines = ["# TYPE ntt_jax_requests_total counter"]
            for (route, status), count in sorted(self._requests.items()):
                safe = "".join(c if c.isalnum() or c in "/_-." else "_" for c in route)
                lines.append(f'ntt_jax_requests_total{{route="{safe}",status="{status}"}} {count}')
            lines.append("# TYPE ntt_jax_request_seconds histogram")
            total = 0
            for bound in (*_BUCKETS, float("inf")):
                total += self._buckets[bound]
                name = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(f'ntt_jax_request_seconds_bucket{{le="{name}"}} {total}')
            lines += [f"ntt_jax_request_seconds_sum {self._seconds:.6f}", f"ntt_jax_request_seconds_count {total}"]
            lines += ["# TYPE ntt_jax_images_total counter", f"ntt_jax_images_total {self._images}"]
            lines += ["# TYPE ntt_jax_images_waiting gauge", f"ntt_jax_images_waiting {waiting}"]
        return "\n".join(lines) + "\n"
