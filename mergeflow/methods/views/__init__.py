"""Views: tensors that no file holds as they are, read a range at a time from tensors that files hold.

numpy only, so that both evaluations (torch's and the native one) read the same bytes.
"""
