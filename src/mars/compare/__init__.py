"""Simulated grids: cells x policies x seeds, their bounds, their rows, their report."""
