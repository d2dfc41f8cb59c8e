"""Model files, read without loading them."""
