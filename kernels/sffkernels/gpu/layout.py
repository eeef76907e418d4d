"""Columns of the tables that host and kernel share, and the numbers of the kinds of noise."""

TENSOR_COLUMNS = 5  # address of theta, address of other, number of elements, hash of the name, kind
NUMBER_COLUMNS = 8  # parameters of the distribution, see `table.encode`
CONSTANT, UNIFORM, NORMAL, TRUNCATED = range(4)
