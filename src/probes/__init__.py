"""What a language model is asked, to see what it knows: prose of others, facts, grammar, pictures with knowledge."""
