"""Speed and memory against the usual ways; see docs/benchmarks.md. Not part of the product."""
