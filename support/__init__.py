"""What every command needs. Nothing here knows what is trained, or how."""
