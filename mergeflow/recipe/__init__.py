"""What the user wrote: YAML text becomes a frozen `Recipe` that knows the line and column of each value. No tensors."""
