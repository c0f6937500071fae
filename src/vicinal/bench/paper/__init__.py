"""The sweep of the paper (arXiv 2403.04690): many random problems, every system, tables and plots from them."""
