"""Benchmarks: what a sweep costs, beside what it would cost without this project."""
