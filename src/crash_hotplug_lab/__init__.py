"""Proofs of crash-hotplug: a model of the whole system, real kernels under QEMU, benchmarks.  No server needs it."""
