"""Two specialists made from one small encoder by real training, and what they are good at. The demo merges them."""
