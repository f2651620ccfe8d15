"""What rules, settings and units mean for the next hot-plug; pure."""
