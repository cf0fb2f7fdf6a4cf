"""Everything that the gateway and the workers share: jobs, events, errors, settings, the store, storage, sandbox."""
