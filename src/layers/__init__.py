"""Bricks used by several rooms: attention, key/value cache."""
