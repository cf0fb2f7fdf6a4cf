"""Who may use the service and how much: authentication, API keys, rate limits, access to single jobs."""
