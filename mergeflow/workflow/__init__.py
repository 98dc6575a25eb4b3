"""The way through the rooms: from a recipe's file to models on disk, for the command line and the Python interface."""
