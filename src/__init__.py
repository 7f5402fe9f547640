"""Compare vision-language fusion mechanisms under one captioner."""
