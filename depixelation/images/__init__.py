"""Where images come from, and how photos are written."""
