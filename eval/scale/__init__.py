"""Episodes on many cores: in this process, in processes beside it, on a Ray cluster, or a share of them."""
