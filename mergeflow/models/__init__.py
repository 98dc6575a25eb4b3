"""What there is to merge: a reference becomes a `Checkpoint` from file headers alone.

A local folder or a hub id is located (`locate`), opened (`open`), its headers validated before anything in them is
believed (`header`, `index`), its layers inferred from its names (`layout`), its mixture-of-experts tensors packed
(`experts`), and the digest of each tensor computed once and remembered (`digests`). No weights are read but by
`digests`, and nothing here knows a recipe's steps, a method or a graph.
"""
