"""The lab: real kernels under QEMU, hot-plugged, crashed and compared with the truth.  Needs the ``lab`` extra."""
