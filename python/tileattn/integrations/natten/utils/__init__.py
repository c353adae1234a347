"""NATTEN's helpers that are part of its interface."""
