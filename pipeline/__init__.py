"""The stages: plain functions from a store and parameters to a stored result."""
