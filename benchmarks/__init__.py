"""Benchmarks: commands that print the figures of the README. They need the extra ``bench``, and real time."""
