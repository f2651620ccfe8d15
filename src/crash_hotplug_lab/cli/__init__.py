"""The lab as a person types it: one module a command, imported only when it is used."""
