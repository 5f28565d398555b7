"""Benchmarks: commands that print the figures of docs/explanation/performance.md. They need the extra ``bench``, and real time."""
