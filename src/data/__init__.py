"""Data sources: captioned pictures and documents, where they lie and in which order they come."""
