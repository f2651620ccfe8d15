"""Full Debian guests: image, driver, judge."""
