"""Where models and data come from; nothing here knows of IA2."""
