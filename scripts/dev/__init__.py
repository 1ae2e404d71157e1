"""What `make` does: run, cluster, chat, stop, test, clean."""
