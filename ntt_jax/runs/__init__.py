"""Durable work: a folder, its lock, its records, and the jobs that fill them."""
