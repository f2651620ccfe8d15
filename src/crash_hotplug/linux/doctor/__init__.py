"""Reading what handles hot-plug on a machine, and changing it."""
