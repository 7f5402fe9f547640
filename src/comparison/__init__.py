"""Finished runs held against one another: scores with intervals, and differences with tests."""
