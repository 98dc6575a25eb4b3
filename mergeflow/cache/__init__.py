"""What is already computed: a content-addressed store of tensors and small records, readable by any zarr v3 reader.

`store.Cache` looks keys up, reads and writes; `care` counts and clears; `place` says where a cache lies by default;
`arrays` opens an entry as a zarr array. Knows keys, not recipes.
"""
