"""Benchmarks: commands that print the measurements of docs/explanation/performance.md; they need the extra bench."""
