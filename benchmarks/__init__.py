"""Ratios against limits and peers; run with `make bench`."""
