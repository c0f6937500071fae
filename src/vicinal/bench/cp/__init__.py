"""`vicinal bench cp`: context parallelism by halo exchange, beside all-gather of keys and values and Ulysses."""
