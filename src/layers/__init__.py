"""Bricks that mechanisms are built of: attention, key/value cache, resampler, pooler, level encoder."""
