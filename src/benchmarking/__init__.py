"""What mechanisms cost beside the plain language model, the machine's limit, and other libraries."""
