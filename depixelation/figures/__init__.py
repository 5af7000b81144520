"""What is drawn. matplotlib is imported only when a figure is made."""
