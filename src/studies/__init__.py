"""A study by a registered plan: what is trained and compared is written down before anything starts."""
