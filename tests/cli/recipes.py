"""Recipes that are sound, for tests that make one thing of them wrong."""

LINEAR = """
mergeflow: 1
models: {a: ./a, b: ./b}
steps:
  soup:
    merge_method: linear
    models:
      - {model: a, parameters: {weight: 1}}
      - {model: b, parameters: {weight: 3}}
"""
TIES = """
mergeflow: 1
models: {a: ./a, b: ./b, c: ./c}
steps:
  final:
    merge_method: ties
    base_model: a
    models:
      - {model: b, parameters: {weight: 0.6, density: 0.5}}
      - {model: c, parameters: {weight: 0.4, density: 0.5}}
"""
