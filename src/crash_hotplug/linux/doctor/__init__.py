"""What a distribution set up for kdump, and changing it: udev rules, settings, units."""
