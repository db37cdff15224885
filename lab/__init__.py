"""What is done with many runs: sweeps, reports, plots, saved adapters, speed."""
