"""Triton kernels and their launchers: everything that imports triton, imported on first use.

Written for triton 3.6 to 3.9. Kernels run on a CPU too where TRITON_INTERPRET=1 stands in the
environment before triton is imported; tests do that in a process of their own.
"""
