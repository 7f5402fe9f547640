"""Decoding: from a step function to token ids. Knows tokens; knows neither words nor models."""
