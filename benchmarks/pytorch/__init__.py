"""What jmeta is measured against: the same methods as a good user of PyTorch writes them."""
