"""A Kubernetes to test against: an existing one, kind, or one node out of this machine's own processes."""
