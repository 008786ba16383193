"""Questions asked of the records: metrics and parameters, at any revision, in a clone that holds no data."""
