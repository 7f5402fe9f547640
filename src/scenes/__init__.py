"""The drawn world: its scenes, captions that are true of them, and what is true of a caption."""
