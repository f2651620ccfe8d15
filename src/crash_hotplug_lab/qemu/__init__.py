"""Real kernels under QEMU: hot-plugged through QMP, crashed, and compared with what was there."""
