"""Child processes that open untrusted videos: resource limits, confinement and the probe."""
