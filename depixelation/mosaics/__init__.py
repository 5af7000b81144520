"""Pixelated areas of images: found, restored, and made to learn from."""
