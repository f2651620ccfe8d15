"""The whole system as an executable model, in memory and in virtual time."""
