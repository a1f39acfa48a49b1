"""The loop around a kernel, and what it keeps."""
