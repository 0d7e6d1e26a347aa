//! The eBPF programs by BPF_PROG_TEST_RUN: packet in, verdict and packet out. Root.
