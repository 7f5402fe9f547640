"""What a trained captioner is asked to do, and what its answers are worth."""
