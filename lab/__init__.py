"""What is done with many runs: sweeps, reports, plots, saved adapters, speed."""

from support import hub  # noqa: F401, its settings count if they come before huggingface_hub
