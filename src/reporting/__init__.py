"""What ``src.report`` puts on its page: plots, tables, the gallery, and the page around them."""
