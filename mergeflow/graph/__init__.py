"""What must be computed: recipes and checkpoints become a graph of keyed values, and a graph becomes a plan."""
