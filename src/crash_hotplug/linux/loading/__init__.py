"""What changes the loaded crash image: the two system calls, loads, updates, reloads, and what they cost."""
