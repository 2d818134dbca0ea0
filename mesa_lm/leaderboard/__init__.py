"""A page that compares methods: ranked, with intervals, significance and what changed since an earlier run."""
