"""Speed and memory compared with the usual code; see docs/benchmarks.md. Not part of the product."""
