"""Engines place cells on workers; they know nothing of what a cell does. One file each."""
