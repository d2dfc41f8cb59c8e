"""Tiny models in the layouts that the hosts read."""
