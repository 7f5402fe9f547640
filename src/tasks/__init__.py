"""What a captioner, or whoever else speaks of pictures, is asked to do, and what the answers are worth."""
