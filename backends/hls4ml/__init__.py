"""hls4ml backend."""
