"""What the gateway and the workers share: jobs, events, errors, and where both are kept."""
