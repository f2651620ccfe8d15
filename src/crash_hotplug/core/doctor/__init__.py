"""What udev rules, settings files and systemd units mean for the next hot-plug; pure."""
