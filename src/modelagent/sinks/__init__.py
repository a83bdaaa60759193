"""Where the updater's notes go: the log, the broker."""
