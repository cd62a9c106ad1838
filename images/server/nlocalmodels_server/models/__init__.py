"""Which models there are: the folder, their names, their headers."""
