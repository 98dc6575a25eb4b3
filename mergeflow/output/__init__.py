"""Writing a model folder safely: shards laid out before any data exists, one rename to publish, nothing mixed.

The room knows names, dtypes, shapes and keys; it computes nothing. `layout` places tensors in shards, `staging` is
where they are written, `publish` makes them the target, `lock` says what the target was made of, `files`, `config`
and `card` are everything in a model folder that is not a weight.
"""
