"""Where texts come from. Nothing here knows a method of the paper."""
