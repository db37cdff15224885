"""How a model is found, loaded and run. Nothing here knows a method of the paper."""

from support import hub  # noqa: F401, its settings count if they come before huggingface_hub
