"""Who may use the service, which jobs, and how much: authentication, API keys, job access, rate limits."""
