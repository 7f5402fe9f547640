"""Language models opened at their seams; they know no mechanism."""
