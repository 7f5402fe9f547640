"""What a mechanism does inside, read off while it says a caption, and drawn."""
