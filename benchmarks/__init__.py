"""What mergeflow costs, measured: synthetic checkpoints of any size, the peer, the floor, and the page of results."""
